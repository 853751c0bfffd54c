"""Candidates: the artifacts that can be made and can be fast on this machine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.environment.cpu_features import fast_precisions
from vitdeploy.errors import UnavailableError
from vitdeploy.exporters import EXPORTERS, export_function
from vitdeploy.exporting.graph_options import GraphOptions
from vitdeploy.runtimes import BACKENDS, runtime_class
from vitdeploy.specs import PixelStage, Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vitdeploy.assess.environment.cpu_features import FastPrecision
    from vitdeploy.bundle.manifest import Artifact, Manifest


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an artifact is made; see the fields of `Quantization` and `GraphOptions`.

    Attributes:
        bounded: True for int8 whose most sensitive layers stay in float32 until the accuracy bound holds.
    """

    format: str
    precision: str
    scheme: str | None = None
    rest: str | None = None
    optimize: str | None = None
    bounded: bool = False

    @property
    def artifact(self) -> str:
        """Name of the artifact."""
        return f"{self.format}-{self.precision}"

    @property
    def name(self) -> str:
        """Name of the variant, such as "openvino-int8 static, rest bf16"."""
        parts = [
            self.scheme or "",
            f"rest {self.rest}" if self.rest else "",
            f"optimized for {self.optimize}" if self.optimize else "",
            "within the bound" if self.bounded else "",
        ]
        return f"{self.artifact} {', '.join(filter(None, parts))}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# The most promising first: what is not reached within the time limit is left out.
_RECIPES = (
    Recipe("onnx", "fp32"),
    Recipe("onnx", "int8", scheme="dynamic"),
    Recipe("openvino", "int8", scheme="static", rest="bf16"),
    Recipe("openvino", "bf16"),
    Recipe("openvino", "int8", scheme="static"),
    Recipe("onnx", "int8", scheme="static"),
    Recipe("onnx", "fp32", optimize="onnxruntime"),
)

ARTIFACTS = tuple(dict.fromkeys(recipe.artifact for recipe in _RECIPES))  # names that tune can add


def recipes(
    manifest: Manifest, precisions: Iterable[FastPrecision] | None = None
) -> tuple[list[Recipe], dict[Recipe, str]]:
    """Recipes for artifacts that the bundle lacks, and the reason for each of them that is left out.

    An artifact of the bundle stands for its name: no other is made in its place.

    Args:
        manifest: The bundle's manifest.
        precisions: What the CPU does fast. Default: what it says.
    """
    present = {artifact.name for artifact in manifest.artifacts}
    slow = {row.precision: str(row) for row in precisions or fast_precisions() if row.fast is False}
    chosen, left_out = list[Recipe](), dict[Recipe, str]()
    for recipe in _RECIPES:
        if recipe.artifact in present:
            continue
        reason = _obstacle(recipe, slow)
        if reason is None:
            chosen.append(recipe)
        else:
            left_out[recipe] = reason
    return chosen, left_out


def bounded(missed: Iterable[Recipe]) -> list[Recipe]:
    """Mixed-precision recipes for static int8 artifacts that missed the bound."""
    return [
        dataclasses.replace(recipe, bounded=True)
        for recipe in missed
        if recipe.precision == Precision.INT8 and recipe.scheme == "static" and not recipe.bounded
    ]


def _obstacle(recipe: Recipe, slow: dict[str, str]) -> str | None:
    """Reason why an artifact cannot be made here, or cannot be fast."""
    if recipe.format not in EXPORTERS or recipe.precision not in EXPORTERS[recipe.format].precisions:
        return f"this version does not export to {recipe.artifact}"
    for precision in (recipe.precision, recipe.rest):
        if precision in slow:
            return f"fast {precision} on this CPU: {slow[precision]}"
    try:
        export_function(EXPORTERS[recipe.format])
    except UnavailableError as exc:
        return str(exc)
    problems = []
    for backend, row in BACKENDS.items():
        if recipe.format in row.artifact_formats and row.device == "cpu":
            try:
                runtime_class(backend)
            except UnavailableError as exc:
                problems.append(str(exc))
            else:
                return None
    return "; ".join(problems) or "no backend runs it on a CPU"


def graph_like(artifacts: Iterable[Artifact]) -> GraphOptions:
    """Graph options for a new artifact with the inputs and outputs of the bundle's first one; defaults without any."""
    artifact = next(iter(artifacts), None)
    if artifact is None:
        return GraphOptions()
    pixels, options = artifact.pixels, dict[str, Any]()
    if pixels.stage is PixelStage.DECODED:
        options["embed_resize"] = True
    elif pixels.stage is PixelStage.RESIZED:
        options |= {"input": "uint8", "layout": pixels.layout}
    if "float16" in (pixels.dtype, *(spec.dtype for spec in artifact.outputs)):
        options["io_dtype"] = "float16"
    sizes = pixels.free_size(artifact.inputs[0].shape) if pixels.stage is not PixelStage.DECODED else ()
    ranges = [artifact.axes.get(axis) for axis in sizes]
    if ranges and all(sizes is not None and sizes.maximum is not None for sizes in ranges):
        edges = ("minimum", "optimum", "maximum")
        options["image_size"] = tuple(tuple(getattr(sizes, edge) for sizes in ranges) for edge in edges)
    elif ranges:
        options["dynamic_image_size"] = True
    return GraphOptions(outputs=tuple(spec.name for spec in artifact.outputs), **options)
