"""Accuracy bounds: what they take, which images a search sees, and what images that it does not see contradict."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raising import raises
from scipy.stats import binomtest
from sklearn.metrics.pairwise import paired_cosine_distances
from stub_runtime import StubRuntime

from vitdeploy.assess.data.image_set import ImageSet
from vitdeploy.assess.metrics.accuracy import Accuracy
from vitdeploy.assess.metrics.features import TokenVector
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import CheckFailedError, CheckpointError, UsageError
from vitdeploy.exporting.options import AccuracyBound, MaxDrop, MinAgreement, MinCosine
from vitdeploy.exporting.quantization.accuracy_target import split_target
from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
from vitdeploy.exporting.quantization.cosine_target import CosineTarget, LowestCosine, open_cosine_target
from vitdeploy.exporting.quantization.top1_target import Top1Target
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.runtimes.base import Runtime
from vitdeploy.specs import TensorSpec
from vitdeploy.system.progress import SILENT

PROCESSOR = ImageProcessor(size=Size(4, 4))
WIDTH = 6
CLASS, MEAN = TokenVector("cls_token", 1), TokenVector("mean_token", 0)


class Vectors(StubRuntime):
    """Gives for each image, all of one shade, the vector at its shade, in `pooler_output` and the CLS token."""

    def __init__(self, pooled: np.ndarray, tokens: np.ndarray | None = None) -> None:
        super().__init__()
        self.inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, 4, 4)),)
        self.outputs = (
            TensorSpec("pooler_output", "float32", ("batch", WIDTH)),
            TensorSpec("last_hidden_state", "float32", ("batch", 2, WIDTH)),
        )
        self.pooled, self.tokens = pooled, pooled if tokens is None else tokens
        self.patch = np.zeros(WIDTH, np.float32)  # added to the second token

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shade = np.rint((feeds["pixel_values"][:, 0, 0, 0] + 1) * 127.5).astype(int)  # (N,)
        cls = self.tokens[shade]
        return {"pooler_output": self.pooled[shade], "last_hidden_state": np.stack([cls, self.patch + cls], axis=1)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shade in range(40):
        Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / f"{shade:02}.png")
    return tmp_path


def vectors(seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((256, WIDTH))).astype(np.float32)


def target_of(
    bound: AccuracyBound,
    folder: Path,
    runtime: Runtime,
    problem_type: Any = ProblemType.SINGLE_LABEL,
    token: TokenVector = CLASS,
) -> CosineTarget:
    return open_cosine_target(bound, runtime, token, problem_type, (folder, PROCESSOR, None, 0, SILENT))


@pytest.mark.parametrize("worst", ["pooler_output", "cls_token"])
def test_the_farther_of_pooled_output_and_cls_token_counts(folder: Path, worst: str) -> None:
    wanted = vectors(0)
    near, far = wanted + vectors(1, 0.05), wanted + vectors(2, 0.3)
    target = target_of(MinCosine(0.9), folder, Vectors(wanted))
    found = target.measure(Vectors(far, near) if worst == "pooler_output" else Vectors(near, far))
    expected = np.percentile(1 - paired_cosine_distances(wanted[:40], far[:40]), 5)
    assert found.nearness.output == worst
    assert found.value == pytest.approx(expected, abs=1e-6)
    part = target.at(range(10, 30)).measure(Vectors(far, far))
    assert part.value == pytest.approx(
        np.percentile(1 - paired_cosine_distances(wanted[10:30], far[10:30]), 5), abs=1e-6
    )


def test_patches_count_for_a_model_without_a_class_token(folder: Path) -> None:
    wanted = vectors(0)
    given = Vectors(wanted)
    given.patch = np.array([3, 0, 0, 0, 0, 0], np.float32)
    for token, cosine in (
        (CLASS, 1),
        (MEAN, np.percentile(1 - paired_cosine_distances(wanted[:40], wanted[:40] + given.patch / 2), 5)),
    ):
        found = target_of(MinCosine(0.9), folder, Vectors(wanted), token=token).measure(given)
        assert found.value == pytest.approx(cosine, abs=1e-6)
        assert found.nearness.output == ("pooler_output" if token is CLASS else "mean_token")


def test_a_search_leaves_a_part_of_the_distance(folder: Path) -> None:
    target = target_of(MinCosine(0.9), folder, Vectors(vectors(0)))
    for cosine, honoured, passes in ((0.93, True, True), (0.91, False, True), (0.89, False, False)):
        near = target.measure(Vectors(vectors(0))).nearness
        found = LowestCosine(type(near)(near.output, 40, cosine, cosine, cosine, 0.1))
        assert target.reached_by(found) == honoured
        for check in (target.check, target.check_held_out):
            with contextlib.nullcontext() if passes else raises(CheckFailedError, what="onnx-int8", found=found):
                assert check("onnx-int8", found)["p5_cosine"] == cosine


def test_vectors_of_another_length_do_not_honour_a_cosine(folder: Path) -> None:
    wanted = vectors(0)
    target = target_of(MinCosine(0.9), folder, Vectors(wanted))
    for factor, honoured in ((1.2, True), (2.0, False), (0.4, False)):
        found = target.measure(Vectors(wanted * np.float32(factor)))
        assert found.value == pytest.approx(1)
        assert target.reached_by(found) == honoured
        for check in (target.check, target.check_held_out):
            with contextlib.nullcontext() if honoured else raises(CheckFailedError, what="onnx-int8", found=found):
                check("onnx-int8", found)


def test_values_have_no_cosine_and_a_reference_must_be_finite(folder: Path) -> None:
    bound = MinCosine(0.9)
    for problem_type in (ProblemType.REGRESSION, ProblemType.MULTI_LABEL):
        with raises(UsageError, what="accuracy", found=problem_type):
            target_of(bound, folder, Vectors(vectors(0)), problem_type)
    broken = vectors(0)
    broken[3] = np.nan
    with raises(CheckpointError, what="pooler_output", where=str(folder)):
        target_of(bound, folder, Vectors(broken)).measure(Vectors(vectors(0)))


@pytest.mark.parametrize("correct", range(28, 41))
def test_few_images_contradict_a_share_where_its_interval_does(correct: int, folder: Path) -> None:
    images = CalibrationImages.open(folder, PROCESSOR, None, 0, SILENT)
    target = Top1Target(MinAgreement(0.9), images, np.zeros(40, np.int32), np.ones(40, bool))
    accuracy = Accuracy(correct, 40)
    high = binomtest(correct, 40).proportion_ci(method="wilson").high
    with contextlib.nullcontext() if high >= 0.9 else raises(CheckFailedError, what="onnx-int8", found=accuracy):
        assert target.check_held_out("onnx-int8", accuracy)["honoured"] == (correct >= 36)


@pytest.mark.parametrize(
    ("bound", "right", "least"), [(MaxDrop("50%"), 0, 0), (MaxDrop("10%"), 20, 16), (MinAgreement(0.001), 0, 1)]
)
def test_a_minimum_is_a_number_of_images(bound: AccuracyBound, right: int, least: int, folder: Path) -> None:
    images = CalibrationImages.open(folder, PROCESSOR, None, 0, SILENT)
    target = Top1Target(bound, images, np.zeros(40, np.int32), np.arange(40) < right)
    found = target.check("onnx-int8", Accuracy(40, 40))["at_least"]
    assert (type(found), found) == (int, least)


@pytest.mark.parametrize(
    ("bound", "searched"), [(MinAgreement(0.9), {"ranges", "choice"}), (MinCosine(0.9), {"choice"})]
)
def test_a_search_sees_no_image_that_judges(bound: AccuracyBound, searched: set[str], folder: Path) -> None:
    images = CalibrationImages.open(folder, PROCESSOR, None, 0, SILENT)
    parts = images.parts()
    whole = Top1Target(bound, images, np.arange(40, dtype=np.int32), np.arange(40) % 2 == 0)
    target, held_out = split_target(whole, parts)
    assert held_out is not None
    assert set(held_out.images.images.names) == set(parts.judge.images.names)
    wanted = {name for part in searched for name in getattr(parts, part).images.names}
    assert set(target.images.images.names) == wanted
    assert target.wanted.tolist() == [int(name[:2]) for name in target.images.images.names]  # type: ignore[attr-defined]


def test_images_of_a_bound_beside_those_of_the_calibration(folder: Path) -> None:
    def images(names: Sequence[str], source: str) -> CalibrationImages:
        return CalibrationImages(
            ImageSet(source, tuple(names), lambda at: f"{source}{names[at]}".encode()), PROCESSOR, 0, SILENT
        )

    parts = images([f"{index}" for index in range(40)], "a").parts()
    for source, count in (("b", 10), ("a", 80)):
        names = [f"{index}" for index in range(count * 4 if source == "b" else count)]
        size = len(names)
        whole = Top1Target(MinAgreement(0.9), images(names, source), np.zeros(size, np.int32), np.ones(size, bool))
        target, held_out = split_target(whole, parts)
        assert held_out is not None
        judging, searching = set(held_out.images.images.names), set(target.images.images.names)
        assert len(judging) == size // 4
        assert judging.isdisjoint(searching)
        assert judging | searching == set(names)
        if source == "a":
            assert judging.isdisjoint({*parts.ranges.images.names, *parts.choice.images.names})
    few = Top1Target(MinAgreement(0.9), images("abc", "c"), np.zeros(3, np.int32), np.ones(3, bool))
    assert split_target(few, parts) == (few, None)


@pytest.mark.parametrize("bound", [MinAgreement(0.9), MinCosine(0.9)], ids=str)
@pytest.mark.parametrize(
    ("others", "copies", "judging"),
    [(10, 1, 10), (3, 1, 3), (0, 1, 0), (40, 2, 27), (1, 60, 1)],
    ids=["some", "few", "none", "copies", "one image"],
)
def test_no_image_that_judges_was_seen_under_another_name(
    bound: AccuracyBound, others: int, copies: int, judging: int, folder: Path
) -> None:
    """The images of a bound in a folder of their own, which holds those of the calibration too."""
    parts = CalibrationImages.open(folder, PROCESSOR, None, 0, SILENT).parts()
    contents = [(folder / name).read_bytes() for name in parts.measured.images.names]
    contents += [b"%d" % index for index in range(others)] * copies
    names = tuple(f"other {index}" for index in range(len(contents)))
    images = CalibrationImages(ImageSet("b", names, contents.__getitem__), PROCESSOR, 0, SILENT)
    whole = Top1Target(bound, images, np.zeros(len(names), np.int32), np.ones(len(names), bool))
    target, held_out = split_target(whole, parts)
    if not judging:
        assert (target, held_out) == (whole, None)
        return
    assert held_out is not None
    assert len(held_out.images.images) == judging
    assert {*held_out.images.contents}.isdisjoint({*target.images.contents, *parts.measured.contents})
    assert len(target.images.images) > 0


def test_images_that_are_all_copies_are_all_for_all(folder: Path) -> None:
    parts = CalibrationImages.open(folder, PROCESSOR, None, 0, SILENT).parts()
    images = CalibrationImages(ImageSet("b", tuple(map(str, range(20))), lambda _: b"one"), PROCESSOR, 0, SILENT)
    whole = Top1Target(MinAgreement(0.9), images, np.zeros(20, np.int32), np.ones(20, bool))
    assert split_target(whole, parts) == (whole, None)
