"""Signed bundles: signatures that are refused, and those that model-signing's own command accepts."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from bundles import sign_again
from command_line import run
from hub_server import hub_server, use_hub
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.bundle.signature import SIGNATURE
from vitdeploy.errors import BundleError, InputError, UsageError, VitDeployError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("model_signing.signing", reason="needs the extra signing; run: make test", exc_type=ImportError)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pairs of keys, and keys that do not sign."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    folder = tmp_path_factory.mktemp("keys")
    keys: dict[str, Any] = {
        "own": ec.generate_private_key(ec.SECP256R1()),
        "other": ec.generate_private_key(ec.SECP384R1()),
        "rsa": rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "bitcoin": ec.generate_private_key(ec.SECP256K1()),
    }
    for name, key in keys.items():
        private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        (folder / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    locked = keys["own"].private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret")
    )
    (folder / "locked.pem").write_bytes(locked)
    (folder / "text.pem").write_text("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
    return folder


@pytest.fixture
def signed(single: Bundle, keys: Path, tmp_path: Path) -> Path:
    """A signed bundle."""
    folder = shutil.copytree(single.path, tmp_path / "signed")
    assert vitdeploy.sign(folder, private_key=keys / "own.pem") == folder / SIGNATURE
    return folder


def load(folder: Path | str, keys: Path) -> None:
    vitdeploy.load(folder, public_key=keys / "own.pub").close()


def test_a_signed_bundle_is_opened(signed: Path, keys: Path) -> None:
    image = Image.new("RGB", (40, 50), (200, 10, 30))
    with vitdeploy.load(signed, public_key=keys / "own.pub") as predictor, vitdeploy.load(signed) as plain:
        assert predictor.predict(image) == plain.predict(image)
    ran = run("verify", signed, "--public-key", keys / "own.pub", "--json")
    assert (ran.code, json.loads(ran.out)["public_key"]) == (0, str(keys / "own.pub"))
    assert run("verify", signed).code == 0
    image.save(signed.parent / "image.png")
    for name, code in (("own", 0), ("other", 4)):
        assert run("predict", signed, signed.parent / "image.png", "--public-key", keys / f"{name}.pub").code == code


def test_a_reload_checks_the_signature_before_it_parses_the_manifest(signed: Path, keys: Path) -> None:
    with vitdeploy.ReloadingPredictor(signed, public_key=keys / "own.pub") as predictor:
        assert not predictor.reload()
        (signed / MANIFEST).write_text("[", encoding="utf-8")
        with raises(BundleError, what="signature"):
            predictor.reload()


def test_embed_checks_the_signature(single: Bundle, keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    features = vitdeploy.SourceOptions(task="image-feature-extraction")
    vitdeploy.export(single.path, output=folder, source=features)
    vitdeploy.sign(folder, private_key=keys / "own.pem")
    Image.new("RGB", (40, 50), (200, 10, 30)).save(tmp_path / "image.png")
    command = ("embed", folder, tmp_path / "image.png", "--output", tmp_path / "vectors.npy", "--public-key")
    assert run(*command, keys / "other.pub").code == 4
    assert run(*command, keys / "own.pub").code == 0


def test_the_library_s_own_command_verifies_it(signed: Path, keys: Path) -> None:
    """Its options are those of model-signing 1.1; it finds an altered manifest and another key, too."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        signed / MANIFEST,
        "--signature",
    ]
    outcomes = {}
    for name in ("own.pub", "other.pub"):
        key = ("--public_key", keys / name)
        outcomes[name] = subprocess.run([*command, signed / SIGNATURE, *key], check=False).returncode
    assert outcomes["own.pub"] == 0
    assert outcomes["other.pub"] != 0


