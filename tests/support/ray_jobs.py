"""Run by the interpreter of .venvs/ray: the example of Ray Data, several times on one Ray, whose actors are killed.

Its arguments are the example, the command lines of its runs as a JSON list, and the number of actors to kill in the
first of them, each after another file of rows. It prints what the example prints, and the number of killed actors,
as JSON objects.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import ray


def written_files(unfinished: Path) -> int:
    """Number of files of rows that an unfinished job has written and recorded."""
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


def kill_actors(count: int, unfinished: Path, killed: list[int]) -> None:
    """Kill an actor once this run has written a file, and another once it has written one more, and so on."""
    before = written_files(unfinished)
    for _ in range(count):
        while written_files(unfinished) <= before + len(killed):
            time.sleep(0.01)
        victim = next(process for process in actors() if process not in killed)
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)


if __name__ == "__main__":
    _, example, runs, kills = sys.argv
    ray.init(num_cpus=4, object_store_memory=200 * 1024**2, include_dashboard=False, log_to_driver=False)
    killed: list[int] = []
    for number, run in enumerate(json.loads(runs)):
        if number == 0:
            unfinished = Path(run[run.index("--output") + 1] + ".unfinished")
            threading.Thread(target=kill_actors, args=(int(kills), unfinished, killed), daemon=True).start()
        sys.argv = [example, *run]
        runpy.run_path(example, run_name="__main__")
    assert "torch" not in sys.modules
    print(json.dumps({"killed": len(killed)}))
