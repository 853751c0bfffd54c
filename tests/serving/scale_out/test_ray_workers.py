"""Numbers of processes, without a cluster."""

from __future__ import annotations

import json

from environments import ROOT, environment, run

SCRIPT = """
import json, math
import numpy as np
from types import SimpleNamespace
from vitdeploy.errors import UsageError
from vitdeploy.serving.scale_out import ray_workers

def attempt(**fields):
    try:
        workers = ray_workers.Workers(**fields)
        workers.check_cluster()
    except UsageError as exc:
        return exc.what
    return int(workers.pool.min_size), int(workers.pool.max_size)

resources = {"CPU": 8.0, "GPU": 1.0}
ray_workers.ray = SimpleNamespace(
    is_initialized=lambda: True, cluster_resources=lambda: resources, data=ray_workers.ray.data
)
actors = 3, (1, 3), [2, 2], np.int64(2), (3, 1), (1, 2, 3), (), 0, (0, 1), True, 1.5, "2", None
print(json.dumps([attempt(actors=value) for value in actors]))
gpus = 0, 1, 0.5, np.float64(0.5), -1, math.nan, math.inf, "1", True
print(json.dumps([attempt(gpus=value) for value in gpus]))
print(json.dumps([attempt(cpus=6), attempt(cpus=7), attempt(actors=2, gpus=1), attempt(cpus=0.5), attempt(rows=0)]))
"""


def test_what_is_no_number_of_processes_is_refused() -> None:
    printed = run(environment("ray"), "-c", SCRIPT, PYTHONPATH=str(ROOT)).splitlines()
    actors, gpus, cluster = map(json.loads, printed)
    assert actors == [[3, 3], [1, 3], [2, 2], [2, 2], *["actors"] * 9]
    assert gpus == [*[[1, 1]] * 4, *["gpus"] * 5]
    assert cluster == [[1, 1], "workers", "workers", "cpus", "rows"]
