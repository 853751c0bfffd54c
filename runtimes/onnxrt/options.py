"""Options of an ONNX Runtime session."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from vitdeploy.errors import UsageError
from vitdeploy.runtimes.onnxrt.session import CPU
from vitdeploy.runtimes.options import RuntimeOptions
from vitdeploy.system.cpu import MOST_THREADS
from vitdeploy.system.option_fields import described, option
from vitdeploy.system.quiet import onnxruntime_severity

if TYPE_CHECKING:
    from typing_extensions import Self

_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@described
@dataclasses.dataclass(frozen=True)
class OnnxRuntimeOptions(RuntimeOptions):
    """Options of an ONNX Runtime session. An invalid value raises UsageError."""

    providers: Sequence[str] | None = option(
        None,
        "execution providers, the preferred one first; by default that of the device. A node that none of them takes "
        "is an error, unless the CPU provider is among them, or it computes shapes, which belong there.",
    )
    provider_options: Mapping[str, Mapping[str, Any]] | None = option(
        None, "options by provider name, as ONNX Runtime documents them."
    )
    intra_op_threads: int = option(
        0,
        "threads inside an operator. 0 is `ORT_INTRA_OP_NUM_THREADS`, or else one thread a physical core that the "
        "process's CPU affinity and cgroup quota allow; see `vitdeploy.system.cpu.session_threads`. ONNX Runtime's own "
        "default counts the cores of the host, and pins its threads to them.",
        limits=(0, MOST_THREADS),
    )
    inter_op_threads: int = option(
        0, "operators that may run at a time, in graphs with parallel branches; with 0 and 1, one.",
        limits=(0, MOST_THREADS),
    )  # fmt: skip
    parallel_runs: int = option(
        1,
        "images of a batch that run at a time (CPU only), each in a run of its own with one thread. With 1, a batch is "
        "one run, with `intra_op_threads` inside each operator. More runs are faster for batches, most of all beside "
        "other work: no thread waits for another after each operator. A single image then has one thread. An image's "
        "result does not depend on its batch, in dynamic int8 too. Runs share the weights; each has its own "
        "activations. 0 is the default number of `intra_op_threads`.",
        limits=(0, MOST_THREADS),
    )
    concurrent_runs: int = option(
        0,
        "runs at a time; further callers wait, first come, first served. The session keeps the memory of as many runs. "
        "0 is two runs for each CPU that affinity and quota allow, or `parallel_runs` if that is more; on a GPU, any "
        "number.",
        limits=(0, MOST_THREADS),
    )
    allow_spinning: bool | None = option(
        None,
        "whether idle threads spin, which is faster alone and slower beside other work. By default they do unless "
        "there are more of them than a cgroup quota has CPUs: waiting is then paid with time to compute.",
    )
    prepack: bool = option(
        True,
        "whether weights are laid out anew for the processor when the file is opened, which is faster to run and takes "
        "longer, and more memory, to open. Without it, weights exported with external data are mapped: all processes "
        "that open the file share them.",
    )
    shrink_memory: bool = option(
        False,
        "whether memory goes back to the system after each run (CPU only). By default the session keeps the memory of "
        "the largest `concurrent_runs` runs. It suits batches and images of many sizes; runs take a little longer.",
    )
    graph_optimization: str = option("all", "level of graph optimization.", choices=tuple(_LEVELS))
    io_binding: bool | None = option(
        None,
        "whether to run through an IO binding, which copies each array once between the host and the device; by "
        "default where a provider is not the CPU's.",
    )
    log_severity: int | None = option(
        None,
        "the least severe of ONNX Runtime's own messages: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal; by default "
        "warnings, and in the command line's process fatal ones.",
        limits=(0, 4),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.providers
        if names is None:
            return
        if not names or len(set(names)) != len(names):
            raise UsageError(f"providers are one or more different names, got {names!r}", what="providers", found=names)
        for name, values in (self.provider_options or {}).items():
            if name not in names:
                raise UsageError(
                    f"provider_options has options for {name!r}, providers are {', '.join(names)}",
                    what="provider_options", expected=tuple(names), found=name,
                )  # fmt: skip
            if name == CPU and values:  # ONNX Runtime would ignore them
                raise UsageError(
                    f"{CPU} takes no options, got {', '.join(values)}", what="provider_options", found=tuple(values)
                )

    def on_gpu(self, provider: str, index: int | None, defaults: Mapping[str, Any]) -> Self:
        """These options for one provider on a GPU.

        Args:
            index: GPU index; None for the first.
            defaults: Default options of the provider.

        Raises:
            UsageError: If the provider's options also name a GPU, or belong to another provider.
        """
        given = dict(self.provider_options or {})
        stated = given.get(provider, {})
        if index is not None and "device_id" in stated:
            raise UsageError(
                f"device cuda:{index} and a device_id in provider_options exclude each other",
                what="device_id", found=stated["device_id"], hint="leave one of them out",
            )  # fmt: skip
        chosen = {"device_id": index or 0, **defaults, **stated}
        return dataclasses.replace(self, providers=(provider,), provider_options={**given, provider: chosen})


def session_options(options: OnnxRuntimeOptions, threads: int, spinning: bool) -> ort.SessionOptions:
    """The options in ONNX Runtime's form, except the providers."""
    session = ort.SessionOptions()
    session.log_severity_level = onnxruntime_severity() if options.log_severity is None else options.log_severity
    session.intra_op_num_threads = threads
    if options.inter_op_threads > 1:  # ONNX Runtime ignores the number in its sequential mode
        session.inter_op_num_threads = options.inter_op_threads
        session.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    session.graph_optimization_level = _LEVELS[options.graph_optimization]
    for pool in ("intra_op", "inter_op"):
        session.add_session_config_entry(f"session.{pool}.allow_spinning", str(int(spinning)))
    session.add_session_config_entry("session.disable_prepacking", str(int(not options.prepack)))
    return session


def run_options(options: OnnxRuntimeOptions) -> ort.RunOptions | None:
    """Settings of each run; None for ONNX Runtime's.

    Raises:
        UsageError: If memory is to be shrunk that is not the CPU provider's.
    """
    if not options.shrink_memory:
        return None
    if tuple(options.providers or (CPU,)) != (CPU,):
        raise UsageError(
            f"shrink_memory needs {CPU} alone, got {', '.join(options.providers or ())}",
            what="shrink_memory", expected=(CPU,), found=options.providers, hint="leave it out",
        )  # fmt: skip
    settings = ort.RunOptions()
    settings.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return settings


DEFAULTS = OnnxRuntimeOptions()
