"""Base class of all runtimes: checks inputs and counts runs, so that engines only run."""

from __future__ import annotations

import abc
import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from vitdeploy.errors import UsageError
from vitdeploy.runtimes.array_checks import check_array, check_names
from vitdeploy.runtimes.device_arrays import view
from vitdeploy.runtimes.options import RuntimeOptions
from vitdeploy.specs import PixelFormat
from vitdeploy.system.closing import ClosedOnExit
from vitdeploy.system.forks import first_in_child, keep_until_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.array_checks import Array
    from vitdeploy.runtimes.device_arrays import DeviceArray
    from vitdeploy.specs import AxisRange, TensorSpec
    from vitdeploy.system.cpu import ThreadCount


class Runtime(ClosedOnExit):
    """Runs one artifact: arrays in, arrays out, by name. All methods are thread-safe.

    It belongs to its process and cannot be pickled. A forked child can run it only if its engine uses neither threads
    nor a GPU (`_lost_in_fork`); otherwise `run` raises. Closing it there, and the child's exit, do not touch the
    engine.

    Attributes:
        pixels: Format of the input images.
        axes: Allowed sizes of dynamic axes, by name; an axis without an entry takes any size from 1 up.
        size_problem: For a model that resizes images itself: reason why it cannot take that many images of a height and
            width.
        precision: Precision of the artifact; None unless opened by `open_runtime`.
        gpu: Index of the GPU for the arrays of `run_device`; None for the host.
        threads: Number of CPU threads of the engine, with the reason; None if it computes on a GPU only.
        details: Engine and version, actual device or providers, and effective options.
    """

    backend: str
    options_type: ClassVar[type[RuntimeOptions]] = RuntimeOptions
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    details: dict[str, Any]
    _alignment: ClassVar[int] = 1  # alignment of arrays for `run_device`, in bytes
    _fork_advice: ClassVar[str] = ""  # remedy for a forked process that cannot run it

    def __init__(self) -> None:
        self.pixels = PixelFormat()
        self.axes: Mapping[str, AxisRange] = {}
        self.size_problem: Callable[[int, int, int], str | None] | None = None
        self.precision: str | None = None
        self.gpu: int | None = None
        self.threads: ThreadCount | None = None
        self._closed = False
        self._closed_in_run = False
        self._inherited = False
        self._busy_at_fork = False
        self._make_locks()
        _runtimes.add(self)

    @classmethod
    @abc.abstractmethod
    def from_bundle(cls, bundle: Bundle, options: Any, *, precision: str, device: str) -> Self:
        """Open the bundle's artifact in that precision on that device. See `vitdeploy.runtimes.open_runtime`.

        Args:
            options: Instance of `options_type`.
            device: "cpu", "cuda" or "cuda:1".
        """

    @classmethod
    @abc.abstractmethod
    def probe(cls) -> dict[str, str | None]:
        """Run a small computation on each device or provider of the engine; None, or the reason for its failure."""

    @classmethod
    def builds_here(cls) -> bool:
        """True if the engine can build artifacts on this machine although no device here runs them."""
        return False

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: An array for each of `inputs`, with exactly its type and shape, dynamic axes within `axes`.

        Returns:
            A contiguous, writable array for each of `outputs`, owned by the caller.

        Raises:
            UsageError: If an array is missing, unknown or has another type or shape; or if the runtime is closed, or
                was opened by the parent of this forked process.
            DeviceError: If the engine failed, for example out of memory.
        """
        with self._in_use():
            self.check_inputs(feeds)
            return self._run(feeds)

    def check_inputs(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Raise UsageError for arrays that `run` does not take, without running the model."""
        check_names("inputs", feeds, self.inputs)
        for spec in self.inputs:
            if not isinstance(feeds[spec.name], np.ndarray):
                kind = type(feeds[spec.name]).__name__
                raise UsageError(f"expected a numpy array for {spec}, got {kind}", what=spec.name, found=kind)
        self._check_shapes(feeds)

    def run_device(self, feeds: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        """Run the model once on arrays on its device, and write into arrays there; nothing is copied through the host.

        Arrays come from a library with DLPack, such as torch or CuPy, or numpy if `gpu` is None. They are contiguous
        and, for an engine, aligned to 256 bytes, as newly allocated ones are. Work queued on their library's current
        stream is awaited; on return, all work is complete.

        Args:
            feeds: An array for each of `inputs`, with exactly its type and shape, dynamic axes within `axes`.
            results: A writable array for each of `outputs`; overwritten.

        Raises:
            UsageError: If an array is missing, unknown or has another type or shape; or if the runtime is closed.
            DeviceError: If the engine failed.
        """
        with self._in_use():
            check_names("inputs", feeds, self.inputs)
            check_names("outputs", results, self.outputs)
            arrays = {
                name: view(name, array, self.gpu, alignment=self._alignment, writable=name in results)
                for name, array in {**feeds, **results}.items()
            }
            sizes = self._check_shapes(arrays)
            for spec in self.outputs:
                check_array(spec, arrays[spec.name], sizes, "give an array to write to that has what comes out")
            self._run_device(arrays)

    def close(self) -> None:
        """Release the engine after the runs in progress; `run` raises from then on.

        A signal handler that interrupted a run does not wait: the end of the last run releases the engine.
        """
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._closed_in_run = threading.get_ident() in self._running.values()
            if self._closed_in_run:
                return
            while self._running:
                self._idle.wait()
        self._release()

    def _release(self) -> None:
        if not self._inherited:
            self._close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        run = object()
        try:
            with self._idle:
                if self._closed:
                    raise UsageError("this runtime is closed", what="runtime", found="closed", hint="load it again")
                if self._inherited:
                    self._check_inherited()
                self._running[run] = threading.get_ident()
            yield
        finally:
            self._running.pop(run, None)  # first of all: an interrupt in what follows leaves no run behind
            with self._idle:
                self._idle.notify_all()
                is_last = self._closed_in_run and not self._running
                self._closed_in_run = self._closed_in_run and not is_last
            if is_last:
                self._release()

    def _make_locks(self) -> None:
        """For a new runtime, and for a forked child: another thread of the parent may have held the locks."""
        self._idle = threading.Condition()
        self._running: dict[object, int] = {}  # the thread of each run in progress

    def _inherit(self) -> None:
        """Become the copy of a runtime in a forked child."""
        self._busy_at_fork = self._busy_at_fork or bool(self._running)
        self._inherited = True
        self._make_locks()
        keep_until_exit(self)

    def _check_inherited(self) -> None:
        lost = self._lost_in_fork()
        if lost is None and self._busy_at_fork:  # with the engine's locks, which nobody will release
            lost = "the fork came in the middle of a run of another thread"
        if lost is not None:
            raise UsageError(
                f"this {self.backend} runtime was opened before the process forked, and {lost}", what="runtime",
                found="forked", hint=f"open it in each process, after the fork (with gunicorn --preload: in the "
                f"post_fork hook){self._fork_advice}",
            )  # fmt: skip

    def _lost_in_fork(self) -> str | None:
        """Reason why the engine cannot run in a forked child of its process; None if it can."""
        return "its engine does not work in a forked process"

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {self.brief}{closed}>"

    @property
    def brief(self) -> str:
        """Backend, precision and device, such as "onnxruntime int8 on cpu"."""
        details = getattr(self, "details", {})  # set by a subclass once the engine is open
        providers = [name.removesuffix("ExecutionProvider").lower() for name in details.get("providers", ())]
        device = details.get("device") or next(iter(providers), None)
        precision = self.precision or details.get("precision")
        return f"{self.backend}{f' {precision}' if precision else ''}{f' on {device}' if device else ''}"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a runtime holds an engine of this process and cannot be pickled; open it in each process")

    @abc.abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Implement `run` with checked feeds."""

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:  # noqa: ARG002  (of those that have it)
        """Implement `run_device` with checked arrays, except for output shapes that only the engine knows."""
        raise UsageError(f"the {self.backend} backend takes arrays of numpy alone", what="run_device", hint="call run")

    @abc.abstractmethod
    def _close(self) -> None:
        """Release the engine."""

    def _check_shapes(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """Sizes of the dynamic axes."""
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            check_array(spec, feeds[spec.name], sizes, "preprocess images with ImageProcessor")
        for name, size in sizes.items():
            if name in self.axes and size not in self.axes[name]:
                raise UsageError(
                    f"the artifact takes a {name} {self.axes[name]}, got {size}",
                    what=name, expected=self.axes[name], found=size,
                    hint="give another size, or export the model for this one",
                )  # fmt: skip
        if self.size_problem is not None:
            images = self.inputs[0]
            shape = feeds[images.name].shape
            problem = self.size_problem(shape[0], *self.pixels.size(shape))
            if problem is not None:
                raise UsageError(f"{images} is too large: {problem}", what=images.name, found=shape)
        return sizes


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


@first_in_child
def _inherit_all() -> None:
    for runtime in tuple(_runtimes):
        runtime._inherit()
