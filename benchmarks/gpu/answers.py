"""Answers to the questions of `questions.py`, from runtimes and bundles: yes, no or not known, with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import DeviceError, UsageError
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.base import Runtime
from vitdeploy.runtimes.engine.cuda_memory import on_device
from vitdeploy.runtimes.engine.runtime import EngineRuntime
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.runtimes.onnxrt.session import CUDA

SOONER = 0.9  # a share of the time that is no longer noise

Arrays = dict[str, np.ndarray]


class Answer(NamedTuple):
    """An answer; `yes` is None if it is not known."""

    yes: bool | None
    reason: str

    @property
    def word(self) -> str:
        return {True: "yes", False: "no", None: "not known"}[self.yes]

    @property
    def line(self) -> str:
        return f"{self.word}: {self.reason}"


def noise(runtime: Runtime, seed: int, batch: int = 2) -> Arrays:
    """Random inputs of a runtime; only its first axis is dynamic."""
    draw = np.random.default_rng(seed)
    return {
        spec.name: draw.standard_normal((batch, *(int(size) for size in spec.shape[1:])), np.float32)
        for spec in runtime.inputs
    }


def differs_by(expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> float:
    """Largest difference relative to the largest value; infinite for a value that is not finite."""
    differences = compare_outputs(dict(expected), dict(outputs))
    return max(difference.max_relative if difference.finite else float("inf") for difference in differences)


def runs(bundle: Bundle, backend: str, precision: str) -> Answer:
    """Does an artifact open and run, and agree with the reference?"""
    try:
        with open_runtime(bundle, backend, precision=precision) as runtime:
            feeds, device = noise(runtime, 0), runtime.details["device"]
            outputs = runtime.run(feeds)
    except DeviceError as exc:
        return Answer(False, str(exc))
    with open_runtime(bundle, "torch", device="cpu") as reference:
        differences = compare_outputs(reference.run(feeds), outputs)
    tolerance = DEFAULT_TOLERANCES[precision]
    worst = max(difference.max_relative for difference in differences)
    found = f"differs by {worst:.1e} of the largest value, allowed {tolerance:g}, on {device}"
    return Answer(all(difference.within(tolerance) for difference in differences), found)


def device_memory(runtime: EngineRuntime, reference: Runtime, precision: str, batch_sizes: Sequence[int]) -> Answer:
    """Does `update_device_memory_size_for_shapes` give each shape's need, and is the engine right with so much?

    The documentation: the total memory that the current shapes require; `device_memory_size_v2` is that of the largest.

    Args:
        batch_sizes: Images per run, the smallest first.
    """
    needs: list[int] = []
    differences: list[float] = []
    largest, tolerance = int(runtime._engine.device_memory_size_v2), DEFAULT_TOLERANCES[precision]
    if not largest:
        return Answer(None, "the engine needs no memory of its own for any shape")
    for batch in batch_sizes:
        feeds = noise(runtime, 0, batch)
        with on_device(runtime._device):
            plan = runtime._make_plan({name: array.shape for name, array in feeds.items()})
            try:
                needs.append(int(plan._context.update_device_memory_size_for_shapes()))
                differences.append(differs_by(reference.run(feeds), plan.run(feeds)))
            except DeviceError as exc:
                return Answer(False, f"with {needs[-1]} bytes for batch {batch}: {exc}")
            finally:
                plan.close()
    found = (
        f"bytes {', '.join(map(str, needs))} for batch {', '.join(map(str, batch_sizes))}, {largest} for the largest; "
        f"differs by {max(differences):.1e} at most, allowed {tolerance:g}"
    )
    if len(set(needs)) == 1 and 0 < needs[0] <= largest and max(differences) <= tolerance:
        return Answer(None, f"the same for every shape: {found}")
    stated = all(0 < need <= largest for need in needs) and needs == sorted(needs)
    return Answer(stated and max(differences) <= tolerance, found)


def graph_answers(runtime: Runtime, reference: Runtime, precision: str) -> Answer:
    """Does a run that replays a CUDA graph compute its own input, not the recorded one?"""
    tolerance = DEFAULT_TOLERANCES[precision]
    first, second = noise(runtime, 0), noise(runtime, 1)
    expected = reference.run(first), reference.run(second)
    if differs_by(*expected) <= 2 * tolerance:
        return Answer(None, "the two inputs have the same answer")
    found = []
    for feeds, wanted in ((first, 0), (first, 0), (second, 1), (first, 0), (second, 1)):
        found.append(differs_by(expected[wanted], runtime.run(feeds)))
    text = f"differences of the runs: {', '.join(f'{value:.1e}' for value in found)}, allowed {tolerance:g}"
    return Answer(max(found) <= tolerance, text)


def takes_pad(open_session: Callable[[], OnnxRuntime], pads: int) -> Answer:
    """Does ONNX Runtime's CUDA provider run every Pad?

    Args:
        open_session: Opens the graph on it; raises DeviceError with the nodes that are left to the CPU.
        pads: Number of Pads in the file.
    """
    if not pads:
        return Answer(None, "the graph has no Pad")
    try:
        with open_session() as runtime:
            parts = runtime._session.get_provider_graph_assignment_info()
            places = [part.ep_name for part in parts for node in part.get_nodes() if node.op_type == "Pad"]
            version = runtime.details["engine"]
    except DeviceError as exc:
        left = [node for node in exc.found if str(node).startswith("Pad ")] if isinstance(exc.found, list) else []
        return Answer(False if left else None, str(exc))
    if not places:
        return Answer(None, f"{version} removed every Pad of the graph")
    where = ", ".join(f"{places.count(place)} on {place}" for place in dict.fromkeys(places))
    return Answer(set(places) == {CUDA}, f"{version}, Pad: {where}")


def loads_weights(runtime: EngineRuntime, file: Path, reference: Runtime) -> Answer:
    """Does an engine give the other model's answers after `refit` with its file?"""
    tolerance, feeds = DEFAULT_TOLERANCES["fp32"], noise(runtime, 0)
    expected = reference.run(feeds)
    before = differs_by(expected, runtime.run(feeds))
    if before <= tolerance:
        return Answer(None, "both models have the same answer")
    try:
        runtime.refit(file)
        after = max(differs_by(expected, runtime.run(feeds)) for _ in range(3))  # run, recorded and replayed
    except (DeviceError, UsageError) as exc:
        return Answer(False, str(exc))
    return Answer(after <= tolerance, f"differs by {before:.1e} before and {after:.1e} after, allowed {tolerance:g}")


def kernel_cache(
    open_with: Callable[[Path | bool], Runtime], folder: Path, clock: Callable[[], float] = time.perf_counter
) -> Answer:
    """Is an engine open sooner, until its first result, with the file of its compiled kernels?

    Args:
        open_with: Opens it with that file; False for none.
    """
    file = folder / "kernels"

    def seconds(cache: Path | bool) -> float:
        start = clock()
        with open_with(cache) as runtime:
            runtime.run(noise(runtime, 0))
            return clock() - start

    seconds(False)  # the library itself is loaded
    written = seconds(file)
    size = file.stat().st_size if file.exists() else 0
    if not size:
        return Answer(False, "no file was written")
    without, read = seconds(False), seconds(file)  # in this order: later ones may be sooner by themselves
    found = f"{without:.2f} s without a file, {written:.2f} s writing it ({size} bytes), {read:.2f} s reading it"
    return Answer(read < SOONER * without, found)
