"""The processes of a Ray Data job."""

from __future__ import annotations

import dataclasses

import ray
import ray.data

from vitdeploy.errors import UsageError, check_count

_TASK_BYTES = 400 * 1024**2  # a process with numpy, Pillow and pyarrow, without images; Ray 2.60 measures 290 MiB


@dataclasses.dataclass(frozen=True)
class Workers:
    """Processes of a job.

    Attributes:
        actors: Processes that open the bundle, or the smallest and the largest number of them.
        cpus: CPUs, and threads of the engine, for each.
        gpus: GPUs for each.
        rows: Images in a task, which decodes or runs them: their pixels are in memory together.
    """

    actors: int | tuple[int, int] = 1
    cpus: int = 1
    gpus: float = 0
    rows: int = 256

    def __post_init__(self) -> None:
        for count in self._range:
            check_count("actors", count)
        check_count("cpus", self.cpus)
        check_count("rows", self.rows)

    @property
    def _range(self) -> tuple[int, int]:
        """The smallest and the largest number of actors."""
        return (self.actors, self.actors) if isinstance(self.actors, int) else self.actors

    @property
    def most_actors(self) -> int:
        return self._range[1]

    @property
    def pool(self) -> ray.data.ActorPoolStrategy:
        least, most = self._range
        return ray.data.ActorPoolStrategy(min_size=least, max_size=most)

    def task_bytes(self, image_bytes: int) -> int:
        """Memory of a decoding task, in bytes: its images once in numpy, and once in Arrow."""
        return _TASK_BYTES + 2 * self.rows * image_bytes

    def check_cluster(self) -> None:
        """Raise UsageError if the actors leave no CPU to read, decode and write: the job would wait forever."""
        least = self.cpus * self._range[0] + 2
        if not ray.is_initialized():
            ray.init()
        cpus = ray.cluster_resources().get("CPU", 0)
        if cpus < least:
            raise UsageError(
                f"the actors and two tasks need {least} CPUs, the Ray cluster has {cpus:g}",
                what="workers", expected=least, found=cpus, hint="start fewer actors, or a larger cluster",
            )  # fmt: skip
