"""Carry the files and links of a bundle's folder over to its replacement.

1. A bundle's folder may be a link: its target is replaced, and the link stays.
2. Readers follow links in the folder, even out of it; checksums protect the content.
3. Nothing is written through a link in the folder: a new file replaces the link.
4. An export keeps every link that it does not replace. A link to a file in the manifest becomes that file, because the
   file may be replaced.
5. If an export writes into a linked folder, the link becomes a folder with links to the target's entries, and the new
   files.

So an export never alters a file outside the folder, and other files in it stay readable. A file outside the manifest is
kept; an export that needs its name is refused.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Set as AbstractSet
from pathlib import Path

from vitdeploy.errors import UsageError
from vitdeploy.files.regular_file import open_regular


@dataclasses.dataclass(frozen=True)
class KeptFiles:
    """Files of a folder that its replacement keeps.

    Attributes:
        old: Folder to be replaced.
        new: Its replacement, with the new files.
        named: Files in its manifest, relative to `old`, and the manifest.
        dropped: Those of `named` that are not kept, whether `new` has them or not.
    """

    old: Path
    new: Path
    named: AbstractSet[str]
    dropped: AbstractSet[str]

    def take(self) -> None:
        """Put the kept files into `new`, as hard links, or as copies on a file system without hard links.

        Raises:
            UsageError: If `new` already has the name of a file outside the manifest, or of a folder.
            OSError: If a file cannot be written, or is a pipe or a device that cannot be linked.
        """
        self._folder(self.old, "", None)

    def _folder(self, source: Path, below: str, links: Path | None) -> None:
        """Take a folder's entries: themselves, or links into `links` if the folder was a link."""
        with os.scandir(source) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{below}{entry.name}"
                if name not in self.dropped:
                    self._entry(entry, name, None if links is None else links / entry.name)
        shutil.copystat(source, self.new / below)

    def _entry(self, entry: os.DirEntry[str], name: str, link_to: Path | None) -> None:
        place = self.new / name
        if os.path.lexists(place):
            if entry.is_dir() and place.is_dir():
                inner = Path(entry.path).readlink() if link_to is None and entry.is_symlink() else link_to
                self._folder(Path(entry.path), f"{name}/", None if inner is None else _from_inside(inner))
            elif name not in self.named or entry.is_dir() or place.is_dir():
                path = self.old / name
                message = f"the export writes {path}, which is not part of the bundle (the manifest does not name it)"
                raise UsageError(message, where=path, hint="move it away, or choose another output")
        elif link_to is not None:
            place.symlink_to(link_to, target_is_directory=entry.is_dir())
        elif entry.is_symlink():
            if name in self.named and self.old.resolve() in (file := Path(entry.path).resolve()).parents:
                link(file, place)
            else:
                place.symlink_to(Path(entry.path).readlink(), target_is_directory=entry.is_dir())
        elif entry.is_dir():
            place.mkdir()
            self._folder(Path(entry.path), f"{name}/", None)
        else:
            link(entry.path, place)


def _from_inside(link: Path) -> Path:
    """The target of a link, resolved from the folder's real path."""
    return Path(os.pardir) / link  # equals the link if that is absolute


def link(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Create a hard link to a file, or a copy on a file system without hard links.

    Raises:
        OSError: If neither is possible; a pipe or a device is not copied.
    """
    try:
        os.link(source, target)
    except OSError:
        open_regular(source).close()
        shutil.copy2(source, target)
