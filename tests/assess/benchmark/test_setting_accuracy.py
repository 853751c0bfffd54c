"""Accuracy of settings beside their times."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run
from raising import raises
from schemas import validated

import vitdeploy
from vitdeploy.assess.report.markdown import markdown
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, UsageError

QUICK = {"batch_sizes": (1,), "processes": 1, "rounds": 2, "runs": 1}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from vitdeploy.assets import default_checkpoint

    return vitdeploy.export(default_checkpoint(), output=tmp_path_factory.mktemp("digits") / "bundle")


def test_accuracy_is_that_of_evaluate_and_marks_the_front(digits: Bundle) -> None:
    settings = ["onnxruntime,graph_optimization=disabled", "onnxruntime"]
    result = vitdeploy.benchmark(digits, data=held_out_images(), settings=settings, limit=20, **QUICK)  # type: ignore[arg-type]
    evaluated = vitdeploy.evaluate(digits, data=held_out_images(), backends=["torch", "onnxruntime"], limit=20)
    expected = evaluated.top1(evaluated.results[1])
    for latency in result.latencies:
        assert latency.quality is not None
        assert latency.quality.top1 is not None
        assert (latency.quality.images, latency.quality.top1.correct) == (20, expected.correct)
        assert latency.quality.agreement is not None
        assert latency.quality.agreement.value == 1
        assert latency.quality.mean_cosine == pytest.approx(1, abs=1e-6)
    fastest = min(result.latencies, key=lambda latency: latency.interval_ms.estimate)
    assert [latency is fastest for latency in result.latencies] == [
        any(latency is item for item in result.front) for latency in result.latencies
    ]
    assert [item["pareto"] for item in result.to_dict()["latencies"]].count(True) == 1
    assert result.settings["accuracy"].startswith("top-1 accuracy on 20 images of ")
    assert "Pareto front" in markdown(result)


def test_images_without_labels_give_the_similarity_with_the_reference(digits: Bundle) -> None:
    arguments = ("--images", held_out_images(), "--limit", 5, "--batch-sizes", 1, "--rounds", 1, "--runs", 1)
    found = validated("benchmark", run("benchmark", digits.path, "--backend", "onnxruntime", *arguments, "--json").out)
    (latency,) = found["latencies"]
    assert latency["quality"]["mean_cosine"] == pytest.approx(1, abs=1e-6)
    assert (latency["quality"]["images"], latency["quality"]["top1"], latency["pareto"]) == (5, None, True)
    assert found["settings"]["accuracy"].startswith("mean cosine with the reference on 5 images of ")


def test_what_cannot_be_measured_is_refused_before_any_process(digits: Bundle, tmp_path: Path) -> None:
    with raises(UsageError, what="similarity", found=True):
        vitdeploy.benchmark(digits, similarity=True)
    with raises(UsageError, what="limit", found=0):
        vitdeploy.benchmark(digits, data=held_out_images(), limit=0)
    with raises(InputError):
        vitdeploy.benchmark(digits, data=tmp_path)
