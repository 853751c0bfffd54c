"""`vitdeploy embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import Choice, command, option
from vitdeploy.cli.number_options import BATCH_SIZE
from vitdeploy.cli.opened_bundle import open_predictor, opening_options
from vitdeploy.cli.output import (
    PATH,
    image_limit_option,
    json_option,
    print_json,
    print_left_out,
    print_table,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.specs import POOLS

if TYPE_CHECKING:
    from vitdeploy.batch.embed_job import EmbeddedImages

_MOST_FAILED = 20  # printed


@command(
    examples=(
        "embed dinov2 photos --output emb.npy --normalize",
        "embed dinov2 photos more-photos -o emb.parquet --on-error stop",
        "embed dinov2 images.parquet -o emb.npy --pool mean",
    )
)
@click.argument("bundle", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@option(
    "-o", "--output", required=True, type=PATH,
    help="File of vectors: .npy, with the paths in a .csv file beside it; or .parquet.",
)  # fmt: skip
@option(
    "--pool",
    type=Choice(POOLS),
    help="Pooling of the vectors, if the artifact has its output. Default: the artifact's image_embeds, else its "
    "pooler, else the family's pooling.",
)
@option("--normalize", is_flag=True, help="Divide each vector by its L2 norm.")
@option("--batch-size", type=BATCH_SIZE, help="Images per run. Default: 8, or the tuned choice's.")
@option(
    "--on-error", type=Choice(("record", "stop")), default="record", show_default=True,
    help="For an image that cannot be read: record it, with NaN as its vector, or stop.",
)  # fmt: skip
@opening_options
@image_limit_option
@json_option
def embed(
    bundle: str,
    images: tuple[str, ...],
    output: str,
    backend: str | None,
    precision: str | None,
    device: str | None,
    public_key: str | None,
    revision: str | None,
    token: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write one vector per image of IMAGES to a file, a row each, in their order.

    IMAGES are files, folders, a .csv or .tsv of paths, or a Hub dataset's .parquet files. BUNDLE is a folder, or
    ORG/NAME on the Hub, and has a model for image-feature-extraction.

    After an interruption, the same command continues. Exits with 4 if an image could not be read; the file is still
    complete. Exits with 1 if the model returns NaN or infinite values.
    """
    from vitdeploy.batch.embed_job import embed as embed_images
    from vitdeploy.errors import ImageError

    opening = {
        "backend": backend, "precision": precision, "device": device, "public_key": public_key, "revision": revision,
        "token": token,
    }  # fmt: skip
    with open_predictor(bundle, **opening) as predictor, CommandProgress("images") as progress:
        result = embed_images(predictor, images, output, progress=progress, **options)
    opened = predictor.details
    if as_json:
        names = ("revision", "backend", "precision")
        described = {name: opened[name] for name in names if name in opened}
        print_json({"bundle": bundle, **described, "details": predictor.runtime.details, **result.to_dict()})
    else:
        _print(f"{bundle} on {opened['backend']} {opened['precision']}", result)
    if result.failed:
        click.get_current_context().exit(ImageError.exit_code)


def _print(title: str, result: EmbeddedImages) -> None:
    where = result.output if result.names is None else f"{result.output}, {result.names}"
    pool = result.embedding["pool"]
    how = result.embedding["output"] if pool is None else f"{pool} of {result.embedding['output']}"
    how += ", normalized" if result.embedding["normalize"] else ""
    rows = [(where, str(result.images), str(result.width), how)]
    resumed = [f"{result.resumed} images were finished by an earlier run"] if result.resumed else []
    print_table(title, ("output", "images", "width", "vectors"), rows, resumed)
    if result.failed:
        failed = [(str(image.row), image.path, image.error) for image in result.failed[:_MOST_FAILED]]
        more = len(result.failed) - len(failed)
        notes = [f"and {more} more, in {result.names or result.output}"] if more else []
        print_table(f"\n{len(result.failed)} images could not be read", ("row", "image", "error"), failed, notes)
    for left_out in result.left_out.values():
        print_left_out(left_out)
