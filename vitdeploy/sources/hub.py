"""Find a checkpoint's files: in a local folder, or on the Hugging Face Hub through its cache."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.errors import (
    CheckpointError,
    HubError,
    MissingDependencyError,
    OutputError,
    UsageError,
    first_line,
)
from vitdeploy.files.file_kinds import (
    PROCESSOR_CONFIGS,
    file_advice,
    folder_names,
    is_lfs_pointer,
    is_model_file_name,
    lfs_advice,
    names_advice,
)
from vitdeploy.files.regular_file import read_regular
from vitdeploy.sources.hub_calls import ForeignAnswerError, checked, listed, network_errors, quiet, time_limits, within
from vitdeploy.sources.hub_settings import check_connection, check_endpoint, check_token, without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
_ONE_FILE = ".npz"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # in order of preference
_INDEX_SUFFIX = ".index.json"
_WEIGHTS = (  # in order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class CheckpointFiles:
    """Where a checkpoint's files are.

    Attributes:
        model_id: the Hub id, or the name of a local folder or file.
        revision: the commit, for a checkpoint from the Hub.
        folder: holds config.json, the weights and, where the checkpoint has them, the processor's configurations; a
            `.npz` file is a whole checkpoint, and what lies beside it is not of it.
        weights: one form of weights: a single file, or all shards; none where the folder holds an adapter alone.
        adapter: the configuration and the weights of an adapter of PEFT, where there is one.
        cached: whether the files are those of the Hub's cache, and the Hub, which was not reached, may have more.
    """

    model_id: str
    revision: str | None
    folder: Path
    weights: tuple[Path, ...]
    adapter: tuple[Path, ...] = ()
    cached: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class ProcessorFiles:
    """Where an image processor's files are.

    Attributes:
        name: the Hub id, or the name of a local folder or file.
        revision: the commit, for one from the Hub.
        path: the folder with the processor's configurations and config.json, or the one file.
        cached: see `CheckpointFiles`.
    """

    name: str
    revision: str | None
    path: Path
    cached: bool = field(default=False, compare=False)


def resolve(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> CheckpointFiles:
    """Find a checkpoint; from the Hub, download what the cache lacks of the files that are needed.

    A local folder wins over a Hub id of the same name. Where the Hub does not answer, its cached copy is used. A wait
    ends after a minute for a listing or the beginning of a file, and after ten without 10 MB more of a file: 6 and 60
    times huggingface_hub's own limits of 10 s, HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT.

    Args:
        model: a local folder, a local `.npz` file, or a Hub id such as "google/vit-base-patch16-224".
        revision: a branch, tag or commit on the Hub.
        token: what the Hub asks for a private or gated model; by default the one of `hf auth login`.
        cache_dir: the Hub's cache, by default the one of huggingface_hub.
        offline: use the cache alone, as HF_HUB_OFFLINE=1 does.
        endpoint: the Hub's address, by default HF_ENDPOINT or https://huggingface.co.

    Raises:
        CheckpointError: the checkpoint does not exist, or a file of it is absent, malformed or came damaged.
        HubError: the Hub refuses, or cannot be reached and the cache has no complete copy.
        OutputError: the cache cannot be written.
        UsageError: an argument, or a variable for the Hub or the proxy, is malformed.
    """
    path = local_path(model)
    if path is None:
        return _from_hub(str(model), revision, token, cache_dir, offline, endpoint, _CHECKPOINT)
    if revision is not None:
        raise UsageError(f"a revision selects a commit on the Hub, but '{model}' is local; omit the revision")
    if path.is_file():
        if is_lfs_pointer(path):
            raise CheckpointError(lfs_advice(path))
        return CheckpointFiles(path.stem, None, path.parent, (path,))
    return CheckpointFiles(path.resolve().name, None, path, *_open_folder(path, _CHECKPOINT))


def resolve_processor(
    source: str | os.PathLike[str],
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> ProcessorFiles:
    """Find an image processor; of a Hub repository, download its processor's configurations and config.json alone.

    Args:
        source: a local folder, a local file, or a Hub id, which may end in "@" and a branch, tag or commit.
        token: see `resolve`, also for the other arguments.
        cache_dir: of the Hub's files.
        offline: use the cache alone.
        endpoint: the Hub's address.

    Raises:
        CheckpointError: there is no such folder, file or repository, or it holds no configuration.
        HubError: the Hub refuses, or cannot be reached and the cache has no copy.
        UsageError: the source is neither a path nor a Hub id.
    """
    name = os.fspath(source)
    try:
        path = Path(source).expanduser()
        if path.exists():
            return ProcessorFiles(path.resolve().name, None, path)
    except (OSError, RuntimeError, ValueError) as exc:  # ValueError: a null byte
        raise CheckpointError(f"cannot open {name}: {exc}") from exc
    model, at, revision = name.partition("@")
    if at and not revision:
        raise UsageError(f"no revision after the '@' of {name}; give a branch, tag or commit, or leave out the '@'")
    if isinstance(source, Path) or _is_path(path, name) or path.suffix == ".json":
        raise CheckpointError(f"image processor not found: {name}; give a folder, a file or a Hub id")
    files = _from_hub(model, revision or None, token, cache_dir, offline, endpoint, _PROCESSOR)
    return ProcessorFiles(files.model_id, files.revision, files.folder, files.cached)


def _is_path(path: Path, name: str) -> bool:
    """Whether a name can be no Hub id."""
    return path.is_absolute() or re.search(r"^[.~]|\\|/.*/|/$", name) is not None


def local_path(model: str | Path) -> Path | None:
    """Return the folder or file that `model` names, or None where it can only be a Hub id.

    Raises:
        CheckpointError: it names a path that does not exist, or a file that is no checkpoint.
        UsageError: it is empty.
    """
    name = str(model)
    if not name:
        raise UsageError("expected a folder or a Hub id, got an empty string")
    try:
        path = Path(model).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix == _ONE_FILE):
            return path
        if path.exists():
            if not path.is_file():  # a pipe or a device, which may never end
                raise CheckpointError(
                    f"{name} is neither a folder nor a file; name a folder with {_CONFIG} and weights"
                )
            raise CheckpointError(file_advice(path))
    except (OSError, RuntimeError) as exc:  # RuntimeError: the home of an unknown user
        raise CheckpointError(f"cannot open {name}: {exc}") from exc
    if is_model_file_name(name):
        raise CheckpointError(f"no such file: {name}; check the path")
    if isinstance(model, Path) or _is_path(path, name):
        raise CheckpointError(f"no such folder: {name}; a Hub id is 'name' or 'organization/name'")
    return None


def _from_hub(
    model: str,
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
    offline: bool,
    endpoint: str | None,
    wanted: _Wanted,
) -> CheckpointFiles:
    check_endpoint(endpoint)
    try:
        from huggingface_hub import HfApi, constants, errors, hf_hub_download
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
    except ModuleNotFoundError as exc:
        raise MissingDependencyError("downloading from the Hugging Face Hub", extra="torch") from exc
    except ValueError as exc:  # of a variable that huggingface_hub reads
        raise UsageError(
            f"huggingface_hub cannot read its settings ({first_line(exc)}); check the HF_ variables"
        ) from exc
    check_token(token)
    if revision is not None and not all(part.strip(".") for part in re.split(r"[/\\]", revision)):
        raise UsageError(
            f"{revision!r} is not a revision; give a branch, tag or commit"
        )  # it names a file in the cache

    api = HfApi(endpoint=endpoint, token=token)
    address = without_password(api.endpoint)
    with _hub_errors(model, revision, address):
        validate_repo_id(model)  # which names a folder of the cache
    blobs = _cache(cache_dir or constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"
    describe = functools.partial(api.model_info, model, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    limits = time_limits()

    def download(name: str, **options: Any) -> Path:
        options |= {"cache_dir": cache_dir, "token": token, "endpoint": endpoint}
        call = functools.partial(hf_hub_download, model, name, **options)
        return checked(lambda: within(limits, call, blobs), blobs)

    def cached_folder() -> Path:
        for name in wanted.any_of[:-1]:
            with contextlib.suppress(errors.LocalEntryNotFoundError):
                return download(name, revision=revision, local_files_only=True).parent
        return download(wanted.any_of[-1], revision=revision, local_files_only=True).parent

    def from_cache(reason: str) -> CheckpointFiles:
        try:
            folder = cached_folder()
            files = _open_folder(folder, wanted)
        except (errors.LocalEntryNotFoundError, CheckpointError) as exc:
            raise HubError(f"the cache has no usable copy of '{model}', and {reason}, or pass a local folder") from exc
        return CheckpointFiles(model, folder.name, folder, *files, cached=True)

    with _hub_errors(model, revision, address), quiet():
        if offline or constants.HF_HUB_OFFLINE:
            return from_cache("offline mode is on; go online once")
        check_connection()
        try:
            names = listed(within(limits, describe))
        except network_errors() as exc:
            if _is_refusal(exc):
                raise
            unreachable = f"{address} cannot be reached ({_reason(exc)})"
            files = from_cache(f"{unreachable}; check the network and HF_ENDPOINT")
            logger.warning("%s; using '%s' from the cache, commit %s", unreachable, model, files.revision)
            return files
        commit = revision

        def fetch(name: str) -> Path | None:
            nonlocal commit  # the first file is asked for by branch, which the cache remembers; the rest by its commit
            if name not in names:
                return None
            path = download(name, revision=commit)
            commit = path.parent.name
            return path

        paths, adapter = wanted.open_files(fetch, lambda: names, f"'{model}'")
        return CheckpointFiles(model, commit, (*paths, *adapter)[0].parent, paths, adapter)


def _open_folder(folder: Path, wanted: _Wanted) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the paths of what is wanted of a complete folder, and those of the adapter."""

    def fetch(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    try:
        return wanted.open_files(fetch, lambda: folder_names(folder), str(folder))
    except OSError as exc:
        raise CheckpointError(f"cannot read {folder}: {exc.strerror}") from exc


def _open(
    get: Callable[[str], Path | None], names: Callable[[], Collection[str]], source: str
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Fetch the configurations, then the preferred form of weights; return the paths of the weights and of an adapter.

    `get` turns a file's name into its path, or into None where the checkpoint, called `source`, has no such file;
    `names` gives all its files.
    """

    def fetch(name: str) -> Path | None:
        path = get(name)
        if path is not None and is_lfs_pointer(path):
            raise CheckpointError(lfs_advice(path))
        return path

    config = fetch(_CONFIG)
    adapter = _adapter(fetch, names, source)
    if config is None and not adapter:
        raise CheckpointError(
            names_advice(source, names()) or f"{source} has no {_CONFIG}; expected a Hugging Face checkpoint"
        )
    for name in PROCESSOR_CONFIGS:
        fetch(name)
    for name in _WEIGHTS if config is not None else ():
        path = fetch(name)
        if path is not None:
            return (_shards(path, fetch) if name.endswith(_INDEX_SUFFIX) else (path,)), adapter
    if adapter:
        return (), adapter
    raise CheckpointError(names_advice(source, names()) or f"{source} has no weights; looked for {', '.join(_WEIGHTS)}")


def _adapter(
    fetch: Callable[[str], Path | None], names: Callable[[], Collection[str]], source: str
) -> tuple[Path, ...]:
    """Fetch the configuration and the weights of an adapter, which transformers applies without being asked to."""
    config = fetch(_ADAPTER_CONFIG)
    weights = next((path for name in _ADAPTER_WEIGHTS if (path := fetch(name)) is not None), None)
    if config is None and weights is None:
        return ()
    if weights is None and "pytorch_adapter.bin" in names():
        raise CheckpointError(
            f"{source} is an adapter of the adapters library; merge it there: model.merge_adapter(NAME), "
            f"then model.save_pretrained(NEW_FOLDER)"
        )
    if config is None or weights is None:
        there, missing = (weights, _ADAPTER_CONFIG) if config is None else (config, _ADAPTER_WEIGHTS[0])
        raise CheckpointError(
            f"{source} has {there.name if there else ''} but no {missing}; complete the adapter, or remove its files "
            f"where the weights are to be used without it"
        )
    return config, weights


def _open_processor(
    fetch: Callable[[str], Path | None],
    names: Callable[[], Collection[str]],  # noqa: ARG001  (one signature)
    source: str,
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Fetch the configurations, and return their paths: config.json may name the processor's class, or be timm's."""
    paths = tuple(path for path in map(fetch, (*PROCESSOR_CONFIGS, _CONFIG)) if path is not None)
    if not paths:
        raise CheckpointError(f"{source} has no image processor; looked for {', '.join(PROCESSOR_CONFIGS)}")
    return paths, ()


class _Wanted(NamedTuple):
    """Files of a repository.

    Attributes:
        any_of: names of which a usable copy has at least one.
        open_files: fetches the files, and returns the paths of those that count, and of an adapter; see `_open`.
    """

    any_of: tuple[str, ...]
    open_files: Callable[
        [Callable[[str], Path | None], Callable[[], Collection[str]], str], tuple[tuple[Path, ...], tuple[Path, ...]]
    ]


_CHECKPOINT = _Wanted((_CONFIG, _ADAPTER_CONFIG), _open)
_PROCESSOR = _Wanted((*PROCESSOR_CONFIGS, _CONFIG), _open_processor)


def _shards(index: Path, fetch: Callable[[str], Path | None]) -> tuple[Path, ...]:
    """Fetch the shards that an index names."""
    try:
        content = json.loads(read_regular(index))
    except OSError as exc:
        raise CheckpointError(f"{index} must be readable: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{index} is not valid JSON: {exc}") from exc
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: 'weight_map' must be an object of tensor names and file names")
    suffix = Path(index.name.removesuffix(_INDEX_SUFFIX)).suffix
    first_key: dict[str, str] = {}
    for key, name in weight_map.items():
        # Windows' rules are the stricter ones: they know both separators, and drives.
        if not isinstance(name, str) or PureWindowsPath(name).name != name or Path(name).suffix != suffix:
            raise CheckpointError(f"{index}: '{key}' must name a *{suffix} file beside the index, got {name!r}")
        first_key.setdefault(name, key)
    shards = []
    for name, key in sorted(first_key.items()):
        path = fetch(name)
        if path is None:
            raise CheckpointError(f"{index}: '{key}' is in {name!r}, which does not exist")
        shards.append(path)
    return tuple(shards)


@contextlib.contextmanager
def _hub_errors(model: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do."""
    from huggingface_hub import errors

    login = "pass a token that may read it, or run: hf auth login"
    try:
        yield
    except errors.HFValidationError as exc:
        raise UsageError(f"'{model}' is neither a folder nor a Hub id, 'name' or 'organization/name'") from exc
    except errors.GatedRepoError as exc:
        raise HubError(f"'{model}' is gated; ask for access at {endpoint}/{model}, then {login}") from exc
    except errors.RepositoryNotFoundError as exc:
        raise CheckpointError(
            f"no folder, and no model at {endpoint}, is named '{model}'; check the name, or if it is private {login}"
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise CheckpointError(f"'{model}' at {endpoint} has no revision '{revision}'") from exc
    except ImportError as exc:
        raise HubError(
            f"cannot connect to {endpoint} by this proxy ({first_line(exc)}); install the package, or unset ALL_PROXY"
        ) from exc
    except network_errors() as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            place = f" ({exc.filename!s:.400})" if exc.filename else ""
            raise OutputError(
                f"cannot write '{model}' to the Hub's cache: {exc.strerror}{place}; make room, or choose another "
                f"folder: HF_HOME, or the argument cache_dir"
            ) from exc
        remedy = login if _is_refusal(exc) else "try again, or pass a local folder"
        raise HubError(f"cannot get '{model}' from {endpoint} ({_reason(exc)}); {remedy}") from exc


def _cache(folder: str | Path) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as exc:
        raise OutputError(f"no user's home for the Hub's cache, {folder}; set HF_HOME to a folder's full path") from exc


def _is_refusal(exc: Exception) -> bool:
    """Tell the Hub's decision, which a cached copy must not hide, from its failure to answer."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(exc, HfHubHTTPError) and exc.response is not None and exc.response.status_code in {401, 403, 404}


def _reason(exc: Exception) -> str:
    # Where huggingface_hub finds no cached file to fall back on, only the cause says what happened.
    cause = exc.__cause__ if isinstance(exc, FileNotFoundError) and exc.__cause__ else exc
    if isinstance(cause, json.JSONDecodeError | ForeignAnswerError):
        return f"its answer is not the Hub's; perhaps the network has a login page: {first_line(cause)}"
    return without_password(f"{type(cause).__name__}: {first_line(cause)}")
