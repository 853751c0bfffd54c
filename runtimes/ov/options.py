"""Options of the OpenVINO backend."""

from __future__ import annotations

import dataclasses

from vitdeploy.runtimes.options import RuntimeOptions
from vitdeploy.system.cpu import MOST_THREADS
from vitdeploy.system.option_fields import described, option


@described
@dataclasses.dataclass(frozen=True)
class OpenVINOOptions(RuntimeOptions):
    """Options of a model in OpenVINO. An invalid value raises UsageError.

    The precision is not among them: it belongs to the artifact. Nor is OpenVINO's cache of compiled models: on a CPU it
    stores the model again, 346 MB for ViT-B in float32, and opening it from there takes no less time.
    """

    hint: str = option(
        "latency",
        "OpenVINO's performance hint: one image at a time on all threads, or several at a time, which is faster for "
        "batches and slower for a single image.",
        choices=("latency", "throughput"),
    )
    streams: int = option(
        0,
        "runs that OpenVINO computes at a time, which share the threads; more of them wait. 0 is the hint's number: "
        "one for latency. OpenVINO takes no more than there are threads.",
        limits=(0, MOST_THREADS),
    )
    inference_threads: int = option(
        0,
        "threads of all streams together. 0 is one thread a physical core that the process's CPU affinity and cgroup "
        "quota allow; see `vitdeploy.system.cpu.session_threads`. OpenVINO takes no more than there are cores.",
        limits=(0, MOST_THREADS),
    )
    pinning: bool = option(
        False,
        "whether each thread is pinned to a core. OpenVINO's own default pins them, those of every process to the same "
        "cores, which is much slower beside other work.",
    )
    memory_map: bool = option(
        False,
        "whether the weights are mapped from the file instead of read, so that processes share them. The file must "
        "then not be written to while the model is open.",
    )


DEFAULTS = OpenVINOOptions()
