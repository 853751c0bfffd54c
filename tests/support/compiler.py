"""The TensorRT-RTX compiler, which builds an engine on any machine: a second reader of every graph that is exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vitdeploy.specs import AxisRange

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle

BATCHES = AxisRange(1, 2, 7)
LARGEST_SIZE = 64  # pixels, where an artifact takes every size


def build_engine(bundle: Bundle, of: str | None = None, precision: str | None = None) -> int:
    """Compile an artifact of a bundle, the only one or that of a format and a precision; the engine's size in bytes."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")
    (artifact,) = (
        each for each in bundle.manifest.artifacts if of in (None, each.format) and precision in (None, each.precision)
    )
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(bundle.path / artifact.files[0].path))
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for spec in artifact.inputs:
        ranges = [_range(axis, artifact.axes) for axis in spec.shape]
        profile.set_shape(
            spec.name,
            [each.minimum for each in ranges],
            [each.optimum for each in ranges],
            [each.maximum for each in ranges],
        )
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, "the parsed graph must build"
    return int(engine.nbytes)


def _range(axis: int | str, axes: dict[str, AxisRange]) -> AxisRange:
    if isinstance(axis, int):
        return AxisRange(axis, axis, axis)
    if axis not in axes:
        return BATCHES if axis == "batch" else AxisRange(1, LARGEST_SIZE // 2, LARGEST_SIZE)
    found = axes[axis]
    return found if found.maximum else AxisRange(found.minimum, found.optimum, max(found.optimum, LARGEST_SIZE))
