"""Push a bundle to the Hugging Face Hub, in one commit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, Manifest
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.signature import SIGNATURE, check_current, read_signature
from vitdeploy.delivery.model_card import CARD, model_card
from vitdeploy.errors import BundleError, HubError, InputError, MissingDependencyError, UsageError, readable
from vitdeploy.files.regular_file import read_regular
from vitdeploy.sources.file_choice import Choice, Files
from vitdeploy.sources.hub import from_hub
from vitdeploy.sources.hub_calls import TimeLimits, listed, quiet, time_limits, within
from vitdeploy.sources.hub_errors import ForeignAnswerError, push_errors
from vitdeploy.sources.hub_settings import check_connection, check_endpoint, check_token, without_password
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfApi

_MAIN = "main"


@dataclasses.dataclass(frozen=True)
class PushedBundle:
    """A bundle on the Hub.

    Attributes:
        name: Hub id.
        url: URL of the repository.
        commit: Commit with the bundle.
        files: The bundle's files in the repository.
        card: Model card: "written"; "kept" if the repository had one; or "own" if the bundle has one.
    """

    name: str
    url: str
    commit: str
    files: tuple[str, ...]
    card: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@typed
@retry_if_changed
def push(
    bundle: str | os.PathLike[str] | Bundle,
    name: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str | None = None,
    replace_card: bool = False,
    progress: Progress = SILENT,
) -> PushedBundle:
    """Push a bundle to a model repository on the Hub, in one commit, with a model card from its manifest.

    Every file is verified first, and a signature is pushed along. The repository and the branch are created if missing.
    An earlier bundle, of any model, is replaced: files of it that this one lacks are removed; other files stay. An
    existing README.md is kept.

    Args:
        bundle: The bundle or its folder.
        name: Hub id, such as "org/vit-digits-bundle"; the user's own repository without an organization.
        revision: Branch. Default: "main".
        private: True for a new private repository. Default: the Hub's setting for the user or organization.
        token: Access token with write permission. Default: the token from `hf auth login`.
        message: Commit message.
        replace_card: Overwrite an existing README.md with the model card.
        progress: Receives each step.

    Raises:
        BundleError: If there is no bundle, one of its files was altered, or its signature is of another manifest.
        InputError: If the bundle's README.md is not text.
        UsageError: If an argument is invalid, or the repository has another visibility, or is no bundle and has files
            of these names.
        HubError: If there is no token, it has no write permission there, or the Hub cannot be reached.
        MissingDependencyError: If huggingface_hub is not installed.
    """
    opened = Bundle.of(bundle)
    progress.step("verifying the bundle")
    opened.verify()
    own_card = _own_card(opened)
    api = _api(name, token)
    address = without_password(api.endpoint)
    with push_errors(name, address), quiet():
        call = functools.partial(within, time_limits())
        progress.step(f"opening the repository {name}")
        name = call(lambda: api.create_repo(name, private=private, exist_ok=True)).repo_id
        if revision not in (None, _MAIN):
            call(lambda: api.create_branch(name, branch=str(revision), exist_ok=True))
        there = call(lambda: api.model_info(name, revision=revision))
        if private is not None and there.private is not None and there.private != private:
            state = "private" if there.private else "public"
            raise UsageError(
                f"'{name}' exists and is {state}", what="private", expected=private, found=there.private,
                hint="change that in its settings on the Hub, or choose another name",
            )  # fmt: skip
        names, parent = listed(there), _commit_id(there.sha)
        stale = _stale(opened, name, names, parent, token)
        added: dict[str, Any] = {MANIFEST: opened.manifest.to_json().encode()}
        signature = read_signature(opened.path)
        if signature is not None:
            check_current(opened.path, signature, added[MANIFEST])
            added[SIGNATURE] = signature
        card = "kept" if CARD in names and not replace_card else "written" if own_card is None else "own"
        if card != "kept":
            added[CARD] = model_card(opened, name).encode() if own_card is None else own_card
        records = opened.manifest.records
        with opened.opened(records, by_name=True) as files:  # names, which progress bars show
            added |= {record.path: file.path for record, file in zip(records, files, strict=True)}
            progress.step(f"uploading {len(added)} files to {name}")
            commit = _commit(api, name, added, stale, revision, parent, message)
        found = listed(call(lambda: api.model_info(name, revision=commit)))
    missing = sorted(set(added) - found)
    if missing:
        raise HubError(
            f"'{name}' has no {missing[0]} in commit {commit}", what=missing[0], where=name, expected=tuple(added),
            hint="a .gitignore of the repository may leave it out; correct that, and push again",
        )  # fmt: skip
    return PushedBundle(name, f"{address}/{name}", commit, tuple(sorted(added)), card)


def _api(name: str, token: str | None) -> HfApi:
    """The Hub API, with the token for writing there."""
    check_endpoint(None)
    try:
        from huggingface_hub import HfApi, constants, get_token
    except ModuleNotFoundError as exc:
        raise MissingDependencyError(f"pushing '{name}' to the Hugging Face Hub", extra="hub") from exc
    check_token(token)
    if constants.HF_HUB_OFFLINE:
        raise HubError("nothing can be pushed in offline mode", what="HF_HUB_OFFLINE", hint="unset HF_HUB_OFFLINE")
    check_connection()
    token = token or get_token()
    if token is None:
        raise HubError("a push needs a token", what="token", hint="pass one that may write, or run: hf auth login")
    return HfApi(token=token)


def _stale(bundle: Bundle, name: str, names: set[str], commit: str, token: str | None) -> list[str]:
    """Files in the repository that belong only to an earlier bundle.

    Raises:
        UsageError: If it is no bundle, but has files that the bundle would overwrite.
    """
    new = {MANIFEST, *(record.path for record in bundle.manifest.records)}
    taken = sorted(new & names)
    before = _manifest_of(name, commit, token) if MANIFEST in names else None
    if before is not None:
        return sorted({SIGNATURE, *(record.path for record in before.records)} & names - new)
    if taken and bundle.manifest.source.id != name:
        raise UsageError(
            f"'{name}' holds other files, which would be overwritten: {', '.join(taken)}",
            what="name", where=name, found=tuple(taken), hint="choose another name, or remove them there",
        )  # fmt: skip
    return []


def _manifest_of(name: str, commit: str, token: str | None) -> Manifest | None:
    """The manifest of a repository's bundle; None if it is not a bundle."""

    def choose(files: Files) -> Choice:
        path = files.get(MANIFEST)
        return Choice(() if path is None else (path,))

    folder = from_hub(name, choose, revision=commit, token=token).folder
    try:
        return Bundle.open(folder).manifest
    except BundleError:
        return None


