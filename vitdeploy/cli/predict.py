"""`vitdeploy predict`."""

from __future__ import annotations

import click

from vitdeploy.cli.number_options import COUNT
from vitdeploy.cli.output import PATH, image_limit_option, json_option, print_json, print_table
from vitdeploy.runtimes import BACKENDS


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--backend", default="onnxruntime", show_default=True, type=click.Choice(list(BACKENDS)))
@click.option("--precision", default="fp32", show_default=True)
@click.option("--device", help="cpu, cuda or cuda:1; cpu by default, cuda for an engine.")
@click.option("--revision", help="Of a bundle on the Hub: a branch, tag or commit.")
@click.option("--token", envvar="HF_TOKEN", help="Hub token, for a private or gated bundle.  [env: HF_TOKEN]")
@click.option("--top-k", type=COUNT, help="Classes an image; 5 by default. Not for a regression.")
@image_limit_option
@json_option
def predict(
    bundle: str,
    images: tuple[str, ...],
    backend: str,
    precision: str,
    device: str | None,
    revision: str | None,
    token: str | None,
    top_k: int | None,
    as_json: bool,
) -> None:
    """Classify IMAGES with a BUNDLE, or print the values that a regression gives for them.

    BUNDLE is a folder, or ORG/NAME on the Hub, of which the files that are needed are downloaded into the Hub's cache.

    Scores are those of transformers' image-classification pipeline: softmax over the classes, a sigmoid each for a
    multi-label model, and the values themselves, all of them in the model's order, for a regression. Exits with 1 if
    the model gives NaN or infinite values for an image.
    """
    from vitdeploy.bundle.scores import ProblemType
    from vitdeploy.delivery.loading import load

    with load(bundle, backend=backend, precision=precision, device=device, revision=revision, token=token) as predictor:
        results = predictor.predict(list(images), top_k=top_k)
        details, problem_type = predictor.runtime.details, predictor.problem_type
        commit = predictor.details.get("revision")
    if as_json:
        print_json(
            {
                "bundle": bundle,
                **({} if commit is None else {"revision": commit}),
                "backend": backend,
                "precision": precision,
                "problem_type": str(problem_type),
                "details": details,
                "results": [
                    {"image": image, "predictions": [prediction.to_dict() for prediction in best]}
                    for image, best in zip(images, results, strict=True)
                ],
            }
        )
        return
    score, form = ("value", ".6g") if problem_type is ProblemType.REGRESSION else ("score", ".4f")
    rows = [
        (image if rank == 0 else "", prediction.label, f"{prediction.score:{form}}")
        for image, best in zip(images, results, strict=True)
        for rank, prediction in enumerate(best)
    ]
    print_table(
        f"{bundle}{'' if commit is None else f'@{commit[:7]}'} on {backend} {precision}",
        ("image", "label", score),
        rows,
    )
