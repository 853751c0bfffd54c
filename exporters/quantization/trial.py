"""One way to quantize a graph, tried out on copies of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from vitdeploy.exporters.onnx_file import write_onnx
from vitdeploy.exporters.precision import name_of
from vitdeploy.exporters.quantization.calibration import calibrated_ranges, largest_by_channel
from vitdeploy.exporters.quantization.candidates import labels_of
from vitdeploy.exporters.quantization.methods import find_method
from vitdeploy.exporters.quantization.scheme import quantizable, quantize
from vitdeploy.exporters.quantization.smooth_quant import smoothable
from vitdeploy.exporters.variants import Variants

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from vitdeploy.exporters.quantization.calibration import CalibrationData
    from vitdeploy.exporters.quantization.number_format import Range
    from vitdeploy.exporters.quantization.scheme import Scheme
    from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant
    from vitdeploy.specs import ExportSpec, PixelFormat

# No wider than the whole, nor worse where values lie far apart: a cut-off must lower the error to be chosen.
DEFAULT_METHOD = "mse"


class Trial:
    """A scheme, with or without smoothed activations. What must be measured is measured when it is first needed.

    Args:
        model: in float32, with shapes.
        scheme: how it is quantized.
        spec: what the artifact is to be.
        smooth: what is done before; None for nothing.
        data: images to measure activations on.
        pixels: what the graph takes.
        folder: where copies of the graph may lie meanwhile.
    """

    def __init__(
        self,
        model: ir.Model,
        scheme: Scheme,
        spec: ExportSpec,
        smooth: SmoothQuant | None,
        data: CalibrationData | None,
        pixels: PixelFormat,
        folder: Path,
    ) -> None:
        self.smooth = smooth
        self.name = "plain" if smooth is None else f"smooth_quant {smooth.strength:g}"
        self._model, self._scheme, self._spec = model, scheme, spec
        self._data, self._pixels, self._folder = data, pixels, folder

    @property
    def variants(self) -> Variants:
        """With more nodes in float32 than `spec` keeps."""
        nodes = [node for node in quantizable(self._model, self._scheme) if name_of(node) not in self._spec.keep_fp32]
        return Variants(tuple(map(name_of, nodes)), self._write, labels_of(nodes))

    def apply(self, model: ir.Model, kept: Collection[str]) -> None:
        """Quantize, in place, the graph that it was made with, or a copy of it."""
        ranges = self._ranges  # before the graph that they are measured of may change
        if self.smooth is not None:
            self.smooth.smooth(model, self._largest)
        quantize(model, self._scheme, ranges, kept)

    def _write(self, kept: Collection[str], path: Path) -> None:
        twin = self._model.clone()
        self.apply(twin, {*kept, *self._spec.keep_fp32})
        write_onnx(twin, path)

    @functools.cached_property
    def _largest(self) -> Mapping[str, NDArray[np.float32]]:
        if self._data is None:
            raise TypeError("activations must be measured on images")
        return largest_by_channel(self._model, smoothable(self._model), self._data, self._pixels, self._folder)

    @functools.cached_property
    def _ranges(self) -> Mapping[str, Range]:
        if self._scheme.static is None or self._data is None:
            return {}
        twin = self._model.clone()
        if self.smooth is not None:
            self.smooth.smooth(twin, self._largest)
        taken = [value for value in (node.inputs[0] for node in quantizable(twin, self._scheme)) if value is not None]
        method = find_method(self._spec.calibration or DEFAULT_METHOD)
        return calibrated_ranges(twin, taken, self._scheme.static, method, self._data, self._pixels, self._folder)
