"""The layouts that other libraries write, by the content of their configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.sources.layouts import open_clip_layout, torchvision_layout
from vitdeploy.sources.timm_layouts.config import takes_any_size
from vitdeploy.sources.timm_layouts.layout import from_timm, is_timm, processor_config
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from torch import Tensor


class Layout(NamedTuple):
    """How to read the checkpoints of a library.

    Attributes:
        name: The library.
        matches: True for the library's configuration.
        convert: From configuration, weights and task: content of the Hugging Face config.json, and the weights under
            transformers' names.
        processor: From configuration and another output size: content of a preprocessor_config.json; None if the
            library defines none.
        any_image_size: True if the model in a configuration is resized to its image processor's size.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Mapping[str, Any], Mapping[str, Tensor], Task | None], tuple[dict[str, Any], dict[str, Tensor]]]
    processor: Callable[[Mapping[str, Any], tuple[int, int] | None], dict[str, Any] | None]
    any_image_size: Callable[[Mapping[str, Any]], bool] = lambda _: False


_LAYOUTS = (
    Layout("timm", is_timm, from_timm, processor_config, takes_any_size),
    Layout(
        "torchvision",
        torchvision_layout.is_torchvision,
        torchvision_layout.from_torchvision,
        torchvision_layout.torchvision_processor,
    ),
    Layout(
        "open_clip",
        open_clip_layout.is_open_clip,
        open_clip_layout.from_open_clip,
        open_clip_layout.open_clip_processor,
    ),
)


def layout_of(config: Mapping[str, Any]) -> Layout | None:
    """The layout of a configuration; None for transformers' own."""
    return next((layout for layout in _LAYOUTS if layout.matches(config)), None)
