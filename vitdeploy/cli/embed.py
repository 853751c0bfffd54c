"""`vitdeploy embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import Choice, command, option
from vitdeploy.cli.image_job import (
    batch_size_option,
    described,
    exit_for,
    on_error_option,
    print_failed,
    resumed_note,
)
from vitdeploy.cli.opened_bundle import open_predictor, opening_options
from vitdeploy.cli.output import (
    PATH,
    image_limit_option,
    json_option,
    print_json,
    print_table,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.specs import POOLS

if TYPE_CHECKING:
    from vitdeploy.batch.embed_job import EmbeddedImages
    from vitdeploy.batch.image_job import OnError
    from vitdeploy.specs import Pool


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
@batch_size_option
@on_error_option("For an image that cannot be read: record it, with NaN as its vector, or stop.")
@opening_options
@image_limit_option
@json_option
def embed(
    bundle: str,
    images: tuple[str, ...],
    output: str,
    pool: Pool | None,
    normalize: bool,
    batch_size: int | None,
    on_error: OnError,
    as_json: bool,
    **opening: Any,
) -> None:
    """Write one vector per image of IMAGES to a file, a row each, in their order.

    IMAGES are files, folders, a .csv or .tsv of paths, or a Hub dataset's .parquet files. BUNDLE is a folder, or
    ORG/NAME on the Hub, and has a model for image-feature-extraction.

    After an interruption, the same command continues. Exits with 4 if an image could not be read; the file is still
    complete. Exits with 1 if the model returns NaN or infinite values.
    """
    from vitdeploy.batch.embed_job import embed as embed_images

    with open_predictor(bundle, beside_decoding=True, **opening) as predictor, CommandProgress("images") as progress:
        result = embed_images(
            predictor, images, output, pool=pool, normalize=normalize, batch_size=batch_size, on_error=on_error,
            progress=progress,
        )  # fmt: skip
    opened = predictor.details
    if as_json:
        print_json({**described(bundle, predictor), **result.to_dict()})
    else:
        _print(f"{bundle} on {opened['backend']} {opened['precision']}", result)
    exit_for(result)


def _print(title: str, result: EmbeddedImages) -> None:
    where = result.output if result.names is None else f"{result.output}, {result.names}"
    pool = result.embedding["pool"]
    how = result.embedding["output"] if pool is None else f"{pool} of {result.embedding['output']}"
    how += ", normalized" if result.embedding["normalize"] else ""
    rows = [(where, str(result.images), str(result.width), how)]
    print_table(title, ("output", "images", "width", "vectors"), rows, resumed_note(result))
    print_failed(result, result.names or result.output)
