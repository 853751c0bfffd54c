"""`vitdeploy predict`."""

from __future__ import annotations

import click

from vitdeploy.cli.output import PATH, image_limit_option, json_option, print_json, print_table
from vitdeploy.runtimes import BACKENDS


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--backend", default="onnxruntime", show_default=True, type=click.Choice(list(BACKENDS)))
@click.option("--precision", default="fp32", show_default=True)
@click.option("--device", help="cpu, cuda or cuda:1; cpu by default, cuda for an engine.")
@click.option("--top-k", default=5, show_default=True, type=click.IntRange(min=1))
@image_limit_option
@json_option
def predict(
    bundle: str, images: tuple[str, ...], backend: str, precision: str, device: str | None, top_k: int, as_json: bool
) -> None:
    """Classify IMAGES with a BUNDLE."""
    from vitdeploy.predictor import load

    with load(bundle, backend=backend, precision=precision, device=device) as predictor:
        results = predictor.predict(list(images), top_k=top_k)
        details = predictor.runtime.details
    if as_json:
        print_json(
            {
                "bundle": bundle,
                "backend": backend,
                "precision": precision,
                "details": details,
                "results": [
                    {"image": image, "predictions": [prediction.to_dict() for prediction in best]}
                    for image, best in zip(images, results, strict=True)
                ],
            }
        )
        return
    rows = [
        (image if rank == 0 else "", prediction.label, f"{prediction.score:.4f}")
        for image, best in zip(images, results, strict=True)
        for rank, prediction in enumerate(best)
    ]
    print_table(f"{bundle} on {backend} {precision}", ("image", "label", "score"), rows)
