"""Memory and latency of ONNX Runtime's memory settings, for mixed batch and image sizes.

A ViT with dynamic image size and random weights on the CPU; each setting in processes of its own, in turns. A process
opens the file, runs single images, then a series of mixed batches and sizes, from several threads too, and at the end
single images again: what is resident then is what the settings keep. Processor time is the median over single images.

Then, for ViT-B, the memory of processes that have the same bundle open at a time: the proportional set size of each, in
which a page that several processes share counts in parts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, record, resident_mb, start, turns, vitdeploy_export, wait

import vitdeploy

# Name, session options, run options, process environment.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no memory pattern": {"enable_mem_pattern": False},
    "no arena": {"enable_cpu_mem_arena": False},
    "no arena, no pattern": {"enable_cpu_mem_arena": False, "enable_mem_pattern": False},
    "shrinkage": {"shrinks": True},
    "shrinkage, weights outside": {"shrinks": True, "outside": True},
    "shrinkage, weights outside, no pattern": {"shrinks": True, "outside": True, "enable_mem_pattern": False},
    "extended as requested": {"as_requested": True},
    "no arena, malloc maps from 1 MB": {
        "enable_cpu_mem_arena": False,
        "environment": {"MALLOC_MMAP_THRESHOLD_": "1000000"},
    },
}  # fmt: skip
SINGLE = (1, 224, 224)
SHAPES = [(batch, side, side) for batch in (1, 2, 4, 8) for side in (160, 224, 288, 384)]
LARGEST = max(SHAPES)


class Session:
    def __init__(self, file: str, setting: dict[str, Any]) -> None:
        import onnxruntime as ort  # after vitdeploy, which turns its reports off

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        for name in ("enable_mem_pattern", "enable_cpu_mem_arena"):
            setattr(options, name, setting.get(name, True))
        if setting.get("outside"):
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        if setting.get("as_requested"):
            place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(place, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
            options.add_session_config_entry("session.use_env_allocators", "1")
        self._session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._run_options = ort.RunOptions()
        if setting.get("shrinks"):
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, shape: tuple[int, int, int]) -> None:
        batch, *size = shape
        self._session.run(["logits"], {"pixel_values": np.full((batch, 3, *size), 0.5, np.float32)}, self._run_options)


def work(file: str, name: str, runs: int, threads: int) -> dict[str, float]:
    """Everything that one process does."""
    draw = random.Random(0)
    before = resident_mb()
    session = Session(file, SETTINGS[name])
    figures = {"imported_mb": before, "opened_mb": resident_mb()}
    figures |= _single(session, runs, "first")
    mixed = [draw.choice(SHAPES) for _ in range(runs)] + [LARGEST]
    begin = time.process_time()
    for shape in mixed:
        session.run(shape)
    figures["mixed_cpu_s"] = time.process_time() - begin
    figures["mixed_mb"] = resident_mb()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(session.run, mixed))
    figures["threads_mb"] = resident_mb()
    figures |= _single(session, runs, "last")
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return figures


def _single(session: Session, runs: int, when: str) -> dict[str, float]:
    wall, cpu = [], []
    for _ in range(runs):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        session.run(SINGLE)
        wall.append(1e3 * (time.perf_counter() - begin))
        cpu.append(1e3 * (time.process_time() - cpu_begin))
    return {
        f"{when}_ms": statistics.median(wall),
        f"{when}_cpu_ms": statistics.median(cpu),
        f"{when}_mb": resident_mb(),
    }


def hold(bundle: str, precision: str, prepack: bool, runs: int) -> None:
    """Open a bundle, run it, and say what this process holds once a line comes in."""
    with vitdeploy.load(bundle, precision=precision, prepack=prepack, intra_op_threads=1) as predictor:
        pixel_values = np.full((1, 3, *(predictor.processor.output_size or ())), 0.5, np.float32)
        predictor.logits(pixel_values)
        cpu = []
        for _ in range(runs):
            begin = time.process_time()
            predictor.logits(pixel_values)
            cpu.append(1e3 * (time.process_time() - begin))
        print(flush=True)
        sys.stdin.readline()
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.endswith(" kB")}
        private = sizes["Private_Clean"] + sizes["Private_Dirty"]
        figures = {"cpu_ms": statistics.median(cpu), "resident_mb": sizes["Rss"], "proportional_mb": sizes["Pss"]}
        print(json.dumps({**figures, "private_mb": private}), flush=True)
        sys.stdin.readline()


def measure_sharing(preset: str, processes: int, runs: int) -> list[dict[str, Any]]:
    """Figures of one of the processes that have a bundle open together."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for external in (False, True):
            bundle = str(Path(folder, f"external-{external}"))
            form = ["--external-data"] if external else []
            wait(start([*vitdeploy_export(Path(bundle), "--random-weights", preset), *form]))
            wait(start([*vitdeploy_export(Path(bundle), bundle, "--int8"), *form]))
            for precision in ("fp32", "int8"):
                for prepack in (True, False):
                    command = [sys.executable, __file__, "--worker", bundle, "--hold", precision, "--runs", str(runs)]
                    command += ["--prepack"] if prepack else []
                    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                    held = [subprocess.Popen(command, **pipes) for _ in range(processes)]
                    for process in held:
                        _line(process)  # it is open
                    figures = [_answer(process) for process in held]
                    for process in held:
                        process.communicate("\n")
                    medians = {key: statistics.median(each[key] for each in figures) for key in figures[0]}
                    rows.append({"precision": precision, "external": external, "prepack": prepack, **medians})
    return rows


