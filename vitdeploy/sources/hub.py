"""Find a checkpoint's files: in a local folder, or on the Hugging Face Hub through its cache."""

from __future__ import annotations

import functools
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import (
    BundleError,
    CheckpointError,
    HubError,
    MissingDependencyError,
    OutputError,
    UsageError,
    first_line,
)
from vitdeploy.files.file_kinds import PROCESSOR_CONFIGS, file_advice, is_lfs_pointer, is_model_file_name, lfs_advice
from vitdeploy.sources.architectures.weights_options import WeightsFile
from vitdeploy.sources.file_choice import (
    ADAPTER_CONFIG,
    CONFIG,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    Choice,
    Files,
    choose_checkpoint,
    choose_processor,
)
from vitdeploy.sources.hub_calls import checked, listed, quiet, time_limits, within
from vitdeploy.sources.hub_errors import hub_errors, is_refusal, network_errors, reason
from vitdeploy.sources.hub_settings import check_connection, check_endpoint, check_token, without_password
from vitdeploy.sources.other_names import check_other_names

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_ONE_FILE = ".npz"


@dataclass(frozen=True)
class CheckpointFiles:
    """Files of a checkpoint.

    Attributes:
        model_id: Hub id, or name of a local folder or file.
        revision: Commit, for a checkpoint from the Hub.
        folder: Folder with config.json, the weights and, if present, the processor's configurations; a `.npz` file is a
            complete checkpoint, and files beside it are ignored.
        weights: Weights in one format: a single file, or all shards; empty if the folder has only an adapter.
        adapter: Configuration and weights of a PEFT adapter, if any.
        cached: True if the Hub was not reached, so that it may have more files than the cache.
        architecture: Name of the architecture in its library, for a file of weights without a configuration.
    """

    model_id: str
    revision: str | None
    folder: Path
    weights: tuple[Path, ...]
    adapter: tuple[Path, ...] = ()
    cached: bool = field(default=False, compare=False)
    architecture: str | None = None

    @property
    def config(self) -> Path:
        """The configuration of the weights, in the form of their library."""
        name = OPEN_CLIP_CONFIG if self.weights and self.weights[0].name in OPEN_CLIP_WEIGHTS else CONFIG
        return self.folder / name


