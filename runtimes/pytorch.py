"""Run the reference model with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.errors import DeviceError, UsageError, first_line
from vitdeploy.models.checkpoint import load_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.signature import TORCH_TYPES, Served, size_ranges
from vitdeploy.runtimes.base import Runtime, check_options
from vitdeploy.runtimes.torch_device import (
    as_tensors,
    finish,
    gpu_of,
    open_device,
    plain_convolutions,
    probe_devices,
    to_array,
    to_tensors,
    write,
)
from vitdeploy.specs import Precision, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from typing_extensions import Self

    from vitdeploy.bundle import Bundle
    from vitdeploy.models.layers import AttentionKind
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.runtimes.device_arrays import DeviceArray


class PyTorchRuntime(Runtime):
    """The reference model on a device; inputs and outputs stay float32 whatever the precision.

    In fp32 no factor of a product is rounded to TF32, unless torch was told to (`torch.set_float32_matmul_precision`).

    Args:
        model: the model; it is moved to the device and converted.
        device: "cpu", "cuda" or "cuda:1".
        precision: "fp32", "fp16" or "bf16", of weights and activations.
        outputs: see `vitdeploy.models.signature.output_names`; attention weights need a model with eager attention.
        dynamic_image_size: whether images of every size are taken, instead of the model's own alone.
        compile: whether `torch.compile` generates code at the first run of each shape.

    Raises:
        DeviceError: the device cannot be had.
        UsageError: the device or the precision is not one of these, or the model has no such output.
    """

    backend = "torch"

    def __init__(
        self,
        model: VisionTransformer,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        outputs: Sequence[str] | None = None,
        dynamic_image_size: bool = False,
        compile: bool = False,  # noqa: A002  (torch's word)
    ) -> None:
        super().__init__()
        if precision not in set(TORCH_TYPES):
            raise UsageError(
                f"precision of the torch backend must be one of {', '.join(TORCH_TYPES)}, got {precision!r}"
            )
        self._device = open_device(device)
        self.gpu = gpu_of(self._device)
        served = Served(model, outputs, dynamic_image_size=dynamic_image_size)
        self.inputs, self.outputs = served.inputs, served.outputs
        self.axes = size_ranges(model.config, model.config.image_size) if dynamic_image_size else {}
        if model.attention == "sdpa" and any(spec.name.startswith("attentions.") for spec in self.outputs):
            raise UsageError("attention weights need attention='eager': torch's fused attention does not keep them")
        served = served.eval().to(self._device, TORCH_TYPES[Precision(precision)])
        self._model = torch.compile(served) if compile else served
        self.details = {
            "engine": f"torch {torch.__version__}",
            "device": str(self._device),
            "precision": str(precision),
            "attention": model.attention,
            "compile": compile,
            "threads": torch.get_num_threads(),
        }

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, *, precision: str, device: str, attention: AttentionKind = "sdpa", **options: Any
    ) -> Self:
        check_options(cls, options)
        files = bundle.verified(bundle.manifest.files)
        weights = [path for path in files if path.suffix == ".safetensors"]
        model = load_model(
            ViTConfig.from_pretrained(bundle.path), weights, Task(bundle.manifest.task), attention=attention
        )
        options.setdefault("dynamic_image_size", bundle.dynamic_image_size)
        return cls(model, device=device, precision=precision, **options)

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        return probe_devices()

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            with torch.inference_mode(), plain_convolutions:
                outputs = self._model(**to_tensors(feeds, self._device))
                return {name: to_array(value.float()) for name, value in outputs.items()}
        except RuntimeError as exc:  # out of memory, or no compiler for `compile`
            raise DeviceError(f"torch must run the model on {self._device}: {first_line(exc)}") from exc

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:
        try:
            with torch.inference_mode(), plain_convolutions:
                tensors = as_tensors(arrays)
                outputs = self._model(**{spec.name: tensors[spec.name] for spec in self.inputs})
                for name, value in outputs.items():
                    write(name, value, tensors[name])
                finish(self._device)
        except RuntimeError as exc:
            raise DeviceError(f"torch must run the model on {self._device}: {first_line(exc)}") from exc

    def _close(self) -> None:
        del self._model
