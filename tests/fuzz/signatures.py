"""The signature of a bundle's manifest, and the manifest that it is of."""

from __future__ import annotations

import base64
import json
import shutil
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec

import vitdeploy
from fuzz.cases import DAMAGED, PASSED, Case
from fuzz.damage import choose, damaged, odd_json
from fuzz.special_files import replace, rewrite
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.bundle.signature import SIGNATURE

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


class Signatures:
    """A signature as JSON and as bytes, its statement, and the key's file.

    Oracle: the manifest is the signed one, or it is refused with 4.
    """

    def __init__(self, base: Path) -> None:
        work = base.parent / "signed"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base / "bundle", work)
        key = ec.generate_private_key(ec.SECP256R1())
        (base.parent / "private.pem").write_bytes(
            key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        )
        vitdeploy.sign(work, private_key=base.parent / "private.pem")
        self._manifest, self._signature = ((work / name).read_bytes() for name in (MANIFEST, SIGNATURE))
        self._key = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        files = {MANIFEST: self._manifest, SIGNATURE: self._signature, "public.pem": self._key}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        kind = choose(rng, ("signature", "signature", "statement", "statement", MANIFEST, "public.pem", "special"))
        data = json.loads(self._signature)
        if kind == "signature":
            note, content, _ = odd_json(rng, data)
            rewrite(folder / SIGNATURE, content)
        elif kind == "statement":
            note, content, _ = odd_json(rng, json.loads(base64.b64decode(data["dsseEnvelope"]["payload"])))
            data["dsseEnvelope"]["payload"] = base64.b64encode(content).decode()
            rewrite(folder / SIGNATURE, json.dumps(data).encode())
        elif kind == "special":
            note, _ = replace(rng, folder / choose(rng, tuple(files)))
        else:
            note, content = damaged(rng, files[kind])
            rewrite(folder / kind, content)

        def check(bundle: Bundle) -> str | None:
            whole = Bundle.parse(folder, self._manifest) == bundle
            return None if whole else "another manifest than the signed one is accepted"

        return Case(
            f"{kind}: {note}", ("verify", ".", "--public-key", "public.pem"), frozenset({PASSED, DAMAGED}), check,
            lambda: Bundle.open(folder, public_key=folder / "public.pem"),
        )  # fmt: skip
