"""`make gpu-check`: its steps on the CPU, and which results are left whatever ends it."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from environments import ROOT
from gpu import agreement as gpu_agreement
from gpu import check as gpu_check
from gpu import latency as gpu_latency
from gpu import models as gpu_models
from gpu import questions as gpu_questions
from gpu import results as gpu_results
from gpu import rows as gpu_rows
from gpu.steps import ENDED, FAILED, MODELS, RESULTS, SKIPPED, STEPS, Step

BENCHMARKS = ROOT / "benchmarks"
SCRIPT = """
import os, sys, time
from pathlib import Path
from gpu.rows import CannotRunError, Ledger
def fail():
    raise ValueError("no such kernel")
def miss():
    raise CannotRunError("no GPU")
ledger = Ledger(Path(sys.argv[1]), {"command": "script"})
ledger.attempt("good", 30, lambda: [{"value": 1, "passed": True}, {"value": 2, "passed": True}])
ledger.attempt("crash", 30, os.abort)
ledger.attempt("hang", 0.3, lambda: time.sleep(30))
ledger.attempt("differs", 30, lambda: [{"value": 3, "passed": False}])
ledger.attempt("fails", 30, fail)
ledger.attempt("misses", 30, miss)
ledger.attempt("last", 30, lambda: [{"value": 4}])
sys.exit(ledger.exit_code())
"""


# A model of one layer, of width 32 and 4 heads, on 16 patches and a class token.
SMALL: dict[str, Any] = {
    "model_type": "vit", "architectures": ["ViTModel"], "image_size": 224, "patch_size": 56, "hidden_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs a GPU script on the CPU; it gives the exit code and the output."""
    monkeypatch.setitem(gpu_models.CONFIGS, "small", SMALL)
    monkeypatch.setattr(gpu_rows, "_watch", lambda: None)  # it would end the tests

    def run(script: Any, *options: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            script.main()
        return ended.value.code, capsys.readouterr().out

    return run


@pytest.fixture
def run_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gpu_check, "SHORTEST_S", 0.5)
    monkeypatch.setattr(gpu_check, "MODELS", Step("models", 10, "-c pass"))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))

    def run(*steps: Step, seconds: float = 60.0) -> list[dict[str, Any]]:
        found = gpu_check.Check(tmp_path, seconds).run(list(steps))
        assert json.loads((tmp_path / "gpu_check.json").read_text("utf-8")) == found
        written: list[dict[str, Any]] = found["steps"]
        return written

    return run


