"""`vitdeploy predict`."""

from __future__ import annotations

from typing import Any

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.number_options import COUNT
from vitdeploy.cli.opened_bundle import open_predictor, opening_options
from vitdeploy.cli.output import PATH, image_limit_option, json_option, print_json, print_table


@command(
    examples=(
        "predict vit cat.jpg dog.jpg",
        "predict vit cat.jpg -k 1 --json",
        "predict vit cat.jpg --backend torch",
    )
)
@click.argument("bundle", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@opening_options
@option("-k", "--top-k", type=COUNT, help="Classes per image. Default: 5. Not for a regression.")
@image_limit_option
@json_option
def predict(
    bundle: str,
    images: tuple[str, ...],
    top_k: int | None,
    as_json: bool,
    **opening: Any,
) -> None:
    """Classify IMAGES with BUNDLE, or print the values of a regression model.

    BUNDLE is a folder, or ORG/NAME on the Hub. Only the required files are downloaded, into the Hub's cache.

    Scores are those of transformers' image-classification pipeline: softmax over the classes, or sigmoid for a
    multi-label model. A regression model returns all values in the model's order. Exits with 1 if the model returns NaN
    or infinite values.
    """
    from vitdeploy.bundle.scores import ProblemType

    with open_predictor(bundle, **opening) as predictor:
        results = predictor.predict(list(images), top_k=top_k)
        details, problem_type, opened = predictor.runtime.details, predictor.problem_type, predictor.details
    commit, backend, precision = opened.get("revision"), opened["backend"], opened["precision"]
    tuned = opened.get("tuned")
    if as_json:
        print_json(
            {
                "bundle": bundle,
                **({} if commit is None else {"revision": commit}),
                "backend": backend,
                "precision": precision,
                **({} if tuned is None else {"tuned": tuned}),
                "problem_type": str(problem_type),
                "details": details,
                "results": [
                    {"image": image, "predictions": [prediction.to_dict() for prediction in best]}
                    for image, best in zip(images, results, strict=True)
                ],
            }
        )
        return
    others = opened["other_artifacts"]
    score, form = ("value", ".6g") if problem_type is ProblemType.REGRESSION else ("score", ".4f")
    rows = [
        (image if rank == 0 else "", prediction.label, f"{prediction.score:{form}}")
        for image, best in zip(images, results, strict=True)
        for rank, prediction in enumerate(best)
    ]
    print_table(
        f"{bundle}{'' if commit is None else f'@{commit[:7]}'} on {backend} {precision}"
        + (", tuned" if tuned is not None and tuned["in_use"] else ""),
        ("image", "label", score),
        rows,
        notes=[f"also in the bundle: {', '.join(others)} (--backend, --precision)"] if others else [],
    )
