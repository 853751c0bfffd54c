"""A bundle: a Hugging Face model folder with artifacts and a manifest that vouches for every file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vitdeploy.bundle.configuration import Configuration, json_object
from vitdeploy.bundle.external_data import external_names
from vitdeploy.bundle.kept_files import KeptFiles
from vitdeploy.bundle.manifest import CONFIG, MANIFEST, NOT_RECORDED, Artifact, FileRecord, Manifest
from vitdeploy.errors import BundleChangedError, BundleError, UsageError, VitDeployError, shown
from vitdeploy.files.atomic import exclusive, replace_folder, sync
from vitdeploy.files.file_kinds import PROCESSOR_CONFIGS
from vitdeploy.files.opened import FileChangedError, FileDiffersError, VerifiedFile, opened_folder
from vitdeploy.files.regular_file import MOST_TEXT_BYTES, read_regular
from vitdeploy.files.strict_json import strict_json
from vitdeploy.specs import PixelStage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vitdeploy.files.opened import OpenedFile

F = TypeVar("F", bound="Callable[..., Any]")

MOST_TRIES = 10  # to read a bundle that is replaced meanwhile; beside exports one in 20 had to be read again


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A folder and its manifest.

    Attributes:
        path: the folder.
        manifest: what the folder vouches for.
    """

    path: Path
    manifest: Manifest
    _config: Configuration | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest in `path`; the other files are verified when they are used.

        Raises:
            BundleError: there is no bundle at `path`, or its manifest is corrupt.
        """
        folder = Path(path)
        try:
            found = (folder / MANIFEST).exists()
        except (OSError, ValueError) as exc:  # a name too long, or with a null byte
            raise BundleError(f"{folder} cannot be read as a bundle: {exc}; name another folder") from exc
        if not found:
            raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}; make one: vitdeploy export")
        try:
            content = read_regular(folder / MANIFEST)
        except OSError as exc:
            raise BundleError(f"{folder / MANIFEST} cannot be read: {exc.strerror}; export the bundle again") from exc
        data = json_object(folder / MANIFEST, content, strict_json)
        try:
            return cls(folder, Manifest.from_dict(data))
        except BundleError as exc:
            raise BundleError(f"{folder}: {exc}") from exc

    def reopened(self) -> Bundle:
        """The bundle at its place now, which holds the same model with the same image processor.

        Raises:
            BundleChangedError: it holds another.
            BundleError: as `open`.
        """
        now = Bundle.open(self.path)
        if (now.manifest.files, now.manifest.task) != (self.manifest.files, self.manifest.task):
            raise BundleChangedError(f"{self.path} was replaced by the bundle of another model; open it again")
        return now

    def read_config(self) -> Configuration:
        """Read `config.json` and the image processor's files, once: later calls return the same value.

        Raises:
            BundleError: one is missing or altered, or lies in the folder although the manifest does not name it; or
                `config.json` is not JSON.
        """
        if self._config is None:
            files = {record.path: self.read(record, MOST_TEXT_BYTES) for record in self._config_records()}
            object.__setattr__(self, "_config", Configuration.of(self.path, files, self.manifest.task))
        return cast("Configuration", self._config)

    def _config_records(self) -> list[FileRecord]:
        """Records of `config.json` and of the image processor's files, none of which lies there unrecorded."""
        records = {record.path: record for record in self.manifest.files}
        for name in (CONFIG, *PROCESSOR_CONFIGS):
            if name not in records and (self.path / name).exists():
                if self._is_replaced():
                    raise _changed(self.path)
                raise BundleError(f"{self.path / name} is not recorded in {MANIFEST}; remove it, or export again")
        if CONFIG not in records:
            raise BundleError(f"{self.path / MANIFEST} does not record {CONFIG}; export the bundle again")
        return [records[name] for name in (CONFIG, *PROCESSOR_CONFIGS) if name in records]

    @property
    def dynamic_image_size(self) -> bool:
        """Whether the model of an artifact takes images of other sizes than its own; the reference then does too."""
        models = [artifact for artifact in self.manifest.artifacts if artifact.pixels.stage is not PixelStage.DECODED]
        axes = [axis for artifact in models for spec in artifact.inputs for axis in spec.shape[1:]]
        return any(isinstance(axis, str) for axis in axes)

    def artifact(self, format: str, precision: str) -> Artifact:  # noqa: A002  (the manifest's word)
        """The artifact of that format and precision.

        Raises:
            UsageError: the bundle has none.
        """
        for artifact in self.manifest.artifacts:
            if (artifact.format, artifact.precision) == (format, precision):
                return artifact
        names = ", ".join(artifact.name for artifact in self.manifest.artifacts) or "none"
        if not isinstance(precision, str):
            raise UsageError(f"precision must be a name such as fp32, got {shown(precision)}; {self.path} has {names}")
        raise UsageError(
            f"{self.path} has no artifact {format}-{precision}, only: {names}; make it: "
            f"vitdeploy export --to {format} --precision {precision}"
        )

    @contextlib.contextmanager
    def opened(self, records: Iterable[FileRecord]) -> Iterator[tuple[OpenedFile, ...]]:
        """Files whose sizes and checksums are those of the manifest, to be read in this block.

        Each is opened once: its `handle` leads to what was hashed, whatever its name leads to meanwhile. That it was
        not written to is checked at the end of the block.

        Args:
            records: of the manifest.

        Raises:
            BundleError: a file is missing, unreadable or altered.
            BundleChangedError: the bundle was replaced since its manifest was read, or a file written to meanwhile.
        """
        with self._open(records) as files:
            yield tuple(each.file for each in files)

    @contextlib.contextmanager
    def opened_artifact(self, artifact: Artifact, *, by_name: bool = False) -> Iterator[tuple[OpenedFile, ...]]:
        """`opened` of an artifact's files; of several, by names in their folder, where the first finds the others.

        Args:
            artifact: of the manifest.
            by_name: whether the handles are to be the files' own paths, for a library that opens them again later; at
                the end of the block they are checked to lead to what was hashed.

        Raises:
            BundleError: as `opened`; or an ONNX model takes weights from a file that the manifest does not record.
        """
        with contextlib.ExitStack() as stack:
            names = None
            if by_name:
                names = {record.path: self.path / record.path for record in artifact.files}
            elif len(artifact.files) > 1:
                names = self._names_in_a_folder(artifact, stack)
            files = stack.enter_context(self._open(artifact.files, names))
            if artifact.format == "onnx":
                _check_external_data(artifact, files[0])
            yield tuple(each.file for each in files)

    def read(self, record: FileRecord, most_bytes: int | None = None) -> bytes:
        """The verified content of a file, of at most `most_bytes`.

        Raises:
            BundleError: as `opened`, or it has more.
        """
        if most_bytes is not None and record.size_bytes > most_bytes:
            raise BundleError(f"{self.path / record.path} has {record.size_bytes} bytes; at most {most_bytes} are read")
        try:
            content = read_regular(self.path / record.path, record.size_bytes)
        except OSError as exc:
            raise self._refusal(record) from exc
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise self._refusal(record)
        return content

    def verify(self) -> None:
        """Check every file that the manifest names; see `open_verified`.

        Raises:
            BundleError: as `read_config` and `opened_artifact`.
            BundleChangedError: the bundle was replaced since its manifest was read.
        """
        self._config_records()
        with self.opened(self.manifest.files):
            pass
        for artifact in self.manifest.artifacts:
            with self.opened_artifact(artifact):
                pass

    def _names_in_a_folder(self, artifact: Artifact, stack: contextlib.ExitStack) -> dict[str, Path]:
        """Paths of an artifact's files that lead into one folder, whatever becomes of its name."""
        first = artifact.files[0]
        above = PurePosixPath(first.path).parent
        try:
            folder = stack.enter_context(opened_folder(self.path / above))
        except OSError as exc:
            raise self._refusal(first) from exc
        return {record.path: folder / PurePosixPath(record.path).relative_to(above) for record in artifact.files}

    @contextlib.contextmanager
    def _open(
        self, records: Iterable[FileRecord], names: Mapping[str, Path] | None = None
    ) -> Iterator[list[VerifiedFile]]:
        files: list[VerifiedFile] = []
        with contextlib.ExitStack() as stack:
            for record in records:
                path, name = self.path / record.path, None if names is None else names[record.path]
                try:
                    file = VerifiedFile(path, record.size_bytes, record.sha256, name=name, base=self.path)
                except (OSError, FileDiffersError) as exc:
                    raise self._refusal(record) from exc
                except FileChangedError as exc:
                    raise _changed(self.path / record.path) from exc
                stack.callback(file.close)
                files.append(file)
            try:
                yield files
            except VitDeployError:
                _check_unchanged(files)  # which may be why it failed
                raise
            _check_unchanged(files)

    def _refusal(self, record: FileRecord) -> BundleError:
        """The error for a file that is not what the manifest says."""
        path, before = self.path / record.path, _place(self.path)
        try:
            VerifiedFile(path, record.size_bytes, record.sha256).close()
            error: BundleError = _changed(path)  # it is now
        except FileChangedError:
            error = _changed(path)
        except OSError as exc:
            error = BundleError(f"{path} cannot be read: {exc.strerror}; export the bundle again")
        except FileDiffersError as exc:
            error = BundleError(
                f"{path} is not the file that {MANIFEST} records ({exc}): it was altered; export or copy it again"
            )
        return _changed(self.path) if self._is_replaced() or before != _place(self.path) else error

    def _is_replaced(self) -> bool:
        """Whether there is another bundle at its place now, or none."""
        try:
            return Bundle.open(self.path).manifest != self.manifest
        except BundleError:
            return True


