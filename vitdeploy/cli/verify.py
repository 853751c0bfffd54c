"""`vitdeploy verify`."""

from __future__ import annotations

import click

from vitdeploy.cli.output import json_option, print_json, print_text


@click.command()
@click.argument("bundle", type=click.Path())
@json_option
def verify(bundle: str, as_json: bool) -> None:
    """Check every file of BUNDLE against its manifest; exits with 4 at the first that was altered."""
    from vitdeploy.bundle import Bundle

    opened = Bundle.open(bundle)
    opened.verify()
    manifest = opened.manifest
    files = [*manifest.files, *(file for artifact in manifest.artifacts for file in artifact.files)]
    if as_json:
        print_json({"bundle": bundle, "status": "passed", "files": [file.path for file in files]})
    else:
        print_text(f"{bundle}: {len(files)} files are what the manifest says")
