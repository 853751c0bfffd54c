"""Signatures of a bundle's manifest, whose checksums cover every other file.

A signature is a Sigstore bundle by OpenSSF model-signing, `manifest.json.sig` beside the manifest. It is verified
before the manifest is parsed. It covers neither the bundle's age (an older signed manifest with its files is accepted)
nor files that the manifest does not record; vitdeploy opens none of those.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import (
    BundleError,
    InputError,
    MissingDependencyError,
    UsageError,
    readable,
    typed_line,
)
from vitdeploy.files.json_text import strict_json
from vitdeploy.files.regular_file import read_regular

if TYPE_CHECKING:
    import os

    from vitdeploy.bundle.manifest import Manifest

SIGNATURE = f"{MANIFEST}.sig"
_MOST_BYTES = 1 << 20
_PUBLIC_KEY = "an EC public key on the curve P-256, P-384 or P-521, in PEM"
_PRIVATE_KEY = "an EC private key on the curve P-256, P-384 or P-521, in PEM, without a password"
# What may lie beside a bundle's own files: the model card of a push, git's files, and those of `hf download`.
_FILES_BESIDE = frozenset({"README.md", ".gitattributes", ".gitignore"})
_FOLDERS_BESIDE = (".git/", ".github/", ".cache/huggingface/")


def check_signature(folder: Path, manifest: bytes, public_key: str | os.PathLike[str]) -> None:
    """Check that the holder of a private key signed a manifest.

    Args:
        folder: The bundle's folder, which has the signature.
        manifest: Content of its manifest.
        public_key: PEM file of the public key, on the curve P-256, P-384 or P-521.

    Raises:
        BundleError: If there is no signature, or it is damaged, or of another key or another manifest.
        InputError: If the public key cannot be read.
        MissingDependencyError: If model-signing is not installed.
    """
    signature = read_signature(folder)
    path = folder / SIGNATURE
    if signature is None:
        message, hint = f"{folder} is not signed (no {SIGNATURE})", typed_line("sign", folder, "--private-key", "KEY")
        raise BundleError(message, what="signature", where=path, hint=f"sign it: {hint}")
    signed = signed_digest(path, signature)
    with readable(public_key, "a public key"):
        key = read_regular(public_key, _MOST_BYTES)
    verifying = _model_signing().verifying
    with tempfile.TemporaryDirectory() as private:  # the library reads files: those whose content is used here
        copies = {name: Path(private, name) for name in (MANIFEST, SIGNATURE, "key")}
        for copy, content in zip(copies.values(), (manifest, signature, key), strict=True):
            copy.write_bytes(content)
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=copies["key"])
        except Exception as exc:
            kind = _kind_of_key(key)
            raise InputError(
                f"{public_key} is {kind}, but a signature needs {_PUBLIC_KEY}", what="public_key", where=public_key,
                expected=_PUBLIC_KEY, found=kind,
                hint="make it of the private key: openssl pkey -in private.pem -pubout -out public.pem",
            ) from exc  # fmt: skip
        try:
            config.verify(copies[MANIFEST], copies[SIGNATURE])
        except Exception as exc:  # of a damaged signature, whatever the library's parsers raise
            if signed != digest(manifest):
                raise _stale(folder) from exc
            raise BundleError(
                f"{path} is not a signature by {public_key}: it was made with another key, or altered",
                what="signature", where=path, expected=str(public_key),
                hint="check which key signed the bundle, and where its files are from",
            ) from exc  # fmt: skip


def read_signature(folder: Path) -> bytes | None:
    """Content of a bundle's signature; None if it has none; BundleError if it cannot be read."""
    path = folder / SIGNATURE
    try:
        return read_regular(path, _MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise BundleError(f"{path} cannot be read: {exc.strerror}", what="signature", where=path) from exc


def check_current(folder: Path, signature: bytes, manifest: bytes) -> None:
    """Raise BundleError if a signature is of another manifest; it is not verified."""
    if signed_digest(folder / SIGNATURE, signature) != digest(manifest):
        raise _stale(folder)


def signed_digest(path: Path, signature: bytes) -> str:
    """The digest that a signature states, see `digest`; BundleError if it is none of a single file."""
    try:
        data = strict_json(signature)
        if not data["verificationMaterial"]["publicKey"]["hint"]:
            raise ValueError("it does not state its key")
        subjects: Any = strict_json(base64.b64decode(data["dsseEnvelope"]["payload"], validate=True))["subject"]
        (subject,) = subjects
        return str(subject["digest"]["sha256"])
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        message = f"{path} is damaged, or not a signature of one file by model-signing"
        raise BundleError(message, what="signature", where=path, hint="sign the bundle again") from exc


def digest(manifest: bytes) -> str:
    """Digest of a model that is one file, by model-signing: SHA-256 of the file's SHA-256, in hexadecimal."""
    return hashlib.sha256(hashlib.sha256(manifest).digest()).hexdigest()


def sign_manifest(manifest: bytes, private_key: str | os.PathLike[str]) -> bytes:
    """The signature of a manifest.

    Raises:
        UsageError: If the private key cannot be used.
        InputError: If it cannot be read.
        MissingDependencyError: If model-signing is not installed.
    """
    with readable(private_key, "a private key"):
        key = read_regular(private_key, _MOST_BYTES)  # refuses pipes, which the library would wait for
    signing = _model_signing().signing
    with tempfile.TemporaryDirectory() as private:
        Path(private, MANIFEST).write_bytes(manifest)
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=Path(private_key))
        except Exception as exc:  # of the library's parsers
            kind = _kind_of_key(key)
            raise UsageError(
                f"{private_key} is {kind}, but a signature needs {_PRIVATE_KEY}",
                what="private_key", where=private_key, expected=_PRIVATE_KEY, found=kind,
                hint="make one: openssl ecparam -name prime256v1 -genkey -noout -out private.pem",
            ) from exc  # fmt: skip
        config.sign(Path(private, MANIFEST), Path(private, SIGNATURE))
        return Path(private, SIGNATURE).read_bytes()


