"""The gate on synthetic predictions, without a runtime: passed, failed, skipped and refused checks."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from raising import raises

from vitdeploy.assess.benchmark.result import Benchmark, NotMeasured
from vitdeploy.assess.data.dataset import LabelledData, open_data
from vitdeploy.assess.evaluate.evaluate import Evaluation
from vitdeploy.assess.gate.baseline import Baseline
from vitdeploy.assess.gate.checks import judge
from vitdeploy.assess.gate.gate import Check, GateResult
from vitdeploy.assess.gate.measured import Measured
from vitdeploy.assess.gate.plan import Planned, plan
from vitdeploy.assess.gate.rules import GateRules, Rules
from vitdeploy.assess.metrics.accuracy import Predictions
from vitdeploy.assess.metrics.latency import Latency
from vitdeploy.assess.metrics.shares import images_needed, mcnemar_power, smallest_bound
from vitdeploy.assess.metrics.status import overall
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.targets import Selected
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import Artifact, FileRecord, Manifest, Source
from vitdeploy.errors import InputError, UsageError
from vitdeploy.specs import PixelFormat, TensorSpec
from vitdeploy.system.progress import SILENT

ONNX = "onnxruntime fp32"
SHA = "0" * 64
ARTIFACT = Artifact(
    format="onnx",
    precision="fp32",
    files=(FileRecord("onnx/model.onnx", 600, SHA), FileRecord("onnx/model.onnx_data", 400, SHA)),
    inputs=(TensorSpec("pixel_values", "float32", ("batch", 3, 32, 32)),),
    outputs=(TensorSpec("logits", "float32", ("batch", 2)),),
    pixels=PixelFormat(),
    axes={},
    options={},
    tools={},
    validation={},
)
BUNDLE = Bundle(Path("bundle"), Manifest(Source("model"), "image-classification", (), (ARTIFACT,)))
RUNTIMES: Any = types.SimpleNamespace(bundle=BUNDLE, device="cpu")


def evaluation(reference: NDArray[np.bool_], artifact: NDArray[np.bool_], skipped: str | None = None) -> Evaluation:
    """Of two classes, by which images each classifies correctly."""
    images = len(reference)

    def made(name: str, backend: str, right: NDArray[np.bool_], skipped: str | None = None) -> Predictions:
        best = np.where(right, 0, 1).astype(np.int32)
        return Predictions(
            name, backend, "fp32", np.stack([best, 1 - best], axis=1), np.ones(images, np.float32), skipped=skipped
        )

    results = (made("reference", "torch", reference), made("onnx-fp32", "onnxruntime", artifact, skipped))
    names = tuple(f"{index}.png" for index in range(images))
    return Evaluation("bundle", "data", ("a", "b"), names, np.zeros(images, np.int32), SHA, results)


def baseline_of(found: Evaluation) -> Baseline:
    wrong = {result.name: found.top1(result).wrong for result in found.results}
    return Baseline(len(found.images), SHA, SHA, {}, {}, wrong, {})


def data_of(found: Evaluation) -> LabelledData:
    return LabelledData("data", "folder", "by name", found.images, found.targets, lambda _: b"")


def hold(now: Evaluation, before: Evaluation | None = None, **rules: float) -> GateResult:
    """The checks that look at predictions alone."""
    accepted = None if before is None else baseline_of(before)
    planned = plan(BUNDLE, GateRules(Rules(**rules)), accepted, len(now.images), None)  # type: ignore[arg-type]
    measured = Measured(RUNTIMES, data_of(now), now, accepted, planned, SILENT, 32)
    left_out = ("same_labels", "same_processor", "max_difference")
    checks = tuple(judge(check, measured) for check in planned if check.rule not in left_out)
    return GateResult("bundle", "data", checks, len(now.images), now)


def check(result: GateResult, rule: str, subject: str = ONNX) -> Check:
    (found,) = [check for check in result.checks if (check.rule, check.subject) == (rule, subject)]
    return found


def right(images: int, *wrong: int) -> NDArray[np.bool_]:
    found = np.ones(images, bool)
    found[list(wrong)] = False
    return found


def refused_with(images: int, **rules: float) -> int:
    """The number of images that the refusal names."""
    ones = evaluation(right(images), right(images))
    with raises(UsageError, what="max_drop", found=images) as caught:
        hold(ones, ones, **rules)
    assert isinstance(caught.value.expected, int)
    return caught.value.expected


def drawn(generator: np.random.Generator, images: int, lost: float, gained: float) -> tuple[Evaluation, Evaluation]:
    """A sample of a classifier of 95 % accuracy, and of another one that loses and gains these shares of all images."""
    kind = generator.choice(3, images, p=[lost, gained, 1 - lost - gained])
    before = np.where(kind == 0, True, np.where(kind == 1, False, generator.random(images) < 0.95))
    now = np.where(kind == 0, False, np.where(kind == 1, True, before))
    return evaluation(before, before), evaluation(before, now)


def test_equal_artifacts_pass_and_a_drop_is_caught_with_as_many_images_as_the_gate_asks_for() -> None:
    images = refused_with(450, max_drop=0.01)
    assert images == images_needed(0.02, beyond=0.01) == 462
    generator = np.random.default_rng(0)
    equal = [drawn(generator, images, 0.0025, 0.0025) for _ in range(100)]
    assert [hold(now, before, max_drop=0.01).status for before, now in equal] == ["passed"] * 100
    # Of 2 points: more than one must be seen, and significant, with 90 %. Four deviations of 1000 draws.
    worse = [drawn(generator, images, 0.02, 0.0) for _ in range(1000)]
    statuses = [hold(now, before, max_drop=0.01).status for before, now in worse]
    assert statuses.count("failed") == pytest.approx(900, abs=38)
    assert statuses.count("passed") < 60  # another may be chance, and is skipped


def test_equal_artifacts_pass_the_default_drop_on_any_sample() -> None:
    generator = np.random.default_rng(1)
    for images in (50, 450):
        equal = [drawn(generator, images, 0.001, 0.001) for _ in range(100)]
        assert [hold(now, before).status for before, now in equal] == ["passed"] * 100


def test_backends_that_disagree_more_need_more_images() -> None:
    reference, artifact = right(2000), right(2000)
    reference[:40], artifact[40:80] = False, False  # 4 % disagree
    before = evaluation(reference, artifact)
    needed = images_needed(0.01, disagreement=0.04, beyond=0.005)
    with raises(UsageError, what="max_drop", where=ONNX, expected=needed):
        hold(before, before, max_drop=0.005)
    assert check(hold(before, before), "max_drop").bound == pytest.approx(
        100 * smallest_bound(2000, 2, disagreement=0.04)
    )
    assert check(hold(before, before), "max_drop", "torch fp32").bound == pytest.approx(100 * smallest_bound(2000, 2))


@pytest.mark.parametrize(
    ("lost", "gained", "status"), [(10, 0, "passed"), (11, 0, "failed"), (60, 40, "skipped"), (0, 50, "passed")]
)
def test_a_drop_fails_if_it_is_larger_than_allowed_and_significant(lost: int, gained: int, status: str) -> None:
    """Of 1000 images a point is 10; all backends agreed before."""
    before = right(1000, *range(gained))
    now = right(1000, *range(gained, gained + lost))
    result = hold(evaluation(before, now), evaluation(before, before), max_drop=0.01)
    found = check(result, "max_drop")
    assert (found.status, found.bound) == (status, 1.0)
    assert found.value == pytest.approx((lost - gained) / 10)
    assert f"({lost} lost and {gained} gained of 1000, McNemar p = " in found.message
    assert result.status == status
    if status == "skipped":
        assert f"it may be chance: {images_needed(0.02, disagreement=0.1)} images would tell" in found.message


def test_the_smallest_bound_is_the_first_that_has_the_power() -> None:
    for images, disagreement in ((12, 0.0), (450, 0.0), (450, 0.05), (5000, 0.02)):
        bound = smallest_bound(images, 2, disagreement=disagreement)
        for allowed, enough in ((bound, True), (bound - 1 / images, False)):
            total = max(2 * allowed, disagreement)
            shares = (total / 2 + allowed, total / 2 - allowed)
            power = mcnemar_power(images, *shares, beyond=allowed) if allowed > 0 else 0.0
            assert (power >= 0.9) is enough, (images, disagreement, allowed)
    with raises(UsageError, what="images", found=5):
        smallest_bound(5, 2)


def test_shares_finer_than_the_sample_are_refused_with_the_number_of_images() -> None:
    ones = evaluation(right(100), right(100))
    for rule in ("min_accuracy", "min_agreement"):
        with raises(UsageError, what=rule, expected=200, found=100):
            hold(ones, None, **{rule: 0.995})
        with raises(UsageError, what=rule, found=100):
            hold(ones, None, **{rule: 0.999999999999})
        assert hold(ones, None, **{rule: 1}).status == hold(ones, None, **{rule: 0.99}).status == "passed"
    with raises(UsageError, what="max_drop", found=0.05):
        hold(ones, max_drop=0.05)


def test_accuracy_agreement_and_size_at_their_bounds() -> None:
    now = evaluation(right(100, 0), right(100, 0, 1))
    result = hold(now, min_accuracy=0.98, min_agreement=0.99, max_size=1000)
    assert result.status == "passed"
    result = hold(now, min_accuracy=0.985, max_size=999)
    assert [(each.rule, each.subject) for each in result.checks if each.status == "failed"] == [
        ("min_accuracy", ONNX),
        ("max_size", ONNX),
    ]
    assert check(result, "max_size").message == "1000 bytes, 999 allowed"
    assert check(hold(evaluation(right(100), right(100, 0, 1)), min_agreement=0.99), "min_agreement").status == "failed"


@pytest.mark.parametrize(
    ("rules", "backends", "rule", "artifact"),
    [
        (GateRules(artifacts={"reference": Rules(max_size=1)}), None, "max_size", "reference"),
        (GateRules(Rules(min_agreement=0.99)), ["torch"], "min_agreement", None),
        (
            GateRules(Rules(max_latency_ratio=1, latency_against="onnxruntime:fp32")),
            ["onnxruntime"],
            "max_latency_ratio",
            None,
        ),
        (GateRules(Rules(latency_against="torch:fp32")), None, "max_latency_ratio", None),
    ],
)
def test_a_rule_that_holds_for_nothing_is_refused(
    rules: GateRules, backends: list[str] | None, rule: str, artifact: str | None
) -> None:
    with raises(UsageError, what=rule, where=artifact):
        plan(BUNDLE, rules, None, 1000, backends)


def test_a_bundle_without_artifacts_has_nothing_to_gate() -> None:
    empty = dataclasses.replace(BUNDLE, manifest=dataclasses.replace(BUNDLE.manifest, artifacts=()))
    with raises(UsageError, where="bundle"):
        plan(empty, GateRules(), None, 1000, None)


def test_what_is_not_finite_fails() -> None:
    now = evaluation(right(10), right(10))
    now.results[1].classes[3] = -1
    found = check(hold(now), "finite")
    assert (found.status, found.message) == ("failed", "the logits of 1 of 10 images are not all finite")


def test_what_was_skipped_or_is_gone_or_new_never_passes() -> None:
    before = evaluation(right(50), right(50))
    result = hold(evaluation(right(50), right(50), skipped="no such device"), before, min_agreement=0.9)
    assert result.status == "skipped"
    of_onnx = [each for each in result.checks if each.subject == ONNX]
    assert [each.rule for each in of_onnx] == ["finite", "max_drop", "min_agreement"]
    assert {(each.status, each.value, each.message) for each in of_onnx} == {
        ("skipped", None, "it could not run: no such device")
    }
    accepted = baseline_of(before)
    gone = dataclasses.replace(accepted, wrong={**accepted.wrong, "tensorrt fp16": ()})
    new = dataclasses.replace(accepted, wrong={"torch fp32": ()})
    for baseline, rule, subject, status in (
        (gone, "in_bundle", "tensorrt fp16", "skipped"), (new, "max_drop", ONNX, "new")
    ):  # fmt: skip
        planned = plan(BUNDLE, GateRules(), baseline, 50, None)
        (chosen,) = [each for each in planned if (each.rule, each.subject) == (rule, subject)]
        measured = Measured(RUNTIMES, data_of(before), before, baseline, planned, SILENT, 32)
        check = judge(chosen, measured)
        assert check.status == status
        assert overall([check.status, "passed"]) == "skipped"
    assert "in_bundle" not in [each.rule for each in plan(BUNDLE, GateRules(), gone, 50, ["torch", "onnxruntime"])]


@pytest.mark.parametrize(
    ("bound", "skipped", "status"), [(0.5, None, "passed"), (0.49, None, "failed"), (0.5, "no such device", "skipped")]
)
def test_latency_is_held_by_the_median_of_the_rounds(
    monkeypatch: pytest.MonkeyPatch, bound: float, skipped: str | None, status: str
) -> None:
    """Half the time of torch's in two of three rounds; a slow spell in the third."""
    times = {"torch": (10.0, 20.0, 10.0), "onnxruntime": (5.0, 10.0, 90.0)}
    asked = []

    def timed(_bundle: Bundle, *, batch_sizes: tuple[int, ...], backends: list[str], **_: object) -> Benchmark:
        asked.append((batch_sizes, backends))
        latencies = [
            Latency("", backend, "fp32", 1, tuple((time,) for time in of_one)) for backend, of_one in times.items()
        ]
        missing = () if skipped is None else (NotMeasured("onnx-fp32", "onnxruntime", "fp32", None, skipped),)
        return Benchmark("bundle", {}, {}, tuple(latencies), missing)

    monkeypatch.setattr("vitdeploy.assess.gate.measured.benchmark", timed)
    found = check(hold(evaluation(right(50), right(50)), max_latency_ratio=bound), "max_latency_ratio")
    assert (found.status, found.value) == (status, None if skipped else 0.5)
    assert asked == [((1,), ["torch:fp32", "onnxruntime:fp32"])]
    assert (skipped or "unclear against torch fp32 (0.50 of its time)") in found.message


