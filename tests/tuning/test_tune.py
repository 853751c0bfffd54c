"""Tune the embedded model: real artifacts and accuracy; times that the tests choose, but for one run."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from command_line import run
from fake_clock import FakeClock
from raising import raises
from schemas import validated
from told import Told

import vitdeploy
from vitdeploy.assess.environment.cpu_features import FastPrecision
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import TUNING
from vitdeploy.errors import InputError, NoReferenceError, UsageError
from vitdeploy.tuning import candidates, field
from vitdeploy.tuning import tune as module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vitdeploy.assess.benchmark.tuning import Tuning
    from vitdeploy.tuning.race.trial import Trial

BOUND = vitdeploy.MinAgreement(0.9)


def times(trial: Trial) -> float:
    """Dynamic int8 with a thread is the fastest."""
    one_thread = trial.setting.options.get("intra_op_threads") == 1
    dynamic = trial.variant.depends_on_batch
    return (4.0 if dynamic else 6.0) * (1.0 if one_thread else 1.3)


@pytest.fixture(scope="module", autouse=True)
def _fast_in_8_bits() -> Iterator[None]:
    """The tests' CPU may be fast in neither; without bf16 there are fewer artifacts to make."""
    precisions = FastPrecision("int8", True, ("VNNI",)), FastPrecision("bf16", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "fast_precisions", lambda: precisions)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 labelled images."""
    folder = tmp_path_factory.mktemp("images")
    for file in sorted(held_out_images().rglob("*.png"))[::7]:
        (folder / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, folder / file.parent.name)
    return folder


@pytest.fixture(scope="module")
def tuned(digits: Bundle, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuning]:
    """A copy that was tuned, with its working folder."""
    path = shutil.copytree(digits.path, tmp_path_factory.mktemp("tuned") / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WorkerClock", lambda _: FakeClock(times))
        return path, vitdeploy.tune(path, data=images, accuracy=BOUND, keep_work=True, time_limit=600.0)


@pytest.fixture
def resumable(tuned: tuple[Path, Tuning], digits: Bundle, tmp_path: Path) -> Path:
    """An untuned copy, beside the artifacts that the run left."""
    left = shutil.copytree(tuned[0].with_name("bundle.tune"), tmp_path / "bundle.tune")
    shutil.rmtree(left / "measurements")  # those of another clock
    return shutil.copytree(digits.path, tmp_path / "bundle")


def use(patch: pytest.MonkeyPatch, clock: FakeClock) -> FakeClock:
    patch.setattr(module, "WorkerClock", lambda _: clock)
    return clock


def test_the_fastest_accurate_setting_is_chosen_and_recorded(tuned: tuple[Path, Tuning]) -> None:
    path, result = tuned
    assert result.status == "passed"
    assert result.chosen is not None
    assert (result.chosen.variant, result.chosen.options) == ("onnx-int8 dynamic", {"intra_op_threads": 1})
    assert result.gain is not None
    assert result.gain.estimate == pytest.approx(4 / (6 * 1.3), rel=0.05)
    bundle = Bundle.open(path)
    bundle.verify()
    choice = bundle.manifest.tuned
    assert choice is not None
    assert (choice.artifact, choice.backend, choice.batch_size) == ("onnx-int8", "onnxruntime", 1)
    assert bundle.artifact("onnx", "int8").options["scheme"] == "dynamic"
    with vitdeploy.load(path) as predictor:
        assert predictor.details["tuned"]["in_use"]
        assert predictor.runtime.details["intra_op_threads"] == 1
        assert predictor.batch_size == 1


def test_the_evidence_names_every_candidate(tuned: tuple[Path, Tuning]) -> None:
    path, result = tuned
    evidence = json.loads((path / TUNING).read_text())
    assert evidence["candidates"] == json.loads(json.dumps([item.to_dict() for item in result.candidates]))
    assert {item["status"] for item in evidence["candidates"] if item["accuracy"]} <= {"met", "missed"}
    assert evidence["data"]["source"] == result.data["source"].rpartition("/")[2]
    assert str(path) not in (path / TUNING).read_text()
    assert evidence["data"]["calibration_images"] + evidence["data"]["held_out_images"] <= 65
    rows = evidence["timed"]
    assert [row["status"] for row in rows].count("chosen") == 1
    assert all(row["reason"] for row in rows if row["status"] == "dropped")


def test_a_killed_run_goes_on(resumable: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts, accuracies and finished rounds are not made again; the choice is the same."""
    clock, told = use(monkeypatch, FakeClock(times, seed=1)), Told()
    stopped = Told(on_step=lambda text: _stop() if text.startswith("final, session 2") else None)
    with pytest.raises(KeyboardInterrupt):
        vitdeploy.tune(resumable, data=images, accuracy=BOUND, time_limit=600.0, progress=stopped)
    assert Bundle.open(resumable).manifest.tuned is None
    before = len(clock.rounds)
    result = vitdeploy.tune(resumable, data=images, accuracy=BOUND, time_limit=600.0, progress=told)
    assert result.settings["resumed"]
    assert result.chosen is not None
    assert result.chosen.variant == "onnx-int8 dynamic"
    assert {name for name, _, _ in clock.rounds[before:]} == {"final 1", "final 2", "final 3"}
    assert not [text for text in told.steps if text.startswith("making")]
    assert not resumable.with_name("bundle.tune").exists()


