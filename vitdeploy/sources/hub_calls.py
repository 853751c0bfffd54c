"""Call huggingface_hub within time limits, and let no server choose names of files or what a file holds."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import re
import threading
import time
import warnings
from concurrent.futures import Future, wait
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.hub_errors import ForeignAnswerError, network_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_LOOK_SECONDS = 0.5  # between two looks at the files that are written
_CLEAN_UP_SECONDS = 2
_BLOCK = 1 << 20


class TimeLimits(NamedTuple):
    """Seconds until a call is given up.

    Attributes:
        answer: Until a listing has come, or a file is begun.
        progress: Until more of a file has come. huggingface_hub writes 10 MB at a time, and pauses between its retries.
    """

    answer: float
    progress: float


def time_limits() -> TimeLimits:
    """A minute and ten minutes, by huggingface_hub's own limits of 10 s, which the environment can change."""
    from huggingface_hub import constants

    return TimeLimits(6 * constants.HF_HUB_ETAG_TIMEOUT, 60 * constants.HF_HUB_DOWNLOAD_TIMEOUT)


class _Abandoned(BaseException):
    """Raised in the thread of a call that was given up, so that it removes its temporary file."""


def within(limits: TimeLimits, call: Callable[[], T], folder: Path | None = None) -> T:
    """The result of `call`, made in a thread of its own: a read may block, and a pause of the library may be long.

    huggingface_hub limits single reads and repeats them. It waits for ever for a server that sends a byte a second,
    and as long as one with `Retry-After` wants.

    Args:
        limits: See `TimeLimits`.
        call: The request.
        folder: Where it writes "*.incomplete" files.

    Raises:
        TimeoutError: If nothing came within the limit.
        ForeignAnswerError: If the library cannot use what came.
    """
    from huggingface_hub.errors import HFValidationError

    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001  (raised below)
            future.set_exception(exc)

    thread = threading.Thread(target=work, daemon=True)
    sizes, limit, since = _sizes(folder), limits.answer, time.monotonic()
    thread.start()
    try:
        while not wait([future], min(_LOOK_SECONDS, limit)).done:
            if (now := _sizes(folder)) != sizes:
                sizes, limit, since = now, limits.progress, time.monotonic()
            elif time.monotonic() - since > limit:
                raise TimeoutError(f"nothing came for {limit:g} s")
    finally:
        if not future.done():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Abandoned))
            wait([future], _CLEAN_UP_SECONDS)
    try:
        return future.result()
    except RecursionError as exc:  # a RuntimeError, which one of those that follow is
        raise ForeignAnswerError("it is nested too deeply") from exc
    except network_errors():
        raise
    except (HFValidationError, ImportError, MemoryError):  # ImportError: a proxy needs a package
        raise
    except Exception as exc:  # whatever a parser of an answer of unknown shape raises
        raise ForeignAnswerError(f"{type(exc).__name__}: {exc}") from exc


def listed(info: Any) -> set[str]:
    """The names of the files in a model's description.

    Raises:
        ForeignAnswerError: If it is no description; huggingface_hub takes any JSON object with an `id`.
    """
    names = None if info.siblings is None else [sibling.rfilename for sibling in info.siblings]
    if names is None or not all(isinstance(name, str) for name in (info.id, info.sha or "", *names)):
        raise ForeignAnswerError("the answer does not list a model's files")
    return {name for name in names if name.isprintable()}  # they are shown in errors


def _sizes(folder: Path | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for path in _files(folder) if folder is not None else ():
        if path.suffix == ".incomplete":
            with contextlib.suppress(OSError):  # it is complete, and gone
                sizes[path.name] = path.stat().st_size
    return sizes


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # not there yet; what else is wrong with it, the library says
        return []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep huggingface_hub from writing about its retries beside our error, unless HF_HUB_VERBOSITY asks for it."""
    library = logging.getLogger("huggingface_hub")
    level = library.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="huggingface_hub")
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # how it calls httpx to upload
        if "HF_HUB_VERBOSITY" not in os.environ:
            library.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            library.setLevel(level)


def checked(download: Callable[[], str], blobs: Path) -> Path:
    """The path of a file that `download` gives; the content of a new one is held to the checksum that names it.

    Args:
        download: A call of hf_hub_download.
        blobs: The folder of the cache where files are named by their ETags. Without symbolic links there are none.

    Raises:
        CheckpointError: If the content is another one; it is removed from the cache.
    """
    _check_names()
    cached = {blob.name for blob in _files(blobs)}
    path = Path(download())
    blob = path.resolve()
    if blob.parent == blobs.resolve() and blob.name not in cached and not _matches(blob, blob.name):
        path.unlink()
        blob.unlink()
        raise CheckpointError(
            f"{path.name} came damaged: its content does not have the checksum {blob.name}",
            what=path.name, expected=blob.name, hint="try again",
        )  # fmt: skip
    return path


def _matches(path: Path, etag: str) -> bool:
    """Whether a file has its checksum: SHA-256 of a large file, git's SHA-1 of others. Mirrors may have other ETags."""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag):
        return True
    of_git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    sums = [hashlib.sha256()] if len(etag) == 64 else [of_git, hashlib.sha1(usedforsecurity=False)]
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            for one in sums:
                one.update(block)
    return etag in [one.hexdigest() for one in sums]


@functools.cache
def _check_names() -> None:
    """Have huggingface_hub refuse an ETag or a commit that is no plain name: it makes paths in the cache of them.

    Its function is replaced for the whole process: a check beforehand would be of another answer than the one it uses.
    """
    from huggingface_hub import errors, file_download

    ask = file_download.get_hf_file_metadata
    Refused = errors.FileMetadataError  # noqa: N806  (a class)

    def check_commit(commit: str | None) -> None:
        if commit is not None and not re.fullmatch("[0-9a-f]{40}", commit):
            raise Refused(f"the answer's commit is none: {commit!r:.100}")

    @functools.wraps(ask)
    def ask_and_check(*args: Any, **kwargs: Any) -> Any:
        try:
            metadata = ask(*args, **kwargs)
        except errors.EntryNotFoundError as exc:  # the commit becomes the name of a folder here, too
            response = getattr(exc, "response", None)
            if response is not None:
                check_commit(response.headers.get("X-Repo-Commit"))
            raise
        check_commit(metadata.commit_hash)
        if metadata.etag is not None and not _is_plain_name(metadata.etag):
            raise Refused(f"the answer's ETag is no name of a file: {metadata.etag!r:.100}")
        return metadata

    file_download.get_hf_file_metadata = ask_and_check


def _is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder, by Windows' rules, which are the stricter ones: they know drives."""
    return (
        PureWindowsPath(name).name == name
        and name.strip(".") != ""
        and len(name) <= 200  # of the 255 that file systems take: ".incomplete" and a number are added
        and name.isascii()
        and name.isprintable()
    )
