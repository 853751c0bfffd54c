"""The interface of every runtime: inputs are checked and runs are counted here, engines only run."""

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
from vitdeploy.system.forks import first_in_child, keep_until_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.array_checks import Array
    from vitdeploy.runtimes.device_arrays import DeviceArray
    from vitdeploy.specs import AxisRange, TensorSpec
    from vitdeploy.system.cpu import ThreadCount


class Runtime(abc.ABC):
    """Executes one artifact: arrays in, arrays out, by name. Every method may be called from several threads.

    It belongs to its process and cannot be pickled. In a forked child it runs where its engine has neither threads nor
    a GPU there (`_lost_in_fork`), and is refused else; closing it, and the child's exit, leave the engine alone.

    Attributes:
        pixels: The form of images among the inputs.
        axes: The sizes that a free axis may have, by its name; one without an entry takes every size from 1 up.
        size_problem: Of a model that resizes by itself, why it cannot take so many images of a height and a width.
        precision: Of the artifact; None where it was not opened by `open_runtime`.
        gpu: The number of the GPU that arrays of `run_device` are on; None for the host.
        threads: How many threads the engine computes with on the CPU, and why; None where it computes on a GPU alone.
        details: The engine and its version, the device or providers that really run, and the options in force.
    """

    backend: str
    options_type: ClassVar[type[RuntimeOptions]] = RuntimeOptions
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    details: dict[str, Any]
    _alignment: ClassVar[int] = 1  # of the arrays of `run_device`, in bytes
    _fork_advice: ClassVar[str] = ""  # what else can be done where a forked process cannot run it

    def __init__(self) -> None:
        self.pixels = PixelFormat()
        self.axes: Mapping[str, AxisRange] = {}
        self.size_problem: Callable[[int, int, int], str | None] | None = None
        self.precision: str | None = None
        self.gpu: int | None = None
        self.threads: ThreadCount | None = None
        self._closed = False
        self._inherited = False
        self._busy_at_fork = False
        self._make_locks()
        _runtimes.add(self)

    @classmethod
    @abc.abstractmethod
    def from_bundle(cls, bundle: Bundle, options: Any, *, precision: str, device: str) -> Self:
        """Open the bundle's artifact of that precision on that device. See `vitdeploy.runtimes.open_runtime`.

        Args:
            options: An `options_type`.
            device: "cpu", "cuda" or "cuda:1".
        """

    @classmethod
    @abc.abstractmethod
    def probe(cls) -> dict[str, str | None]:
        """Run something small on each device or provider that the engine lists here: None, or why it failed."""

    @classmethod
    def builds_here(cls) -> bool:
        """Whether the engine builds artifacts on this machine though no device here runs them."""
        return False

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: An array for each of `inputs`, of exactly its type and shape, free axes within `axes`.

        Returns:
            An array for each of `outputs`: contiguous, writable, and the caller's own.

        Raises:
            UsageError: If an array is missing, unknown, or not as stated; or the runtime is closed, or of the process
                that forked this one.
            DeviceError: If the engine failed, for want of memory for example.
        """
        with self._in_use():
            check_names("inputs", feeds, self.inputs)
            for spec in self.inputs:
                if not isinstance(feeds[spec.name], np.ndarray):
                    kind = type(feeds[spec.name]).__name__
                    raise UsageError(f"expected a numpy array for {spec}, got {kind}", what=spec.name, found=kind)
            self._check_shapes(feeds)
            return self._run(feeds)

    def run_device(self, feeds: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        """Run the model once on arrays that are on its device, and write into others there; none goes through the host.

        Arrays are those of a library with DLPack, such as torch or CuPy, or numpy where `gpu` is None: contiguous and,
        for an engine, aligned to 256 bytes, as new ones are. What their library has queued on its current stream is
        waited for; on return all is done.

        Args:
            feeds: An array for each of `inputs`, of exactly its type and shape, free axes within `axes`.
            results: A writable array for each of `outputs`, which is overwritten.

        Raises:
            UsageError: If an array is missing, unknown, or not as stated; or the runtime is closed.
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
        """Free what the engine holds, when the runs in progress are done; `run` is an error from here on."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            while self._running:
                self._idle.wait()
        if not self._inherited:
            self._close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise UsageError("this runtime is closed", what="runtime", found="closed", hint="load it again")
            if self._inherited:
                self._check_inherited()
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _make_locks(self) -> None:
        """For a new runtime, and for a forked child: another thread of the parent may have held the locks."""
        self._idle = threading.Condition()
        self._running = 0

    def _inherit(self) -> None:
        """Become the copy of a runtime in a forked child."""
        self._busy_at_fork = self._busy_at_fork or self._running > 0
        self._inherited = True
        self._make_locks()
        keep_until_exit(self)

    def _check_inherited(self) -> None:
        lost = self._lost_in_fork()
        if lost is None and self._busy_at_fork:  # with locks of the engine, which nobody will release
            lost = "the fork came in the middle of a run of another thread"
        if lost is not None:
            raise UsageError(
                f"this {self.backend} runtime was opened before the process forked, and {lost}", what="runtime",
                found="forked", hint=f"open it in each process, after the fork (with gunicorn --preload: in the "
                f"post_fork hook){self._fork_advice}",
            )  # fmt: skip

    def _lost_in_fork(self) -> str | None:
        """The reason why the engine cannot run in a forked child of the process that opened it; None if it can."""
        return "its engine does not work in a forked process"

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {self.brief}{closed}>"

    @property
    def brief(self) -> str:
        """Backend, precision and device, such as "onnxruntime int8 on cpu"."""
        details = getattr(self, "details", {})  # which a subclass sets when the engine is open
        providers = [name.removesuffix("ExecutionProvider").lower() for name in details.get("providers", ())]
        device = details.get("device") or next(iter(providers), None)
        precision = self.precision or details.get("precision")
        return f"{self.backend}{f' {precision}' if precision else ''}{f' on {device}' if device else ''}"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a runtime holds an engine of this process and cannot be pickled; open it in each process")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abc.abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`run`, with feeds that were checked."""

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:  # noqa: ARG002  (of those that have it)
        """`run_device`, with inputs and outputs that were checked, but for what only the engine knows of the latter."""
        raise UsageError(f"the {self.backend} backend takes arrays of numpy alone", what="run_device", hint="call run")

    @abc.abstractmethod
    def _close(self) -> None:
        """Let go of the engine."""

    def _check_shapes(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """The sizes of the free axes."""
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