def test_a_signature_by_the_library_s_own_command_is_accepted(single: Bundle, keys: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(single.path, tmp_path / "signed")
    arguments = (folder / MANIFEST, "--signature", folder / SIGNATURE, "--private_key", keys / "own.pem")
    subprocess.run([sys.executable, "-m", "model_signing", "sign", "key", *map(str, arguments)], check=True)
    load(folder, keys)


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_payload(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """A signature whose statement was rewritten for the altered manifest, without the key."""

    def forge(folder: Path) -> None:
        data = json.loads((folder / SIGNATURE).read_bytes())
        statement = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"]))
        change(statement)
        data["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        (folder / SIGNATURE).write_text(json.dumps(data))

    return forge


def with_envelope(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        data = json.loads((folder / SIGNATURE).read_bytes())
        change(data["dsseEnvelope"])
        (folder / SIGNATURE).write_text(json.dumps(data))

    return alter


def without_hint(folder: Path) -> None:
    data = json.loads((folder / SIGNATURE).read_bytes())
    data["verificationMaterial"]["publicKey"]["hint"] = ""
    (folder / SIGNATURE).write_text(json.dumps(data))


def as_pipe(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    os.mkfifo(folder / SIGNATURE)


def resigned_checksums(folder: Path) -> None:
    """An altered artifact whose checksum is right in the manifest."""
    altered(folder / "onnx/model.onnx")
    sign_again(Bundle.open(folder))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no signature": lambda folder: (folder / SIGNATURE).unlink(),
    "an empty signature": lambda folder: (folder / SIGNATURE).write_bytes(b""),
    "a cut signature": lambda folder: (folder / SIGNATURE).write_bytes((folder / SIGNATURE).read_bytes()[:200]),
    "another file": lambda folder: shutil.copy(folder / MANIFEST, folder / SIGNATURE),
    "a pipe": as_pipe,
    "a rewritten statement": with_payload(lambda statement: statement.update(more=1)),
    "a re-ordered statement": with_payload(lambda statement: statement.update(subject=statement.pop("subject"))),
    "an unknown field": with_envelope(lambda envelope: envelope.update(more=1)),
    "no signature in it": with_envelope(lambda envelope: envelope["signatures"].clear()),
    "no key hint": without_hint,
    "an altered artifact": lambda folder: altered(folder / "onnx/model.onnx"),
    "an altered artifact and its checksum": resigned_checksums,
    "a space in the manifest": lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text() + " "),
    "an altered configuration": lambda folder: altered(folder / "config.json"),
    "a removed file": lambda folder: (folder / "onnx/model.onnx").unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.skipif(os.name == "nt", reason="one kind is a pipe")
def test_damage_is_refused_by_load_and_verify(signed: Path, keys: Path, kind: str) -> None:
    DAMAGE[kind](signed)
    with pytest.raises(BundleError):
        load(signed, keys)
    assert run("verify", signed, "--public-key", keys / "own.pub").code == 4


@pytest.mark.parametrize(
    "kind", ["a cut signature", "a re-ordered statement", "an unknown field", "no signature in it"]
)
def test_a_damaged_signature_is_refused_without_the_library_s_words(signed: Path, keys: Path, kind: str) -> None:
    DAMAGE[kind](signed)
    with pytest.raises(BundleError) as refused:
        load(signed, keys)
    cause = str(refused.value.__cause__).strip()
    assert not cause or cause.splitlines()[0] not in str(refused.value)


def test_another_key_is_refused(signed: Path, keys: Path) -> None:
    with raises(BundleError, what="signature", where=signed / SIGNATURE, expected=str(keys / "other.pub")):
        vitdeploy.load(signed, public_key=keys / "other.pub")
    vitdeploy.sign(signed, private_key=keys / "other.pem")  # replaces it
    with raises(BundleError, what="signature"):
        load(signed, keys)
    vitdeploy.load(signed, public_key=keys / "other.pub").close()


@pytest.mark.parametrize("name", ["onnx/extra.onnx", "pytorch_model.bin", ".hidden", "README.md.bin"])
def test_added_files_are_refused_by_verify_and_sign(signed: Path, keys: Path, name: str) -> None:
    (signed / name).write_bytes(b"x")
    assert run("verify", signed, "--public-key", keys / "own.pub").code == 4
    with raises(BundleError, what=name, where=signed / name):
        vitdeploy.sign(signed, private_key=keys / "own.pem")
    load(signed, keys)  # nothing opens it


def test_a_model_card_and_git_s_files_are_accepted(signed: Path, keys: Path) -> None:
    for name in ("README.md", ".gitattributes", ".cache/huggingface/download/config.json.metadata"):
        (signed / name).parent.mkdir(parents=True, exist_ok=True)
        (signed / name).write_bytes(b"x")
    assert run("verify", signed, "--public-key", keys / "own.pub").code == 0


def test_a_signature_of_an_older_manifest_is_stale(signed: Path, keys: Path, tmp_path: Path) -> None:
    """Another artifact keeps the file; load, verify and push name the change, and signing again mends it."""
    vitdeploy.export(signed, precision="fp16", output=signed)
    assert (signed / SIGNATURE).exists()
    with raises(BundleError, what="signature", expected="the signature of this manifest"):
        load(signed, keys)
    with hub_server({}) as hub, pytest.MonkeyPatch.context() as patch:
        hub.writers["hf_writer"] = ("me",)
        use_hub(hub.url, tmp_path / "home", patch)
        with raises(BundleError, what="signature", expected="the signature of this manifest"):
            vitdeploy.push(signed, "me/vit", token="hf_writer")
    vitdeploy.sign(signed, private_key=keys / "own.pem")
    load(signed, keys)


def test_a_push_carries_the_signature_and_load_checks_it(signed: Path, keys: Path, tmp_path: Path) -> None:
    with hub_server({}) as hub, pytest.MonkeyPatch.context() as patch:
        hub.writers["hf_writer"] = ("me",)
        use_hub(hub.url, tmp_path / "home", patch)
        pushed = vitdeploy.push(signed, "me/vit", token="hf_writer")
        assert SIGNATURE in pushed.files
        load("me/vit", keys)
        with raises(BundleError, what="signature"):
            vitdeploy.load("me/vit", public_key=keys / "other.pub")
        (signed / SIGNATURE).unlink()
        assert SIGNATURE not in vitdeploy.push(signed, "me/vit", token="hf_writer").files
        with raises(BundleError, what=SIGNATURE):
            load("me/vit", keys)


def test_a_packed_bundle_is_signed_by_itself(signed: Path, keys: Path, tmp_path: Path) -> None:
    packed = vitdeploy.pack(signed, "onnx-fp32", output=tmp_path / "packed").path
    assert not (packed / SIGNATURE).exists()
    vitdeploy.sign(packed, private_key=keys / "own.pem")
    load(packed, keys)
    vitdeploy.pack(signed, "onnx-fp32", output=packed)  # a signature does not keep it from being replaced
    assert not (packed / SIGNATURE).exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "rsa": "an RSA private key",
        "ed25519": "an Ed25519 private key",
        "bitcoin": "an EC private key on the curve secp256k1",
        "locked": "a private key with a password",
        "text": "no key in PEM",
    }.items(),
)
def test_a_key_that_cannot_sign(signed: Path, keys: Path, name: str, kind: str) -> None:
    before = (signed / SIGNATURE).read_bytes()
    with raises(UsageError, what="private_key", where=keys / f"{name}.pem", found=kind, expected=re.compile("P-256")):
        vitdeploy.sign(signed, private_key=keys / f"{name}.pem")
    with raises(UsageError, what="private_key", found=re.compile("public key")):
        vitdeploy.sign(signed, private_key=keys / "own.pub")
    assert (signed / SIGNATURE).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "rsa.pub": "an RSA public key",
        "ed25519.pub": "an Ed25519 public key",
        "bitcoin.pub": "an EC public key on the curve secp256k1",
        "own.pem": "an EC private key on the curve secp256r1",
        "text.pem": "no key in PEM",
    }.items(),
)
def test_a_key_that_cannot_verify(signed: Path, keys: Path, name: str, kind: str) -> None:
    with raises(InputError, what="public_key", where=keys / name, found=kind, expected=re.compile("P-256")):
        vitdeploy.load(signed, public_key=keys / name)


def test_a_key_that_is_not_there(signed: Path, keys: Path) -> None:
    with raises(InputError, where=keys / "absent"):
        vitdeploy.load(signed, public_key=keys / "absent")


def test_options_that_do_not_go_together(signed: Path, keys: Path) -> None:
    assert run("verify", signed, "--run", "--public-key", keys / "own.pub").code == 2
    assert run("sign", signed).code == 2
    ran = run("sign", signed, "--private-key", keys / "own.pem", "--json")
    assert (ran.code, json.loads(ran.out)["signature"]) == (0, str(signed / SIGNATURE))


def test_an_altered_bundle_is_not_signed(single: Bundle, keys: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(single.path, tmp_path / "altered")
    altered(folder / "onnx/model.onnx")
    with pytest.raises(VitDeployError):
        vitdeploy.sign(folder, private_key=keys / "own.pem")
    assert not (folder / SIGNATURE).exists()
