"""A Ray Data job on many images, killed at random times: are the rows those of an uninterrupted run?

The embedded model's held-out images, each many times, and a few that are no images, in parquet files. The example
`examples/ray/batch_job.py` is run once without interruption; then its driver is killed (SIGKILL), with which Ray ends,
at random points, and it is continued until it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pd
import pyarrow.parquet as pq
from common import add_peer_python, parser, peer_versions, record, start, vitdeploy_export, wait

from vitdeploy.assets import default_checkpoint, held_out_images

if TYPE_CHECKING:
    import argparse

ROOT = Path(__file__).parents[1]
ROWS_PER_SOURCE, ROWS_PER_FILE, ROWS_PER_TASK, BAD_EVERY = 2000, 100, 100, 997
LONGEST_SHARE = 0.2  # of the remaining rows, until a run is killed
LONGEST_S = 2.0  # then, so that a kill comes at any point of the work


def write_images(folder: Path, count: int) -> None:
    """Parquet files of `id` and `image`, of which every 997th is none."""
    originals = [path.read_bytes() for path in sorted(held_out_images().rglob("*.png"))]
    folder.mkdir()
    for first in range(0, count, ROWS_PER_SOURCE):
        ids = range(first, min(first + ROWS_PER_SOURCE, count))
        images = [
            b"no image" if number % BAD_EVERY == BAD_EVERY - 1 else originals[number % len(originals)] for number in ids
        ]
        table = pa.table({"id": list(ids), "image": pa.array(images, pa.binary())})
        pq.write_table(table, folder / f"{first:07}.parquet")


class Job:
    """The example on one source; each run is a new process with a Ray of its own."""

    def __init__(self, python: Path, bundle: Path, images: Path) -> None:
        self._bundle, self._images, self._python = bundle, images, python
        self._folder = tempfile.mkdtemp(prefix="ray-")  # sockets have short paths

    def start(self, output: Path) -> subprocess.Popen[str]:
        command: list[str | Path] = [
            self._python.absolute(), ROOT / "examples/ray/batch_job.py", "parquet", self._images, "--bundle",
            self._bundle, "--output", output, "--cpus", "4", "--actors", "2", "--rows", str(ROWS_PER_TASK),
            "--rows-per-file", str(ROWS_PER_FILE),
        ]  # fmt: skip
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": self._folder, "HOME": self._folder}
        return subprocess.Popen(
            command, env=environ, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def end(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        printed, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode} of the job")
        result: dict[str, Any] = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
        return result

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def rows_written(output: Path) -> int:
    """Rows that an unfinished job has recorded."""
    unfinished, rows = output.with_name(f"{output.name}.unfinished"), 0
    for path in unfinished.glob("*/checkpoint/*.parquet"):
        with contextlib.suppress(FileNotFoundError):  # a run takes over those of the one before
            rows += pq.read_metadata(path).num_rows if ".pending" not in path.name else 0
    return rows


def wait_for_rows(process: subprocess.Popen[str], output: Path, before: int) -> None:
    while rows_written(output) <= before and process.poll() is None:
        time.sleep(0.05)


def sorted_rows(output: Path) -> Any:
    return pd.dataset(output, format="parquet").to_table().sort_by("id").combine_chunks()


def measure(job: Job, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(arguments.seed)
    whole, output = folder / "whole", folder / "killed"
    begin = time.monotonic()
    first = job.end(job.start(whole))
    uninterrupted_s = time.monotonic() - begin
    kills: list[dict[str, Any]] = []
    for _ in range(arguments.kills):
        process, before = job.start(output), rows_written(output)
        begin = time.monotonic()
        wait_for_rows(process, output, before + int(draw.uniform(0, LONGEST_SHARE) * (arguments.images - before)))
        time.sleep(draw.uniform(0, LONGEST_S))
        if process.poll() is not None:
            raise SystemExit(f"the job ended after {len(kills)} kills; give it more images, or fewer kills")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills.append({"after_s": time.monotonic() - begin, "rows_before": before, "rows_after": rows_written(output)})
        print(kills[-1], flush=True)
    if output.exists():
        raise SystemExit("there is an output before the job ended")
    begin = time.monotonic()
    last = job.end(job.start(output))
    return {
        "images": arguments.images,
        "uninterrupted_s": uninterrupted_s,
        "rows": last["rows"],
        "failed": last["failed"],
        "resumed": last["resumed"],
        "kills": kills,
        "last_run_s": time.monotonic() - begin,
        "equal": first["rows"] == arguments.images and sorted_rows(whole).equals(sorted_rows(output)),
    }


def main() -> None:
    arguments_parser = parser(__doc__)
    add_peer_python(arguments_parser, "ray")
    arguments_parser.add_argument("--images", type=int, default=100_000)
    arguments_parser.add_argument("--kills", type=int, default=10)
    arguments_parser.add_argument("--seed", type=int, default=0)
    arguments = arguments_parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wait(start(vitdeploy_export(folder / "bundle", "--model", str(default_checkpoint()))))
        write_images(folder / "images", arguments.images)
        job = Job(arguments.ray_python, folder / "bundle", folder / "images")
        try:
            found = measure(job, folder, arguments)
        finally:
            job.close()
    record(arguments, {"versions": peer_versions(arguments.ray_python, "ray", "onnxruntime"), **found})
    if not found["equal"]:
        raise SystemExit("a killed job gave other rows than an uninterrupted one")


if __name__ == "__main__":
    main()
