"""`vitdeploy sign`."""

from __future__ import annotations

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import PATH, json_option, print_json, print_text


@command(examples=("sign vit --private-key private.pem", "sign vit --private-key private.pem --json"))
@click.argument("bundle", type=PATH)
@option("--private-key", required=True, type=PATH, help="PEM file: P-256, P-384 or P-521, without a password.")
@json_option
def sign(bundle: str, private_key: str, as_json: bool) -> None:
    """Sign the manifest of BUNDLE, after every file is verified.

    The signature is manifest.json.sig, in the format of OpenSSF model-signing. Check it with verify --public-key. Every
    later change of the manifest needs another signature.
    """
    from vitdeploy.delivery.signing import sign as sign_bundle

    signature = sign_bundle(bundle, private_key=private_key)
    if as_json:
        print_json({"bundle": bundle, "signature": str(signature)})
        return
    print_text(f"{signature} is the signature of {bundle}")
