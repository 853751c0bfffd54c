"""The callables for Ray Data, Daft and Spark, without any of them: columns in, columns out."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from forking import Outcome, in_child
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.runtimes.choice import choose_opening
from vitdeploy.serving.scale_out import batch_callable
from vitdeploy.serving.scale_out.batch_callable import BatchPredictor, DecodeImages, resolve
from vitdeploy.serving.scale_out.result_columns import Labels, Vectors
from vitdeploy.specs import PixelFormat, PixelStage, Task

if TYPE_CHECKING:
    from pathlib import Path

    from vitdeploy.bundle.bundle import Bundle


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return sorted(held_out_images().rglob("*.png"))[:20]


@pytest.fixture(scope="module")
def encoded(files: list[Path]) -> np.ndarray:
    """The files' bytes, with a damaged image, an empty one and none at all in between."""
    images: list[Any] = [path.read_bytes() for path in files]
    images[3], images[7], images[12] = images[3][:60], b"", None
    return np.array(images, object)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    source = vitdeploy.SourceOptions(task=Task.FEATURES)
    return vitdeploy.export(default_checkpoint(), source=source, output=tmp_path_factory.mktemp("features") / "bundle")


_BAD = [3, 7, 12]


def _expected(digits: Bundle, files: list[Path], top_k: int) -> list[list[vitdeploy.Prediction]]:
    with vitdeploy.load(digits.path, backend="onnxruntime") as predictor:
        return predictor.predict(files, top_k=top_k)


def test_rows_are_those_of_predict_and_bad_images_have_their_reason(
    digits: Bundle, files: list[Path], encoded: np.ndarray
) -> None:
    computed = BatchPredictor(digits.path, batch_size=4)({"id": np.arange(20), "image": encoded})
    assert list(computed) == ["id", "label", "index", "score", "error"]
    assert computed["id"].tolist() == list(range(20))
    assert [row for row, error in enumerate(computed["error"]) if error] == _BAD
    for row, (best,) in enumerate(_expected(digits, files, 1)):
        if row in _BAD:
            assert (computed["label"][row], computed["index"][row]) == ("", -1)
            assert np.isnan(computed["score"][row])
        else:
            assert (computed["label"][row], computed["index"][row]) == (best.label, best.index)
            assert computed["score"][row] == np.float32(best.score)


def test_labels_that_are_not_text_are_escaped(digits: Bundle, files: list[Path]) -> None:
    with vitdeploy.load(digits.path) as predictor:
        predictor.labels, rows = ("\ud800",) * 10, Labels()
        logits = predictor.logits(predictor.processor(files[:1]))
        columns = rows.empty(predictor, 1)
        rows.put(columns, np.array([0]), logits, predictor)
        assert (
            columns["label"].tolist() == [rows.answer(predictor, logits[0])["predictions"][0]["label"]] == ["\\ud800"]
        )


def test_several_classes_have_a_second_axis(digits: Bundle, files: list[Path], encoded: np.ndarray) -> None:
    computed = BatchPredictor(digits.path, rows=Labels(top_k=3))({"image": encoded[:3]})
    expected = _expected(digits, files[:3], 3)
    assert computed["label"].tolist() == [[best.label for best in row] for row in expected]
    assert computed["index"].tolist() == [[best.index for best in row] for row in expected]
    assert computed["score"].tolist() == [[best.score for best in row] for row in expected]


def test_vectors_are_those_of_embed(features: Bundle, files: list[Path], encoded: np.ndarray) -> None:
    computed = BatchPredictor(features.path, rows=Vectors(normalize=True))({"image": encoded})
    with vitdeploy.load(features.path) as predictor:
        expected = predictor.embed(files, normalize=True)
    good = np.setdiff1d(np.arange(20), _BAD)
    np.testing.assert_array_equal(computed["vector"][good], expected[good])
    assert np.isnan(computed["vector"][_BAD]).all()
    assert list(np.flatnonzero(computed["error"] != "")) == _BAD


def test_two_stages_give_what_one_gives(digits: Bundle, encoded: np.ndarray) -> None:
    decoder = pickle.loads(pickle.dumps(DecodeImages.of(digits.path, "picture")))
    prepared = decoder({"id": np.arange(20), "picture": encoded})
    assert prepared["pixel_values"].shape == (20, 3, 32, 32)
    assert not prepared["pixel_values"][_BAD].any()
    whole = BatchPredictor(digits.path)({"id": np.arange(20), "image": encoded})
    for name, column in BatchPredictor(digits.path)(prepared).items():
        np.testing.assert_array_equal(column, whole[name])


def test_a_batch_may_have_no_image_that_can_be_read(digits: Bundle) -> None:
    computed = BatchPredictor(digits.path)({"image": np.array([b"", b"no image"], object)})
    assert computed["label"].tolist() == ["", ""]
    assert all(computed["error"])
    assert BatchPredictor(digits.path)({"image": np.array([], object)})["label"].shape == (0,)


