"""Exports with dynamic image size, compared with transformers' model: six sizes in batches of 1, 2 and 7.

`vitdeploy export --dynamic-image-size` against transformers' exporter with dynamic batch, height and width. The
latter's graph depends on the traced example: one at the model's size, and one at another, non-square size. The models
are tiny (6 layers of width 192) with random weights, at the image sizes of the published checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from common import parser, record
from transformers_export import BATCH, SIZE
from transformers_export import export as transformers_export

import vitdeploy
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnxruntime as ort

    from vitdeploy.assess.metrics.outputs import Difference

BATCH_SIZES = (1, 2, 7)
_TINY = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3}


@dataclasses.dataclass(frozen=True)
class Model:
    """A transformers model, and the forward arguments that it needs for another image size."""

    name: str
    kind: str
    config: dict[str, Any]
    flags: dict[str, bool]

    def make(self) -> Any:
        config = getattr(transformers, f"{self.kind}Config")(**_TINY, **self.config)
        torch.manual_seed(0)
        return getattr(transformers, f"{self.kind}ForImageClassification")(config).eval()

    def sizes(self) -> dict[str, tuple[int, int]]:
        native, patch = self.config["image_size"], self.config["patch_size"]
        half = native // patch // 2 * patch
        return {
            "native": (native, native),
            "smaller": (half, half),
            "larger": (native + 2 * patch, native + 2 * patch),
            "not square": (half, half + 3 * patch),
            "not whole patches": (half + 5, half - 3),
            "one patch": (patch, patch),
        }


MODELS = (
    Model(
        "ViT", "ViT", {"image_size": 224, "patch_size": 16, "intermediate_size": 768},
        {"interpolate_pos_encoding": True},
    ),
    Model("DINOv2", "Dinov2", {"image_size": 518, "patch_size": 14}, {}),
    Model("DINOv2 with registers", "Dinov2WithRegisters", {"image_size": 518, "patch_size": 14}, {}),
)  # fmt: skip


def exporters(model: Model, made: Any, folder: Path) -> dict[str, Callable[[], Path]]:
    """The exporters of `made`, by name; each returns the path of its graph."""
    checkpoint, native, patch = folder / "checkpoint", model.config["image_size"], model.config["patch_size"]

    def ours() -> Path:
        made.save_pretrained(checkpoint)
        # There are no photographs here: any processor will do, and transformers writes none with a model.
        processor = vitdeploy.ProcessorOptions(image_mean=0.5, image_std=0.5, size=native, resample="bilinear")
        bundle = vitdeploy.export(
            checkpoint,
            output=folder / "vitdeploy",
            graph=vitdeploy.GraphOptions(dynamic_image_size=True),
            source=vitdeploy.SourceOptions(processor=processor),
        )
        return bundle.path / "onnx" / "model.onnx"

    def theirs(*image_size: int) -> Path:
        height, width = image_size
        return transformers_export(
            made, folder / "transformers", image_size=(height, width), dynamic_axes=BATCH + SIZE, flags=model.flags
        )

    return {
        "vitdeploy": ours,
        "transformers, native example": lambda: theirs(native, native),
        "transformers, other example": lambda: theirs(native + patch, native + 3 * patch),
    }


def measure(model: Model) -> list[dict[str, Any]]:
    import onnxruntime as ort

    made, draw = model.make(), np.random.default_rng(0)
    images = {
        name: draw.standard_normal((max(BATCH_SIZES), 3, *size), np.float32) for name, size in model.sizes().items()
    }
    with torch.inference_mode():
        expected = {
            name: made(torch.from_numpy(pixels), **model.flags).logits.numpy() for name, pixels in images.items()
        }
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4  # a failed run is a result
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, export in exporters(model, made, Path(folder)).items():
            print(f"{model.name}: {name}", file=sys.stderr)
            row: dict[str, Any] = {"model": model.name, "exporter": name}
            try:
                session = ort.InferenceSession(str(export()), quiet, providers=["CPUExecutionProvider"])
            except Exception as exc:  # noqa: BLE001  (whatever is raised is the result)
                rows.append({**row, "error": first_line(exc)})
                continue
            cells = {size: run(session, images[size], expected[size]) for size in images}
            rows.append({**row, "sizes": {size: {"pixels": model.sizes()[size], **cells[size]} for size in cells}})
    return rows


def run(session: ort.InferenceSession, images: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """The worst batch: "right" or "wrong" with the difference, or "fails" with the first line of the error."""
    found: list[Difference] = []
    for batch_size in BATCH_SIZES:
        try:
            (logits,) = session.run(["logits"], {"pixel_values": images[:batch_size]})
            found += compare_outputs({"logits": expected[:batch_size]}, {"logits": np.asarray(logits)})
        except Exception as exc:  # noqa: BLE001  (whatever is raised is the result)
            return {"result": "fails", "batch_size": batch_size, "error": first_line(exc)}
    right = all(difference.within(DEFAULT_TOLERANCES["fp32"]) for difference in found)
    return {
        "result": "right" if right else "wrong",
        "max_relative": max(difference.max_relative for difference in found),
        "max_abs": max(difference.max_abs for difference in found),
    }


def main() -> None:
    arguments = parser(__doc__).parse_args()
    warnings.simplefilter("ignore")  # from inside the other tools
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    with contextlib.redirect_stdout(sys.stderr):
        rows = [row for model in MODELS for row in measure(model)]
    record(arguments, {"tolerance": DEFAULT_TOLERANCES["fp32"], "batch_sizes": BATCH_SIZES, "rows": rows})


if __name__ == "__main__":
    main()
