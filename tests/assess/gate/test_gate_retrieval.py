"""A gate on kNN accuracy and recall: floors, drops against a baseline, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from onnx_models import with_last_operator
from raising import raises
from schemas import validated

import vitdeploy
from vitdeploy.assess.evaluate.embeddings import evaluate_embeddings
from vitdeploy.assess.gate.baseline import Baseline
from vitdeploy.assess.gate.gate import planned_checks
from vitdeploy.assess.gate.rules import GateRules, Rules, read_rules
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, UsageError

COUNT = 150
SUBJECTS = {"torch fp32", "onnxruntime fp32"}
FIGURES = ["knn", "recall_at_1", "recall_at_5", "recall_at_10"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for path in sorted(held_out_images().rglob("*.png"))[:: 450 // COUNT]:
        (folder / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, folder / path.parent.name)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    source = vitdeploy.SourceOptions(task="image-feature-extraction")
    return vitdeploy.export(default_checkpoint(), output=tmp_path_factory.mktemp("features") / "out", source=source)


@pytest.fixture(scope="module")
def baseline(bundle: Bundle, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("baseline") / "baseline.json"
    code, result = gated(bundle, images, "--baseline", file, "--update", "--min-knn-accuracy", "50%", "--neighbours", 3)
    assert (code, result["updated"]) == (0, True)
    return file


def gated(bundle: Bundle, images: Path, *options: object) -> tuple[object, Any]:
    code, out, _ = run("gate", bundle.path, "--data", images, "--json", *options)
    return code, validated("gate", out)


def spoilt(bundle: Bundle, folder: Path) -> Bundle:
    """A copy whose vectors have one direction: the first image is everybody's neighbour."""
    return with_last_operator(bundle, folder, "Add", lambda shape: 1e8 * np.eye(1, shape[-1], dtype=np.float32)[0])


def rules_of(values: dict[str, Any]) -> Rules:
    """Rules as a file has them."""
    return Rules.from_dict(values, "here")


def statuses(result: Any, rule: str) -> dict[str, str]:
    return {check["subject"]: check["status"] for check in result["checks"] if check["rule"] == rule}