def test_a_baseline_is_one_line_an_image_and_reads_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "ci" / "baseline.json"
    baseline = baseline_of(evaluation(right(20, 3), right(20, 3, 5)))
    baseline.write(file)
    first = file.read_bytes()
    assert Baseline.read(file).to_dict() == baseline.to_dict()
    assert b'        "3.png",\n        "5.png"\n' in first
    Baseline.read(file).write(file)
    assert (file.read_bytes(), [path.name for path in file.parent.iterdir()]) == (first, ["baseline.json"])
    assert baseline.changes(baseline) == ()
    other = dataclasses.replace(baseline, wrong={ONNX: ("4.png", "5.png"), "x fp16": ()}, weights={"w": "1" * 64})
    assert baseline.changes(other) == (
        "weights: w: none -> 111111111111…",
        f"{ONNX}: 18 -> 18 correct; now wrong: 4.png; now right: 3.png",
        "torch fp32: removed",
        "x fp16: added",
    )


def test_a_baseline_names_images_of_the_data() -> None:
    result = evaluation(right(20, 3), right(20, 3, 5))
    baseline = baseline_of(result)
    baseline.check_images(result.images, "baseline.json")
    other = dataclasses.replace(baseline, wrong={ONNX: ("3.png", "nope/1.png")})
    with raises(InputError, what=ONNX, where="baseline.json", found="nope/1.png"):
        other.check_images(result.images, "baseline.json")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema_version",), True),
        (("schema_version",), 1.0),
        (("data", "images"), "20"),
        (("data", "images"), 20.5),
        (("data", "images"), float("inf")),
        (("data", "images"), 10**400),
        (("backends", ONNX), {"correct": 18, "wrong": "ab"}),
        (("backends", ONNX), {"correct": 18, "wrong": [1, None]}),
        (("backends", ONNX), {"correct": 18, "wrong": ["a", "a"]}),
        (("backends", ONNX), {"correct": -1, "wrong": list(map(str, range(21)))}),
        (("backends", ONNX), {"correct": 20.0, "wrong": []}),
    ],
)
def test_a_value_of_another_type_or_size_is_no_baseline(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    data = baseline_of(evaluation(right(20), right(20))).to_dict()
    *folders, last = place
    functools.reduce(dict.__getitem__, folders, data)[last] = value
    (tmp_path / "baseline.json").write_text(json.dumps(data), encoding="utf-8")
    with raises(InputError, expected="a baseline") as caught:
        Baseline.read(tmp_path / "baseline.json")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("damage", ["text", "list", "version", "count", "sha", "images"])
def test_a_damaged_baseline_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "baseline.json"
    data = baseline_of(evaluation(right(20), right(20, 5))).to_dict()
    if damage == "version":
        data["schema_version"] = 2
    elif damage == "count":
        data["backends"][ONNX]["correct"] = 20
    elif damage == "sha":
        data["data"]["sha256"] = "../x"
    elif damage == "images":
        data["data"]["images"], data["backends"] = 0, {}
    file.write_text({"text": "{", "list": "[]"}.get(damage, json.dumps(data)), encoding="utf-8")
    with raises(InputError, where=str(file), expected="a baseline"):
        Baseline.read(file)


def test_layers_are_compared_on_the_cpu_whatever_the_device(digits: Bundle) -> None:
    planned = Planned("max_layer_difference", ONNX, 1e-4, Selected("onnx-fp32", "onnxruntime", "fp32"))
    images = open_data(held_out_images(), digits.read_config().labels)
    measured = Measured(OpenRuntimes(digits, "cuda:99"), images, None, None, (planned,), SILENT, 32)
    assert measured.layers["onnx-fp32"].status == "passed"
