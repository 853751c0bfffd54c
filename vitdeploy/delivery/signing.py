"""Sign a bundle with a private key."""

from __future__ import annotations

import os
from pathlib import Path

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.signature import SIGNATURE, check_nothing_beside, sign_manifest
from vitdeploy.errors import BundleChangedError, readable
from vitdeploy.files.atomic import write_file
from vitdeploy.files.regular_file import read_regular
from vitdeploy.system.argument_types import typed


@typed
@retry_if_changed
def sign(bundle: str | os.PathLike[str], *, private_key: str | os.PathLike[str]) -> Path:
    """Sign a bundle, after every file is verified.

    The signature is of `manifest.json`, which has the checksum of every other file: `load` and `verify` with the public
    key check it first. Every later change of the manifest makes it stale: another export or `tune` into the bundle,
    `verify --run`. A packed bundle is another one, and is signed by itself.

    Args:
        bundle: The bundle's folder.
        private_key: PEM file of a private key without a password, on the curve P-256, P-384 or P-521.

    Returns:
        Path of the signature, `manifest.json.sig`; an earlier one is replaced.

    Raises:
        BundleError: If there is no bundle, one of its files was altered, or it has files that the manifest does not
            record.
        UsageError: If the key cannot sign.
        InputError: If the key cannot be read.
        MissingDependencyError: If model-signing is not installed.
        OutputError: If the signature cannot be written.
    """
    folder = Path(bundle)
    opened = Bundle.open(folder)
    opened.verify()
    check_nothing_beside(folder, opened.manifest)
    with readable(folder / MANIFEST, "a manifest"):
        manifest = read_regular(folder / MANIFEST)
    signature = sign_manifest(manifest, private_key)
    if Bundle.parse(folder, manifest) != opened:
        message = f"{folder} was replaced while it was signed"
        raise BundleChangedError(message, where=folder, hint="try again when its writer is done")
    write_file(folder / SIGNATURE, signature, follow_link=False)
    return folder / SIGNATURE
