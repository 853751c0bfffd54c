"""Run by the interpreter of .venvs/ray: jobs on a local Ray of several processes, one after the other.

Its arguments are the bundle, and a JSON list of jobs: the source's kind, its path, the output, and the number of actors
to kill, each after another file of rows. It prints the results as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray

from vitdeploy.serving.scale_out.ray_data import run_ray_job
from vitdeploy.serving.scale_out.ray_sources import ImageFiles, ParquetRows, WebDataset
from vitdeploy.serving.scale_out.ray_workers import Workers

SOURCES: dict[str, Any] = {"parquet": ParquetRows, "files": ImageFiles, "tar": WebDataset}


def written_files(output: Path) -> int:
    """Number of files of rows that an unfinished job has written and recorded."""
    unfinished = output.with_name(f"{output.name}.unfinished")
    return sum(".pending" not in path.name for path in unfinished.glob("*/checkpoint/*.parquet"))


def actors() -> list[int]:
    """Processes of this driver's Ray that run the model."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"_TablePredictor" in (folder / "cmdline").read_bytes():
                found += [int(folder.name)] if os.getpid() in _ancestors(int(folder.name)) else []
        except OSError:  # it has ended
            continue
    return sorted(found)


def _ancestors(process: int) -> list[int]:
    ancestors: list[int] = []
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        ancestors.append(process)
    return ancestors


def kill_actors(count: int, output: Path, killed: list[int]) -> None:
    """Kill an actor once the job has written one file, and another once it has written two, and so on."""
    for _ in range(count):
        while written_files(output) <= len(killed):
            time.sleep(0.01)
        victim = next(process for process in actors() if process not in killed)
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)


if __name__ == "__main__":
    ray.init(num_cpus=4, object_store_memory=200 * 1024**2, include_dashboard=False, log_to_driver=False)
    results = []
    for job in json.loads(sys.argv[2]):
        killed: list[int] = []
        killer = threading.Thread(
            target=kill_actors, args=(job.get("kills", 0), Path(job["output"]), killed), daemon=True
        )
        killer.start()
        result = run_ray_job(
            SOURCES[job["kind"]]((job["path"],)),
            sys.argv[1],
            job["output"],
            workers=Workers(actors=2, rows=50),
            rows_per_file=100,
        )
        results.append({**dataclasses.asdict(result), "killed": len(killed)})
    assert "torch" not in sys.modules
    print(json.dumps(results))
