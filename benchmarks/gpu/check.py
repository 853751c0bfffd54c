"""Entry point for a GPU machine: every GPU measurement, the most telling first, within `--seconds`; results under $OUT.

Runs as `PYTHONPATH=benchmarks python -m gpu.check` from the repository's root, with the Python and packages of the GPU
machine, without an installation. Each step is a process with a time limit: a crash, a hang or a missing package ends
that step alone. `$OUT/gpu_check.json` is rewritten after each step, and the steps write their own results row by row;
all output is in `$OUT/gpu_check.log`. The models are made meanwhile by `models.py`, without the GPU, which has ended
before anything is timed.

Exit code 0: every step passed; 1: a step failed, crashed or timed out; 3: none did, but one could not run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu.steps import BEGUN, FAILED, MODELS, RESULTS, SKIPPED, STEPS, Step
from gpu.tables import answers

ROOT = Path(__file__).parents[2]
IMPORTED = (str(ROOT), str(ROOT / "benchmarks"))
# Without one of these a step is skipped; any other that is missing is a failure.
PACKAGES = ("torch", "numpy", "PIL", "onnx", "onnxscript", "safetensors", "click", "rich", "pytest", "cuda",
            "onnxruntime", "tensorrt_rtx", "tensorrt")  # fmt: skip
SHORTEST_S = 5.0  # with less time left, nothing starts
MODELS_S = 60.0  # longest wait for the models before the first step that is timed


class Check:
    """One run of the steps.

    Args:
        out: Folder for the results.
        seconds: Time for all steps.
    """

    def __init__(self, out: Path, seconds: float) -> None:
        self._out, self._end, self._start = out, time.monotonic() + seconds, time.monotonic()
        self._log = out / "gpu_check.log"
        for name in ("gpu_check.json", "gpu_check.log", *RESULTS):
            (out / name).unlink(missing_ok=True)  # of an earlier run, which the steps would go on with
        self._bundles = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        self._models_log = self._bundles / "models.log"  # apart: a step's last line is its reason
        self._models: subprocess.Popen[bytes] | None = None

    def run(self, steps: list[Step]) -> dict[str, Any]:
        """Run the steps in their order; return the content of `gpu_check.json`."""
        found: dict[str, Any] = {
            "gpu": gpu(),
            "python": sys.version.split()[0],
            "missing": [name for name in PACKAGES if importlib.util.find_spec(name) is None],
            "seconds": 0.0,
            "steps": [{"step": step.name, "result": "not started", "seconds": 0.0, "reason": ""} for step in steps],
        }
        self._write(found)
        try:
            self._models = self._begin(MODELS.command(self._out, self._bundles), self._models_log, hide_gpu=True)
            done: set[str] = set()
            for row, step in zip(found["steps"], steps, strict=True):
                if step.timed and done != {"skipped"}:  # without a GPU or torch nothing is timed
                    self._end_models()
                row.update(self._step(step))
                done.add(row["result"])
                found["seconds"] = round(time.monotonic() - self._start, 1)
                self._write(found)
        finally:
            self._end_models(0.0)
            self._write(found)
            for leftover in self._out.glob(".*.partial-*"):  # of a writer that was killed: only so many files come back
                leftover.unlink()
            shutil.rmtree(self._bundles, ignore_errors=True)  # a killed process may still be writing there
        return found

    def _step(self, step: Step) -> dict[str, Any]:
        """Run a step; one that is resumed goes on behind the row that ended it."""
        start = time.monotonic()
        limit = min(step.seconds, self._end - start)
        if limit < SHORTEST_S:
            return {"result": "not started", "seconds": 0.0, "reason": "the time was over"}
        print(f"== {step.name}", flush=True)
        ends: list[str] = []
        while True:
            offset = self._note(f"== {step.name}")
            process = self._begin(step.command(self._out, self._bundles), self._log)
            code = _wait(process, start + limit - time.monotonic())
            lines = self._log.read_bytes()[offset:].decode(errors="replace").strip().splitlines()
            print(*lines[-12:], sep="\n", flush=True)
            result, reason = verdict(code, lines[-1] if lines else "")
            left = start + limit - time.monotonic()
            ended = result in ("crashed", "failed") and code != FAILED and any(row.startswith(BEGUN) for row in lines)
            if not ended or len(ends) == step.resumes or left < SHORTEST_S:
                break
            ends.append(reason)
        if ends:
            result, reason = "crashed", "; ".join(dict.fromkeys([*ends, reason]))
        return {"result": result, "seconds": round(time.monotonic() - start, 1), "reason": reason[:400]}

    def _begin(self, command: list[str], log: Path, *, hide_gpu: bool = False) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [*IMPORTED, os.environ.get("PYTHONPATH")]))
        environ = {**os.environ, "PYTHONPATH": path}
        if hide_gpu:
            environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-u", *command],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it is ended with its children
            )

    def _end_models(self, seconds: float = MODELS_S) -> None:
        """Wait for the process that makes the models, at most that long, and add its output to the log."""
        if self._models is not None:
            _wait(self._models, max(0.0, min(seconds, self._end - time.monotonic())))
            self._models = None
            self._note(f"== {MODELS.name}\n{self._models_log.read_text('utf-8', errors='replace')}")

    def _note(self, line: str) -> int:
        """Add a line to the log; return the log's size."""
        with self._log.open("ab") as file:
            file.write(f"\n{line}\n".encode())
            return file.tell()

    def _write(self, found: dict[str, Any]) -> None:
        found["questions"] = answers(questions) if (questions := _read(self._out / "gpu_questions.json")) else []
        found["models"] = _read(self._bundles / "models.json").get("attempts", {})
        whole = self._out / "gpu_check.json.part"
        whole.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        whole.replace(self._out / "gpu_check.json")


def _read(file: Path) -> dict[str, Any]:
    """Content of a results file; empty if it is not there yet."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return content


def verdict(code: int | None, last_line: str) -> tuple[str, str]:
    """Result of a step, and its reason; `code` is None if it ran past its limit."""
    if code == 0:
        return "passed", ""
    if code is None:
        return "timed out", last_line
    if code < 0:
        return "crashed", f"{signal.Signals(-code).name} after: {last_line}"
    missing = re.match(r"ModuleNotFoundError: No module named '(\w+)", last_line)
    skipped = code == SKIPPED or (missing is not None and missing[1] in PACKAGES)
    return "skipped" if skipped else "failed", last_line


def exit_code(steps: list[dict[str, Any]]) -> int:
    results = {step["result"] for step in steps}
    return 0 if results <= {"passed"} else 3 if results <= {"passed", "skipped"} else 1


def gpu() -> str:
    """Name, driver and compute capability of the GPU, from its driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as exc:
        return f"not known: {exc}"


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Exit code of a process; None if it was killed after that time. Its children end with it."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # its group has ended
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs keeps it
        process.wait(5)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=540.0, help="time for all steps")
    options.add_argument("--steps", nargs="+", metavar="STEP", help="only these; by default all", default=list(STEPS))
    arguments = options.parse_args()
    if unknown := set(arguments.steps) - set(STEPS):
        options.error(f"unknown steps {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    out = Path(os.environ.get("OUT", "gpu-results")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the step in progress is ended too
    found = Check(out, arguments.seconds).run([STEPS[name] for name in arguments.steps])
    print(json.dumps(found, indent=2))
    sys.exit(exit_code(found["steps"]))


if __name__ == "__main__":
    main()