def _own_card(bundle: Bundle) -> bytes | None:
    """The model card in the bundle's folder, if any; InputError unless it is text."""
    file = bundle.path / CARD
    with readable(file, "a model card"):
        card = read_regular(file) if file.exists() else None
    try:
        (card or b"").decode()
    except UnicodeDecodeError as exc:
        problem = f"{file} is not in UTF-8, as a model card must be"
        raise InputError(problem, what=CARD, where=file, hint="save it in UTF-8, or remove it") from exc
    return card


def _commit_id(answer: str | None) -> str:
    if answer is None or not re.fullmatch("[0-9a-f]{40}", answer):
        raise ForeignAnswerError(f"its commit is none: {answer!r:.100}")
    return answer


def _is_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # it is None if it was closed


@contextlib.contextmanager
def _bars_on_a_terminal() -> Iterator[None]:
    """Keep huggingface_hub's upload bars out of logs."""
    from huggingface_hub import utils

    bars: Any = utils
    if bars.are_progress_bars_disabled() or "HF_HUB_DISABLE_PROGRESS_BARS" in os.environ or _is_a_terminal():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


def _commit(
    api: HfApi,
    name: str,
    added: dict[str, Any],
    stale: list[str],
    revision: str | None,
    parent: str,
    message: str | None,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    additions = [CommitOperationAdd(path, content) for path, content in sorted(added.items())]
    without_limit = TimeLimits(math.inf, math.inf)  # uploads may take hours
    with _bars_on_a_terminal():
        within(without_limit, lambda: api.preupload_lfs_files(name, additions, revision=revision))
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *additions,
        *(CommitOperationDelete(path) for path in stale),
    ]
    commit = within(
        time_limits(),
        lambda: api.create_commit(
            name, operations, commit_message=message or "Push a bundle with vitdeploy", revision=revision,
            parent_commit=parent,
        ),
    )  # fmt: skip
    return _commit_id(commit.oid)
