"""Sources of a Ray Data job: a column of unique ids, and a column of images that are not decoded yet."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from pyarrow import fs

from vitdeploy.assess.data.folder_listing import files_below
from vitdeploy.errors import InputError, UsageError
from vitdeploy.images.formats import image_endings
from vitdeploy.system.argument_types import check_type

_PATH, _BYTES, _KEY, _IMAGE = "path", "bytes", "key", "image"


@dataclasses.dataclass(frozen=True)
class _Files:
    """Files, and folders of them, each once.

    Attributes:
        paths: Local paths, which become absolute ones: another folder's are another job's. Or addresses, as of S3.
    """

    paths: tuple[str, ...]
    id_column: str = _KEY
    image_column: str = _IMAGE
    _hidden: ClassVar[tuple[str, ...]] = (".",)

    def __post_init__(self) -> None:
        check_type("paths", self.paths, Sequence[str | os.PathLike[str]])
        object.__setattr__(self, "paths", tuple(map(_absolute, self.paths)))

    def check_output(self, output: str | os.PathLike[str]) -> Path:
        """The output as an absolute path; UsageError if it is an address, or in a folder of this source."""
        place = Path(output).absolute()
        inside = next((path for path in self.paths if place.is_relative_to(path)), None)
        inside = inside if ".parquet" in self._endings() else None
        if "://" in os.fspath(output) or inside is not None:
            problem = "is an address" if inside is None else f"is in {inside}, which the job reads"
            hint = "choose a folder that all machines see, outside the source"
            raise UsageError(f"output {output} {problem}", what="output", where=place, found=output, hint=hint)
        return place

    def check_columns(self, results: Collection[str]) -> None:
        """Raise UsageError if the column of ids has the name of another one."""
        if self.id_column in (*results, self.image_column):
            message = f"the ids are in column {self.id_column}, which is the name of the images or a result"
            raise UsageError(message, what="id_column", found=self.id_column, hint="rename it")

    def _list(self) -> dict[str, Any]:
        """Arguments for Ray's readers: files that are given, and those in folders with an ending that are not hidden.

        Ray's own listing leaves out images such as `_DSC0001.jpg`, and files that are given, for their ending. Links
        are followed, except a link to a folder that contains it.

        Raises:
            InputError: If a path does not exist, or has no such files.
            UsageError: If a file is given twice, or the paths are of several file systems.
        """
        filesystem, files, endings = None, list[str](), self._endings()
        for path in self.paths:
            try:
                before = filesystem
                filesystem, place = fs.FileSystem.from_uri(path)
                if before not in (None, filesystem):
                    message, hint = f"{path} is on another file system than {self.paths[0]}", "run a job for each"
                    raise UsageError(message, what="paths", found=self.paths, hint=hint)
                found = filesystem.get_file_info(place)
                if found.is_file:
                    files.append(place)
                    continue
                below = self._below(filesystem, place)
            except InputError as exc:
                exc.what = "paths"
                raise
            except (OSError, pa.ArrowException) as exc:
                raise InputError(f"{path} cannot be read: {exc}", what="paths", where=path) from exc
            names = sorted(name for name in below if self._is_listed(name, place, endings))
            if not names:
                message = f"{path} has no files that end with {', '.join(endings)}"
                raise InputError(message, what="paths", where=path, expected=endings)
            files += names
        file, times = Counter(files).most_common(1)[0] if files else ("", 0)
        if times != 1:
            message = f"{file} is given twice" if files else "there are no paths"
            raise UsageError(message, what="paths", found=self.paths, hint="give each file or its folder once")
        return {"paths": files, "filesystem": filesystem}

    def _below(self, filesystem: fs.FileSystem, folder: str) -> list[str]:
        """Files below a folder. pyarrow would follow a link to a folder around it as often as the system allows."""
        if isinstance(filesystem, fs.LocalFileSystem):
            entries = files_below(Path(folder), lambda entry: entry.name.startswith(self._hidden))
            return [entry.path for entry in entries if os.path.isfile(entry.path)]  # noqa: PTH113  (for every file)
        selector = fs.FileSelector(folder, recursive=True)
        return [info.path for info in filesystem.get_file_info(selector) if info.is_file]

    def _endings(self) -> tuple[str, ...]:
        return (".parquet",)

    def _is_listed(self, path: str, folder: str, endings: tuple[str, ...]) -> bool:
        parts = PurePosixPath(path).relative_to(folder).parts
        return path.lower().endswith(endings) and not any(part.startswith(self._hidden) for part in parts)


@dataclasses.dataclass(frozen=True)
class ParquetRows(_Files):
    """Rows of parquet files.

    Attributes:
        id_column: Column of unique ids, strings or integers.
        image_column: Column of encoded images: binary, or a Hub data set's struct of bytes and path.
    """

    id_column: str = "id"
    image_column: str = _IMAGE
    _hidden: ClassVar[tuple[str, ...]] = (".", "_")  # as for all that reads parquet

    def read(self) -> ray.data.Dataset:
        columns = [self.id_column, self.image_column]
        return ray.data.read_parquet(**self._list(), columns=columns, file_extensions=None, partitioning=None)

    def count(self) -> int:
        """Number of rows.

        Raises:
            InputError: If a file is damaged or lacks a column, or rows have no id of their own.
        """
        listed = self._list()
        tables = [self._ids(listed["filesystem"], file) for file in listed["paths"]]
        try:
            ids = pa.concat_tables(tables, promote_options="permissive").column(0)
        except pa.ArrowException as exc:
            raise self._error(f"differs in type from file to file: {exc}") from exc
        if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
            raise self._error(f"has the type {ids.type}", found=str(ids.type))
        distinct = pc.count_distinct(ids).as_py()
        if ids.null_count or distinct < len(ids):
            raise self._error(f"has {distinct} ids in {len(ids)} rows, {ids.null_count} of them null", found=distinct)
        return len(ids)

    def _ids(self, filesystem: fs.FileSystem, file: str) -> pa.Table:
        try:
            with filesystem.open_input_file(file) as opened:
                content = pq.ParquetFile(opened)
                names = content.schema_arrow.names
                missing = next((name for name in (self.id_column, self.image_column) if name not in names), None)
                if missing is not None:
                    message = f"{file} has no column {missing}, only {', '.join(names)}"
                    raise InputError(message, what=missing, where=file, expected=missing, found=tuple(names))
                return content.read([self.id_column])
        except (OSError, pa.ArrowException) as exc:
            raise InputError(f"{file} is no parquet file that can be read: {exc}", what="paths", where=file) from exc

    def _error(self, problem: str, **fields: Any) -> InputError:
        message, hint = f"column {self.id_column} {problem}", "ids must be integers or strings, each in one row"
        return InputError(message, what=self.id_column, where=self.paths[0], hint=hint, **fields)


@dataclasses.dataclass(frozen=True)
class ImageFiles(_Files):
    """Image files, with their absolute paths as ids."""

    id_column: str = dataclasses.field(default=_PATH, init=False)
    image_column: str = dataclasses.field(default=_BYTES, init=False)

    def read(self) -> ray.data.Dataset:
        return ray.data.read_binary_files(**self._list(), include_paths=True)

    def count(self) -> int:
        """Number of files."""
        return len(self._list()["paths"])

    def _endings(self) -> tuple[str, ...]:
        return tuple(sorted(image_endings()))


@dataclasses.dataclass(frozen=True)
class WebDataset(_Files):
    """Samples of tar files, with "tar#key" as ids.

    Attributes:
        extensions: Extensions of a sample's image, the preferred one first.
    """

    extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    id_column: str = dataclasses.field(default=_KEY, init=False)
    image_column: str = dataclasses.field(default=_IMAGE, init=False)

    def read(self) -> ray.data.Dataset:
        return ray.data.read_webdataset(**self._list(), decoder=self._sample)

    def count(self) -> None:
        """Unknown until the tar files are read."""

    def _endings(self) -> tuple[str, ...]:
        return (".tar", ".tar.gz", ".tgz")

    def _sample(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The id and the image of a sample; none for one without an image, whose row says so."""
        members = {name.lower(): content for name, content in sample.items()}
        image = next((members[name] for name in self.extensions if name in members), None)
        return {_KEY: f"{sample['__url__']}#{sample['__key__']}", _IMAGE: image}


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.fspath(path) if "://" in os.fspath(path) else str(Path(path).absolute())
