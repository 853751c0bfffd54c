"""`vitdeploy pack`."""

from __future__ import annotations

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import PATH, json_option, print_json, print_table, print_text, size


@command(examples=("pack vit --artifact onnx-int8 -o small", "pack vit --artifact onnx-fp32 --artifact torch -o small"))
@click.argument("bundle", type=PATH)
@option(
    "--artifact", "artifacts", multiple=True, required=True,
    help="Artifact, such as onnx-int8; torch is the reference with its weights. Repeatable.",
)  # fmt: skip
@option("-o", "--output", required=True, type=PATH, help="Folder of the slim bundle; an earlier one is replaced.")
@json_option
def pack(bundle: str, artifacts: tuple[str, ...], output: str, as_json: bool) -> None:
    """Write a slim bundle: the given artifacts of BUNDLE, and the files that they need.

    Configuration, image processor and labels are included; the weights of the reference only with --artifact torch.
    The manifest keeps the validation of each artifact.
    """
    from vitdeploy.delivery.packing import pack as pack_bundle

    packed = pack_bundle(bundle, artifacts, output=output)
    records = packed.manifest.records
    if as_json:
        print_json({"bundle": str(packed.path), **packed.manifest.to_dict()})
        return
    rows = [(record.path, size(record.size_bytes)) for record in records]
    print_table(str(packed.path), ("file", "size"), rows)
    if packed.manifest.packed_from is not None:
        left_out = sum(record.size_bytes for record in packed.manifest.packed_from.files)
        total = sum(record.size_bytes for record in records)
        print_text(f"{size(total)}, of {size(total + left_out)} in the whole bundle")