def retry_if_changed(function: F) -> F:
    """Call a function that reads a bundle again where that was replaced, or a file written to, meanwhile.

    So that what it reads is of one export. Its first argument is the bundle: where that is a `Bundle`, which is the
    state that the caller has chosen, it is called once. At most `MOST_TRIES` times in all.
    """
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def retrying(*args: Any, **kwargs: Any) -> Any:
        is_state = isinstance(args[0] if args else kwargs.get(first), Bundle)
        for _ in range(0 if is_state else MOST_TRIES - 1):
            with contextlib.suppress(BundleChangedError):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return cast("F", retrying)


@retry_if_changed
def open_verified(path: str | os.PathLike[str]) -> Bundle:
    """A bundle of which every file that the manifest names was checked.

    Raises:
        BundleError: as `Bundle.open` and `Bundle.verify`.
    """
    bundle = Bundle.open(path)
    bundle.verify()
    return bundle


def check_target(target: Path) -> None:
    """Raise UsageError unless `target` may take a bundle: absent, an empty folder, or a bundle.

    Nor may the working directory be in it: the folder is replaced whole, and who is there would be nowhere.
    """
    try:
        resolved = target.resolve()
        exists = resolved.exists()
    except (OSError, RuntimeError) as exc:  # a name too long, a loop of links
        raise UsageError(f"{target} must be a folder that can be made: {exc}; choose another output") from exc
    if not exists:
        return
    if not target.is_dir():
        raise UsageError(f"{target} must be a folder, is a file; choose another output")
    with contextlib.suppress(OSError):  # there is none
        if Path.cwd().is_relative_to(resolved):
            raise UsageError(
                f"a bundle must not be the working directory, nor around it, since its folder is replaced: got "
                f"{target}; cd out of it, and name it from there"
            )
    try:
        is_free = (target / MANIFEST).exists() or not any(target.iterdir())
    except OSError as exc:
        raise UsageError(f"{target} cannot be read: {exc.strerror}; choose another output") from exc
    if not is_free:
        raise UsageError(f"{target} must be empty or a bundle, holds other files; choose another output")


