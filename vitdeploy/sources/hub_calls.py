"""Call huggingface_hub within time limits, and do not trust file names or content from the server."""

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

_LOOK_SECONDS = 0.5  # interval between checks of the written files
_CLEAN_UP_SECONDS = 2
_BLOCK = 1 << 20


class TimeLimits(NamedTuple):
    """Timeouts of a call, in seconds.

    Attributes:
        answer: Timeout for a listing, or for the beginning of a file.
        progress: Timeout for more of a file. huggingface_hub writes 10 MB at a time, and pauses between retries.
    """

    answer: float
    progress: float


def time_limits() -> TimeLimits:
    """One minute and ten minutes, scaled with huggingface_hub's limits of 10 s, which the environment can change."""
    from huggingface_hub import constants

    return TimeLimits(6 * constants.HF_HUB_ETAG_TIMEOUT, 60 * constants.HF_HUB_DOWNLOAD_TIMEOUT)


class _Abandoned(BaseException):
    """Raised in the thread of an abandoned call, so that it removes its temporary file."""


def within(limits: TimeLimits, call: Callable[[], T], folder: Path | None = None) -> T:
    """The result of `call`, run in a separate thread: a read may block, and the library's pauses may be long.

    huggingface_hub limits single reads and retries them. It waits forever for a server that sends one byte per second,
    and as long as `Retry-After` says.

    Args:
        limits: See `TimeLimits`.
        call: The request.
        folder: Folder of its "*.incomplete" files.

    Raises:
        TimeoutError: If nothing arrived within the limit.
        ForeignAnswerError: If the library cannot use the answer.
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
    except RecursionError as exc:  # a RuntimeError, as is one of the following
        raise ForeignAnswerError("it is nested too deeply") from exc
    except network_errors():
        raise
    except (HFValidationError, ImportError, MemoryError):  # ImportError: a proxy needs a package
        raise
    except Exception as exc:  # whatever a parser raises on an answer of unknown form
        raise ForeignAnswerError(f"{type(exc).__name__}: {exc}") from exc


def listed(info: Any) -> set[str]:
    """File names in a model's description.

    Raises:
        ForeignAnswerError: If it is not a description; huggingface_hub accepts any JSON object with an `id`.
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
    except OSError:  # not created yet; the library reports other problems
        return []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Prevent huggingface_hub from printing about its retries beside our error, unless HF_HUB_VERBOSITY is set."""
    library = logging.getLogger("huggingface_hub")
    level = library.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="huggingface_hub")
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # its use of httpx for uploads
        if "HF_HUB_VERBOSITY" not in os.environ:
            library.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            library.setLevel(level)


def checked(download: Callable[[], str], blobs: Path) -> Path:
    """The path returned by `download`; a new file's content must match the checksum in its name.

    Args:
        download: A call of hf_hub_download.
        blobs: The cache's folder of files named by ETag. It is empty on systems without symbolic links.

    Raises:
        CheckpointError: If the content differs; the file is removed from the cache.
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
    """True if a file matches its checksum: SHA-256 if large, else git's SHA-1. Mirrors may have other ETags."""
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
    """Make huggingface_hub refuse an ETag or a commit that is not a plain name: it builds cache paths from them.

    Its function is replaced for the whole process: an earlier check would see a different answer than the one it uses.
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
        except errors.EntryNotFoundError as exc:  # the commit becomes a folder name here, too
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
    """True if a name stays in its folder by Windows' rules, which are stricter: they include drives."""
    return (
        PureWindowsPath(name).name == name
        and name.strip(".") != ""
        and len(name) <= 200  # of the 255 that file systems take: ".incomplete" and a number are added
        and name.isascii()
        and name.isprintable()
    )
