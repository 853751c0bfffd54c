"""Open a bundle for prediction, from a folder or from the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import predictor
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.bundle.signature import SIGNATURE
from vitdeploy.errors import BundleError, HubError, NoReferenceError, UsageError
from vitdeploy.predictor import Predictor
from vitdeploy.runtimes.choice import choose_opening, differing, loads
from vitdeploy.system.argument_types import typed

if TYPE_CHECKING:
    from vitdeploy.sources.file_choice import Choice, Files


@typed
def load(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    precision: str | None = None,
    artifact: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    public_key: str | os.PathLike[str] | None = None,
    beside_decoding: bool = False,
    **options: Any,
) -> Predictor:
    """Open a bundle for prediction. Each file is verified before use.

    From the Hub, only the manifest, the configuration and the artifact's files are downloaded; the weights only for the
    torch backend. They stay in the Hub's cache, which is used if the Hub cannot be reached, or with HF_HUB_OFFLINE=1.
    `Predictor.details` has the commit and the files.

    Args:
        path: The bundle's folder; or its Hub id, such as "org/vit-digits-bundle", if no folder has that name.
        backend: "onnxruntime", "torch", ...
        precision: The artifact's precision. Without backend, precision, artifact and options, the tuned choice of the
            bundle is opened (see `vitdeploy.tune`). Otherwise, or without one, it is the only matching artifact; of
            several, ONNX Runtime's first, and fp32 first.
        artifact: The artifact's name, such as "onnx-int8", where a backend runs several in one precision. Default: the
            one in the format that the backend prefers.
        device: "cpu", "cuda" or "cuda:1". Default: "cpu", or "cuda" for an engine.
        revision: A branch, tag or commit on the Hub.
        token: Access token for a private or gated repository. Default: the token from `hf auth login`.
        public_key: PEM file of the key that must have signed the bundle, see `vitdeploy.sign`. Its signature is checked
            before the manifest is parsed. Default: signatures are not checked.
        beside_decoding: Whether images are decoded while the model runs, as in `vitdeploy.predict` and
            `vitdeploy.embed`: ONNX Runtime's idle threads then leave the CPUs to the decoding, unless `allow_spinning`
            is given. The tuned choice stays.
        options: Runtime options of the backend, such as `intra_op_threads` for onnxruntime.

    Warns:
        TunedElsewhereWarning: If the bundle was tuned on a machine that differs from this one, or the tuned choice
            cannot run here and the usual one is opened instead; the reason is in `Predictor.details`.

    Raises:
        BundleError: If there is no bundle, one of its files was altered, or the public key did not sign it.
        InputError: If the public key cannot be read.
        CheckpointError: If the Hub has no such repository or revision, or a file was damaged in transit.
        HubError: If the Hub refuses the request, or cannot be reached and the cache has no complete copy.
        UsageError: If an argument is invalid.
        MissingDependencyError: If the backend's library is not installed; or huggingface_hub, for a Hub id; or
            model-signing, for a public key.
        DeviceError: If the device is not available.
    """
    opening = {
        "backend": backend, "precision": precision, "artifact": artifact, "device": device, "public_key": public_key,
        "beside_decoding": beside_decoding, **options,
    }  # fmt: skip
    if not is_hub_id(path):
        if revision is not None:
            raise UsageError(
                f"a revision selects a commit on the Hub, and {path} is a folder",
                what="revision", found=revision, hint="omit the revision",
            )  # fmt: skip
        return predictor.load(path, **opening)
    from vitdeploy.sources.file_choice import Choice  # after the folder's way, which needs no HTTP
    from vitdeploy.sources.hub import from_hub

    def choose_files(files: Files) -> Choice:
        manifest = _located(files, MANIFEST)
        signature = [] if public_key is None else [_located(files, SIGNATURE)]
        bundle = Bundle.open(manifest.parent, public_key=public_key)
        first = choose_opening(bundle, backend, precision, device, options, artifact=artifact)
        openings = [first]
        if first.tuned is not None and first.usual is not None:
            if not loads(first.backend):
                openings = [first.usual]
            elif differing(first.tuned):
                openings.append(first.usual)  # on another machine the tuned choice may not run
        paths = dict.fromkeys(record.path for opening in openings for record in opening.records)
        return Choice((manifest, *signature, *(_located(files, path) for path in paths)))

    name = os.fspath(path)
    try:
        download = from_hub(name, choose_files, revision=revision, token=token)
        opened = predictor.load(download.folder, **opening)
    except HubError as exc:
        raise exc.with_message(f"no folder is named '{name}', and {exc}") from exc  # it may be a mistyped path
    except (UsageError, NoReferenceError) as exc:
        if exc.where is None:
            raise
        raise exc.with_message(str(exc).replace(str(exc.where), f"'{name}'")) from exc  # it has its folder's name
    opened.details |= {
        "bundle": name,
        "revision": download.revision,
        "folder": str(download.folder),
        "cached": download.cached,
    }
    return opened


def is_hub_id(path: str | os.PathLike[str]) -> bool:
    """True for a Hub repository, ORGANIZATION/NAME, unless a local path has that name."""
    return (
        isinstance(path, str)
        and re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", path, re.ASCII) is not None
        and not os.path.lexists(path)
    )


def _located(files: Files, name: str) -> Path:
    """Path of a file, after a download; BundleError if there is none."""
    path = files.get(name)
    if path is None:
        if name == MANIFEST:
            problem, hint = f"{files.label} is not a vitdeploy bundle (no {MANIFEST})", "vitdeploy export makes one"
        elif name == SIGNATURE:
            problem, hint = f"{files.label} is not signed (no {SIGNATURE})", "sign the bundle, and push it again"
        else:
            problem, hint = f"{files.label} has no {name}, which its {MANIFEST} names", "push the bundle again"
        raise BundleError(problem, what=name, where=files.label, hint=hint)
    return path
