"""kNN accuracy and recall of a feature extractor's bundle, against scikit-learn, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from raising import raises
from schemas import validated
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import vitdeploy
from vitdeploy.assess.data.dataset import open_data
from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation, evaluate_embeddings
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, UsageError
from vitdeploy.runtimes import BACKENDS, Backend

RECALLS = (1, 5, 10)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Features of the embedded model."""
    source = vitdeploy.SourceOptions(task="image-feature-extraction")
    return vitdeploy.export(default_checkpoint(), output=tmp_path_factory.mktemp("features") / "b", source=source)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """60 queries, and a gallery of 90 other images, a folder a class each."""
    root = tmp_path_factory.mktemp("images")
    for index, path in enumerate(sorted(held_out_images().rglob("*.png"))[::3]):
        place = root / ("queries" if index % 5 < 2 else "gallery") / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return root / "queries", root / "gallery"


def vectors(bundle: Bundle, folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Embeddings in float64, and classes as numbers."""
    files = sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix())
    with vitdeploy.load(bundle.path, backend="onnxruntime") as predictor:
        found = predictor.embed(files)
    return found.astype(np.float64), np.array([int(path.parent.name) for path in files])


def test_a_gallery_is_searched_as_by_sklearn(features: Bundle, folders: tuple[Path, Path]) -> None:
    (queries, targets), (gallery, of_gallery) = (vectors(features, folder) for folder in folders)
    result = evaluate_embeddings(features, data=folders[0], gallery=folders[1], neighbours=1)
    search = NearestNeighbors(n_neighbors=10, metric="cosine").fit(gallery)
    nearest = of_gallery[search.kneighbors(queries, return_distance=False)]
    assert (result.gallery_images, result.unmatched, result.shared) == (len(gallery), 0, 0)
    for run_ in result.results:
        assert result.knn(run_).correct == int((nearest[:, 0] == targets).sum())
        for count in RECALLS:
            expected = int((nearest[:, :count] == targets[:, None]).any(axis=1).sum())
            assert result.recall(run_, count).correct == expected
    assert 0.5 < result.recall(result.results[0], 1).value < 1


def test_leave_one_out_is_that_of_sklearn(features: Bundle, folders: tuple[Path, Path]) -> None:
    queries, targets = vectors(features, folders[0])
    result = evaluate_embeddings(features, data=folders[0], neighbours=3)

    def first_decides(distances: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.ones(distances.shape) + 0.25 * 0.5 ** np.arange(distances.shape[1])

    for index, wanted in enumerate(result.best(result.results[1])):
        others = np.arange(len(queries)) != index
        vote = KNeighborsClassifier(3, metric="cosine", algorithm="brute", weights=first_decides)
        assert result.labels[wanted] == str(
            vote.fit(queries[others], targets[others]).predict(queries[index : index + 1])[0]
        )
    assert result.method == f"leave-one-out among {len(queries)} images"
    assert [result.agreement(run_, result.results[0]).value for run_ in result.results] == [1, 1]
    assert sum(accuracy.total for accuracy in result.per_class(result.results[0]).values()) == len(queries)


def test_table_json_and_page(features: Bundle, folders: tuple[Path, Path], tmp_path: Path) -> None:
    asked = (features.path, "--data", folders[0], "--gallery", folders[1], "--neighbours", 3)
    page, summary = tmp_path / "page.html", tmp_path / "summary.md"
    code, out, err = run("evaluate", *asked, "--per-class", "--confusion", "--html", page, "--markdown", summary)
    assert (code, err) == (0, "")
    for text in ("kNN, k = 3", "recall@10", "kNN accuracy of each class", "taken for"):
        assert text in out
    assert "kNN, k = 3" in summary.read_text(encoding="utf-8")
    assert 'id="embeddings"' in page.read_text(encoding="utf-8")
    code, out, _ = run("evaluate", *asked, "--json")
    data = validated("evaluate_embeddings", out)
    assert (code, data["status"], data["images"], data["gallery"]) == (0, "passed", 60, str(folders[1]))
    reference, onnx = data["results"]
    assert reference["knn"] == onnx["knn"]
    assert onnx["recall"]["1"]["low"] < onnx["recall"]["1"]["accuracy"] < onnx["recall"]["1"]["high"]
    assert onnx["width"] == vectors(features, folders[0])[0].shape[1]


def test_images_without_another_of_their_class_and_images_in_both(features: Bundle, tmp_path: Path) -> None:
    images = sorted((held_out_images() / "3").iterdir())[:3]
    for name, files in {"three": images[:2], "alone": images[2:]}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in files:
            shutil.copy(path, tmp_path / "data" / name)
    alone = evaluate_embeddings(features, data=tmp_path / "data", neighbours=2, backends=["onnxruntime"])
    assert (alone.unmatched, alone.shared, len(alone.notes)) == (1, 0, 1)
    assert alone.recall(alone.results[0], 10).correct == 2
    shutil.copy(images[2], tmp_path / "data" / "alone" / "copy.png")
    copied = evaluate_embeddings(features, data=tmp_path / "data", neighbours=3, backends=["onnxruntime"])
    assert (copied.unmatched, copied.shared, len(copied.notes)) == (0, 2, 1)
    both = evaluate_embeddings(features, data=tmp_path / "data", gallery=tmp_path / "data", backends=["onnxruntime"])
    assert (both.unmatched, both.shared) == (0, 4)
    assert both.recall(both.results[0], 1).value == 1
    (tmp_path / "one").mkdir()
    (tmp_path / "data" / "three").rename(tmp_path / "one" / "three")
    one = evaluate_embeddings(features, data=tmp_path / "one", neighbours=2, backends=["onnxruntime"])
    assert [text.split(",")[0] for text in one.notes] == [
        "each image is searched among 1", "all images have one class",
    ]  # fmt: skip


def test_classes_of_a_table_and_a_limit(features: Bundle, folders: tuple[Path, Path], tmp_path: Path) -> None:
    names = sorted(path.relative_to(folders[0]).as_posix() for path in folders[0].rglob("*.png"))
    table = folders[0] / "labels.csv"
    table.write_text(
        "image,label\n" + "".join(f"{name},digit {Path(name).parent}\n" for name in names), encoding="utf-8"
    )
    try:
        result = evaluate_embeddings(features, data=table, backends=["onnxruntime"], limit=40, seed=3)
    finally:
        table.unlink()
    assert (len(result.images), result.labels[0], result.settings["images"]) == (40, "digit 0", 60)
    assert result.settings["kind"] == "csv"


def test_a_backend_that_cannot_run_is_skipped(
    features: Bundle, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "torch", Backend("not_there:X", (), "torch", "torch"))
    code, out, _ = run("evaluate", features.path, "--data", folders[0], "--json")
    data = validated("evaluate_embeddings", out)
    assert (code, data["status"], [row["status"] for row in data["results"]]) == (3, "skipped", ["skipped", "passed"])


def test_a_pool_that_an_artifact_lacks_is_a_reason_to_skip_it(features: Bundle, folders: tuple[Path, Path]) -> None:
    mean = evaluate_embeddings(features, data=folders[0], pool="mean", backends=["onnxruntime"])
    cls = evaluate_embeddings(features, data=folders[0], pool="cls", backends=["onnxruntime"])
    assert mean.results[0].classes.tolist() != cls.results[0].classes.tolist()
    other = evaluate_embeddings(features, data=folders[0], pool="projection", backends=["onnxruntime"])
    assert (other.status, other.results[0].skipped is None) == ("skipped", False)
    with raises(UsageError, what="onnxruntime fp32"):
        other.knn(other.results[0])


def test_vectors_that_are_not_finite_count_as_wrong(
    features: Bundle, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.models.layers.pooling import Pooling

    original = Pooling.__call__

    def with_nan(self: Pooling, outputs: Any, **options: Any) -> Any:
        found = original(self, outputs, **options).copy()
        found[0, 0] = np.nan
        return found

    monkeypatch.setattr(Pooling, "__call__", with_nan)
    result = evaluate_embeddings(features, data=folders[0], backends=["onnxruntime"], batch_size=20)
    assert result.results[0].not_finite == 3
    assert {result.images[index] for index in (0, 20, 40)} <= set(result.knn(result.results[0]).wrong)


def test_figures_that_are_not_measured_are_refused(features: Bundle, folders: tuple[Path, Path]) -> None:
    result = evaluate_embeddings(features, data=folders[0], backends=["onnxruntime"])
    with raises(UsageError, what="count", expected=RECALLS, found=3):
        result.recall(result.results[0], 3)
    assert isinstance(result, EmbeddingEvaluation)
    assert repr(result) == f"<EmbeddingEvaluation of {str(features.path)!r}: 60 images; 1 backend>"
    skipped = dataclasses.replace(result.results[0], skipped="no device")
    assert dataclasses.replace(result, results=(skipped,)).status == "skipped"


def test_what_does_not_fit_is_refused(
    features: Bundle, digits: Bundle, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with raises(UsageError, what="task", found="image-classification"):
        evaluate_embeddings(digits, data=folders[0])
    with raises(UsageError, what="neighbours", found=0):
        evaluate_embeddings(features, data=folders[0], neighbours=0)
    shutil.copytree(folders[0] / "3", tmp_path / "gallery" / "3")
    with raises(InputError, what="label", where=folders[0]):  # a class that the gallery lacks
        evaluate_embeddings(features, data=folders[0], gallery=tmp_path / "gallery")
    with raises(UsageError, what="gallery"):
        evaluate_embeddings(features, data=open_data(folders[0], None), gallery=tmp_path / "gallery")
    shutil.copytree(folders[0] / "0", tmp_path / "numbered" / "0")
    shutil.copytree(folders[0] / "3", tmp_path / "named" / "three")
    with raises(InputError, what="label", expected=("three",)):  # no index of it
        evaluate_embeddings(features, data=tmp_path / "numbered", gallery=tmp_path / "named")
    one = tmp_path / "one" / "3"
    one.mkdir(parents=True)
    shutil.copy(next((folders[0] / "3").iterdir()), one)
    with raises(InputError, what="images", expected=2, found=1):
        evaluate_embeddings(features, data=one.parent)
    with raises(InputError, what="folder"):  # without labels
        evaluate_embeddings(features, data=one)


@pytest.mark.parametrize(
    ("features_too", "arguments", "message"),
    [
        (True, ("--resume", "work"), "--resume applies to a classifier only"),
        (False, ("--gallery", "."), "--gallery applies to a model for image-feature-extraction only"),
        (False, ("--neighbours", "3"), "--neighbours applies to"),
        (False, ("--pool", "cls"), "--pool applies to"),
        (True, ("--neighbours", "201"), "Invalid value for '--neighbours'"),
        (True, ("--pool", "max"), "Invalid value for '--pool'"),
        (True, ("--gallery", "absent"), "absent"),
    ],
)
def test_options_of_the_other_kind_of_model_are_refused(
    features: Bundle, digits: Bundle, features_too: bool, arguments: tuple[str, ...], message: str
) -> None:
    bundle = features if features_too else digits
    code, out, err = run("evaluate", bundle.path, "--data", held_out_images(), *arguments)
    assert (code in (2, 4), out) == (True, "")
    assert message in err


def test_a_report_does_not_overwrite_the_gallery(features: Bundle, folders: tuple[Path, Path]) -> None:
    image = next(folders[1].rglob("*.png"))
    before = image.read_bytes()
    code, _, err = run("evaluate", features.path, "--data", folders[0], "--gallery", folders[1], "--markdown", image)
    assert (code, "would overwrite an input" in err) == (2, True)
    assert image.read_bytes() == before