@dataclass(frozen=True)
class ProcessorFiles:
    """Files of an image processor.

    Attributes:
        name: Hub id, or name of a local folder or file.
        revision: Commit, for one from the Hub.
        path: Folder with the processor's configurations and config.json, or a single file.
        cached: See `CheckpointFiles`.
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
    """Find a checkpoint; from the Hub, download required files that the cache lacks.

    A local folder takes precedence over a Hub id of the same name. If the Hub does not answer, its cached copy is used.
    Timeouts are one minute for a listing or the beginning of a file, and ten minutes for each further 10 MB of a file:
    6 and 60 times huggingface_hub's limits of 10 s, HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT.

    Args:
        model: A local folder, a local `.npz` file, or a Hub id such as "google/vit-base-patch16-224".
        revision: A branch, tag or commit on the Hub.
        token: Access token for a private or gated model. Default: the token from `hf auth login`.
        cache_dir: The Hub's cache. Default: huggingface_hub's.
        offline: Use only the cache, as HF_HUB_OFFLINE=1 does.
        endpoint: The Hub's address. Default: HF_ENDPOINT or https://huggingface.co.

    Raises:
        CheckpointError: If the checkpoint does not exist, or one of its files is missing, malformed or was damaged in
            transit.
        HubError: If the Hub refuses the request, or cannot be reached and the cache has no complete copy.
        OutputError: If the cache cannot be written.
        UsageError: If an argument, or an environment variable for the Hub or the proxy, is malformed.
    """
    path = local_path(model)
    if path is None:
        return from_hub(
            str(model), choose_checkpoint, revision=revision, token=token, cache_dir=cache_dir, offline=offline,
            endpoint=endpoint,
        )  # fmt: skip
    if revision is not None:
        raise UsageError(
            f"a revision selects a commit on the Hub, but '{model}' is local",
            what="revision", found=revision, hint="omit the revision",
        )  # fmt: skip
    if path.is_file():
        if is_lfs_pointer(path):
            raise CheckpointError(lfs_advice(path), where=path)
        return CheckpointFiles(path.stem, None, path.parent, (path,))
    return CheckpointFiles(path.resolve().name, None, path, *_choose_in(path, choose_checkpoint))


def resolve_processor(
    source: str | os.PathLike[str],
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> ProcessorFiles:
    """Find an image processor; from the Hub, download only its configurations and config.json.

    Args:
        source: Local folder, local file, or Hub id, optionally with "@" and a branch, tag or commit.
        token: See `resolve`, also for cache_dir, offline and endpoint.

    Raises:
        CheckpointError: If there is no such folder, file or repository, or it has no configuration.
        HubError: If the Hub refuses the request, or cannot be reached and the cache has no copy.
        UsageError: If the source is neither a path nor a Hub id.
    """
    name = os.fspath(source)
    try:
        path = Path(source).expanduser()
        if path.exists():
            return ProcessorFiles(path.resolve().name, None, path)
    except (OSError, RuntimeError, ValueError) as exc:  # ValueError: a null byte
        raise CheckpointError(f"cannot open {name}: {exc}", where=name) from exc
    model, at, revision = name.partition("@")
    if at and not revision:
        raise UsageError(
            f"no revision after the '@' of {name}",
            what="revision", found=name, hint="give a branch, tag or commit, or leave out the '@'",
        )  # fmt: skip
    if isinstance(source, Path) or _is_path(path, name) or path.suffix == ".json":
        raise CheckpointError(f"no image processor: {name}", where=name, hint="give a folder, a file or a Hub id")
    files = from_hub(
        model, choose_processor, revision=revision or None, token=token, cache_dir=cache_dir, offline=offline,
        endpoint=endpoint,
    )  # fmt: skip
    return ProcessorFiles(files.model_id, files.revision, files.folder, files.cached)


def _is_path(path: Path, name: str) -> bool:
    """True if the name cannot be a Hub id."""
    return path.is_absolute() or re.search(r"^[.~]|\\|/.*/|/$", name) is not None


def local_path(model: str | Path | WeightsFile) -> Path | None:
    """The folder or file named `model`, or None if it can only be a Hub id.

    Raises:
        CheckpointError: If the path does not exist, or the file is not a checkpoint.
        UsageError: If it is empty.
    """
    if isinstance(model, WeightsFile):
        return model.located()
    name = str(model)
    if not name:
        raise UsageError("the model's name is empty", what="model", found="", hint="give a folder or a Hub id")
    try:
        path = Path(model).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix == _ONE_FILE):
            return path
        if path.exists():
            if not path.is_file():  # reading a pipe or a device may never end
                raise CheckpointError(
                    f"{name} is neither a folder nor a file",
                    where=name,
                    hint=f"name a folder with {CONFIG} and weights",
                )
            raise CheckpointError(file_advice(path), where=name)
    except (OSError, RuntimeError) as exc:  # RuntimeError: the home of an unknown user
        raise CheckpointError(f"cannot open {name}: {exc}", where=name) from exc
    if is_model_file_name(name):
        raise CheckpointError(f"no such file: {name}", where=name, hint="check the path")
    if isinstance(model, Path) or _is_path(path, name):
        raise CheckpointError(f"no such folder: {name}", where=name, hint="a Hub id is 'name' or 'organization/name'")
    check_other_names(name)
    return None


def from_hub(
    model: str,
    choose: Callable[[Files], Choice],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> CheckpointFiles:
    """Download the chosen files of a repository, the first from its root; arguments and errors as `resolve`.

    Files are downloaded one by one: `snapshot_download` creates a folder with any name that the server sends, and uses
    the cached copy if access is refused.
    """
    check_endpoint(endpoint)
    try:
        from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
    except ModuleNotFoundError as exc:
        what = f"downloading '{model}', which is no folder here, from the Hugging Face Hub"
        raise MissingDependencyError(what, extra="hub") from exc
    except ValueError as exc:  # of a variable that huggingface_hub reads
        raise UsageError(
            f"huggingface_hub cannot read its settings ({first_line(exc)})", hint="check the HF_ variables"
        ) from exc
    check_token(token)
    if revision is not None and not all(part.strip(".") for part in re.split(r"[/\\]", revision)):
        raise UsageError(  # it names a file in the cache
            f"{revision!r} is not a revision", what="revision", found=revision, hint="give a branch, tag or commit"
        )

    api = HfApi(endpoint=endpoint, token=token)
    address = without_password(api.endpoint)
    with hub_errors(model, revision, address):
        validate_repo_id(model)  # it names a folder of the cache
    try:
        cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    except RuntimeError as exc:
        raise OutputError(
            f"no user's home for the Hub's cache, {cache_dir}", what="HF_HOME", found=cache_dir,
            hint="set HF_HOME to a folder's full path",
        ) from exc  # fmt: skip
    limits = time_limits()

    def from_cache(problem: str, hint: str) -> CheckpointFiles:
        names = (CONFIG, ADAPTER_CONFIG, OPEN_CLIP_CONFIG, *PROCESSOR_CONFIGS)
        paths = (try_to_load_from_cache(model, name, cache, revision) for name in names)
        folder = next((Path(path).parent for path in paths if isinstance(path, str)), None)
        try:
            if folder is None:
                raise CheckpointError(f"'{model}' is not in the cache {cache}", where=cache)
            choice = _choose_in(folder, choose)
        except (CheckpointError, BundleError) as exc:
            raise HubError(
                f"the cache has no usable copy of '{model}', and {problem}",
                what=model, where=address, found=problem, hint=f"{hint}, or pass a local folder",
            ) from exc  # fmt: skip
        return CheckpointFiles(model, folder.name, folder, *choice, cached=True)

    with hub_errors(model, revision, address), quiet():
        if offline or constants.HF_HUB_OFFLINE:
            return from_cache("offline mode is on", "go online once")
        check_connection()
        describe = functools.partial(api.model_info, model, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        try:
            names = listed(within(limits, describe))
        except network_errors() as exc:
            if is_refusal(exc):
                raise
            unreachable = f"{address} cannot be reached ({reason(exc)})"
            files = from_cache(unreachable, "check the network and HF_ENDPOINT")
            logger.warning("%s; using '%s' from the cache, commit %s", unreachable, model, files.revision)
            return files
        commit = revision
        blobs = cache / f"models--{model.replace('/', '--')}" / "blobs"

        def download(name: str) -> Path | None:
            nonlocal commit  # the first file is requested by branch, which the cache remembers; others by commit
            if name not in names:
                return None
            options: dict[str, Any] = {"cache_dir": cache, "token": token, "endpoint": endpoint}
            call = functools.partial(hf_hub_download, model, name, revision=commit, **options)
            path = checked(lambda: within(limits, call, blobs), blobs)
            commit = path.parents[name.count("/")].name
            return path

        paths, adapter = choose(Files(f"'{model}'", download, lambda: names))
        return CheckpointFiles(model, commit, (*paths, *adapter)[0].parent, paths, adapter)


def _choose_in(folder: Path, choose: Callable[[Files], Choice]) -> Choice:
    try:
        return choose(Files.of_folder(folder))
    except OSError as exc:
        raise CheckpointError(f"cannot read {folder}: {exc.strerror}", where=folder) from exc
