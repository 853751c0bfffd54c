"""Run the reference model with torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.errors import UsageError
from vitdeploy.models.checkpoint import load_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.encoder import ATTENTION_KINDS, AttentionKind
from vitdeploy.models.signature import TORCH_TYPES, Served, size_ranges
from vitdeploy.runtimes.options import RuntimeOptions
from vitdeploy.runtimes.torch_device import TorchRuntime
from vitdeploy.specs import Precision, Task
from vitdeploy.system.forks import call_with_threads
from vitdeploy.system.option_fields import described, option

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.models.vit import VisionTransformer


@described
@dataclasses.dataclass(frozen=True)
class PyTorchRuntimeOptions(RuntimeOptions):
    """Options of the torch backend."""

    attention: AttentionKind | None = option(
        None,
        "torch's fused attention, or the eager one, which can give attention weights; by default the model's own, and "
        "sdpa for a bundle.",
        choices=ATTENTION_KINDS,
    )
    outputs: Sequence[str] | None = option(
        None, "see `vitdeploy.models.signature.output_names`; attention weights need eager attention."
    )
    dynamic_image_size: bool | None = option(
        None, "whether images of every size are taken, instead of the model's own alone; by default as the bundle says."
    )
    compile: bool = option(False, "whether `torch.compile` generates code at the first run of each shape.")


class PyTorchRuntime(TorchRuntime):
    """The reference model on a device; inputs and outputs are float32 in every precision.

    In fp32, no product uses TF32 unless torch is configured to (`torch.set_float32_matmul_precision`).

    Args:
        model: The model; moved to the device and converted.
        device: "cpu", "cuda" or "cuda:1".
        precision: Precision of weights and activations: "fp32", "fp16" or "bf16".

    Raises:
        DeviceError: If the device is not available.
        UsageError: If the device, the precision or an output is unknown.
    """

    backend = "torch"
    options_type = PyTorchRuntimeOptions

    def __init__(
        self,
        model: VisionTransformer,
        options: PyTorchRuntimeOptions = PyTorchRuntimeOptions(),
        *,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        if precision not in set(TORCH_TYPES):
            raise UsageError(
                f"the torch backend runs {', '.join(TORCH_TYPES)}, got precision {precision!r}",
                what="precision", expected=tuple(TORCH_TYPES), found=precision,
            )  # fmt: skip
        super().__init__(device)
        self._options = options
        if options.attention not in (None, model.attention):
            model = model.with_attention(options.attention)
        served = Served(model, options.outputs, dynamic_image_size=bool(options.dynamic_image_size))
        self.inputs, self.outputs = served.inputs, served.outputs
        self.axes = size_ranges(model.config, model.config.image_size) if options.dynamic_image_size else {}
        if model.attention == "sdpa" and any(spec.name.startswith("attentions.") for spec in self.outputs):
            raise UsageError(
                "torch's fused attention does not keep attention weights",
                what="attention", expected="eager", found="sdpa", hint="give attention='eager'",
            )  # fmt: skip
        served = call_with_threads(served.eval().to, self._device, TORCH_TYPES[Precision(precision)])
        self._model: Any = torch.compile(served) if options.compile else served
        self.details = {
            "engine": f"torch {torch.__version__}",
            "device": str(self._device),
            "precision": str(precision),
            "attention": model.attention,
            "compile": options.compile,
            **self._thread_details,
        }

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: PyTorchRuntimeOptions, *, precision: str, device: str) -> Self:
        config = ViTConfig.from_dict(bundle.read_config().model)
        with bundle.opened(bundle.manifest.files) as files:
            weights = [file for file in files if file.path.suffix == ".safetensors"]
            model = load_model(config, weights, Task(bundle.manifest.task), attention=options.attention or "sdpa")
        if options.dynamic_image_size is None:
            options = dataclasses.replace(options, dynamic_image_size=bundle.dynamic_image_size)
        return cls(model, options, device=device, precision=precision)

    def with_outputs(self, outputs: Sequence[str]) -> PyTorchRuntime:
        """A runtime with the same weights and other outputs.

        Raises:
            UsageError: As the constructor.
        """
        options = dataclasses.replace(self._options, outputs=outputs)
        model: VisionTransformer = self._model.model
        other = PyTorchRuntime(model, options, device=str(self._device), precision=self.details["precision"])
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