def check_nothing_beside(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError for a file that the manifest does not record, apart from git's and the model card."""
    for name in unrecorded(folder, manifest):
        if name not in _FILES_BESIDE and not name.startswith(_FOLDERS_BESIDE):
            raise BundleError(
                f"{folder / name} is not recorded in {MANIFEST}, so no signature covers it",
                what=name, where=folder / name, hint="remove it",
            )  # fmt: skip


def unrecorded(folder: Path, manifest: Manifest) -> list[str]:
    """Files and links in a bundle's folder that are neither its manifest, nor its signature, nor recorded, sorted."""
    named = {MANIFEST, SIGNATURE, *(record.path for record in manifest.records)}
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in paths} - named)


def _stale(folder: Path) -> BundleError:
    path = folder / SIGNATURE
    return BundleError(
        f"{folder / MANIFEST} was changed since it was signed (by another export, tune or verify --run, or tampering)",
        what="signature", where=path, expected="the signature of this manifest",
        hint=f"if the change is yours, sign it again: {typed_line('sign', folder, '--private-key', 'KEY')}",
    )  # fmt: skip


def _kind_of_key(content: bytes) -> str:
    """Kind of a key that the library refused, such as "an RSA private key"."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    key: Any
    for use in ("private", "public"):
        try:
            key = load_pem_private_key(content, None) if use == "private" else load_pem_public_key(content)
        except TypeError:  # it asks for the password
            return "a private key with a password"
        except (ValueError, UnsupportedAlgorithm):
            continue
        name = type(key).__name__.lstrip("_").partition("P")[0]  # RSAPrivateKey, Ed25519PublicKey, ...
        curve = getattr(key, "curve", None)
        on = "" if curve is None else f" on the curve {curve.name}"
        return f"{'an' if name[:1] in 'ERX' else 'a'} {name} {use} key{on}"
    return "no key in PEM"


def _model_signing() -> Any:
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError as exc:
        raise MissingDependencyError("a signature", extra="signing") from exc
    return model_signing
