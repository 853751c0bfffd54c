"""Runtimes of one bundle, each opened once and shared."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from vitdeploy.assess.runs.targets import REFERENCE, Selected, reference_backend
from vitdeploy.errors import DeviceError, UnavailableError
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import open_recorded, runtime_class
from vitdeploy.runtimes.options import parse_device
from vitdeploy.specs import Precision, attention_for
from vitdeploy.system.progress import SILENT, Progress
from vitdeploy.trt.gpu import find_gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime


class OpenRuntimes:
    """Runtimes of a bundle's reference and artifacts on one device. A context manager, which closes them.

    Args:
        bundle: The bundle.
        device: "cpu", "cuda" or "cuda:1".
        keep: True to keep runtimes open between uses.
        options: Runtime options by backend name.
        progress: Receives a note if the reference runs on another device.

    Attributes:
        bundle, device: As the arguments.
        processor: The bundle's image processor.

    Raises:
        BundleError: If a file of the image processor was altered.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "cpu",
        *,
        keep: bool = False,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.bundle, self.device, self.processor = bundle, device, load_processor(bundle)
        self._keep, self._options, self._progress = keep, options or {}, progress
        self._kept: dict[object, Runtime] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._kept):
            self._kept.pop(key).close()

    @contextlib.contextmanager
    def open(self, selected: Selected) -> Iterator[Runtime]:
        """The runtime of an artifact, or of the reference with its default outputs, in this block.

        UnavailableError if it cannot run here; else as `open_recorded`.
        """
        if (selected.artifact, selected.precision) == (REFERENCE, Precision.FP32):
            with self._opened_reference(self.device, ()) as reference:
                yield reference
            return
        options = self._options.get(selected.backend)
        with self._opened(selected, lambda: selected.open(self.bundle, options, device=self.device)) as runtime:
            yield runtime

    @contextlib.contextmanager
    def reference(self, outputs: Sequence[str] | None = None) -> Iterator[Runtime]:
        """The reference with these outputs, in this block; on the CPU if engines can use the GPU but torch cannot.

        MissingDependencyError if torch is not installed.
        """
        with contextlib.ExitStack() as stack:
            try:
                model = stack.enter_context(self._opened_reference(self.device, outputs or ()))
            except DeviceError as exc:
                if not _is_gpu_beyond_torch(self.device):
                    raise
                self._progress.step(f"running the reference on the CPU: {exc}")
                model = stack.enter_context(self._opened_reference("cpu", outputs or ()))
            yield model if outputs is None else stack.enter_context(cast("Any", model).with_outputs(outputs))

    def drop(self, selected: Selected) -> None:
        """Close a kept runtime that is no longer needed."""
        runtime = self._kept.pop(selected, None)
        if runtime is not None:
            runtime.close()

    @contextlib.contextmanager
    def _opened_reference(self, device: str, outputs: Sequence[str]) -> Iterator[Runtime]:
        attention = attention_for(outputs)
        with self._opened(
            (attention, device),
            lambda: open_recorded(self.bundle, reference_backend(), {"attention": attention}, device=device),
        ) as runtime:
            yield runtime

    @contextlib.contextmanager
    def _opened(self, key: object, opener: Callable[[], Runtime]) -> Iterator[Runtime]:
        if not self._keep:
            with opener() as runtime:
                yield runtime
            return
        if key not in self._kept:
            self._kept[key] = opener()
        yield self._kept[key]


def _is_gpu_beyond_torch(device: str) -> bool:
    """True if `device` is a GPU of this machine that torch cannot use."""
    kind, index = parse_device(device)
    if kind != "cuda" or any(name.startswith("cuda") for name in runtime_class(reference_backend()).probe()):
        return False
    try:
        return (index or 0) < len(find_gpus())
    except UnavailableError:
        return False
