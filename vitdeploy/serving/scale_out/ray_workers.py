"""The processes of a Ray Data job."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import ray
import ray.data

from vitdeploy.errors import UsageError, check_count, shown
from vitdeploy.system.argument_types import check_type

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

    actors: int | Sequence[int] = 1
    cpus: int = 1
    gpus: float = 0
    rows: int = 256

    def __post_init__(self) -> None:
        check_type("actors", self.actors, int | Sequence[int])
        numbers = tuple(self.actors) if isinstance(self.actors, Sequence) else (self.actors,)
        for count in numbers:
            check_count("actors", count)
        if len(numbers) not in (1, 2) or numbers[0] > numbers[-1]:
            message = f"actors takes a number, or the smallest and the largest, got {shown(self.actors)}"
            raise UsageError(message, what="actors", found=self.actors)
        check_count("cpus", self.cpus)
        check_count("rows", self.rows)
        check_type("gpus", self.gpus, float)
        if not 0 <= self.gpus < math.inf:
            raise UsageError(f"gpus takes a number from 0 up, got {self.gpus}", what="gpus", found=self.gpus)

    @property
    def _range(self) -> tuple[int, int]:
        """The smallest and the largest number of actors."""
        return (self.actors[0], self.actors[-1]) if isinstance(self.actors, Sequence) else (self.actors, self.actors)

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
        """Raise UsageError if the actors do not fit, or leave no CPU to read and decode: the job would wait forever."""
        if not ray.is_initialized():
            ray.init()
        actors, resources = self._range[0], ray.cluster_resources()
        needs = {"CPU": ("the actors and two tasks", self.cpus * actors + 2), "GPU": ("the actors", self.gpus * actors)}
        for name, (users, least) in needs.items():
            if (found := resources.get(name, 0)) < least:
                raise UsageError(
                    f"{users} need {least:g} {name}s, the Ray cluster has {found:g}",
                    what="workers", expected=least, found=found, hint="start fewer actors, or a larger cluster",
                )  # fmt: skip