@pytest.mark.parametrize("kind", ["pixels", "array", "dictionary"])
def test_images_come_as_pixels_or_as_a_data_sets_dictionaries(digits: Bundle, files: list[Path], kind: str) -> None:
    opened = [np.asarray(Image.open(path).convert("RGB")) for path in files[:4]]
    columns: dict[str, np.ndarray] = {
        "pixels": np.stack(opened),
        "array": np.array([None, *opened], object)[1:],
        "dictionary": np.array([{"bytes": path.read_bytes(), "path": None} for path in files[:4]], object),
    }
    computed = BatchPredictor(digits.path)({"image": columns[kind]})
    assert computed["label"].tolist() == [best.label for (best,) in _expected(digits, files[:4], 1)]


@pytest.mark.parametrize("kind", ["text", "numpy", "dictionary"])
def test_a_row_cannot_name_a_file_of_the_machine(digits: Bundle, files: list[Path], kind: str) -> None:
    path = str(files[0])
    column = {"text": np.array([path], object), "numpy": np.array([path]), "dictionary": np.array([{"bytes": path}])}
    with raises(UsageError, what="image", found=path):
        BatchPredictor(digits.path)({"image": column[kind]})


def test_it_is_opened_on_first_use_in_each_process(
    digits: Bundle, encoded: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = pickle.loads(pickle.dumps(BatchPredictor(tmp_path / "absent")))
    with raises(BundleError, where=tmp_path / "absent"):
        absent({"image": encoded[:1]})
    monkeypatch.chdir(digits.path.parent)
    used = BatchPredictor(digits.path.name, threads=1)
    monkeypatch.chdir(tmp_path)  # as in a worker
    used({"image": encoded[:1]})
    assert used.predictor is used.predictor
    assert used.predictor.runtime.threads is not None
    assert used.predictor.runtime.threads.count == 1
    other = pickle.loads(pickle.dumps(used))
    assert other.predictor is not used.predictor
    used.close()
    labels = other({"image": encoded[:1]})["label"].tolist()
    if hasattr(os, "fork"):
        assert in_child(lambda: other({"image": encoded[:1]})["label"].tolist()) == Outcome(labels, 0)
    other.close()
    with raises(UsageError, what="predictor", found="closed"):
        other({"image": encoded[:1]})


def test_logits_that_are_not_finite_are_an_error_of_their_row(
    digits: Bundle, encoded: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    callable_ = BatchPredictor(digits.path)
    computed = callable_.predictor.logits(np.zeros((2, 3, 32, 32), np.float32))
    computed[1, 4] = np.nan
    monkeypatch.setattr(callable_.predictor, "logits", lambda _: computed)
    rows = callable_({"image": encoded[:2]})
    assert [bool(error) for error in rows["error"]] == [False, True]
    assert rows["index"][1] == -1


def test_a_column_is_not_replaced_by_a_result(digits: Bundle, encoded: np.ndarray) -> None:
    for name in ("label", "index", "error"):
        with raises(UsageError, what=name, found=(name,)):
            BatchPredictor(digits.path)({name: np.arange(2), "image": encoded[:2]})


def test_a_key_does_not_change_what_is_opened(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opening, choosing = mock.Mock(return_value=digits), mock.Mock(wraps=choose_opening)
    monkeypatch.setattr(type(digits), "open", opening)
    monkeypatch.setattr(batch_callable, "choose_opening", choosing)
    assert resolve(digits.path, {"public_key": "key.pub"}).options["public_key"] == "key.pub"
    opening.assert_called_once_with(digits.path, public_key="key.pub")
    choosing.assert_called_once_with(digits, None, None, None, {}, artifact=None, beside_decoding=False)


@pytest.mark.parametrize(
    ("threads", "given", "expected"),
    [
        (2, {}, (1, 2)),
        (2, {"intra_op_threads": 1}, (1, 1)),
        (2, {"parallel_runs": 0}, (2, 1)),
        (2, {"parallel_runs": 4}, (2, 1)),
        (1, {"parallel_runs": 4}, (1, 1)),
    ],
)
def test_threads_are_those_of_a_run_or_as_many_runs(
    digits: Bundle, threads: int, given: dict[str, Any], expected: tuple[int, int]
) -> None:
    callable_ = BatchPredictor(digits.path, threads=threads, backend="onnxruntime", **given)
    details = callable_.predictor.runtime.details
    callable_.close()
    assert (details["parallel_runs"], details["intra_op_threads"]) == expected


def test_what_does_not_fit_is_refused(digits: Bundle, encoded: np.ndarray) -> None:
    with raises(UsageError, what="image", found=("picture",)):
        BatchPredictor(digits.path)({"picture": encoded})
    with raises(UsageError, what="top_k", found=0):
        Labels(top_k=0)
    with raises(UsageError, what="batch_size", found=0):
        BatchPredictor(digits.path, batch_size=0)
    with raises(UsageError, what="outputs"):
        BatchPredictor(digits.path, rows=Vectors())({"image": encoded})
    with raises(UsageError, what="output_size", expected="a fixed size"):
        DecodeImages(ImageProcessor(), PixelFormat(PixelStage.DECODED, "nhwc", "uint8"))


@pytest.mark.parametrize("name", ["backend", "precision", "device", "artifact", "public_key"])
def test_an_option_of_a_wrong_type_is_named(digits: Bundle, name: str) -> None:
    with raises(UsageError, what=name, found=["x"]):
        resolve(digits.path, {name: ["x"]}, 1)
