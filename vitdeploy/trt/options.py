"""What an engine is built for, and with which of the builder's options: one set for every TensorRT library."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UsageError
from vitdeploy.specs import AxisRange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.specs import PixelFormat, TensorSpec

    Profile = dict[str, AxisRange]
    Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

BATCH = "batch"
DEFAULT_BATCH = AxisRange(1, 8, 32)
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
_OPTIMIZATION_LEVELS = range(6)
LARGEST_WORKSPACE_MIB = 2**24  # 16 TiB, more than any GPU has; the libraries count bytes in 63 bits
_SIZES = ("batch", "image_sizes")  # every library's


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Options of an engine; each is refused by a library that does not have it.

    Attributes:
        batch: a profile for each range of batch sizes: the smallest, the one to be fastest at, and the largest.
        image_sizes: likewise for each range of sizes of the images that the engine takes, each three (height, width);
            by default one range, the limits of the ONNX artifact. One that takes images of any size, decoded ones for
            example, has none: there they must be given. Memory on the GPU grows with the largest. Each range of batch
            sizes and each of image sizes are a profile.
        workspace_mib: device memory that the builder may use for scratch, in MiB; None for all that there is.
        optimization_level: 0 to 5: how long the builder searches. 3 is TensorRT's own default.
        tf32: whether float32 products are rounded to TF32's 11 bits, as TensorRT does by default. Off: the engine is to
            equal a float32 reference.
        timing_cache: the file in which measured kernels are kept, to be reused; None for one beside the bundle.
        version_compatible: whether later versions of the same major version may run the engine, and TensorRT 11 one
            of TensorRT 10.
        hardware_compatibility: "none" for the GPU that it is built on, "same_compute_capability", or "ampere_plus" for
            every GPU from Ampere on.
        compute_capabilities: for TensorRT-RTX: the GPUs, such as "8.9"; none for its portable default.
        refit: whether the weights can be changed later.
        strip_weights: whether the engine is written without weights, which it is given from the bundle's ONNX artifact
            when it is opened.

    Raises:
        UsageError: a value is not what it must be.
    """

    batch: tuple[AxisRange, ...] = (DEFAULT_BATCH,)
    image_sizes: tuple[Bounds, ...] = ()
    workspace_mib: int | None = None
    optimization_level: int = 3
    tf32: bool = False
    timing_cache: str | os.PathLike[str] | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    compute_capabilities: tuple[str, ...] = ()
    refit: bool = False
    strip_weights: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.batch, tuple) or not self.batch or not all(map(_is_limited, self.batch)):
            raise UsageError(f"batch must be one or more AxisRange with a largest size, got {self.batch!r:.80}")
        if not isinstance(self.image_sizes, tuple) or not all(map(_are_sizes, self.image_sizes)):
            raise UsageError(
                f"image_sizes must be ranges of three (height, width), the smallest, the usual and the largest, "
                f"got {self.image_sizes!r:.80}"
            )
        if self.workspace_mib is not None and not (
            type(self.workspace_mib) is int and 0 < self.workspace_mib <= LARGEST_WORKSPACE_MIB
        ):
            raise UsageError(
                f"workspace_mib must be a whole number of MiB from 1 to {LARGEST_WORKSPACE_MIB}, "
                f"got {self.workspace_mib!r:.80}"
            )
        for name in ("tf32", "version_compatible", "refit", "strip_weights"):
            if type(getattr(self, name)) is not bool:
                raise UsageError(f"{name} must be True or False, got {getattr(self, name)!r:.80}")
        if self.timing_cache is not None and not (
            isinstance(self.timing_cache, (str, os.PathLike)) and os.fspath(self.timing_cache)
        ):
            raise UsageError(f"timing_cache must be the path of a file, got {self.timing_cache!r:.80}")
        if type(self.optimization_level) is not int or self.optimization_level not in _OPTIMIZATION_LEVELS:
            raise UsageError(f"optimization_level must be from 0 to 5, got {self.optimization_level!r:.80}")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            known = ", ".join(HARDWARE_COMPATIBILITY)
            raise UsageError(f"hardware_compatibility must be one of {known}, got {self.hardware_compatibility!r:.80}")
        if not isinstance(self.compute_capabilities, tuple):
            raise UsageError(f"compute_capabilities must be a tuple of names, got {self.compute_capabilities!r:.80}")
        for name in self.compute_capabilities:
            if not isinstance(name, str) or not re.fullmatch(r"[0-9]+\.[0-9]", name):
                raise UsageError(f"a compute capability must be such as 8.9, got {name!r:.80}")

    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults, by name; sizes are every library's."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name not in _SIZES and value != defaults[name]}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest, but for image sizes, which its axes have, and the file that is a cache."""
        values = {**dataclasses.asdict(self), "batch": [colons(each) for each in self.batch]}
        values["compute_capabilities"] = list(self.compute_capabilities)
        del values["timing_cache"], values["image_sizes"]
        return values

    def check_limits(self, *, free: bool, limited: bool) -> None:
        """Raise UsageError unless there are limits for the sizes of images where they are free, and only there.

        Args:
            free: whether the ONNX artifact takes several sizes.
            limited: whether it has limits of its own.
        """
        if self.image_sizes and not free:
            raise UsageError("image_sizes must be for an ONNX artifact that takes several, this one takes one")
        if free and not limited and not self.image_sizes:
            raise UsageError(
                "an engine takes images of sizes within limits, the ONNX artifact any; "
                "give them: --engine-size MIN:OPT:MAX, such as 112:224:384 or 32x32:480x640:1080x1920"
            )

    def profiles(
        self, inputs: Sequence[TensorSpec], pixels: PixelFormat, axes: Mapping[str, AxisRange]
    ) -> list[Profile]:
        """The sizes of every free axis, for each range of batch and of image sizes.

        Args:
            inputs: what the engine takes, images first.
            pixels: what it takes for an image.
            axes: the sizes of images that the ONNX artifact takes, where they are free and limited.

        Raises:
            UsageError: there are no limits for free sizes, or they are not within those that are taken.
        """
        names = pixels.free_size(inputs[0].shape)
        limits = {name: axes[name] for name in names if name in axes}
        limited = all(name in limits and limits[name].maximum is not None for name in names)
        self.check_limits(free=bool(names), limited=limited)
        given = [
            {name: AxisRange(*each) for name, each in zip(names, zip(*bounds, strict=True), strict=True)}
            for bounds in self.image_sizes
        ]
        for name, each in ((name, sizes[name]) for sizes in given for name in limits):
            if each.minimum not in limits[name] or (each.maximum or 0) not in limits[name]:
                raise UsageError(f"{name} must be {limits[name]} in the ONNX artifact, got {colons(each)}")
        return [{BATCH: batch, **sizes} for batch in self.batch for sizes in given or [limits]]


def _is_limited(sizes: Any) -> bool:
    return isinstance(sizes, AxisRange) and sizes.maximum is not None


def _are_sizes(bounds: Any) -> bool:
    """Whether these are three (height, width), none smaller than the one before."""
    pairs = isinstance(bounds, tuple) and [isinstance(each, tuple) and len(each) for each in bounds] == [2, 2, 2]
    return pairs and all(
        all(type(edge) is int for edge in edges) and 1 <= edges[0] <= edges[1] <= edges[2]
        for edges in zip(*bounds, strict=True)
    )


def colons(sizes: AxisRange) -> str:
    """A range as it is typed."""
    return f"{sizes.minimum}:{sizes.optimum}:{sizes.maximum}"


def reach(profiles: Sequence[Mapping[str, AxisRange]]) -> Profile:
    """The sizes of each axis that lie within some profile; there may be gaps between profiles."""
    return {
        name: AxisRange(
            min(each[name].minimum for each in profiles),
            profiles[0][name].optimum,
            max(each[name].maximum or 0 for each in profiles),
        )
        for name in profiles[0]
    }
