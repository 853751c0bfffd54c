"""Build options of an engine: one set for every TensorRT library."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.errors import UsageError, shown
from vitdeploy.specs import AxisRange, PixelFormat, TensorSpec, read_image_size, read_range
from vitdeploy.system.option_fields import changed, check_options, described, option

Profile = dict[str, AxisRange]
Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

BATCH = "batch"
DEFAULT_BATCH = AxisRange(1, 8, 32)
_SIZES = ("batch", "image_sizes")  # every library's


@described
@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Batch sizes and builder options of an engine; a library that lacks an option refuses it.

    Each combination of a batch size range and an image size range is an optimization profile.

    Raises:
        UsageError: If an option is invalid.
    """

    batch: tuple[AxisRange, ...] = option(
        (DEFAULT_BATCH,),
        "Batch sizes: smallest, optimal and largest, for each profile.",
        read=read_range,
        repeated=True,
        metavar="MIN:OPT:MAX",
        unset="1:8:32",
    )
    image_sizes: tuple[Bounds, ...] = option(
        (),
        "Image sizes for each profile, within the ONNX artifact's limits, such as 32x32:480x640:1080x1920; three "
        "(height, width) in Python. Required with embed_resize. GPU memory grows with the largest.",
        read=lambda text: _three(read_image_size(text)),
        typed="engine_size",
        repeated=True,
        metavar="MIN:OPT:MAX",
        unset="the ONNX artifact's limits",
    )
    workspace_mib: int | None = option(
        None,
        "GPU workspace of the builder, in MiB.",
        limits=(1, 2**24),  # 16 TiB, more than any GPU has; the libraries count bytes in 63 bits
        metavar="MIB",
        unset="all",
    )
    optimization_level: int = option(3, "Search effort of the builder.", limits=(0, 5))
    tf32: bool = option(False, "Round float32 products to TF32's 11 bits, as TensorRT does by default.")
    timing_cache: str | os.PathLike[str] | None = option(
        None, "File with reusable kernel timings (tensorrt).", path=True, unset="beside the bundle"
    )
    version_compatible: bool = option(
        False, "Let later TensorRT versions run the engine, within TensorRT's support matrix (tensorrt)."
    )
    hardware_compatibility: str = option(
        "none",
        "Additional GPUs that can run the engine (tensorrt).",
        choices=("none", "ampere_plus", "same_compute_capability"),
    )
    compute_capabilities: tuple[str, ...] = option(
        (),
        "Compute capability of the GPUs, such as 8.9 (tensorrt-rtx).",
        names=True,
        typed="compute_capability",
        repeated=True,
        metavar="N.N",
        unset="the library's portable set",
    )
    refit: bool = option(False, "Allow refitting with new weights.")
    strip_weights: bool = option(False, "Write the engine without weights; they are loaded from the ONNX artifact.")

    def __post_init__(self) -> None:
        check_options(self)
        if not isinstance(self.batch, tuple) or not self.batch or not all(map(_is_limited, self.batch)):
            raise UsageError(
                f"batch takes one or more AxisRange with a largest size, got {shown(self.batch, 80)}",
                what="batch", found=self.batch,
            )  # fmt: skip
        if not isinstance(self.image_sizes, tuple) or not all(map(_are_sizes, self.image_sizes)):
            raise UsageError(
                f"image_sizes takes ranges of three (height, width), none smaller than the one before, "
                f"got {shown(self.image_sizes, 80)}",
                what="image_sizes", found=self.image_sizes,
            )  # fmt: skip
        for name in self.compute_capabilities:
            if not re.fullmatch(r"[0-9]+\.[0-9]", name):
                raise UsageError(
                    f"compute_capabilities are numbers such as 8.9, got {shown(name, 80)}",
                    what="compute_capabilities", found=name,
                )  # fmt: skip

    def chosen(self) -> dict[str, Any]:
        """Options that differ from the defaults, by name, except sizes, which every library supports."""
        return {name: value for name, value in changed(self).items() if name not in _SIZES}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest, except image sizes, which are in its axes, and the timing cache's file."""
        values = {**dataclasses.asdict(self), "batch": [colons(sizes) for sizes in self.batch]}
        values["compute_capabilities"] = list(self.compute_capabilities)
        del values["timing_cache"], values["image_sizes"]
        return values

    def check_limits(self, *, free: bool, limited: bool) -> None:
        """Raise UsageError unless image size limits are given exactly if the image size is dynamic.

        Args:
            free: True if the ONNX artifact takes several sizes.
            limited: True if it has its own limits.
        """
        if self.image_sizes and not free:
            raise UsageError(
                "image_sizes needs an ONNX artifact that takes several sizes, and this one takes one",
                what="image_sizes", found=self.image_sizes,
            )  # fmt: skip
        if free and not limited and not self.image_sizes:
            raise UsageError(
                "an engine takes image sizes within limits, and the ONNX artifact has none", what="image_sizes",
                hint="give image_sizes MIN:OPT:MAX, such as 112:224:384 or 32x32:480x640:1080x1920",
            )  # fmt: skip

    def profiles(
        self, inputs: Sequence[TensorSpec], pixels: PixelFormat, axes: Mapping[str, AxisRange]
    ) -> list[Profile]:
        """Sizes of every dynamic axis, for each combination of batch and image size ranges.

        Args:
            inputs: The engine's inputs, images first.
            pixels: Input image format.
            axes: Image size limits of the ONNX artifact, if any.

        Raises:
            UsageError: If limits for dynamic sizes are missing, or exceed the artifact's.
        """
        names = pixels.free_size(inputs[0].shape)
        limits = {name: axes[name] for name in names if name in axes}
        limited = all(name in limits and limits[name].maximum is not None for name in names)
        self.check_limits(free=bool(names), limited=limited)
        given = [
            {name: AxisRange(*edges) for name, edges in zip(names, zip(*bounds, strict=True), strict=True)}
            for bounds in self.image_sizes
        ]
        for name, asked in ((name, sizes[name]) for sizes in given for name in limits):
            if asked.minimum not in limits[name] or (asked.maximum or 0) not in limits[name]:
                raise UsageError(
                    f"{name} {colons(asked)} is outside the ONNX artifact's range, {limits[name]}",
                    what="image_sizes", expected=limits[name], found=asked,
                )  # fmt: skip
        return [{BATCH: batch, **sizes} for batch in self.batch for sizes in given or [limits]]


def _three(sizes: Any) -> Any:
    """One (height, width) as all three of a range."""
    return (sizes,) * 3 if isinstance(sizes[0], int) else sizes


def _is_limited(sizes: Any) -> bool:
    return isinstance(sizes, AxisRange) and sizes.maximum is not None


def _are_sizes(bounds: Any) -> bool:
    """True for three (height, width) in ascending order."""
    pairs = isinstance(bounds, tuple) and [isinstance(pair, tuple) and len(pair) for pair in bounds] == [2, 2, 2]
    return pairs and all(
        all(type(edge) is int for edge in edges) and 1 <= edges[0] <= edges[1] <= edges[2]
        for edges in zip(*bounds, strict=True)
    )


def colons(sizes: AxisRange) -> str:
    """A range in its command-line form."""
    return f"{sizes.minimum}:{sizes.optimum}:{sizes.maximum}"


def reach(profiles: Sequence[Mapping[str, AxisRange]]) -> Profile:
    """Sizes of each axis that lie within some profile; gaps between profiles are possible."""
    return {
        name: AxisRange(
            min(profile[name].minimum for profile in profiles),
            profiles[0][name].optimum,
            max(profile[name].maximum or 0 for profile in profiles),
        )
        for name in profiles[0]
    }
