"""`vitdeploy predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.image_job import (
    batch_size_option,
    described,
    exit_for,
    on_error_option,
    print_failed,
    resumed_note,
)
from vitdeploy.cli.number_options import COUNT
from vitdeploy.cli.opened_bundle import open_predictor, opening_options
from vitdeploy.cli.output import PATH, image_limit_option, json_option, print_json, print_table
from vitdeploy.cli.progress import CommandProgress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.errors import ImageError
    from vitdeploy.predictor import Prediction, Predictor


@command(
    examples=(
        "predict vit cat.jpg dog.jpg",
        "predict vit cat.jpg -k 1 --json",
        "predict vit cat.jpg --backend torch",
        "predict vit photos images.csv --output predictions.parquet",
    )
)
@click.argument("bundle", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@opening_options
@option("-k", "--top-k", type=COUNT, help="Classes per image. Default: 5. Not for a regression.")
@option(
    "-o", "--output", type=PATH,
    help="File of predictions, a row per image: .csv, .jsonl or .parquet. IMAGES may then be folders, a .csv or .tsv "
    "of paths, or a Hub dataset's .parquet files, too.",
)  # fmt: skip
@batch_size_option
@on_error_option("With --output, for an image that cannot be read: record it, or stop. Default: record.", default=None)
@image_limit_option
@json_option
def predict(
    bundle: str,
    images: tuple[str, ...],
    output: str | None,
    on_error: str | None,
    as_json: bool,
    top_k: int | None,
    batch_size: int | None,
    **opening: Any,
) -> None:
    """Classify IMAGES with BUNDLE, or print the values of a regression model.

    BUNDLE is a folder, or ORG/NAME on the Hub. Only the required files are downloaded, into the Hub's cache.

    Scores are those of transformers' image-classification pipeline: softmax over the classes, or sigmoid for a
    multi-label model. A regression model returns all values in the model's order. Exits with 1 if the model returns NaN
    or infinite values.

    With --output, the same command continues after an interruption. It exits with 4 if an image could not be read; the
    file is still complete.
    """
    from vitdeploy.errors import ImageError

    options = {"top_k": top_k, "batch_size": batch_size}
    if output is not None:
        _predict_to_file(bundle, images, output, as_json, opening, on_error=on_error or "record", **options)
        return
    if on_error is not None:
        raise click.UsageError("--on-error applies to --output only")
    with open_predictor(bundle, **opening) as predictor:
        try:
            results = predictor.predict(list(images), **options)
        except ImageError as exc:
            raise _with_hint(exc, images) from exc
    if as_json:
        _print_json(bundle, images, predictor, results)
    else:
        _print(bundle, images, predictor, results)


def _predict_to_file(
    bundle: str, images: Sequence[str], output: str, as_json: bool, opening: dict[str, Any], **options: Any
) -> None:
    from vitdeploy.batch.predict_job import predict as predict_images
    from vitdeploy.bundle.scores import ProblemType

    with open_predictor(bundle, beside_decoding=True, **opening) as predictor, CommandProgress("images") as progress:
        result = predict_images(predictor, images, output, progress=progress, **options)
    if as_json:
        print_json({**described(bundle, predictor), **result.to_dict()})
    else:
        title = f"{bundle} on {predictor.details['backend']} {predictor.details['precision']}"
        ranks = "values" if result.problem_type == ProblemType.REGRESSION else "classes"
        row = (result.output, str(result.images), str(result.ranks))
        print_table(title, ("output", "images", f"{ranks} per image"), [row], resumed_note(result))
        print_failed(result, result.output)
    exit_for(result)


def _with_hint(error: ImageError, images: Sequence[str]) -> ImageError:
    """The error, with a hint if a folder or a data set was given as an image."""
    import os
    from pathlib import Path

    from vitdeploy.files.label_tables import TABLE_ENDINGS

    # pathlib raises where a folder on the way is forbidden
    many = [name for name in images if os.path.isdir(name) or Path(name).suffix.lower() in TABLE_ENDINGS]  # noqa: PTH112
    return error.with_message(f"{error}; for the images in {many[0]}, add --output FILE") if many else error


def _print_json(
    bundle: str, images: Sequence[str], predictor: Predictor, results: Sequence[Sequence[Prediction]]
) -> None:
    opened, tuned = predictor.details, predictor.details.get("tuned")
    commit = opened.get("revision")
    print_json(
        {
            "bundle": bundle,
            **({} if commit is None else {"revision": commit}),
            "backend": opened["backend"],
            "precision": opened["precision"],
            **({} if tuned is None else {"tuned": tuned}),
            "problem_type": str(predictor.problem_type),
            "details": predictor.runtime.details,
            "results": [
                {"image": image, "predictions": [prediction.to_dict() for prediction in best]}
                for image, best in zip(images, results, strict=True)
            ],
        }
    )


def _print(bundle: str, images: Sequence[str], predictor: Predictor, results: Sequence[Sequence[Prediction]]) -> None:
    from vitdeploy.bundle.scores import ProblemType

    opened, tuned = predictor.details, predictor.details.get("tuned")
    commit, others = opened.get("revision"), opened["other_artifacts"]
    score, form = ("value", ".6g") if predictor.problem_type is ProblemType.REGRESSION else ("score", ".4f")
    rows = [
        (image if rank == 0 else "", prediction.label, f"{prediction.score:{form}}")
        for image, best in zip(images, results, strict=True)
        for rank, prediction in enumerate(best)
    ]
    print_table(
        f"{bundle}{'' if commit is None else f'@{commit[:7]}'} on {opened['backend']} {opened['precision']}"
        + (", tuned" if tuned is not None and tuned["in_use"] else ""),
        ("image", "label", score),
        rows,
        notes=[f"also in the bundle: {', '.join(others)} (--backend, --precision)"] if others else [],
    )
