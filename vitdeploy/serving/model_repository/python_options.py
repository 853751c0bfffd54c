"""Settings of a bundle in Triton's Python backend."""

from __future__ import annotations

import dataclasses

from vitdeploy.runtimes import BACKENDS
from vitdeploy.system.cpu import MOST_THREADS
from vitdeploy.system.option_fields import check_options, described, option

_MOST_COUNT = 2**31 - 1  # of Triton's int32 and uint32 fields
_MOST_DELAY_MS = 60_000
_ARTIFACT, _REQUESTS, _CPUS = "Artifact", "Requests", "CPUs"
INPUTS = ("images", "tensors")


@described
@dataclasses.dataclass(frozen=True)
class PythonBackend:
    """A bundle in Triton's Python backend. An invalid value raises UsageError."""

    backend: str | None = option(
        None, "Backend that runs the artifact.", choices=tuple(BACKENDS),
        unset="the tuned choice's, or the one that runs the artifact", metavar="NAME", group=_ARTIFACT,
    )  # fmt: skip
    precision: str | None = option(
        None, "Precision of the artifact.", group=_ARTIFACT,
        unset="the tuned choice's, or the only one; of several, ONNX first, then fp32",
    )  # fmt: skip
    device: str | None = option(None, "cpu, cuda or cuda:1.", unset="cpu; cuda for an engine", group=_ARTIFACT)
    input: str = option(
        "images", "Encoded images, or the tensors that the artifact takes.", choices=INPUTS, group=_REQUESTS
    )
    top_k: int = option(
        5, "Classes of an answer, the best first. Not for a regression.", limits=(1, _MOST_COUNT), group=_REQUESTS
    )
    max_batch_size: int | None = option(
        None, "Most images of a request, and of a run.", limits=(1, 65_535), metavar="N",
        unset="32, or an engine's largest batch", group=_REQUESTS,
    )  # fmt: skip
    max_delay_ms: int = option(
        0, "Milliseconds that a request waits for others of its batch. With 0, a batch is what arrived during the run "
        "before.", limits=(0, _MOST_DELAY_MS), typed="max_delay", metavar="MS", group=_REQUESTS,
    )  # fmt: skip
    max_queue: int = option(
        128, "Most requests that wait; others are refused at once, over HTTP with status 503.",
        limits=(1, _MOST_COUNT), metavar="N", group=_REQUESTS,
    )  # fmt: skip
    instances: int = option(
        1, "Processes with the model, which share the CPUs.", limits=(1, 256), metavar="N", group=_CPUS
    )
    threads: int = option(
        0, "Threads inside an operator. 0 is the physical cores that affinity and cgroup quota allow, shared by the "
        "instances.", limits=(0, MOST_THREADS), metavar="N", group=_CPUS,
    )  # fmt: skip
    max_image_bytes: int = option(
        32 * 2**20, "Largest encoded image.", limits=(1, _MOST_COUNT), metavar="N", group=_REQUESTS
    )
    max_image_pixels: int = option(
        2**26, "Most pixels of an image.", limits=(1, 2**63 - 1), metavar="N", group=_REQUESTS
    )

    def __post_init__(self) -> None:
        check_options(self)


DEFAULTS = PythonBackend()