def commit(staging: Path, target: Path, manifest: Manifest, *, made_from: Artifact | None = None) -> Bundle:
    """Make `staging`, the content of a bundle with one artifact, take the place of `target`.

    Artifacts and other files that `target` has already are kept; an artifact of the same format and precision is
    replaced. See `vitdeploy.bundle.kept_files` for links.

    Args:
        staging: a folder with every file that `manifest` names.
        target: where the bundle is to be.
        manifest: of what is in `staging`.
        made_from: an artifact of `target` that the new one was made from, and has need of.

    Raises:
        BundleError: `target` has that no more: another process has replaced it, or the bundle.
        UsageError: `target` holds another model, or files that are no bundle.
        OSError: a file cannot be written; `target` is as it was.
    """
    target = target.resolve()
    sync(staging)  # which may take long: not while others wait
    with exclusive(target):
        check_target(target)
        old = Bundle.open(target) if made_from is not None or (target / MANIFEST).exists() else None
        if old is not None:
            kept = [(artifact.name, artifact.files) for artifact in old.manifest.artifacts]
            if made_from is not None and (made_from.name, made_from.files) not in kept:
                raise BundleError(f"{target} no longer has the {made_from.name} that was begun with; export again")
            manifest = _with_existing(staging, old, manifest)
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        replace_folder(staging, target)
    return Bundle(target, manifest)


