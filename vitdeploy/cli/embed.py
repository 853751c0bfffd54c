"""`vitdeploy embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli import synonyms
from vitdeploy.cli.command import Choice, command, option
from vitdeploy.cli.number_options import BATCH_SIZE
from vitdeploy.cli.output import (
    PATH,
    image_limit_option,
    json_option,
    one_line,
    print_json,
    print_left_out,
    print_table,
    read_device,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.runtimes import BACKENDS
from vitdeploy.specs import POOLS

if TYPE_CHECKING:
    from vitdeploy.embedding.job import EmbeddedImages

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
@option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    metavar="NAME",
    help=f"One of {', '.join(BACKENDS)}. Default: the one that runs the artifact.",
)
@option(
    "--precision",
    callback=lambda _context, _option, name: synonyms.PRECISIONS.get(name, name),
    help="Precision of the artifact. Default: the tuned choice, or the only one; of several, ONNX first, then fp32.",
)
@option("--device", callback=read_device, help="cpu, cuda or cuda:1. Default: cpu; cuda for an engine.")
@option("--revision", group="Hub", help="Branch, tag or commit of a bundle on the Hub.")
@option("--token", envvar="HF_TOKEN", group="Hub", help="Hub token, for a private or gated bundle.  [env: HF_TOKEN]")
@image_limit_option
@json_option
def embed(
    bundle: str,
    images: tuple[str, ...],
    output: str,
    backend: str | None,
    precision: str | None,
    device: str | None,
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
    import warnings

    from vitdeploy.delivery.loading import load
    from vitdeploy.embedding.job import embed as embed_images
    from vitdeploy.errors import ImageError
    from vitdeploy.runtimes.choice import TunedElsewhereWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TunedElsewhereWarning)  # printed below, as one line
        predictor = load(bundle, backend=backend, precision=precision, device=device, revision=revision, token=token)
    tuned = predictor.details.get("tuned")
    if tuned is not None and tuned["note"] is not None:
        click.echo(f"Note: {one_line(bundle)}: {one_line(tuned['note'])}", err=True)
    with predictor, CommandProgress("images") as progress:
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
