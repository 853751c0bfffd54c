"""Checks that a bundle's image processor and labels fit its opened artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitdeploy.bundle.bundle import EXPORT_AGAIN, Bundle
from vitdeploy.errors import BundleError
from vitdeploy.specs import PixelStage

if TYPE_CHECKING:
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime


def check_fit(bundle: Bundle, processor: ImageProcessor, runtime: Runtime) -> None:
    """Raise BundleError unless the processor's image size and channels fit the runtime's input."""
    shape = runtime.inputs[0].shape
    if runtime.pixels.channels(shape) != processor.num_channels:
        channels, given = runtime.pixels.channels(shape), processor.num_channels
        raise BundleError(
            f"{bundle.path}: the image processor gives {given} channels, the model takes {channels}",
            what="channels", where=bundle.path, expected=channels, found=given, hint=EXPORT_AGAIN,
        )  # fmt: skip
    takes, gives = runtime.pixels.size(shape), processor.output_size
    if runtime.pixels.stage is PixelStage.DECODED or (gives is None and all(isinstance(axis, str) for axis in takes)):
        return
    fits = gives is not None and all(
        size == axis if isinstance(axis, int) else axis not in runtime.axes or size in runtime.axes[axis]
        for size, axis in zip(gives, takes, strict=True)
    )
    if not fits:
        ranges = ", ".join(f"{name} {sizes}" for name, sizes in runtime.axes.items())
        raise BundleError(
            f"{bundle.path}: the image processor gives images of {gives}, the model takes {ranges or takes}",
            what="size", where=bundle.path, expected=takes, found=gives, hint=EXPORT_AGAIN,
        )  # fmt: skip


def check_classes(bundle: Bundle, labels: Sequence[str], runtime: Runtime) -> None:
    """Raise BundleError unless every logit has a label."""
    width = next((spec.shape[-1] for spec in runtime.outputs if spec.name == "logits"), 0)
    if width != len(labels):
        raise BundleError(
            f"{bundle.path}: config.json names {len(labels)} classes, the model gives {width} logits",
            what="id2label", where=bundle.path, expected=width, found=len(labels), hint=EXPORT_AGAIN,
        )  # fmt: skip