def test_a_crash_and_a_hang_end_one_row_each(run_steps: Any, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (step,) = run_steps(Step("rows", 50, f"{tmp_path}/script.py {{out}}/rows.json"))
    assert step["result"] == "crashed"
    assert "SIGABRT" in step["reason"]
    found = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    results = {name: attempt["result"] for name, attempt in found["attempts"].items()}
    assert results == {
        "good": "passed", "crash": "failed", "hang": "failed", "differs": "failed", "fails": "failed",
        "misses": "skipped", "last": "passed",
    }  # fmt: skip
    assert [(row["attempt"], row["value"]) for row in found["rows"]] == [
        ("good", 1), ("good", 2), ("differs", 3), ("last", 4),
    ]  # fmt: skip
    assert found["attempts"]["fails"]["reason"] == "ValueError: no such kernel"
    log = (tmp_path / "gpu_check.log").read_text("utf-8")
    assert log.count("== rows") == 3
    assert log.count("-- good") == 1, "no row is measured twice"


@pytest.mark.parametrize(
    ("code", "result", "reason"),
    [
        ("pass", "passed", ""),
        ("import sys; print('no GPU'); sys.exit(3)", "skipped", "no GPU"),
        (
            "raise ModuleNotFoundError(\"No module named 'cuda'\")",
            "skipped",
            "ModuleNotFoundError: No module named 'cuda'",
        ),
        ("import a_missing_package", "failed", "ModuleNotFoundError: No module named 'a_missing_package'"),
        ("raise ValueError(1)", "failed", "ValueError: 1"),
        ("import os; os.abort()", "crashed", "SIGABRT after: "),
        ("print('begins'); import time; time.sleep(60)", "timed out", "begins"),
    ],
)
def test_a_step_says_how_it_went_and_leaves_the_others(
    run_steps: Any, tmp_path: Path, code: str, result: str, reason: str
) -> None:
    (tmp_path / "step.py").write_text(code, encoding="utf-8")
    step = Step("step", 1 if result == "timed out" else 30, f"{tmp_path}/step.py")
    first, second = run_steps(step, Step("next", 30, "-c pass", timed=True))
    assert (first["result"], first["reason"]) == (result, reason)
    assert second["result"] == "passed"
    expected = {"passed": 0, "skipped": 3}.get(result, 1)
    assert gpu_check.exit_code([first, second]) == expected


def test_without_time_no_step_begins(run_steps: Any) -> None:
    (step,) = run_steps(Step("late", 30, "-c pass"), seconds=0.3)
    assert (step["result"], step["seconds"]) == ("not started", 0.0)
    assert gpu_check.exit_code([step]) == 1


def test_a_terminated_check_leaves_its_results_and_no_process(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text("import os, time; print('pid', os.getpid()); time.sleep(60)", encoding="utf-8")
    code = f"""if True:
        from gpu import check as gpu_check
        from gpu.steps import Step
        gpu_check.MODELS = Step("models", 10, "-c pass")
        gpu_check.STEPS = {{"step": Step("step", 60, "{tmp_path}/step.py")}}
        gpu_check.main()
    """
    environ = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "OUT": str(tmp_path / "out")}
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.DEVNULL) as process:
        log = tmp_path / "out" / "gpu_check.log"
        deadline = time.monotonic() + 30
        while not (log.exists() and "pid" in log.read_text("utf-8")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(20) == 143
    (step,) = json.loads((tmp_path / "out" / "gpu_check.json").read_text("utf-8"))["steps"]
    assert step["result"] == "not started"
    pid = int(log.read_text("utf-8").partition("pid ")[2].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_every_step_has_its_script_and_all_results_come_back() -> None:
    for step in (MODELS, *STEPS.values()):
        command = " ".join(step.command(Path("OUT"), Path("BUNDLES")))
        script = re.sub(r"^-m gpu\.(\w+)", r"benchmarks/gpu/\1.py", command).split()[0]
        assert (ROOT / script).is_file()
        assert "{" not in command
        assert "agreement" not in step.name or step.seconds > gpu_agreement.LIMIT_S
    files = {"gpu_check.json", "gpu_check.log", "gpu_times.json", *RESULTS}
    assert len(files) <= 8, "so many files come back from the machine"
    assert {*gpu_results.LEDGERS, *gpu_results.OTHERS} == {"gpu_check.json", *RESULTS}, "all are recorded"


def test_a_timed_step_waits_for_the_models(run_steps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    (tmp_path / "models.py").write_text(f"import time; time.sleep(0.5); open({str(made)!r}, 'w')", encoding="utf-8")
    (tmp_path / "step.py").write_text(f"open({str(made)!r})", encoding="utf-8")
    monkeypatch.setattr(gpu_check, "MODELS", Step("models", 10, f"{tmp_path}/models.py"))
    (step,) = run_steps(Step("first", 30, f"{tmp_path}/step.py", timed=True))
    assert step["result"] == "passed"


def test_a_killed_writer_leaves_no_file_that_would_take_anothers_place(run_steps: Any, tmp_path: Path) -> None:
    (tmp_path / ".gpu_tests.json.partial-0123abcd").touch()
    run_steps(Step("step", 30, "-c pass"))
    assert not list(tmp_path.glob(".*"))


def test_an_earlier_runs_rows_are_not_taken_for_those_of_this_one(run_steps: Any, tmp_path: Path) -> None:
    (tmp_path / "gpu_latency.json").write_text("{}", encoding="utf-8")
    run_steps(Step("step", 30, "-c pass"))
    assert not (tmp_path / "gpu_latency.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_step_is_skipped_on_a_machine_without_a_gpu(call: Any) -> None:
    assert call(gpu_questions, "--bundles", "nowhere") == (SKIPPED, "torch finds no CUDA device\n")


def test_agreement_and_latency_on_the_cpu(call: Any, tmp_path: Path) -> None:
    bundles = ("--models", "small", "--device", "cpu", "--bundles", tmp_path / "bundles", "--json")
    agreement, latency = tmp_path / "agreement.json", tmp_path / "latency.json"
    assert call(gpu_agreement, *bundles, agreement)[0] == 0
    found = json.loads(agreement.read_text("utf-8"))
    assert found["command"].startswith("python -m gpu.agreement --models small --backends torch ")
    assert {row["attempt"].removeprefix("small ") for row in found["rows"]} >= {
        "torch fp32", "torch fp16", "torch bf16", "onnxruntime fp32", "onnxruntime fp16",
    }  # fmt: skip
    assert all(row["passed"] for row in found["rows"])
    skipped = {name for name, attempt in found["attempts"].items() if attempt["result"] == "skipped"}
    assert not skipped & {row["attempt"] for row in found["rows"]}

    options = ("--precisions", "fp32", "--batch-sizes", 1, 2, "--matrix-size", 64, "--seconds-a-figure", 0.01)
    code, said = call(gpu_latency, *options, *bundles, latency)
    assert code == 0
    found = json.loads(latency.read_text("utf-8"))
    rows = [row for row in found["rows"] if row["backend"] in ("torch", "onnxruntime")]  # a GPU would add others
    assert [(row["backend"], row["batch_size"]) for row in rows] == [
        ("torch", 1), ("torch", 2), ("onnxruntime", 1), ("onnxruntime", 2),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["passed"], row
        assert min(row["ms"], row["ms_with_transfers"], row["peak_share"]) > 0
    # Patches; products of the layer with 12 * 32^2 weights; queries with keys, and their values; pooler.
    multiplications = 16 * 3 * 56**2 * 32 + 17 * 12 * 32**2 + 2 * 17**2 * 32 + 32**2
    assert found["operations_an_image"]["small"] == 2 * multiplications
    for name, attempt in found["attempts"].items():
        assert attempt["result"] == "passed" or f"- {attempt['result']}: {name}: " in said


def test_a_latency_step_measures_each_configuration_once() -> None:
    steps = [
        step.command(Path("OUT"), Path("BUNDLES")) for name, step in STEPS.items() if "gpu.latency" in step.arguments
    ]
    measured: list[tuple[str, str]] = []
    for command in steps:
        chosen = gpu_latency.options().parse_args(command[2:])
        for model, precision in itertools.product(chosen.models, chosen.precisions):
            found = gpu_latency.configurations(precision, variants=chosen.variants)
            measured += [(model, str(configuration)) for configuration in found]
    assert len(measured) == len(set(measured)) > 20
    assert measured[:3] == [
        (gpu_models.VIT_B, "torch fp16 attention=sdpa"), (gpu_models.VIT_B, "tensorrt-rtx fp16"),
        (gpu_models.VIT_B, "tensorrt fp16"),
    ]  # fmt: skip
    made = {(model, precision) for model, to, precision in gpu_models.ARTIFACTS if to == gpu_models.RTX}
    assert {(model, name.split()[1]) for model, name in measured if name.startswith("tensorrt-rtx")} <= made


def run_gpu_tests(folder: Path) -> int:
    """Exit code of the step that runs the GPU tests, on the test files of `folder`."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu", encoding="utf-8")
    code = f"""if True:
        import pathlib, sys, types
        # Without torch, which would take longer to import than the rest.
        sys.modules["gpu.device"] = types.SimpleNamespace(check_device=print, about=lambda device: dict(device=device))
        from gpu import tests as gpu_tests
        gpu_tests.files = lambda: sorted(pathlib.Path("{folder}").glob("test_*.py"))
        sys.argv = ["tests.py", "--device", "cpu", "--json", "{folder}/tests.json"]
        gpu_tests.main()
    """
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, BENCHMARKS)))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environ, check=False, capture_output=True).returncode


def test_a_test_that_crashes_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        """if True:
        import os, pytest
        @pytest.mark.gpu
        def test_passes(): pass
        @pytest.mark.gpu
        def test_crashes(): os.abort()
        @pytest.mark.gpu
        def test_fails(): assert 1 == 2
        @pytest.mark.gpu
        def test_skips(): pytest.skip("no library")
        def test_of_a_cpu(): pass
        """,
        encoding="utf-8",
    )
    (tmp_path / "test_other.py").write_text("import a_missing_package", encoding="utf-8")
    assert run_gpu_tests(tmp_path) == -signal.SIGABRT
    assert '"not started"' in (tmp_path / "tests.json").read_text("utf-8"), "the crash leaves a list of the others"
    assert run_gpu_tests(tmp_path) == FAILED
    attempts = json.loads((tmp_path / "tests.json").read_text("utf-8"))["attempts"]
    found = {name.rpartition("::")[2]: (attempt["result"], attempt["reason"]) for name, attempt in attempts.items()}
    assert found == {
        "test_other.py": ("failed", "ModuleNotFoundError: No module named 'a_missing_package'"),
        "test_passes": ("passed", ""),
        "test_crashes": ("failed", ENDED),
        "test_fails": ("failed", "assert 1 == 2"),
        "test_skips": ("skipped", "no library"),
    }


def test_tests_that_cannot_begin_are_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").touch()
    (tmp_path / "conftest.py").write_text("import a_missing_package", encoding="utf-8")
    assert run_gpu_tests(tmp_path) == 1