def _stop() -> None:
    raise KeyboardInterrupt


def test_an_inaccurate_candidate_is_not_chosen_however_fast(
    resumable: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in 8 bits has a cosine this near to 1."""
    use(monkeypatch, FakeClock(times))
    bound = vitdeploy.MinCosine(0.9999999)
    result = vitdeploy.tune(resumable, data=images, accuracy=bound, time_limit=600.0)
    assert result.chosen is not None
    assert result.chosen.variant == "onnx-fp32"
    missed = {item.variant for item in result.candidates if item.status == "missed"}
    assert {"onnx-int8 dynamic", "onnx-int8 static"} <= missed
    tuned = Bundle.open(resumable).manifest.tuned
    assert tuned is not None
    assert tuned.artifact == "onnx-fp32"
    assert [artifact.name for artifact in Bundle.open(resumable).manifest.artifacts] == ["onnx-fp32"]


def test_without_a_candidate_that_meets_the_bound_nothing_is_recorded(
    tuned: tuple[Path, Tuning], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakeClock(lambda trial: times(trial) if trial.variant.depends_on_batch else "it does not run"))
    monkeypatch.setattr(field, "bounded", lambda _: [])  # which takes seconds to make
    shutil.copytree(tuned[0].with_name("bundle.tune") / "artifacts", tmp_path / "bundle.tune" / "artifacts")
    (tmp_path / "bundle.tune" / "vitdeploy-tune").touch()
    path = shutil.copytree(tuned[0], tmp_path / "bundle")
    before = (path / "manifest.json").read_bytes()
    shown = run("tune", path, "--data", images, "--min-cosine", "0.9999999", "--time-limit", "600", "--json")
    assert shown.code == 1
    data = validated("tune", shown.out)
    assert (data["status"], "the nearest is onnx-int8" in data["summary"]) == ("failed", True)
    assert (path / "manifest.json").read_bytes() == before
    assert path.with_name("bundle.tune").exists()


def test_an_artifact_of_the_bundle_is_not_replaced_and_others_are_kept_on_request(
    resumable: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are accurate and too slow for the race."""
    use(monkeypatch, FakeClock(lambda trial: 1.0 if trial.variant.artifact.precision == "fp32" else 2.5))
    before = Bundle.open(resumable).artifact("onnx", "fp32")
    keep = ["onnx-int8", "openvino-int8", "openvino-bf16"]
    result = vitdeploy.tune(resumable, data=images, accuracy=BOUND, keep=keep, time_limit=600.0)
    assert [note for note in result.notes if "kept" in note] == [
        "openvino-bf16 is not kept: none is known to meet the bound"
    ]
    bundle = Bundle.open(resumable)
    bundle.verify()
    assert bundle.artifact("onnx", "fp32") == before
    names = ["onnx-fp32", "onnx-int8", "openvino-int8"]
    assert [artifact.name for artifact in bundle.manifest.artifacts] == names
    assert bundle.manifest.tuned is not None
    assert bundle.manifest.tuned.artifact == "onnx-fp32"


def test_the_usual_setting_wins_a_final_that_it_is_the_fastest_of(
    resumable: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the race dropped it."""

    def late(trial: Trial) -> float:
        if trial.variant.name != "onnx-fp32" or trial.backend != "onnxruntime" or trial.setting.options:
            return times(trial)
        return 1.0 if clock.rounds[-1][0].startswith("final") else 7.5

    clock = use(monkeypatch, FakeClock(late))
    result = vitdeploy.tune(resumable, data=images, accuracy=BOUND, time_limit=600.0)
    assert result.chosen is not None
    assert (result.chosen.variant, result.chosen.options, result.gain) == ("onnx-fp32", {}, (1.0, 1.0, 1.0))


def test_time_that_runs_out_is_told(resumable: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the limit runs on at each step, so that no artifact is made in time."""
    seconds = iter(range(0, 10**9, 20))
    use(monkeypatch, FakeClock(times))
    monkeypatch.setattr(module, "Budget", lambda limit: _budget(limit, lambda: float(next(seconds))))
    shutil.rmtree(resumable.with_name("bundle.tune"))
    result = vitdeploy.tune(resumable, data=images, accuracy=BOUND, time_limit=30.0)
    assert result.chosen is not None
    assert result.chosen.variant == "onnx-fp32"
    assert any("onnx-int8 dynamic" in note for note in result.notes)
    assert any("session" in note for note in result.notes)
    assert any(" instead of 30 s" in note for note in result.notes)
    reasons = {item.variant: item.reason for item in result.candidates if item.status == "left out"}
    assert "time" in str(reasons["onnx-int8 dynamic"])


def _budget(limit: float, now: Any) -> Any:
    from vitdeploy.tuning.budget import Budget

    return Budget(limit, now)


def test_the_tables_and_files_show_the_choice(
    resumable: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakeClock(times))
    page, text = tmp_path / "t.html", tmp_path / "t.md"
    shown = run(
        "tune", resumable, "--data", images, "--max-drop", "5%", "--target", "throughput", "--max-batch", 2,
        "--time-limit", "10min", "--html", page, "--markdown", text,
    )  # fmt: skip
    assert shown.code == 0
    assert "chosen: onnx-int8 dynamic" in shown.out
    assert "| onnx-int8 dynamic |" in text.read_text()
    assert "Fastest within the bound" in page.read_text()
    sizes = {row["batch_size"] for row in json.loads((resumable / TUNING).read_text())["timed"]}
    assert sizes == {1, 2}


def test_one_real_run(resumable: Path, images: Path) -> None:
    """Processes, image files and clocks; no artifact is made."""
    shown = run("tune", resumable, "--data", images, "--min-agreement", "90%", "--time-limit", "6s", "--json")
    assert shown.code == 0
    data = validated("tune", shown.out)
    assert data["status"] == "passed"
    chosen = data["timed"][0]
    assert chosen["status"] == "chosen"
    assert chosen["ms"]["estimate"] > chosen["ready_ms"] * 0.5
    assert Bundle.open(resumable).manifest.tuned is not None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--min-agreement", "90%", "--max-drop", "1%"], 2),
        ([], 2),
        (["--min-agreement", "90%", "--target", "speed"], 2),
        (["--min-agreement", "90%", "--time-limit", "soon"], 2),
        (["--min-agreement", "90%", "--time-limit", "1s"], 2),
        (["--min-agreement", "90%", "--keep", "onnx-fp32"], 2),
        (["--min-agreement", "90%", "--keep", "coreml-fp16"], 2),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(digits: Bundle, arguments: list[str], code: int) -> None:
    assert run("tune", digits.path, "--data", held_out_images(), *arguments).code == code
    assert not digits.path.with_name("bundle.tune").exists()


def test_too_few_images_or_no_labels_are_refused(digits: Bundle, images: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(images.rglob("*.png"))[:31]:
        shutil.copy(file, few)
    with raises(InputError, what="data", expected=32, found=31):
        vitdeploy.tune(digits.path, data=few, accuracy=BOUND)
    with raises(InputError, what="folder"):
        vitdeploy.tune(digits.path, data=few, accuracy=vitdeploy.MaxDrop(0.01))


def test_a_packed_bundle_lacks_the_reference(digits: Bundle, images: Path, tmp_path: Path) -> None:
    packed = vitdeploy.pack(digits.path, "onnx-fp32", output=tmp_path / "packed")
    with pytest.raises(NoReferenceError):
        vitdeploy.tune(packed.path, data=images, accuracy=BOUND)


def test_a_bound_that_is_none_is_refused(digits: Bundle, images: Path) -> None:
    with raises(UsageError, what="accuracy"):
        vitdeploy.tune(digits.path, data=images, accuracy=0.99)  # type: ignore[arg-type]
