"""A gate for models without classes, and rules about vectors for those with classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from command_line import run
from onnx_models import with_last_operator
from raising import raises
from schemas import validated
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.neighbors import NearestNeighbors

import vitdeploy
from vitdeploy.assess.gate.baseline import Baseline
from vitdeploy.assess.gate.gate import planned_checks
from vitdeploy.assess.gate.rules import GateRules, Rules, read_rules
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, UsageError

COUNT = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images without labels."""
    folder = tmp_path_factory.mktemp("images")
    for index, path in enumerate(sorted(held_out_images().rglob("*.png"))[:: 450 // COUNT][:COUNT]):
        shutil.copy(path, folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Features of the embedded model, in int8."""
    return vitdeploy.export(
        default_checkpoint(),
        output=tmp_path_factory.mktemp("features") / "out",
        precision="int8",
        quantization=vitdeploy.Quantization(vitdeploy.Calibration(images)),
        source=vitdeploy.SourceOptions(task="image-feature-extraction"),
    )


def spoilt(bundle: Bundle, folder: Path) -> Bundle:
    """A copy whose tokens have something in every other channel, whatever the image."""
    return with_last_operator(
        bundle, folder, "Add", lambda shape: np.where(np.arange(shape[-1]) % 2, 0, 3).astype(np.float32)
    )


def tokens(bundle: Bundle, images: Path) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for backend, precision in (("torch", "fp32"), ("onnxruntime", "int8")):
        with vitdeploy.load(bundle.path, backend=backend, precision=precision) as predictor:
            pixels = predictor.processor(sorted(images.iterdir()))
            found.append(predictor.runtime.run({"pixel_values": pixels})["last_hidden_state"][:, 0])
    wanted, given = found
    return wanted, given


def gated(bundle: Bundle, images: Path, *options: object) -> tuple[object, Any]:
    code, out, _ = run("gate", bundle.path, "--data", images, "--json", *options)
    return code, validated("gate", out)


def test_figures_are_those_of_sklearn(bundle: Bundle, images: Path) -> None:
    wanted, given = tokens(bundle, images)
    cosines = 1 - paired_cosine_distances(wanted, given)
    nearest = [
        NearestNeighbors(n_neighbors=1, metric="cosine").fit(each).kneighbors(return_distance=False)[:, 0]
        for each in (wanted, given)
    ]
    share = 100 * float((nearest[0] == nearest[1]).mean())
    p5 = float(np.percentile(cosines, 5))
    code, result = gated(bundle, images, "--min-cosine", f"{p5 - 1e-3:.6f}", "--min-neighbour-agreement", "20%")
    assert (code, result["status"], result["evaluation"]) == (0, "passed", None)
    found = {check["rule"]: check for check in result["checks"]}
    assert set(found) == {"finite", "min_cosine", "min_neighbour_agreement", "cosine"}
    assert {check["subject"] for check in found.values()} == {"onnxruntime int8"}
    assert found["min_cosine"]["value"] == pytest.approx(p5, abs=1e-4)
    assert found["min_neighbour_agreement"]["value"] == pytest.approx(share, abs=100 / COUNT + 1e-9)
    (vectors,) = result["vectors"]
    assert vectors["nearness"][0]["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-4)
    code, result = gated(bundle, images, "--min-cosine", f"{(p5 + 1) / 2:.6f}")
    assert code == 1
    assert [check["rule"] for check in result["checks"] if check["status"] == "failed"] == ["min_cosine"]


def test_an_artifact_that_is_far_fails_without_any_rule(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    far = spoilt(bundle, tmp_path / "far")
    code, result = gated(far, images, "--min-neighbour-agreement", "100%", "--min-cosine", "99%")
    assert code == 1
    failed = [check["rule"] for check in result["checks"] if check["status"] == "failed"]
    assert failed == ["min_cosine", "min_neighbour_agreement", "cosine"]
    code, result = gated(far, images)
    assert code == 1
    assert [check["rule"] for check in result["checks"] if check["status"] == "failed"] == ["cosine"]


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan])
def test_tokens_of_patches_are_judged_too(bundle: Bundle, images: Path, tmp_path: Path, factor: float) -> None:
    """By the CLS token alone, an artifact without any other token passed."""

    def factors(shape: tuple[int, ...]) -> np.ndarray:
        return np.array([1, *[factor] * (shape[0] - 1)], np.float32)[:, None]

    copied = with_last_operator(bundle, tmp_path / "out", "Mul", factors)
    code, result = gated(copied, images)
    assert code == 1
    failed = [check for check in result["checks"] if check["status"] == "failed"]
    assert [check["rule"] for check in failed] == ["cosine"]
    assert "last_hidden_state" in failed[0]["message"]
    compared = vitdeploy.compare(copied, images=images)
    assert [each.status for each in compared.results] == ["failed"]
    assert "failed" in [check.status for each in compared.results for check in each.check_results]


def test_reports_name_each_check(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    junit, table, page = tmp_path / "junit.xml", tmp_path / "table.md", tmp_path / "page.html"
    reports = ["--junit", str(junit), "--markdown", str(table), "--html", str(page)]
    code, _ = gated(bundle, images, "--min-cosine", "0.5", "--min-neighbour-agreement", "1%", *reports)
    assert code == 0
    cases = {case.attrib["name"] for case in ET.parse(junit).iter("testcase")}
    assert cases == {"finite", "min_cosine", "min_neighbour_agreement", "cosine"}
    assert "5th percentile" in table.read_text(encoding="utf-8")
    html = page.read_text(encoding="utf-8")
    assert f"On {COUNT} images" in html
    assert "nearest neighbour by cls_token" in html


def test_a_baseline_without_classes(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    code, result = gated(bundle, images, "--baseline", str(file), "--update")
    assert (code, result["updated"], Baseline.read(file)) == (0, True, Baseline.read(file))
    figures = json.loads(file.read_text(encoding="utf-8"))["nearness"]["onnxruntime int8"]["cls_token"]
    (vectors,) = result["vectors"]
    for name in ("mean_cosine", "p5_cosine", "min_cosine", "neighbour_agreement"):
        assert figures[name] == pytest.approx(vectors["nearness"][0][name], abs=1e-6)
    code, result = gated(bundle, images, "--baseline", str(file))
    assert (code, result["changes"]) == (0, []), result["checks"]
    assert {check["rule"] for check in result["checks"]} == {"same_labels", "same_processor", "finite", "cosine"}
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"p5_cosine": 0.', '"p5_cosine": 0.1'), encoding="utf-8")
    code, result = gated(bundle, images, "--baseline", str(file))
    assert any("p5_cosine 0.1" in change for change in result["changes"])
    file.write_text(text.replace('"p5_cosine": 0.', '"p5_cosine": 7.'), encoding="utf-8")
    with raises(InputError, where=str(file), expected="a baseline"):
        Baseline.read(file)


def test_other_images_are_not_those_of_the_baseline(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    file, others = tmp_path / "baseline.json", tmp_path / "others"
    gated(bundle, images, "--baseline", str(file), "--update")
    shutil.copytree(images, others)
    shutil.copy(others / "000.png", others / "001.png")
    with raises(InputError, what="data", where=str(file)):
        vitdeploy.gate(bundle, data=others, baseline=file)


@pytest.mark.parametrize(
    ("count", "rules", "refused"),
    [
        (19, {"min_cosine": 0.9}, 20),
        (20, {"min_cosine": 0.9}, None),
        (19, {"min_neighbour_agreement": 0.95}, 20),
        (20, {"min_neighbour_agreement": 0.95}, None),
        (19, {"min_neighbour_agreement": 1}, None),
        (19, {"min_accuracy": 0.5}, "classes"),
        (19, {"min_agreement": 0.5}, "classes"),
    ],
    ids=str,
)
def test_a_rule_finer_than_the_images_is_refused(
    bundle: Bundle, images: Path, tmp_path: Path, count: int, rules: dict[str, Any], refused: int | str | None
) -> None:
    for path in sorted(images.iterdir())[:count]:
        shutil.copy(path, tmp_path / path.name)
    held = GateRules(Rules(**rules))
    if refused is None:
        assert {check.rule for check in planned_checks(bundle, data=tmp_path, rules=held)} >= set(rules)
        return
    (rule,) = rules
    with raises(UsageError, what=rule, expected=None if refused == "classes" else refused):
        planned_checks(bundle, data=tmp_path, rules=held)


def test_two_images_pass_no_rule_of_neighbours(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    for path in sorted(images.iterdir())[:2]:
        shutil.copy(path, tmp_path / path.name)
    code, result = gated(bundle, tmp_path, "--min-neighbour-agreement", "100%")
    assert (code, result["status"]) == (3, "skipped")
    (check,) = [each for each in result["checks"] if each["rule"] == "min_neighbour_agreement"]
    assert (check["status"], check["value"]) == ("skipped", None)


def test_artifacts_of_other_outputs_are_judged_by_their_own(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    """One gives tokens, the other hidden states alone, which are its vectors, whole."""
    shutil.copytree(bundle.path, tmp_path / "out")
    vitdeploy.export(
        default_checkpoint(),
        output=tmp_path / "out",
        graph=vitdeploy.GraphOptions(outputs=["hidden_states"]),
        source=vitdeploy.SourceOptions(task="image-feature-extraction"),
    )
    code, result = gated(Bundle.open(tmp_path / "out"), images, "--min-cosine", "0.9")
    assert code == 0
    found = {run["artifact"]: [near["output"] for near in run["nearness"]] for run in result["vectors"]}
    assert found["onnx-int8"] == ["cls_token"]
    assert found["onnx-fp32"] == [f"hidden_states.{index}" for index in range(len(found["onnx-fp32"]))]
    assert len(found["onnx-fp32"]) > 2


def test_a_classifier_is_held_to_the_cosine_of_its_logits(digits: Bundle) -> None:
    data = str(held_out_images())
    code, result = gated(digits, held_out_images(), "--min-cosine", "0.999999")
    assert code == 0
    (vectors,) = result["vectors"]
    (near,) = vectors["nearness"]
    assert (near["output"], near["images"], near["same_neighbours"]) == ("logits", 450, None)
    with raises(UsageError, what="min_neighbour_agreement"):
        planned_checks(digits, data=data, rules=GateRules(Rules(min_neighbour_agreement=0.5)))


def test_what_is_a_cosine_in_a_file_of_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    for text, wanted in (("0.99", 0.99), ('"99%"', 0.99), ('"99.5 %"', 0.995)):
        file.write_text(f"min_cosine = {text}\nmin_neighbour_agreement = 0.88\n", encoding="utf-8")
        found = read_rules(file).every
        assert found.min_neighbour_agreement == 0.88
        assert found.min_cosine == pytest.approx(wanted)
    for text in ("99", "1", "0", '"x%"', "true", '"100%"'):
        file.write_text(f"min_cosine = {text}\n", encoding="utf-8")
        with raises(UsageError, what="min_cosine"):
            read_rules(file)
