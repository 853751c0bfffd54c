"""Run the reference model with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.errors import UsageError
from vitdeploy.models.checkpoint import load_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.signature import TORCH_TYPES, Served, size_ranges
from vitdeploy.runtimes.base import check_options
from vitdeploy.runtimes.torch_device import TorchRuntime
from vitdeploy.specs import Precision, Task
from vitdeploy.system.forks import call_with_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.models.layers.encoder import AttentionKind
    from vitdeploy.models.vit import VisionTransformer


class PyTorchRuntime(TorchRuntime):
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
        if precision not in set(TORCH_TYPES):
            raise UsageError(
                f"precision of the torch backend must be one of {', '.join(TORCH_TYPES)}, got {precision!r}"
            )
        super().__init__(device)
        served = Served(model, outputs, dynamic_image_size=dynamic_image_size)
        self.inputs, self.outputs = served.inputs, served.outputs
        self.axes = size_ranges(model.config, model.config.image_size) if dynamic_image_size else {}
        if model.attention == "sdpa" and any(spec.name.startswith("attentions.") for spec in self.outputs):
            raise UsageError("attention weights need attention='eager': torch's fused attention does not keep them")
        served = call_with_threads(served.eval().to, self._device, TORCH_TYPES[Precision(precision)])
        self._model = torch.compile(served) if compile else served
        self.details = {
            "engine": f"torch {torch.__version__}",
            "device": str(self._device),
            "precision": str(precision),
            "attention": model.attention,
            "compile": compile,
            **self._thread_details,
        }

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, *, precision: str, device: str, attention: AttentionKind = "sdpa", **options: Any
    ) -> Self:
        check_options(cls, options)
        config = ViTConfig.from_dict(bundle.read_config().model)
        with bundle.opened(bundle.manifest.files) as files:
            weights = [file for file in files if file.path.suffix == ".safetensors"]
            model = load_model(config, weights, Task(bundle.manifest.task), attention=attention)
        options.setdefault("dynamic_image_size", bundle.dynamic_image_size)
        return cls(model, device=device, precision=precision, **options)

    def with_outputs(self, outputs: Sequence[str]) -> PyTorchRuntime:
        """A runtime of the same weights that gives other outputs.

        Raises:
            UsageError: as the constructor.
        """
        model: Any = self._model
        other = PyTorchRuntime(
            model.model, device=str(self._device), precision=self.details["precision"], outputs=outputs,
            dynamic_image_size=model.dynamic_image_size, compile=self.details["compile"],
        )  # fmt: skip
        other.precision = self.precision
        return other

    def _outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = self._model(**{spec.name: tensors[spec.name] for spec in self.inputs})
        return {name: value.float() for name, value in outputs.items()}

    def _lost_in_fork(self) -> str | None:
        if self.details["compile"]:
            return "the code that torch.compile made has threads that are not in this process"
        return super()._lost_in_fork()

    def _close(self) -> None:
        del self._model
