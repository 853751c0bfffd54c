"""`vitdeploy inspect`."""

from __future__ import annotations

import click

from vitdeploy.cli.output import json_option, pairs, print_json, print_table


@click.command()
@click.argument("bundle", type=click.Path())
@json_option
def inspect(bundle: str, as_json: bool) -> None:
    """Show what BUNDLE holds, from its manifest alone; `verify` checks the files."""
    from vitdeploy.bundle import Bundle

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    if as_json:
        print_json({"bundle": bundle, **manifest.to_dict()})
        return
    source = manifest.source.id + (f" @ {manifest.source.revision}" if manifest.source.revision else "")
    rows = [("source", source), ("task", manifest.task)]
    for artifact in manifest.artifacts:
        rows += [("artifact", artifact.name)]
        rows += [
            ("  file", f"{file.path}  {file.size_bytes / 1e6:.1f} MB  sha256 {file.sha256[:16]}…")
            for file in artifact.files
        ]
        rows += [("  input", str(spec)) for spec in artifact.inputs]
        rows += [("  output", str(spec)) for spec in artifact.outputs]
        rows += [("  options", pairs(artifact.options)), ("  made with", pairs(artifact.tools))]
        checked = artifact.validation
        if checked:
            rows += [
                ("  proven", f"{item['output']} within {item['max_relative']:.1e} of the reference (tolerance "
                 f"{checked['tolerance']:g}) on {checked['images']} images, {checked['engine']}")
                for item in checked["outputs"]
            ]  # fmt: skip
    rows += [("file", f"{file.path}  {file.size_bytes / 1e6:.1f} MB") for file in manifest.files]
    print_table(bundle, ("", ""), rows)
