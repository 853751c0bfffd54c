"""`vitdeploy verify`."""

from __future__ import annotations

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import (
    PATH,
    image_limit_option,
    json_option,
    left_out_texts,
    print_json,
    print_text,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.errors import UsageError


@command(examples=("verify vit", "verify vit --public-key public.pem", "verify vit --run --images photos"))
@click.argument("bundle", type=PATH)
@option("--public-key", type=PATH, help="PEM file of the key that must have signed the bundle; see sign.")
@option("--run", is_flag=True, help="Also validate engines that have not run yet, on this GPU.")
@option(
    "--artifact",
    "artifacts",
    multiple=True,
    help="With --run: engine to validate, such as tensorrt-rtx-fp16. Default: all.",
)
@option("--images", type=PATH, help="With --run: image folder. Default: synthetic images.")
@image_limit_option
@json_option
def verify(
    bundle: str, public_key: str | None, run: bool, artifacts: tuple[str, ...], images: str | None, as_json: bool
) -> None:
    """Check every file of BUNDLE against its manifest; exits with 4 at the first altered file.

    With --public-key, the signature of the manifest is checked first, and files that the manifest does not record are
    refused, apart from README.md and git's.

    With --run, engines that have not run yet are compared with the reference, or without torch with their ONNX
    artifact. Each result is recorded in the manifest. Exits with 1 if an engine differs, and with 3 if one cannot run.
    """
    from vitdeploy.bundle.retry import open_verified

    for name, value in (("images", images), ("artifact", ", ".join(artifacts) or None)):
        if value is not None and not run:
            raise UsageError(f"--{name} needs --run", what=f"--{name}", found=value, hint="add --run, or leave it out")
    if run and public_key is not None:
        raise UsageError(
            "--run records its result in the manifest, after which the signature is stale",
            what="--public-key", found=public_key, hint="verify the signature, then verify --run, and sign again",
        )  # fmt: skip
    opened = open_verified(bundle, public_key=public_key)
    validated: tuple[str, ...] = ()
    if run:
        from vitdeploy.exporting.engine_validation import validate_engines
        from vitdeploy.exporting.options import ValidationOptions

        with CommandProgress("images") as progress:
            opened, validated = validate_engines(
                opened, names=artifacts, validation=ValidationOptions(images), progress=progress
            )
    manifest = opened.manifest
    files = manifest.records
    if as_json:
        shown = {"bundle": bundle, "status": "passed", "files": [file.path for file in files]}
        signed = {} if public_key is None else {"public_key": public_key}
        print_json({**shown, **signed, **({"proven": list(validated)} if run else {})})
        return
    print_text(f"{bundle}: {len(files)} files are what the manifest says")
    if public_key is not None:
        print_text(f"signed by {public_key}")
    if run:
        print_text(f"validated here: {', '.join(validated) or 'nothing; every engine was validated before'}")
        for artifact in manifest.artifacts:
            if images is not None and artifact.name in validated:
                for name, text in left_out_texts(artifact.validation).items():
                    print_text(f"{artifact.name}, --{name}: {text}")