def test_floors_are_those_of_an_evaluation(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    measured = evaluate_embeddings(bundle, data=images)
    reference = measured.results[0]
    knn, first = measured.knn(reference).value, measured.recall(reference, 1).value
    assert 0.8 < min(knn, first) <= max(knn, first) < 1
    report = tmp_path / "page.html"
    options = ["--min-knn-accuracy", knn, "--min-recall-at-5", "60%", "--min-recall-at-1", min(first + 1 / COUNT, 1)]
    code, result = gated(bundle, images, *options, "--html", report)
    assert code == 1
    assert statuses(result, "min_knn_accuracy") == dict.fromkeys(SUBJECTS, "passed")
    assert statuses(result, "min_recall_at_5") == dict.fromkeys(SUBJECTS, "passed")
    assert statuses(result, "min_recall_at_1") == dict.fromkeys(SUBJECTS, "failed")
    values = {check["rule"]: check["value"] for check in result["checks"] if check["subject"] == "torch fp32"}
    assert values["min_knn_accuracy"] == pytest.approx(100 * knn)
    assert values["min_recall_at_1"] == pytest.approx(100 * first)
    assert result["embeddings"]["results"][0]["knn"]["correct"] == measured.knn(reference).correct
    assert (result["evaluation"], result["embeddings"]["settings"]["neighbours"]) == (None, 5)
    assert {"finite", "max_difference"} <= {check["rule"] for check in result["checks"]}  # as without labels
    assert 'id="embeddings"' in report.read_text(encoding="utf-8")


def test_a_gallery(bundle: Bundle, images: Path) -> None:
    code, result = gated(bundle, images, "--gallery", images, "--neighbours", 1, "--min-knn-accuracy", "100%")
    assert (code, result["embeddings"]["shared"]) == (0, COUNT)  # each finds itself
    assert statuses(result, "min_knn_accuracy") == dict.fromkeys(SUBJECTS, "passed")


def test_a_baseline_holds_the_images_that_are_wrong(bundle: Bundle, images: Path, baseline: Path) -> None:
    read = Baseline.read(baseline)
    assert read.retrieval is not None
    assert (read.images, read.retrieval.neighbours, set(read.retrieval.wrong)) == (COUNT, 3, SUBJECTS)
    measured = evaluate_embeddings(bundle, data=images, neighbours=3)
    wrong = read.retrieval.wrong["torch fp32"]
    assert list(wrong) == FIGURES
    assert set(wrong["knn"]) == set(measured.knn(measured.results[0]).wrong)
    assert set(wrong["recall_at_10"]) == set(measured.recall(measured.results[0], 10).wrong)
    code, result = gated(bundle, images, "--baseline", baseline)
    assert (code, result["changes"], result["embeddings"]["settings"]["neighbours"]) == (0, [], 3)
    for rule in ("max_drop", "max_recall_drop"):
        assert statuses(result, rule) == dict.fromkeys(SUBJECTS, "passed")


def test_a_drop_fails_and_is_listed(bundle: Bundle, images: Path, baseline: Path, tmp_path: Path) -> None:
    code, result = gated(spoilt(bundle, tmp_path / "far"), images, "--baseline", baseline, "--max-recall-drop", "10%")
    assert code == 1
    for rule in ("max_drop", "max_recall_drop"):
        assert statuses(result, rule) == {"torch fp32": "passed", "onnxruntime fp32": "failed"}
    checks = {check["rule"]: check for check in result["checks"] if check["subject"] == "onnxruntime fp32"}
    assert checks["max_recall_drop"]["bound"] == pytest.approx(10)
    assert checks["max_drop"]["value"] > 50
    changed = [line for line in result["changes"] if line.startswith("onnxruntime fp32, ")]
    assert [line.partition(":")[0] for line in changed[:2]] == [
        "onnxruntime fp32, kNN accuracy", "onnxruntime fp32, recall@1"
    ]  # fmt: skip


def test_the_figure_with_the_largest_drop_is_stated(
    bundle: Bundle, images: Path, baseline: Path, tmp_path: Path
) -> None:
    data = json.loads(baseline.read_text(encoding="utf-8"))
    held = data["retrieval"]["backends"]["onnxruntime fp32"]["recall_at_1"]
    dropped = len(held["wrong"])
    assert dropped > 0
    data["retrieval"]["backends"]["onnxruntime fp32"]["recall_at_1"] = {"correct": COUNT, "wrong": []}
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    _, result = gated(bundle, images, "--baseline", file)
    (check,) = [
        check for check in result["checks"]
        if (check["rule"], check["subject"]) == ("max_recall_drop", "onnxruntime fp32")
    ]  # fmt: skip
    assert (check["value"], check["status"]) == (pytest.approx(100 * dropped / COUNT), "passed")
    assert check["message"].startswith("recall@1: ")


def test_an_artifact_that_the_baseline_lacks_is_new(
    bundle: Bundle, images: Path, baseline: Path, tmp_path: Path
) -> None:
    data = json.loads(baseline.read_text(encoding="utf-8"))
    del data["retrieval"]["backends"]["onnxruntime fp32"]
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    code, result = gated(bundle, images, "--baseline", file)
    assert (code, statuses(result, "max_drop")["onnxruntime fp32"]) == (3, "new")
    assert "onnxruntime fp32, kNN accuracy: added" in result["changes"]


def test_other_labels_are_not_those_of_the_baseline(
    bundle: Bundle, images: Path, baseline: Path, tmp_path: Path
) -> None:
    """The same files and names, in a table that has one more label."""
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    others = shutil.copytree(images, tmp_path / "images")
    rows = [f"{name},{Path(name).parent}" for name in names]
    (others / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n", encoding="utf-8")
    assert gated(bundle, others / "labels.csv", "--baseline", baseline)[0] == 0
    rows[0] = f"{names[0]},7"
    (others / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n", encoding="utf-8")
    with raises(InputError, what="data", where=baseline):
        vitdeploy.gate(bundle, data=others / "labels.csv", baseline=baseline)


@pytest.mark.parametrize(
    "change",
    [
        {"neighbours": 0},
        {"neighbours": "3"},
        {"backends": {"torch fp32": {"knn": {"correct": COUNT, "wrong": []}}}},
        {"backends": {"torch fp32": {key: {"correct": COUNT, "wrong": ["0/0010.png"]} for key in FIGURES}}},
    ],
    ids=str,
)
def test_a_damaged_baseline_is_refused(baseline: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    data = json.loads(baseline.read_text(encoding="utf-8"))
    data["retrieval"] |= change
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    with raises(InputError, where=file, expected="a baseline"):
        Baseline.read(file)


def test_a_baseline_that_names_an_unknown_image_is_refused(
    bundle: Bundle, images: Path, baseline: Path, tmp_path: Path
) -> None:
    data = json.loads(baseline.read_text(encoding="utf-8"))
    figures = data["retrieval"]["backends"]["torch fp32"]
    figures["recall_at_1"] = {"correct": COUNT - 1, "wrong": ["9/absent.png"]}
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    with raises(InputError, what="torch fp32", where=file, found="9/absent.png"):
        vitdeploy.gate(bundle, data=images, baseline=file)


def test_rules_that_apply_to_nothing_are_refused(
    bundle: Bundle, digits: Bundle, images: Path, baseline: Path, tmp_path: Path
) -> None:
    def planned(of: Bundle, rules: Rules, **options: Any) -> None:
        planned_checks(of, data=images, rules=GateRules(rules), **options)

    for rule in ("min_knn_accuracy", "min_recall_at_10", "max_recall_drop"):
        with raises(UsageError, what=rule):
            planned(digits, rules_of({rule: "50%"}))
    for options in ({"gallery": images}, {"neighbours": 3}):
        (name,) = options
        with raises(UsageError, what=name):
            planned(bundle, Rules(min_cosine=0.5), **options)
    with raises(UsageError, what="neighbours", expected=3, found=5):
        planned(bundle, Rules(), baseline=baseline, neighbours=5)
    with raises(UsageError, what="neighbours", found=201):
        planned(bundle, Rules(min_knn_accuracy=0.5), neighbours=201)
    for rule in ("max_drop", "max_recall_drop"):
        with raises(UsageError, what=rule):  # without a baseline
            planned(bundle, rules_of({rule: "20%"}))
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(images / "3", unlabelled)
    with raises(InputError, what="folder", where=unlabelled):
        planned_checks(bundle, data=unlabelled, rules=GateRules(Rules(min_knn_accuracy=0.5)))
    with raises(UsageError, what="min_knn_accuracy", expected=1000, found=COUNT):  # finer than the images
        planned(bundle, rules_of({"min_knn_accuracy": "99.9%"}))
    with raises(UsageError, what="max_recall_drop", found=COUNT):
        planned(bundle, rules_of({"max_recall_drop": "0.1%"}), baseline=baseline)


def test_a_baseline_of_images_without_labels_has_no_figures(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    assert gated(bundle, images, "--baseline", file, "--update")[0] == 0
    assert "retrieval" not in json.loads(file.read_text(encoding="utf-8"))
    with raises(UsageError, what="max_drop"):
        planned_checks(bundle, data=images, baseline=file, rules=GateRules(rules_of({"max_drop": "20%"})))


def test_an_artifact_without_vectors_is_skipped_in_these_rules_alone(
    bundle: Bundle, images: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(bundle.path, tmp_path / "b")
    vitdeploy.export(
        default_checkpoint(),
        output=place,
        precision="fp16",
        graph=vitdeploy.GraphOptions(outputs=["hidden_states.0"]),
        source=vitdeploy.SourceOptions(task="image-feature-extraction"),
    )
    code, result = gated(Bundle.open(place), images, "--min-knn-accuracy", "50%")
    assert code == 3
    found = {check["rule"]: check["status"] for check in result["checks"] if check["subject"] == "onnxruntime fp16"}
    assert (found["min_knn_accuracy"], found["finite"]) == ("skipped", "passed")
    assert statuses(result, "min_knn_accuracy")["onnxruntime fp32"] == "passed"


def test_rules_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('min_knn_accuracy = "80%"\n[artifacts."onnx-int8"]\nmax_recall_drop = "2%"\n', encoding="utf-8")
    rules = read_rules(file)
    assert (rules.every.min_knn_accuracy, rules.of("onnx-int8").max_recall_drop) == (0.8, 0.02)
    file.write_text("min_recall_at_2 = 0.5\n", encoding="utf-8")
    with raises(UsageError, what="min_recall_at_2"):
        read_rules(file)
