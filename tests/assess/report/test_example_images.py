"""Images in a report: the worst first, with each backend's prediction, from any source."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from raising import raises
from written_results import BENCHMARK, COMPARISON, EVALUATION, LAYERS, gate_result

from vitdeploy.assess.compare.results import BackendComparison, Comparison
from vitdeploy.assess.compare.worst_images import WorstImage
from vitdeploy.assess.evaluate.evaluate import Evaluation
from vitdeploy.assess.report.example_images import MOST, first_of_each_class, furthest_images, worst_images
from vitdeploy.assess.report.report import Report, report_of
from vitdeploy.errors import ImageError, UsageError
from vitdeploy.predictor import Prediction


def names(evaluation: Evaluation) -> dict[str, list[str]]:
    return {heading: [example.image for example in found] for heading, found in worst_images(evaluation).items()}


def test_the_worst_come_first() -> None:
    # of the two newts, one has nothing finite; of the cats, the second is another class to the surer reference
    assert names(EVALUATION) == {
        "Furthest from the reference: 3 of 4": ["newt/1.png", "newt/2.png", "cat/2.png"],
        "Misclassified with the highest score: 3 of 4": ["newt/2.png", "newt/1.png", "cat/2.png"],
    }
    example = worst_images(EVALUATION)["Furthest from the reference: 3 of 4"][1]
    assert (example.expected, example.correct, list(example.predictions)) == ("newt", False, ["torch fp32", "x fp32"])
    assert (example.predictions["torch fp32"].label, example.predictions["torch fp32"].index) == ("newt", 2)
    assert example.predictions["x fp32"].label == "not finite"


def test_a_score_that_is_another_to_the_eye_is_shown_and_no_smaller_one() -> None:
    reference = EVALUATION.results[0]
    for change, found in ((0.02, ["cat/2.png"]), (0.005, None)):
        scores = reference.scores + np.array([0, change, 0, 0], np.float32)
        other = dataclasses.replace(reference, artifact="x-fp32", backend="x", scores=scores)
        evaluation = dataclasses.replace(EVALUATION, results=(reference, other))
        assert names(evaluation).get("Furthest from the reference: 1 of 4") == found


def test_no_more_than_fit_a_page() -> None:
    count = MOST + 3
    wrong = dataclasses.replace(
        EVALUATION.results[0], classes=np.ones((count, 3), np.int32), scores=np.linspace(0, 1, count, dtype=np.float32)
    )
    images = tuple(f"{index}.png" for index in range(count))
    many = dataclasses.replace(EVALUATION, images=images, targets=np.zeros(count, np.int32), results=(wrong,))
    ((heading, found),) = names(many).items()
    assert heading == f"Misclassified with the highest score: {count} of {count}, the first {MOST}"
    assert found == [*reversed(images)][:MOST]


def test_one_of_each_class_that_has_any() -> None:
    examples = first_of_each_class(EVALUATION)
    assert [(example.image, example.expected) for example in examples] == [("cat/1.png", "cat"), ("newt/1.png", "newt")]
    assert [example.correct for example in examples] == [True, False]


def test_nothing_ran() -> None:
    assert worst_images(dataclasses.replace(EVALUATION, results=EVALUATION.results[2:])) == {}


def test_images_come_from_where_the_data_set_has_them(tmp_path: Path) -> None:
    for name in EVALUATION.images[:-1]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (far, _) = worst_images(dataclasses.replace(EVALUATION, data=str(tmp_path))).values()
    assert far[0].load() == b"newt/1.png"
    with raises(ImageError, what="newt/2.png", where=str(tmp_path)):
        far[1].load()
    (tmp_path / "newt/1.png").unlink()
    with raises(ImageError, where=tmp_path / "newt/1.png", found="No such file or directory"):
        far[0].load()


def test_images_of_parquet_files(tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    pq.write_table(pa.table({"image": [b"a", b"b", b"c", b"d"], "label": ["cat", "cat", "newt", "newt"]}), file)
    images = tuple(f"test.parquet#{row}" for row in range(4))
    (far, _) = worst_images(dataclasses.replace(EVALUATION, data=str(file), images=images)).values()
    assert [example.load() for example in far] == [b"c", b"d", b"b"]


def test_a_data_set_that_is_gone_is_said_of_each_image() -> None:
    (example, *_), _ = worst_images(EVALUATION).values()
    with raises(ImageError, what="data", where="gone/data"):
        example.load()


def test_a_comparison_shows_the_files_that_differ_most_of_all_its_artifacts(tmp_path: Path) -> None:
    cat, dog = Prediction("cat", 0, 0.9), Prediction("dog", 1, 0.6)
    files = [tmp_path / f"{index}.png" for index in range(3)]
    files[1].write_bytes(b"1")
    first = [WorstImage(0, str(files[0]), 1e-3, cat, cat), WorstImage(7, "", 1.0, cat, dog)]
    second = [WorstImage(1, str(files[1]), 0.5, cat, dog), WorstImage(0, str(files[0]), 2e-3, cat, dog)]
    results = tuple(
        BackendComparison(name, "onnxruntime", 1e-4, furthest=tuple(far))
        for name, far in (("onnx-fp32", first), ("onnx-fp16", second))
    )
    (examples,) = furthest_images(Comparison("gone", 8, False, results)).values()
    assert [(example.image, example.distance) for example in examples] == [(str(files[1]), 0.5), (str(files[0]), 2e-3)]
    assert examples[0].predictions == {"reference": cat, "onnx-fp16 on onnxruntime": dog}
    assert list(examples[1].predictions) == ["reference", "onnx-fp32 on onnxruntime", "onnx-fp16 on onnxruntime"]
    assert (examples[1].expected, examples[1].correct, examples[0].load()) == ("cat", False, b"1")
    with raises(ImageError, where=files[0], found="No such file or directory"):
        examples[1].load()


def test_the_report_of_each_result() -> None:
    for part, result in (
        ("comparison", COMPARISON),
        ("layers", LAYERS),
        ("evaluation", EVALUATION),
        ("benchmark", BENCHMARK),
    ):
        report = report_of(result)
        parts = {name: getattr(report, name) for name in ("gate", "comparison", "layers", "evaluation", "benchmark")}
        assert {name for name, value in parts.items() if value is not None} == {part}
        assert parts[part] is result
        assert report.title.endswith(": gone")
        assert report.source == {"bundle": "gone"}
        assert bool(report.examples) == (part in {"comparison", "evaluation"})
    assert report_of(BENCHMARK).machine == {"cpu": "abacus"}
    gate = report_of(gate_result())
    assert (gate.evaluation, gate.benchmark, len(gate.examples)) == (EVALUATION, BENCHMARK, 2)
    assert gate.to_dict()["gate"]["status"] == "failed"
    with raises(UsageError, what="result", found="Report"):
        report_of(Report("", {}, {}))  # type: ignore[arg-type]
