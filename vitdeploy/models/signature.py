"""Input and output specifications of a model, and a module with selected outputs."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.errors import UsageError, shown
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.dense import FEATURES, RAW_FEATURES, dense_features
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import EMBEDS, AxisRange, PixelFormat, PixelStage, Precision, Task, TensorSpec

SIGNATURE_FILE = "signature.json"  # record of inputs and outputs in a TorchScript file
TORCH_TYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
BATCH_AXIS = "batch"
SIZE_AXES = ("height", "width")
_TOKENS_AXIS, _GRID_AXES = "tokens", ("grid_height", "grid_width")
_HIDDEN_STATES, _ATTENTIONS = "hidden_states", "attentions"


class Served(nn.Module):
    """A model with selected outputs, at its image size or at any.

    Args:
        model: The reference; its weights are shared.
        outputs: See `output_names`.
        dynamic_image_size: True for images of any size from one patch up, with interpolated positions.
        pixels: Input image format; see `vitdeploy.models.normalization` for a model that takes bytes.
        io_dtype: Output type.
        last_tokens: See `VisionTransformer.forward`.

    Attributes:
        inputs: Input tensors.
        outputs: Output tensors, in the requested order.
        num_layers: Number of first layers that the outputs depend on; None for all, and the head.

    Raises:
        UsageError: If an output does not exist, or the image size cannot be dynamic; see `input_specs`.
    """

    def __init__(
        self,
        model: VisionTransformer,
        outputs: Sequence[str] | None = None,
        *,
        dynamic_image_size: bool = False,
        pixels: PixelFormat = PixelFormat(),  # noqa: B008  (frozen)
        io_dtype: str = "float32",
        last_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.dynamic_image_size = dynamic_image_size
        self.pixels = pixels
        self.last_tokens = last_tokens
        self.inputs = input_specs(model.config, model.task, dynamic_image_size=dynamic_image_size, pixels=pixels)
        self.outputs = output_specs(model, outputs, dynamic_image_size=dynamic_image_size, io_dtype=io_dtype)
        self._names = tuple(spec.name for spec in self.outputs)
        self._features = dense_features(self._names, model.config)
        self.num_layers = self._num_layers()
        self._io_dtype: torch.dtype = getattr(torch, io_dtype)

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> dict[str, Tensor]:
        if self.pixels.layout == "nhwc":
            pixel_values = pixel_values.to(self.model.dtype).permute(0, 3, 1, 2)  # TensorRT cannot transpose bytes
        outputs = self.model(
            pixel_values,
            bool_masked_pos,
            interpolate_pos_encoding=self.dynamic_image_size,
            output_hidden_states=any(name.startswith(_HIDDEN_STATES) for name in self._names),
            output_attentions=any(name.startswith(_ATTENTIONS) for name in self._names),
            features=self._features,
            num_layers=self.num_layers,
            last_tokens=self.last_tokens,
        )
        return {name: outputs[name].to(self._io_dtype) for name in self._names}

    def _num_layers(self) -> int | None:
        layers = {name: dense.layer for name, dense in self._features.items()}
        for name in self._names:
            kind, _, number = name.partition(".")
            if kind in (_HIDDEN_STATES, _ATTENTIONS):
                layers[name] = int(number) + (kind == _ATTENTIONS)
        return max(layers.values()) if layers.keys() == set(self._names) else None

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Zeros for tracing; a dynamic size is neither square nor the model's, so that nothing holds by chance."""
        config, size = self.model.config, None
        if self.dynamic_image_size:
            (down, across), (height, width) = config.grid_size, config.patch_size
            size = (down + 1) * height, (across + 3) * width
        return example_inputs(config, self.model.task, batch_size, image_size=size, pixels=self.pixels)


def input_specs(
    config: ViTConfig,
    task: Task,
    *,
    dynamic_image_size: bool = False,
    pixels: PixelFormat = PixelFormat(),  # noqa: B008  (frozen)
) -> tuple[TensorSpec, ...]:
    """`pixel_values` (batch, C, H, W) and, for masked image modeling, a boolean `bool_masked_pos` (batch, patches).

    Args:
        config: The model's configuration.
        task: The model's task.
        dynamic_image_size: True for dynamic height and width.
        pixels: Axis order and type of the image.

    Raises:
        UsageError: If the image size cannot be dynamic: the model takes a mask, or its relative positions are
            "geometric".
    """
    relative = config.relative_positions or config.shared_relative_positions
    if dynamic_image_size and relative and config.relative_position_interpolation != "bilinear":
        interpolation = config.relative_position_interpolation
        raise UsageError(
            f"the model's relative_position_interpolation is {interpolation}, which takes one image size at a time",
            what="dynamic_image_size", expected="bilinear", found=interpolation, hint="give an image size instead",
        )  # fmt: skip
    free = dynamic_image_size or pixels.stage is PixelStage.DECODED
    size = SIZE_AXES if free else config.image_size
    shape = (BATCH_AXIS, *pixels.shape(config.num_channels, size))
    spec = TensorSpec("pixel_values", pixels.dtype, shape)
    if task is not Task.MASKED_IMAGE_MODELING:
        return (spec,)
    if dynamic_image_size:
        raise UsageError(
            f"{task} takes a mask of one size, so that its image size cannot be dynamic",
            what="dynamic_image_size", expected=(Task.CLASSIFICATION, Task.FEATURES), found=task,
            hint="give an image size instead",
        )  # fmt: skip
    return spec, TensorSpec("bool_masked_pos", "bool", (BATCH_AXIS, config.num_patches))