def check_same_model(old: Bundle, files: Mapping[str, str], task: str) -> None:
    """Whether a bundle can take an artifact of a model.

    Args:
        old: the bundle.
        files: the SHA-256 of the model's files, by name, with or without those of its weights.
        task: of the model.

    Raises:
        UsageError: the bundle holds another model, or the same with another image processor.
    """
    old_files = {record.path: record.sha256 for record in old.manifest.files}
    if not any(name in old.manifest.weights for name in files):
        old_files = {name: digest for name, digest in old_files.items() if name not in old.manifest.weights}
    changed = {name for name in {**old_files, **files} if old_files.get(name) != files.get(name)}
    if changed and changed <= set(PROCESSOR_CONFIGS):
        raise UsageError(
            f"{old.path} holds this model with another image processor: {old.manifest.processor or NOT_RECORDED}; "
            f"choose another output or give the same processor"
        )
    if changed or old.manifest.task != task:
        raise UsageError(
            f"{old.path} must hold the same model, holds {old.manifest.source.id} ({old.manifest.task}); "
            f"choose another output or remove it"
        )


def _with_existing(staging: Path, old: Bundle, new: Manifest) -> Manifest:
    check_same_model(old, {record.path: record.sha256 for record in new.files}, new.task)
    names = {artifact.name for artifact in new.artifacts}
    replaced = [artifact for artifact in old.manifest.artifacts if artifact.name in names]
    kept = [artifact for artifact in old.manifest.artifacts if artifact.name not in names]
    dropped = {MANIFEST, *(record.path for artifact in replaced for record in artifact.files)}
    records = (*old.manifest.files, *(record for artifact in kept for record in artifact.files))
    named = dropped.union(record.path for record in records)
    KeptFiles(old.path, staging, named, dropped).take()
    artifacts = sorted((*kept, *new.artifacts), key=lambda artifact: artifact.name)
    return dataclasses.replace(new, artifacts=tuple(artifacts))


def _check_external_data(artifact: Artifact, model: VerifiedFile) -> None:
    """Raise BundleError unless every file that an ONNX model takes weights from is recorded, by the very name."""
    first, *others = (PurePosixPath(record.path) for record in artifact.files)
    recorded = {other.relative_to(first.parent).as_posix() for other in others}
    model.stream.seek(0)
    try:
        unknown = sorted(external_names(model.stream) - recorded)
    except (OSError, ValueError) as exc:
        raise BundleError(f"{model.file.path} must hold a valid ONNX model: {exc}; export the bundle again") from exc
    if unknown:
        raise BundleError(
            f"{model.file.path} takes weights from {unknown[0]!r:.200}, which {MANIFEST} does not record; do not use "
            f"this bundle"
        )


def _check_unchanged(files: Iterable[VerifiedFile]) -> None:
    for each in files:
        try:
            each.check()
        except (OSError, FileChangedError) as exc:
            raise _changed(each.file.path) from exc


def _changed(path: Path) -> BundleChangedError:
    return BundleChangedError(
        f"{path} was replaced or written to while it was read; try again when whatever writes it is done"
    )


def _place(folder: Path) -> tuple[tuple[int, int, int], ...] | None:
    """What is another where a bundle was replaced, even by one of the same content."""
    try:
        stats = folder.stat(), (folder / MANIFEST).stat()
    except OSError:
        return None
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
