"""Run a TorchScript artifact with torch."""

from __future__ import annotations

import dataclasses
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.jit import optimized_execution as _optimized  # type: ignore[attr-defined]

from vitdeploy.errors import BundleError, DeviceError, first_line
from vitdeploy.files.json_text import strict_json
from vitdeploy.files.opened import OpenedFile
from vitdeploy.files.regular_file import MOST_TEXT_BYTES
from vitdeploy.models.signature import SIGNATURE_FILE
from vitdeploy.runtimes.options import RuntimeOptions
from vitdeploy.runtimes.torch_device import TorchRuntime
from vitdeploy.specs import TensorSpec
from vitdeploy.system.exhaustion import check_exhaustion
from vitdeploy.system.forks import with_threads
from vitdeploy.system.option_fields import described, option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle


@described
@dataclasses.dataclass(frozen=True)
class TorchScriptRuntimeOptions(RuntimeOptions):
    """Options of the TorchScript backend."""

    optimized_execution: bool = option(
        False,
        "whether torch watches the first runs of a shape, to specialise the code for it. Those runs then take two to "
        "three times as long, and no later one was seen to be faster on a CPU.",
    )


class TorchScriptRuntime(TorchRuntime):
    """A frozen trace on a device.

    Args:
        path: A .pt file written by vitdeploy. Loading one can run code: open only verified files.
        device: "cpu", "cuda" or "cuda:1".

    Raises:
        DeviceError: If the device is not available.
        UsageError: If the device is unknown.
        BundleError: If the file cannot be loaded, or lacks its inputs and outputs.
    """

    backend = "torchscript"
    options_type = TorchScriptRuntimeOptions

    def __init__(
        self,
        path: str | Path | OpenedFile,
        options: TorchScriptRuntimeOptions = TorchScriptRuntimeOptions(),
        *,
        device: str = "cpu",
    ) -> None:
        super().__init__(device)
        self._optimized_execution = options.optimized_execution
        file = OpenedFile.of(path)
        self._model, signature = load_module(file, self._device)
        self.inputs, self.outputs = read_signature(file.path, signature)
        self.details = {
            "engine": f"torch {torch.__version__}",
            "device": str(self._device),
            "optimized_execution": options.optimized_execution,
            **self._thread_details,
        }

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: TorchScriptRuntimeOptions, *, precision: str, device: str) -> Self:
        with bundle.opened_artifact(bundle.artifact("torchscript", precision)) as (file, *_):
            return cls(file, options, device=device)

    def _outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with _optimized(self._optimized_execution):  # per thread
            outputs = self._model(*(tensors[spec.name] for spec in self.inputs))
        return {spec.name: value for spec, value in zip(self.outputs, outputs, strict=True)}

    def _why(self, exc: RuntimeError) -> str:
        return str(exc).strip().splitlines()[-1]  # follows a traceback of the traced code

    def _close(self) -> None:
        del self._model


def read_signature(path: str | Path, signature: str | bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Parse inputs and outputs, of types that torch has, from the text of a `SIGNATURE_FILE`.

    Raises:
        BundleError: If it is malformed.
    """
    try:
        specs = strict_json(signature)
        inputs, outputs = (tuple(TensorSpec.from_dict(spec) for spec in specs[name]) for name in ("inputs", "outputs"))
        for spec in (*inputs, *outputs):
            if not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
                raise TypeError(f"torch {torch.__version__} has no element type {spec.dtype!r:.80}")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BundleError(
            f"{path} does not state its inputs and outputs",
            what=SIGNATURE_FILE, where=path, found=first_line(exc), hint="export the bundle again",
        ) from exc  # fmt: skip
    return inputs, outputs


@with_threads
def load_module(source: str | Path | OpenedFile, device: torch.device) -> tuple[torch.jit.ScriptModule, str | bytes]:
    """Load the module of a verified file onto a device; return it and the text of its `SIGNATURE_FILE`.

    Raises:
        DeviceError: If it does not fit the device.
        BundleError: If torch does not load it.
    """
    file = OpenedFile.of(source)
    path = file.path
    if not Path(file.handle).is_file():
        raise BundleError(f"{path} is no TorchScript file: no such file", where=path, expected="a TorchScript file")
    _check_pickles(file)
    extra: dict[str, Any] = {SIGNATURE_FILE: ""}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
            model = torch.jit.load(file.handle, map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError as exc:
        reason = file.named(first_line(exc))
        raise DeviceError(
            f"{path} does not load on {device}: {reason}", what="device", where=path, found=reason
        ) from exc
    except (MemoryError, RuntimeError) as exc:
        check_exhaustion(exc, f"loading {path}")
        reason = file.named(first_line(exc))
        raise BundleError(f"torch {torch.__version__} cannot load {path}: {reason}", where=path, found=reason) from exc
    except UnicodeDecodeError as exc:  # torch quotes bytes of a damaged file in a message that is then not valid text
        raise BundleError(f"torch {torch.__version__} cannot load {path}: it is damaged", where=path) from exc
    return model, extra[SIGNATURE_FILE]


def _check_pickles(file: OpenedFile) -> None:
    """Refuse an archive with damaged pickles: torch allocates as many bytes as a pickle claims for a string."""
    try:
        with zipfile.ZipFile(file.handle) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".pkl"):
                    if member.file_size > MOST_TEXT_BYTES:
                        raise ValueError(f"{member.filename} has more than {MOST_TEXT_BYTES:,} bytes")
                    for _ in pickletools.genops(archive.read(member)):
                        pass
    except Exception as exc:  # zipfile lets the errors of struct and of its codecs through
        check_exhaustion(exc, f"loading {file.path}")
        reason = file.named(first_line(exc))
        raise BundleError(
            f"{file.path} is damaged, or no TorchScript file: {reason}",
            where=file.path, found=reason, hint="export the bundle again",
        ) from exc  # fmt: skip
