"""Call huggingface_hub within time limits, and let no server choose names of files or what a file holds."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import json
import logging
import os
import re
import threading
import time
import warnings
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vitdeploy.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_LOOK_SECONDS = 0.5  # between two looks at the files that are written
_CLEAN_UP_SECONDS = 2
_BLOCK = 1 << 20

_etags: contextvars.ContextVar[list[str]] = contextvars.ContextVar("_etags")


class TimeLimits(NamedTuple):
    """Seconds until a call is given up.

    Attributes:
        answer: until a listing has come, or a file is begun.
        progress: until more of a file has come. huggingface_hub writes 10 MB at a time, and pauses between its retries.
    """

    answer: float
    progress: float


def time_limits() -> TimeLimits:
    """A minute and ten minutes, by huggingface_hub's own limits of 10 s, which the environment can change."""
    from huggingface_hub import constants

    return TimeLimits(6 * constants.HF_HUB_ETAG_TIMEOUT, 60 * constants.HF_HUB_DOWNLOAD_TIMEOUT)


class ForeignAnswerError(OSError):
    """What came is not an answer of the Hub."""


class _Abandoned(BaseException):
    """Raised in the thread of a call that was given up, so that it removes its temporary file."""


def network_errors() -> tuple[type[Exception], ...]:
    """What a request can raise; the HTTP library is requests, httpx or httpx2, by huggingface_hub's version."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    return (OSError, json.JSONDecodeError, RuntimeError, http_error)  # RuntimeError: what hf_xet raises


def _own_errors() -> tuple[type[Exception], ...]:
    """What a call raises on purpose. ImportError: a proxy needs a package."""
    from huggingface_hub.errors import HFValidationError

    return (*network_errors(), HFValidationError, ImportError, MemoryError)


def within(limits: TimeLimits, call: Callable[[], T], folder: Path | None = None) -> T:
    """The result of `call`, made in a thread of its own: a read may block, and a pause of the library may be long.

    huggingface_hub limits single reads and repeats them. It waits for ever for a server that sends a byte a second,
    and as long as one with `Retry-After` wants.

    Args:
        limits: see `TimeLimits`.
        call: what to wait for.
        folder: where it writes "*.incomplete" files.

    Raises:
        TimeoutError: nothing came within the limit.
        ForeignAnswerError: the library cannot use what came.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()  # a thread whose join was interrupted counts as ended (bpo-45274)

    def work() -> None:
        try:
            results.append(call())
        except _Abandoned:
            pass
        except RecursionError as exc:  # a RuntimeError, which one of those that follow is
            errors.append(ForeignAnswerError("it is nested too deeply"))
            errors[0].__cause__ = exc
        except _own_errors() as exc:
            errors.append(exc)
        except Exception as exc:  # noqa: BLE001  (whatever a parser of an answer of unknown shape raises)
            errors.append(ForeignAnswerError(f"{type(exc).__name__}: {exc}"))
            errors[0].__cause__ = exc
        except BaseException as exc:  # noqa: BLE001  (raised below)
            errors.append(exc)
        finally:
            done.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    sizes, limit, since = _sizes(folder), limits.answer, time.monotonic()
    thread.start()
    try:
        while not done.wait(min(_LOOK_SECONDS, limit)):
            if (now := _sizes(folder)) != sizes:
                sizes, limit, since = now, limits.progress, time.monotonic()
            elif time.monotonic() - since > limit:
                raise TimeoutError(f"nothing came for {limit:g} s")
    finally:
        if not done.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Abandoned))
            done.wait(_CLEAN_UP_SECONDS)
    if errors:
        raise errors[0]
    return results[0]


def listed(info: Any) -> set[str]:
    """The names of the files in a model's description.

    Raises:
        ForeignAnswerError: it is no description; huggingface_hub takes any JSON object with an `id`.
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
        if "HF_HUB_VERBOSITY" not in os.environ:
            library.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            library.setLevel(level)


def checked(download: Callable[[], str], blobs: Path) -> Path:
    """The path of a file that `download` gives; the content of a new one is held to the checksum that names it.

    Args:
        download: a call of hf_hub_download.
        blobs: the folder of the cache where files are named by their ETags. Without symbolic links there are none.

    Raises:
        CheckpointError: the content is another one; it is removed from the cache.
    """
    _check_names()
    etags: list[str] = []
    token = _etags.set(etags)
    cached = {blob.name for blob in _files(blobs)}
    try:
        path = Path(download())
    finally:
        _etags.reset(token)
    for etag in set(etags) - cached:
        blob = blobs / etag
        if blob.exists() and not _matches(blob, etag):
            path.unlink(missing_ok=True)
            blob.unlink()
            raise CheckpointError(f"{path.name} came damaged: its content does not have the checksum {etag}; try again")
    return path


def _matches(path: Path, etag: str) -> bool:
    """Whether a file has its checksum: SHA-256 of a large file, git's SHA-1 of others. Mirrors may have other ETags."""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag):
        return True
    size = path.stat().st_size
    sums = (
        [hashlib.sha256()]
        if len(etag) == 64
        else [hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), hashlib.sha1(usedforsecurity=False)]
    )
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
        if metadata.etag is not None:
            if not _is_plain_name(metadata.etag):
                raise Refused(f"the answer's ETag is no name of a file: {metadata.etag!r:.100}")
            if (etags := _etags.get(None)) is not None:
                etags.append(metadata.etag)
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
