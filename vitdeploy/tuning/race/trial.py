"""Trials: what is timed, a variant on a backend with run-time options at a batch size."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.benchmark.setting import Setting
from vitdeploy.assess.runs.targets import Selected
from vitdeploy.runtimes import BACKENDS, runtime_class
from vitdeploy.specs import Precision
from vitdeploy.system.cpu import session_threads, usable_cpus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vitdeploy.tuning.variant import Variant

# The higher the precision, the simpler the choice between equally fast settings.
_PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8, Precision.FP8)


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A setting at a batch size; equal to itself alone.

    Attributes:
        variant: The artifact.
        setting: The artifact by name, backend and options.
        batch_size: Images per run.
    """

    variant: Variant
    setting: Setting
    batch_size: int

    @classmethod
    def of(cls, variant: Variant, backend: str, options: Mapping[str, Any], batch_size: int) -> Trial:
        artifact = variant.artifact
        return cls(variant, Setting(Selected(artifact.name, backend, artifact.precision), dict(options)), batch_size)

    @property
    def backend(self) -> str:
        return self.setting.selected.backend

    @property
    def images_together(self) -> int:
        """Images that one run of the engine computes; outputs may depend on them, see `Variant.depends_on_batch`."""
        return self.batch_size if self.setting.options.get(_PARALLEL_RUNS, 1) == 1 else 1

    @property
    def identity(self) -> list[Any]:
        """All that its times depend on, except machine and images, as plain values."""
        return [self.variant.sha256, self.setting.to_dict(), self.batch_size]

    @property
    def complexity(self) -> tuple[int, int, int, int]:
        """Order of equally fast trials: threads, precision, options and batch size; the simplest first."""
        options = self.setting.options
        asked = options.get(BACKENDS[self.backend].threads_option or "") or options.get(_PARALLEL_RUNS)
        threads = asked or session_threads().count
        precision = _PRECISIONS.index(Precision(self.variant.artifact.precision))
        return int(threads), precision, len(options), self.batch_size

    def __str__(self) -> str:
        changes = self.setting.changes
        options = f" {changes}" if changes else ""
        return f"{self.variant.name} on {self.backend}{options} at {self.batch_size}"


# Options that are tried both ways where several threads run, with their default: None for "within the cgroup quota".
_SWITCHES: dict[str, bool | None] = {"allow_spinning": None, "pinning": False}
_PARALLEL_RUNS, _HINT = "parallel_runs", "hint"


def options_to_try(backend: str, batch_size: int = 1) -> list[dict[str, Any]]:
    """Run-time options of a backend, its defaults first.

    They are numbers of threads, whether these spin or are pinned, and for batches whether each computes an image of
    its own.
    """
    name, cpus = BACKENDS[backend].threads_option, usable_cpus()
    if not name:
        return [{}]
    default = session_threads().count
    counts = sorted({1 << power for power in range(cpus.workers.bit_length())} | {cpus.threads.count, cpus.workers})
    fields = {field.name for field in dataclasses.fields(runtime_class(backend).options_type)}
    grid: list[dict[str, Any]] = []
    for count in counts:
        threads = {} if count == default else {name: count}
        grid.append(threads)
        for switch, usual in _SWITCHES.items():
            if switch in fields and count > 1:
                grid.append({**threads, switch: not (cpus.within_quota(count) if usual is None else usual)})
        if batch_size > 1 and count > 1:
            if _PARALLEL_RUNS in fields:
                grid.append({_PARALLEL_RUNS: 0 if count == default else count})
            if _HINT in fields:
                grid.append({**threads, _HINT: "throughput"})
    return sorted(grid, key=len)


def trials_of(
    variant: Variant, backend: str, batch_sizes: Iterable[int], options: Iterable[Mapping[str, Any]] | None = None
) -> list[Trial]:
    """Every trial of a variant on a backend.

    Args:
        options: Run-time options to try. Default: `options_to_try`.
    """
    axis = variant.artifact.inputs[0].shape[0]
    allowed = variant.artifact.axes.get(axis) if isinstance(axis, str) else None
    sizes = [
        size for size in batch_sizes
        if (size == axis if isinstance(axis, int) else allowed is None or size in allowed)
    ]  # fmt: skip
    return [
        Trial.of(variant, backend, values, size)
        for size in sizes
        for values in (options_to_try(backend, size) if options is None else options)
        if _PARALLEL_RUNS not in values or axis != size  # they need a dynamic batch
    ]
