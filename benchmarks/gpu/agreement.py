"""Agreement of every backend and precision with the float32 reference, in one row each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import document, parser

from gpu.device import about, check_backend, check_device
from gpu.models import ARTIFACTS, EMBEDDED, VIT_B, artifact
from gpu.rows import Ledger, Row
from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.assets import held_out_images
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import BACKENDS, open_runtime

PRECISIONS = {  # in the order in which the artifacts are made
    "torch": ("fp16", "fp32", "bf16"),
    "tensorrt-rtx": ("fp16", "fp32", "bf16"),
    "onnxruntime": ("fp16", "fp32"),
    "tensorrt": ("fp16", "fp32", "bf16"),
    "onnxruntime-tensorrt": ("fp16", "fp32"),
}
IMAGES = 4
LIMIT_S = 40.0  # of one row, with the wait for its artifact; less than any step has, so that the step goes on
# ONNX Runtime's TensorRT provider rounds the factors of float32 to TF32's 11 bits, as fp16 does.
_TOLERANCES = {("onnxruntime-tensorrt", "fp32"): DEFAULT_TOLERANCES["fp16"]}


@functools.cache
def expected(bundles: Path, model: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of a model, and the outputs of its reference in float32 on the CPU."""
    bundle = artifact(bundles, model, "onnx", _first(model))
    images = itertools.islice(itertools.cycle(list_images(held_out_images()).files), IMAGES)
    feeds = {"pixel_values": load_processor(bundle)(list(images))}
    with open_runtime(bundle, "torch", device="cpu") as runtime:
        return feeds, runtime.run(feeds)


def agreement(bundles: Path, model: str, backend: str, precision: str, device: str) -> Iterator[Row]:
    """A row for each output."""
    check_backend(backend, device)
    feeds, reference = expected(bundles, model)
    formats = BACKENDS[backend].artifact_formats
    bundle = artifact(bundles, model, *((formats[0], precision) if formats else ("onnx", _first(model))))
    tolerance = _TOLERANCES.get((backend, precision), DEFAULT_TOLERANCES[precision])
    with open_runtime(bundle, backend, precision=precision, device=device) as runtime:
        outputs = runtime.run(feeds)
        details: dict[str, Any] = runtime.details
    for difference in compare_outputs(reference, outputs):
        yield {
            "model": model,
            "backend": backend,
            "precision": precision,
            "output": difference.output,
            "engine": details["engine"],
            "max_abs": difference.max_abs,
            "max_relative": difference.max_relative,
            "min_cosine": difference.min_cosine,
            "top1_agreement": difference.top1_agreement,
            "tolerance": tolerance,
            "passed": difference.within(tolerance),
        }


def _first(model: str) -> str:
    """Precision of the first artifact that is made of a model, whose bundle has the reference."""
    return next((precision for name, _, precision in ARTIFACTS if name == model), "fp32")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--bundles", type=Path, required=True, help="folder of the models, see models.py")
    options.add_argument("--models", nargs="+", default=[EMBEDDED, VIT_B])
    options.add_argument("--backends", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    options.add_argument("--precisions", nargs="+", help="by default all of the backend")
    options.add_argument("--device", default="cuda", help="cpu to try this script without a GPU")
    arguments = options.parse_args()
    check_device(arguments.device)
    ledger = Ledger(arguments.json, document(arguments, about(arguments.device)))
    works = {
        f"{model} {backend} {precision}": functools.partial(
            agreement, arguments.bundles, model, backend, precision, arguments.device
        )
        for model, backend in itertools.product(arguments.models, arguments.backends)
        for precision in arguments.precisions or PRECISIONS[backend]
    }
    ledger.attempt_each(works, LIMIT_S)
    raise SystemExit(ledger.exit_code())


if __name__ == "__main__":
    main()
