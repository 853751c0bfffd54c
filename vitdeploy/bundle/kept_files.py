"""Keep the files and links of a bundle's folder in the folder that replaces it.

1. The folder of a bundle may be a link: the folder that it leads to is replaced, and the link stays.
2. Links in the folder are followed by whoever reads the bundle, also out of it; checksums vouch for the content.
3. Nothing is written through a link in the folder: a file that replaces one takes the link's place.
4. An export keeps every link that it does not replace, as it is. A link to a file of the bundle that the manifest names
   becomes that file, since the file may be replaced.
5. Where an export writes into a folder that is a link, the link becomes a folder with a link to each entry of the other
   one, and the new files.

So an export never alters a file outside the folder, and other files in it can be read as before. A file that the
manifest does not name is kept; an export that would need its name is refused.
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
    """The files of a folder that its replacement keeps.

    Attributes:
        old: The folder that is to be replaced.
        new: The one that replaces it, with the new files.
        named: The files, relative to `old`, that its manifest names, and the manifest.
        dropped: Those of them that are not kept, whether `new` has them or not.
    """

    old: Path
    new: Path
    named: AbstractSet[str]
    dropped: AbstractSet[str]

    def take(self) -> None:
        """Put the kept files into `new`, by hard links, or as copies where the file system has none.

        Raises:
            UsageError: If `new` has something in the place of a file that the manifest does not name, or of a folder.
            OSError: If a file cannot be written, or is a pipe or a device that can have no second name.
        """
        self._folder(self.old, "", None)

    def _folder(self, source: Path, below: str, links: Path | None) -> None:
        """Take the entries of a folder: themselves, or links to them where the folder was one, to `links`."""
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
    """The target of a link, from a folder in its own place."""
    return Path(os.pardir) / link  # which is the link where that is absolute


def link(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make a hard link to a file, or a copy where the file system has none.

    Raises:
        OSError: If neither can be; a pipe or a device is not copied.
    """
    try:
        os.link(source, target)
    except OSError:
        open_regular(source).close()
        shutil.copy2(source, target)
