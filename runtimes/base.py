"""The interface of every runtime, and the checks that they share."""

from __future__ import annotations

import abc
import contextlib
import inspect
import re
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

import numpy as np

from vitdeploy.errors import DeviceError, UsageError
from vitdeploy.runtimes.device_arrays import view
from vitdeploy.specs import PixelFormat
from vitdeploy.system.forks import first_in_child, keep_until_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.device_arrays import DeviceArray
    from vitdeploy.specs import AxisRange, TensorSpec
    from vitdeploy.system.cpu import ThreadCount


class Array(Protocol):
    """What an array, of whatever library, is checked by."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Runtime(abc.ABC):
    """Executes one artifact: arrays in, arrays out, by name. Every method may be called from several threads.

    It belongs to its process and cannot be pickled. In a forked child it runs where its engine has neither threads nor
    a GPU there (`_lost_in_fork`), and is refused else; closing it, and the child's exit, leave the engine alone.

    Attributes:
        backend: the backend's name.
        inputs: what `run` takes.
        outputs: what `run` gives.
        pixels: what an image must be among the inputs.
        axes: the sizes that a free axis may have, by its name; one without an entry takes every size from 1 up.
        size_problem: of a model that resizes by itself, why it cannot take so many images of a height and a width.
        precision: of the artifact; None where it was not opened by `open_runtime`.
        gpu: the number of the GPU that arrays of `run_device` are on; None for the host.
        threads: how many threads the engine computes with on the CPU, and why; None where it computes on a GPU alone.
        details: what really runs: engine and version, device or providers, and the options in force.
    """

    backend: str
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
    def from_bundle(cls, bundle: Bundle, *, precision: str, device: str, **options: Any) -> Self:
        """Open the bundle's artifact of that precision on that device. See `vitdeploy.runtimes.open_runtime`."""

    @classmethod
    @abc.abstractmethod
    def probe(cls) -> dict[str, str | None]:
        """Run something small on each device or provider that the engine lists here: None, or why it failed."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: an array for each of `inputs`, of exactly its type and shape, free axes within `axes`.

        Returns:
            An array for each of `outputs`: contiguous, writable, and the caller's own.

        Raises:
            UsageError: an array is missing, unknown, or not as stated; or the runtime is closed, or of the process
                that forked this one.
            DeviceError: the engine failed, for want of memory for example.
        """
        with self._in_use():
            self._check(feeds)
            return self._run(feeds)

    def run_device(self, feeds: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        """Run the model once on arrays that are on its device, and write into others there; none goes through the host.

        Arrays are those of a library with DLPack, such as torch or CuPy, or numpy where `gpu` is None: contiguous and,
        for an engine, aligned to 256 bytes, as new ones are. What their library has queued on its current stream is
        waited for; on return all is done.

        Args:
            feeds: an array for each of `inputs`, of exactly its type and shape, free axes within `axes`.
            results: a writable array for each of `outputs`, which is overwritten.

        Raises:
            UsageError: an array is missing, unknown, or not as stated; or the runtime is closed.
            DeviceError: the engine failed.
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
                if not _fits(spec, arrays[spec.name], sizes):
                    raise _misfit(spec, arrays[spec.name], sizes, "give an array to write to that has what comes out")
            self._run_device(arrays)

    def close(self) -> None:
        """Free what the engine holds, when the runs in progress are done; `run` is an error from here on."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: self._running == 0)
        if not self._inherited:
            self._close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise UsageError("a runtime must be open to run, this one is closed; load it again")
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
                f"this {self.backend} runtime was opened before the process forked, and {lost}; open it in each "
                f"process, after the fork (with gunicorn --preload: in the post_fork hook){self._fork_advice}"
            )

    def _lost_in_fork(self) -> str | None:
        """The reason why the engine cannot run in a forked child of the process that opened it; None if it can."""
        return "its engine does not work in a forked process"

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
        raise UsageError(f"the {self.backend} backend takes arrays of numpy alone; call run")

    @abc.abstractmethod
    def _close(self) -> None:
        """Let go of the engine."""

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        check_names("inputs", feeds, self.inputs)
        for spec in self.inputs:
            if not isinstance(feeds[spec.name], np.ndarray):
                raise UsageError(f"expected a numpy array for {spec}, got {type(feeds[spec.name]).__name__}")
        self._check_shapes(feeds)

    def _check_shapes(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """The sizes of the free axes."""
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            if not _fits(spec, feeds[spec.name], sizes):
                raise _misfit(spec, feeds[spec.name], sizes, "preprocess images with ImageProcessor")
        for name, size in sizes.items():
            if name in self.axes and size not in self.axes[name]:
                raise UsageError(
                    f"{name} must be {self.axes[name]}, got {size}; give what the artifact takes, or export "
                    f"the model for it"
                )
        if self.size_problem is not None:
            images = self.inputs[0]
            shape = feeds[images.name].shape
            problem = self.size_problem(shape[0], *self.pixels.size(shape))
            if problem is not None:
                raise UsageError(f"{images} is too large: {problem}")
        return sizes


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


@first_in_child
def _inherit_all() -> None:
    for runtime in tuple(_runtimes):
        runtime._inherit()


def _fits(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> bool:
    """Whether an array is as stated; free axes that have no size yet have the array's from here on."""
    fits = array.dtype == np.dtype(spec.dtype) and len(array.shape) == len(spec.shape) and all(array.shape)
    for want, got in zip(spec.shape, array.shape, strict=False):
        fits = fits and got == (sizes.setdefault(want, got) if isinstance(want, str) else want)
    return fits


def _misfit(spec: TensorSpec, array: Array, sizes: Mapping[str, int], instead: str) -> UsageError:
    free = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    return UsageError(f"expected {spec}, got {array.dtype} {array.shape}{f' with {free}' if free else ''}; {instead}")


def check_names(what: str, arrays: object, specs: Iterable[TensorSpec]) -> None:
    """Raise UsageError unless there is something for each name, and nothing else.

    Args:
        what: is checked, "inputs" or "outputs".
        arrays: by name.
        specs: what there must be.
    """
    names = [spec.name for spec in specs]
    if not isinstance(arrays, Mapping):
        raise UsageError(f"expected arrays by name ({', '.join(names)}), got {type(arrays).__name__}")
    if set(arrays) != set(names):
        raise UsageError(f"{what} must be {', '.join(names)}, got {', '.join(map(str, arrays)) or 'none'}")


def check_options(cls: type[Runtime], options: Mapping[str, Any]) -> None:
    """Raise UsageError unless `cls` takes each of `options`, in its constructor or in `from_bundle`."""
    known = [
        name
        for function in (cls, cls.from_bundle)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in ("device", "precision")
    ]
    for name in options:
        if name not in known:
            raise UsageError(f"options of the {cls.backend} backend are {', '.join(known)}; got {name!r}")


def parse_device(name: str) -> tuple[str, int | None]:
    """The kind and the index of "cpu", "cuda" or "cuda:1".

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if match is None:
        raise UsageError(f"device must be one of cpu, cuda, cuda:N; got {name!r}")
    index = match[1]
    return name.partition(":")[0], None if index is None else int(index)


def cuda_index(backend: str, device: str) -> int | None:
    """The index of "cuda" or "cuda:1", for a backend that runs on a GPU alone.

    Raises:
        UsageError: it is no device.
        DeviceError: it is another one.
    """
    kind, index = parse_device(device)
    if kind != "cuda":
        raise DeviceError(f"{backend} runs on an NVIDIA GPU alone, got device {device!r}; give cuda, or cuda:N")
    return index