def _answer(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    figures: dict[str, float] = json.loads(_line(process))
    return figures


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "model")
        wait(start([*vitdeploy_export(bundle, "--random-weights", arguments.preset), "--dynamic-image-size"]))
        file = str(bundle / "onnx" / "model.onnx")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
        for names in turns(list(SETTINGS), arguments.processes):
            for name in names:
                command = [sys.executable, __file__, "--worker", file, "--setting", name, "--runs", str(arguments.runs),
                           "--threads", str(arguments.threads)]  # fmt: skip
                environment = {**os.environ, **SETTINGS[name].get("environment", {})}
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
                found[name].append(json.loads(done.stdout))
    return {
        name: {key: statistics.median(each[key] for each in of_one) for key in of_one[0]}
        for name, of_one in found.items()
    }


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--preset", default="vit-tiny-patch16-224", help="architecture")
    arguments_parser.add_argument("--runs", type=int, default=40, help="of each kind in a process")
    arguments_parser.add_argument("--threads", type=int, default=4, help="that run mixed shapes")
    arguments_parser.add_argument("--processes", type=int, default=3, help="of each setting")
    arguments_parser.add_argument("--shared-preset", default="vit-base-patch16-224", help="architecture of the bundle")
    arguments_parser.add_argument("--shared-by", type=int, default=4, help="processes that have it open")
    arguments_parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments_parser.add_argument("--setting", help=argparse.SUPPRESS)
    arguments_parser.add_argument("--hold", help=argparse.SUPPRESS)
    arguments_parser.add_argument("--prepack", action="store_true", help=argparse.SUPPRESS)
    arguments = arguments_parser.parse_args()
    if arguments.hold:
        hold(arguments.worker, arguments.hold, arguments.prepack, arguments.runs)
        return
    if arguments.worker:
        print(json.dumps(work(arguments.worker, arguments.setting, arguments.runs, arguments.threads)))
        return
    sharing = measure_sharing(arguments.shared_preset, arguments.shared_by, arguments.runs)
    results = {"settings": measure(arguments), "sharing": sharing}
    del arguments.worker, arguments.setting, arguments.hold, arguments.prepack
    record(arguments, {"results": results})


if __name__ == "__main__":
    main()
