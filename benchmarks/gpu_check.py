"""Entry point for a GPU machine: tests, then benchmarks, each with a time limit, results under $OUT.

Runs with the GPU machine's Python and packages, from the repository's root, without an installation. Each step's output
is in a file of its name, even if the step was terminated; results go into benchmarks/results.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEST_SECONDS = 200
LATENCY_SECONDS = 320  # no step starts after 280 s
ATTENTION_SECONDS = 60
NEEDED = {
    "tests": ("pytest", "click", "rich", "torch"),
    "benchmarks": ("click", "rich", "torch", "onnx", "onnxscript", "cuda"),
}


def run(name: str, seconds: int, out: Path, *command: str) -> dict[str, object]:
    """Run a step from the repository's root; return its exit code, or "timed out"."""
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    said = out / f"{name}.log"
    with said.open("wb") as file:
        try:
            result: int | str = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=environ,
                timeout=seconds,
                check=False,
                stdout=file,
                stderr=subprocess.STDOUT,
            ).returncode
        except subprocess.TimeoutExpired:
            result = "timed out"
    print(*said.read_text(errors="replace").splitlines()[-40:], sep="\n", flush=True)
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
    missing = {
        what: [name for name in names if importlib.util.find_spec(name) is None] for what, names in NEEDED.items()
    }
    # Other versions of libraries than the pinned ones may emit deprecation warnings.
    pytest = ("-m", "pytest", "-v", "-m", "gpu", "-rs", "-W", "default", f"--junitxml={out / 'gpu_tests.xml'}")
    latency = ("benchmarks/gpu_latency.py", "--json", str(out / "gpu_latency.json"))
    attention = ("benchmarks/attention.py", "--device", "cuda", "--precision", "fp32", "fp16", "bf16", "--rounds", "50")
    steps = [
        run("tests", TEST_SECONDS, out, *pytest, "tests/runtimes"),
        run("latency", LATENCY_SECONDS, out, *latency),
        run("attention", ATTENTION_SECONDS, out, *attention, "--json", str(out / "attention_gpu.json")),
    ]
    summary = {"gpu": driver(), "python": sys.version.split()[0], "missing": missing, "steps": steps}
    (out / "gpu_check.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    sys.exit(0 if all(step["result"] == 0 for step in steps) else 1)


if __name__ == "__main__":
    main()
