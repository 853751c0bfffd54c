"""The one entry point for a GPU: its tests, then its benchmarks, each with a time limit, results under $OUT.

Runs with whatever Python and packages the GPU machine has, from the repository's root, nothing installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEST_SECONDS = 240
LATENCY_SECONDS = 300
ATTENTION_SECONDS = 60


def run(name: str, seconds: int, *command: str) -> dict[str, object]:
    """Run a step from the root of the repository; its exit code, or "timed out"."""
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        result: int | str = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environ, timeout=seconds, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        result = "timed out"
    return {"step": name, "result": result, "seconds": round(time.perf_counter() - start, 1)}


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as exc:
        return f"not known: {exc}"


def main() -> None:
    out = Path(os.environ.get("OUT", "gpu-results")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    pytest = ("-m", "pytest", "-m", "gpu", "-rs", f"--junitxml={out / 'tests.xml'}", "tests/runtimes")
    latency = ("benchmarks/gpu_latency.py", "--json", str(out / "latency.json"))
    attention = ("benchmarks/attention.py", "--device", "cuda", "--precision", "fp32", "fp16", "bf16", "--rounds", "50")
    steps = [
        run("tests", TEST_SECONDS, *pytest),
        run("latency", LATENCY_SECONDS, *latency),
        run("attention", ATTENTION_SECONDS, *attention, "--json", str(out / "attention.json")),
    ]
    summary = {"gpu": driver(), "steps": steps}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    sys.exit(0 if all(step["result"] == 0 for step in steps) else 1)


if __name__ == "__main__":
    main()
