"""Memory growth of a long-running process: memory over calls of `Predictor.predict` on JPEG files.

ViT-tiny in ONNX Runtime on the CPU, seeded photographs of many sizes in batches of 1 to 8. A leak increases the memory
in use; unused memory held by glibc's malloc is fragmentation. Linux with glibc 2.33 or later.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sklearn.datasets
from common import parser, record, resident_mb, start, vitdeploy_export, wait
from PIL import Image

import vitdeploy

if TYPE_CHECKING:
    from collections.abc import Sequence

PRESET = "vit-tiny-patch16-224"
PHOTOGRAPH = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640x427
LARGEST_BATCH = 8


class _MallInfo(ctypes.Structure):
    """Struct mallinfo2 of malloc.h (glibc 2.33)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


def measure(minutes: Sequence[float], threads: int) -> dict[str, Any]:
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder), draw)
        bundle = Path(folder, "model")
        wait(start([*vitdeploy_export(bundle, "--random-weights", PRESET)]))
        with vitdeploy.load(bundle, intra_op_threads=threads, allow_spinning=False) as predictor:
            predictor.predict(files[:LARGEST_BATCH], batch_size=LARGEST_BATCH)
            points = [_point(0, 1)]
            begin, calls = time.monotonic(), 1
            for limit in minutes:
                while time.monotonic() - begin < 60 * limit:
                    predictor.predict(draw.sample(files, draw.randint(1, LARGEST_BATCH)), batch_size=LARGEST_BATCH)
                    calls += 1
                points.append(_point(limit, calls))
        _libc().malloc_trim(0)
        return {"points": points, "closed_and_trimmed": _point(minutes[-1], calls)}


def write_photographs(folder: Path, draw: random.Random) -> list[Path]:
    photograph = Image.open(PHOTOGRAPH)
    files = [folder / f"{index}.jpg" for index in range(40)]
    for file in files:
        photograph.resize((draw.randint(200, 1600), draw.randint(200, 1600))).save(file)
    return files


def _point(minute: float, calls: int) -> dict[str, float]:
    return {"minute": minute, "calls": calls, **memory()}


def memory() -> dict[str, float]:
    """Resident memory, malloc's memory in use, mapped by itself and held free, and Python's blocks."""
    gc.collect()
    info = _libc().mallinfo2()
    return {
        "resident_mb": resident_mb(),
        "in_use_mb": (info.uordblks + info.hblkhd) / 1e6,
        "mapped_mb": info.hblkhd / 1e6,
        "held_free_mb": info.fordblks / 1e6,
        "python_blocks": sys.getallocatedblocks(),
    }


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallInfo
    return libc


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 5, 10, 15], help="when to look")
    arguments_parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime; decoding has its own")
    arguments = arguments_parser.parse_args()
    record(arguments, {"results": measure(arguments.minutes, arguments.threads)})


if __name__ == "__main__":
    main()