def size_ranges(config: ViTConfig, optimum: tuple[int, int]) -> dict[str, AxisRange]:
    """Ranges of a dynamic image size: from one patch up, optimal at `optimum` or the nearest valid size."""
    axes = zip(SIZE_AXES, config.patch_size, optimum, strict=True)
    return {name: AxisRange(patch, max(patch, size)) for name, patch, size in axes}


def example_inputs(
    config: ViTConfig,
    task: Task,
    batch_size: int,
    *,
    image_size: tuple[int, int] | None = None,
    device: str = "cpu",
    **signature: Any,
) -> tuple[Tensor, ...]:
    """Zeros for the inputs of `input_specs`.

    Args:
        config: The model's configuration.
        task: The model's task.
        batch_size: Number of images.
        image_size: (height, width). Default: the configured one.
        device: Device of the tensors.
        signature: Arguments of `input_specs`.
    """
    config = config if image_size is None else dataclasses.replace(config, image_size=image_size)
    return tuple(
        torch.zeros(batch_size, *spec.shape[1:], dtype=getattr(torch, spec.dtype), device=device)  # type: ignore[arg-type]
        for spec in input_specs(config, task, **signature)
    )


def output_names(model: VisionTransformer, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """Resolve requested output names.

    Args:
        model: The model.
        asked: Output names; "hidden_states" and "attentions" mean those of all layers, "features" and "raw_features"
            the last layer's. Default: the head's outputs; `image_embeds` alone for a model with an `embedding_pool`.

    Raises:
        UsageError: If an output does not exist, or is requested twice.
    """
    depth = model.config.num_hidden_layers
    groups = {
        _HIDDEN_STATES: tuple(f"{_HIDDEN_STATES}.{index}" for index in range(depth + 1)),
        _ATTENTIONS: tuple(f"{_ATTENTIONS}.{index}" for index in range(depth)),
    }
    head = head_outputs(model)
    if asked is None:
        return (EMBEDS,) if EMBEDS in head and model.config.embedding_pool is not None else head
    if isinstance(asked, str) or not isinstance(asked, Iterable):
        raise UsageError(f"outputs takes a list of names, got {shown(asked)}", what="outputs", found=asked)
    dense = (FEATURES, RAW_FEATURES)
    maps = (*dense, *(f"{kind}.{index}" for kind in dense for index in range(depth + 1)))
    known = (*head, *groups[_HIDDEN_STATES], *groups[_ATTENTIONS], *maps)
    names: list[str] = []
    for name in asked:
        if name not in (*groups, *known):
            close = difflib.get_close_matches(str(name), (*groups, *known), n=1)
            raise UsageError(
                f"unknown output {shown(name)}; this model has {', '.join((*head, *groups, *dense))}, and one layer's "
                f"such as hidden_states.0",
                what="outputs", expected=known, found=name, hint=f"did you mean {close[0]}?" if close else None,
            )  # fmt: skip
        names.extend(groups.get(name, (name,)))
    if not names or len(set(names)) < len(names):
        message = f"outputs names one twice: {', '.join(names)}" if names else "outputs names none"
        raise UsageError(message, what="outputs", found=names)
    return tuple(names)


def head_outputs(model: VisionTransformer) -> tuple[str, ...]:
    """Names of all outputs of the model's head."""
    return tuple(_head_outputs(model))


def output_specs(
    model: VisionTransformer,
    outputs: Sequence[str] | None = None,
    *,
    dynamic_image_size: bool = False,
    io_dtype: str = "float32",
) -> tuple[TensorSpec, ...]:
    """Specifications of the model's outputs; UsageError if an output does not exist."""
    head, config = _head_outputs(model), model.config
    tokens = _TOKENS_AXIS if dynamic_image_size else config.num_prefix_tokens + config.num_patches
    grid: tuple[int | str, ...] = _GRID_AXES if dynamic_image_size else config.grid_size
    shapes: dict[str, tuple[int | str, ...]] = {
        **head,
        _HIDDEN_STATES: (tokens, config.hidden_size),
        _ATTENTIONS: (config.num_attention_heads, tokens, tokens),
        **dict.fromkeys((FEATURES, RAW_FEATURES), (config.hidden_size, *grid)),
    }
    if "last_hidden_state" in head:
        shapes["last_hidden_state"] = shapes[_HIDDEN_STATES]
    return tuple(
        TensorSpec(name, io_dtype, (BATCH_AXIS, *shapes[name if name in head else name.partition(".")[0]]))
        for name in output_names(model, outputs)
    )


def _head_outputs(model: VisionTransformer) -> dict[str, tuple[int, ...]]:
    """The head's outputs and their shapes without the batch, from torch's meta device, without layers.

    Layers do not change shapes.
    """
    config = dataclasses.replace(model.config, num_hidden_layers=0)
    with torch.device("meta"):
        twin = VisionTransformer(config, model.task, pooler=model.pooler, teacher=model.teacher).eval()
        outputs = twin(*example_inputs(config, model.task, batch_size=1, device="meta"))
    return {name: tuple(value.shape[1:]) for name, value in outputs.items()}
