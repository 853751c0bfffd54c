"""Execution plans: a context for one input shape, with its memory, stream and CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitdeploy.errors import DeviceError, UsageError, first_line
from vitdeploy.runtimes.device_arrays import DeviceArray
from vitdeploy.runtimes.engine.compatibility import Shapes
from vitdeploy.runtimes.engine.cuda_memory import Graph, Memory, Stream, Tensor, close_all
from vitdeploy.specs import TensorSpec
from vitdeploy.trt.library import last_of


class ShapePlan:
    """Runs an engine on inputs of one shape. Not thread-safe.

    Each plan has its own context, because changing a context's shapes invalidates the CUDA graph captured from it. The
    first run is not captured: many shapes occur only once, and the library's set-up for a shape cannot be captured.

    Args:
        context: The library's execution context, without its own memory (`USER_MANAGED`).
        capture: True to capture a CUDA graph here; False if the library does so itself, or without CUDA graphs.
        errors: Errors from the library's logger; the last one is the reason of a failed call.

    Raises:
        DeviceError: If there is not enough memory, or the engine refuses the shapes.
    """

    def __init__(
        self,
        context: Any,
        profile: int,
        shapes: Shapes,
        outputs: Sequence[TensorSpec],
        dtypes: Mapping[str, np.dtype[Any]],
        *,
        capture: bool,
        errors: Sequence[str],
    ) -> None:
        self._context = context
        self._errors = errors
        self._capture = capture
        self._has_run = False
        self._graph: Graph | None = None
        self._scratch: Memory | None = None
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._stream = Stream()
        try:
            self._bind(profile, shapes, outputs, dtypes)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once; the caller owns the results.

        Raises:
            DeviceError: If it failed, or cannot be captured.
        """
        for name, tensor in self._inputs.items():
            np.copyto(tensor.array, feeds[name])
        if self._capture and self._has_run and self._graph is None:
            self._graph = self._stream.captured(self._enqueue)
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self._stream)
        self._stream.wait()
        self._has_run = True
        return {name: tensor.array.copy() for name, tensor in self._outputs.items()}

    def run_device(self, arrays: Mapping[str, DeviceArray]) -> None:
        """Run the engine once on GPU arrays, inputs and outputs by name.

        It is not captured: a CUDA graph would contain the addresses of these arrays.

        Raises:
            UsageError: If an output's shape differs from the engine's; the plan is unchanged.
            DeviceError: If it failed.
        """
        for name, output in self._outputs.items():
            if arrays[name].shape != output.array.shape:
                expected, given = output.array.shape, arrays[name].shape
                raise UsageError(
                    f"expected {output.array.dtype} '{name}' {expected} to write to, got {given}",
                    what=name, expected=expected, found=given,
                )  # fmt: skip
        for array in arrays.values():
            array.hold_up(self._stream.handle)
        self._use({name: array.address for name, array in arrays.items()})
        self._checked(self._context.execute_async_v3(self._stream.handle), "run")
        self._stream.wait()
        self._use_own()

    def close(self) -> None:
        close_all(self._stream, self._scratch, *self._inputs.values(), *self._outputs.values(), self._graph)
        del self._context

    def _bind(
        self, profile: int, shapes: Shapes, outputs: Sequence[TensorSpec], dtypes: Mapping[str, np.dtype[Any]]
    ) -> None:
        context = self._context
        # On the stream of the runs: the copies of a profile switch must complete first (NvInferRuntime.h).
        switched = context.set_optimization_profile_async(profile, self._stream.handle)
        self._checked(switched, f"take profile {profile}")
        for name, shape in shapes.items():
            self._checked(context.set_input_shape(name, shape), f"take '{name}' {shape}")
            self._inputs[name] = Tensor(shape, dtypes[name])
        try:
            self._checked(not context.infer_shapes(), "infer the shapes of its outputs")
        except RuntimeError as exc:
            reason = first_line(exc)
            raise DeviceError(
                f"the engine cannot infer the shapes of its outputs: {reason}", what="infer_shapes", found=reason
            ) from exc
        self._scratch = self._reserved()
        for spec in outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            self._outputs[spec.name] = Tensor(shape, np.dtype(spec.dtype))
        self._use_own()

    def _reserved(self) -> Memory | None:
        """Scratch memory of the context for these shapes; None if no shape needs any."""
        context = self._context
        # 0 means either that these shapes need none or that it cannot tell; it refuses to run without any
        # (pytorch/TensorRT#4600).
        size = context.update_device_memory_size_for_shapes() or context.engine.device_memory_size_v2
        if not size:
            return None
        scratch = Memory(size)
        context.set_device_memory(scratch.address, size)
        return scratch

    def _use_own(self) -> None:
        self._use({name: tensor.address for name, tensor in (*self._inputs.items(), *self._outputs.items())})

    def _use(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            self._checked(self._context.set_tensor_address(name, address), f"take the memory of '{name}'")

    def _enqueue(self) -> None:
        for tensor in self._inputs.values():
            tensor.to_device(self._stream)
        self._checked(self._context.execute_async_v3(self._stream.handle), "run")
        for tensor in self._outputs.values():
            tensor.to_host(self._stream)

    def _checked(self, done: bool, what: str) -> None:
        if not done:
            reason = last_of(self._errors)
            raise DeviceError(f"the engine cannot {what}: {reason}", what=what, found=reason)


class ReadyPlans:
    """Plans by shape, in the order of their last use; a plan in use belongs to one thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._plans: list[tuple[Shapes, ShapePlan]] = []
        self.unlock()

    def unlock(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def take(self, shapes: Shapes) -> ShapePlan | None:
        """A ready plan for these shapes, if there is one."""
        with self._lock:
            for index, (kept, _) in enumerate(self._plans):
                if kept == shapes:
                    return self._plans.pop(index)[1]
        return None

    def put_back(self, shapes: Shapes, plan: ShapePlan) -> None:
        """Store a plan; if there are too many, close the least recently used one."""
        with self._lock:
            self._plans.append((shapes, plan))
            too_many = [self._plans.pop(0)[1] for _ in range(len(self._plans) - self._most)]
        close_all(*too_many)

    def close(self) -> None:
        """Close every plan that is not in use."""
        plans = [plan for _, plan in self._plans]
        self._plans.clear()
        close_all(*plans)
