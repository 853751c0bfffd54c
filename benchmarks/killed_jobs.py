"""`vitdeploy predict --output` on 100,000 images, killed at random times: are the bytes those of an uninterrupted run?

The embedded model's held-out images, each many times, by hard links, and a few files that are no images. Each format
is written once without interruption; then the command is killed (SIGKILL) after random times, at last while it writes
the output, and continued until it ends. The formats run at the same time.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import parser, record, start, vitdeploy_export, wait

from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.errors import ImageError

FORMATS = ("csv", "jsonl", "parquet")
LONGEST_SHARE = 0.2  # of an uninterrupted run's time, until a kill
FOLDER_SIZE, BAD_EVERY = 1000, 9973


def write_images(folder: Path, count: int) -> None:
    """Files of which every 9973rd is no image."""
    originals = [path.read_bytes() for path in sorted(held_out_images().rglob("*.png"))]
    stored = folder / "000" / "stored"
    stored.mkdir(parents=True)
    files = []
    for number, content in enumerate(originals):
        files.append(stored / f"{number:03}")
        files[-1].write_bytes(content)
    for number in range(count):
        place = folder / f"{number // FOLDER_SIZE:03}" / f"{number:06}.png"
        place.parent.mkdir(exist_ok=True)
        if number % BAD_EVERY == BAD_EVERY - 1:
            place.write_bytes(b"no image")
        else:
            place.hardlink_to(files[number % len(files)])
    for file in files:
        file.unlink()
    stored.rmdir()


def measure(ending: str, bundle: Path, images: Path, count: int, kills: int, draw: random.Random) -> dict[str, Any]:
    whole, output = images.parent / f"whole.{ending}", images.parent / f"killed.{ending}"
    work = Path(f"{output}.unfinished")
    begin = time.monotonic()
    _end(_start(bundle, images, whole))
    uninterrupted_s = time.monotonic() - begin
    killed = []
    for kill in range(kills):
        process = _start(bundle, images, output)
        if kill < kills - 1:
            seconds = draw.uniform(0, LONGEST_SHARE * uninterrupted_s)
            time.sleep(seconds)
        else:
            begin = time.monotonic()
            while not (work / "finished").exists():
                if process.poll() is not None:
                    raise SystemExit("the job ended before the last kill")
                time.sleep(0.001)
            seconds = time.monotonic() - begin
        if process.poll() is not None:
            raise SystemExit("the job ended before a kill")
        process.kill()
        process.wait()
        log = work / "log"
        batches = log.read_bytes().count(b"\n") - 1 if log.exists() else 0
        killed.append({"after_s": seconds, "batches_finished": max(batches, 0), "wrote": (work / "finished").exists()})
    if output.exists():
        raise SystemExit("there is an output before the job ended")
    begin = time.monotonic()
    _end(_start(bundle, images, output))
    return {
        "images": count,
        "uninterrupted_s": uninterrupted_s,
        "kills": killed,
        "last_run_s": time.monotonic() - begin,
        "bytes": whole.stat().st_size,
        "equal": whole.read_bytes() == output.read_bytes(),
        "work_removed": not work.exists(),
    }


def _start(bundle: Path, images: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vitdeploy", "predict", str(bundle), str(images), "-o", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _end(process: subprocess.Popen[bytes]) -> None:
    code = process.wait()
    if code != ImageError.exit_code:  # some files are no images
        raise SystemExit(f"exit code {code} from: {subprocess.list2cmdline(list(process.args))}")  # type: ignore[arg-type]


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--images", type=int, default=100_000)
    arguments_parser.add_argument("--kills", type=int, default=10)
    arguments_parser.add_argument("--seed", type=int, default=0)
    arguments = arguments_parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle, images = Path(folder, "bundle"), Path(folder, "images")
        wait(start(vitdeploy_export(bundle, "--model", str(default_checkpoint()))))
        write_images(images, arguments.images)

        def measured(ending: str) -> dict[str, Any]:
            draw = random.Random(f"{arguments.seed} {ending}")
            return measure(ending, bundle, images, arguments.images, arguments.kills, draw)

        with ThreadPoolExecutor(len(FORMATS)) as pool:
            found = dict(zip(FORMATS, pool.map(measured, FORMATS), strict=True))
    record(arguments, {"formats": found})
    if not all(row["equal"] for row in found.values()):
        raise SystemExit("a killed job gave other bytes than an uninterrupted one")


if __name__ == "__main__":
    main()
