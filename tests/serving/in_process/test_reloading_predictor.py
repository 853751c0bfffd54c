"""A bundle is replaced under a running application, or refused, without a gap."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import sign_again, write_bundle
from forking import in_child
from gated_runtime import WAIT_S, gray
from raising import raises

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleError, NotFiniteError, UsageError, VitDeployError
from vitdeploy.files.atomic import replace_folder, staged_folder
from vitdeploy.predictor import Prediction, Predictor
from vitdeploy.serving.in_process.micro_batcher import MicroBatcher
from vitdeploy.serving.in_process.reloading_predictor import ReloadingPredictor, ReloadStatus

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
Answers = dict[str, list[list[Prediction]]]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of two good bundles, of other weights and image sizes, and of some that may not replace the first."""
    folder = tmp_path_factory.mktemp("versions")
    first = write_bundle(folder / "first").path
    second = write_bundle(folder / "second", image_size=(48, 48)).path
    names = "other labels", "not finite", "altered", "no manifest"
    labels, not_finite, altered, none = (shutil.copytree(second, folder / name) for name in names)
    config = json.loads((labels / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "cat", "1": "cow", "2": "newt"}, "label2id": {"cat": 0, "cow": 1, "newt": 2}}
    (labels / "config.json").write_text(json.dumps(config), encoding="utf-8")
    graph = onnx.load(not_finite / "onnx" / "model.onnx")
    for weight in graph.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 1:
            weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
    onnx.save(graph, not_finite / "onnx" / "model.onnx")
    for path in (labels, not_finite):
        sign_again(Bundle.open(path))
    with (altered / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    (none / "manifest.json").unlink()
    return {"first": first, "second": second, **dict(zip(names, (labels, not_finite, altered, none), strict=True))}


@pytest.fixture
def bundle(versions: dict[str, Path], tmp_path: Path) -> Path:
    """The folder in use, with the first version."""
    return shutil.copytree(versions["first"], tmp_path / "in use")


@pytest.fixture(scope="module")
def answers(versions: dict[str, Path]) -> Answers:
    found = {}
    for name in ("first", "second"):
        with vitdeploy.load(versions[name]) as predictor:
            found[name] = predictor.predict(IMAGE)
    assert found["first"] != found["second"]
    return found


def install(version: Path, bundle: Path) -> None:
    """Replace the bundle as an export does."""
    with staged_folder(bundle) as staging:
        shutil.copytree(version, staging, dirs_exist_ok=True)
        replace_folder(staging, bundle)


def test_a_new_bundle_replaces_the_old_one(bundle: Path, versions: dict[str, Path], answers: Answers) -> None:
    with ReloadingPredictor(bundle) as predictor:
        with predictor.lease() as first:
            assert predictor.predict(IMAGE) == answers["first"]
            assert not predictor.reload()
            with predictor.lease() as same:
                assert same is first
            install(versions["second"], bundle)
            assert predictor.predict(IMAGE) == answers["first"]
            assert predictor.reload()
            assert predictor.predict(IMAGE) == answers["second"]
            assert first.predict(IMAGE) == answers["first"], "it is in use until the end of its lease"
        with raises(UsageError, what="runtime", found="closed"):
            first.predict(IMAGE)
        with vitdeploy.load(versions["second"]) as second:
            assert predictor.status == ReloadStatus(second.fingerprint, reloads=1)


@pytest.mark.parametrize(
    ("version", "error", "what"),
    [
        ("other labels", BundleError, "labels"),
        ("not finite", NotFiniteError, "logits"),
        ("altered", BundleError, None),
        ("no manifest", BundleError, None),
        ("features", BundleError, "outputs"),
    ],
)
def test_a_bundle_that_is_refused_changes_nothing(
    bundle: Path,
    versions: dict[str, Path],
    features: Path,
    answers: Answers,
    version: str,
    error: type[VitDeployError],
    what: str | None,
) -> None:
    with ReloadingPredictor(bundle) as predictor:
        before = predictor.status.fingerprint
        install(versions.get(version, features), bundle)
        for failures in (1, 2):
            with raises(error) as caught:
                predictor.reload()
            assert what in (None, caught.value.what)
            assert predictor.status == ReloadStatus(before, 0, failures, str(caught.value))
        assert predictor.predict(IMAGE) == answers["first"]
        install(versions["second"], bundle)
        assert predictor.reload()
        assert predictor.status.last_error is None
        assert predictor.predict(IMAGE) == answers["second"]


def test_new_labels_are_taken_where_that_is_allowed(bundle: Path, versions: dict[str, Path]) -> None:
    with ReloadingPredictor(bundle, allow_new_labels=True) as predictor:
        install(versions["other labels"], bundle)
        assert predictor.reload()
        assert {best.label for best in predictor.predict(IMAGE)[0]} == {"cat", "cow", "newt"}


def test_the_first_bundle_is_proven_too(versions: dict[str, Path]) -> None:
    with raises(NotFiniteError, what="logits", where=versions["not finite"]):
        ReloadingPredictor(versions["not finite"])
    for options in (
        {"watch": 0.0},
        {"watch": "1"},
        {"allow_new_labels": 1},
        {"batch_sizes": [0]},
        {"callers": 0},
        {"backend": 3},
    ):
        with raises(UsageError, what=next(iter(options))):
            ReloadingPredictor(versions["first"], **options)


def test_vectors_are_those_of_the_bundle(features: Path) -> None:
    with ReloadingPredictor(features, precision="fp32") as predictor, vitdeploy.load(features) as wanted:
        np.testing.assert_array_equal(
            predictor.embed([IMAGE], pool="mean", normalize=True, batch_size=1),
            wanted.embed([IMAGE], pool="mean", normalize=True, batch_size=1),
        )


def test_images_that_wait_run_on_the_bundle_that_they_were_read_for(
    bundle: Path, versions: dict[str, Path], answers: Answers
) -> None:
    """The second version takes other pixels."""
    with ReloadingPredictor(bundle) as predictor:
        batcher = MicroBatcher(predictor, max_delay=WAIT_S)
        old = [batcher.submit(IMAGE) for _ in range(2)]
        with predictor.lease() as first:
            pass
        install(versions["second"], bundle)
        assert predictor.reload()
        new = batcher.submit(IMAGE)
        batcher.close()
        for future in old:
            assert _labels(future.result()) == _labels(answers["first"][0])
        assert _labels(new.result()) == _labels(answers["second"][0])
        with raises(UsageError, what="runtime", found="closed"):
            first.predict(IMAGE)


def _labels(predictions: list[Prediction]) -> list[tuple[str, Any]]:
    return [(best.label, pytest.approx(best.score, rel=1e-5)) for best in predictions]


def test_no_request_fails_while_bundles_come_and_go(bundle: Path, versions: dict[str, Path], answers: Answers) -> None:
    found: list[list[list[Prediction]]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            found.append(predictor.predict(IMAGE))

    with ReloadingPredictor(bundle) as predictor:
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in ("second", "first", "second"):
            install(versions[version], bundle)
            assert predictor.reload()
        stop.set()
        for thread in threads:
            thread.join()
    assert len(found) > 1
    assert all(answer in answers.values() for answer in found)


def wait_for(reached: Any) -> None:
    end = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_watcher_reloads(
    bundle: Path, versions: dict[str, Path], answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    with ReloadingPredictor(bundle, watch=0.01) as predictor:
        install(versions["not finite"], bundle)
        wait_for(lambda: predictor.status.failures >= 2)  # it tries again
        assert predictor.predict(IMAGE) == answers["first"]
        install(versions["second"], bundle)
        wait_for(lambda: predictor.status.reloads)
        assert predictor.predict(IMAGE) == answers["second"]
    assert {(record.levelname, record.exc_info or None) for record in caplog.records} == {("WARNING", None)}
    assert not [thread for thread in threading.enumerate() if thread.name == "vitdeploy-watcher"]


def test_a_watcher_counts_a_manifest_that_cannot_be_read(bundle: Path) -> None:
    """Until it is as before: then the bundle in use is the one in the folder again."""
    with ReloadingPredictor(bundle, watch=np.float32(0.01)) as predictor:  # type: ignore[arg-type]
        status = predictor.status
        whole = (bundle / "manifest.json").read_bytes()
        (bundle / "manifest.json").write_bytes(whole[:100])
        wait_for(lambda: predictor.status.failures)
        assert "manifest.json" in str(predictor.status.last_error)
        (bundle / "manifest.json").write_bytes(whole)
        wait_for(lambda: predictor.status.last_error is None)
        assert dataclasses.replace(predictor.status, failures=0) == status


def test_a_watcher_does_not_keep_what_nobody_uses(bundle: Path) -> None:
    predictor = ReloadingPredictor(bundle, watch=0.01)
    runtime = weakref.ref(predictor.lease().predictor.runtime)
    del predictor
    wait_for(lambda: gc.collect() is not None and runtime() is None)  # the watcher may be in the middle of a look
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "vitdeploy-watcher"])


def test_paths_do_not_change_with_the_working_directory(
    versions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("here", "there")]
    for folder, version in zip(folders, ("first", "second"), strict=True):
        shutil.copytree(versions[version], folder / "vit")
    monkeypatch.chdir(folders[0])
    with ReloadingPredictor("vit") as predictor:
        monkeypatch.chdir(folders[1])
        assert not predictor.reload()


@pytest.mark.parametrize("watch", [0, float("nan"), 1e10, "1"])
def test_seconds_that_cannot_be_waited(bundle: Path, watch: Any) -> None:
    with raises(UsageError, what="watch"):
        ReloadingPredictor(bundle, watch=watch)


def test_the_bundle_is_closed_after_the_last_request(bundle: Path, answers: Answers) -> None:
    predictor = ReloadingPredictor(bundle)
    lent = predictor.lease()
    predictor.close()
    predictor.close()
    for refused in (predictor.lease, predictor.reload, lambda: predictor.predict(IMAGE)):
        with raises(UsageError, what="predictor", found="closed"):
            refused()
    assert lent.predictor.predict(IMAGE) == answers["first"]
    lent.release()
    with raises(UsageError, what="runtime", found="closed"):
        lent.predictor.predict(IMAGE)


def test_a_bundle_that_is_opened_while_this_is_closed_is_closed_too(
    bundle: Path, versions: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = ReloadingPredictor(bundle)
    opened: list[Predictor] = []

    def open_and_close(old: Any) -> Any:
        _, new = found = proven(old)
        opened.append(new)
        predictor.close()
        return found

    proven = predictor._open_proven
    monkeypatch.setattr(predictor, "_open_proven", open_and_close)
    install(versions["second"], bundle)
    with raises(UsageError, what="predictor", found="closed"):
        predictor.reload()
    with raises(UsageError, what="runtime", found="closed"):
        opened[0].predict(IMAGE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_refused(bundle: Path) -> None:
    def use() -> list[str]:
        told = []
        for call in (predictor.reload, lambda: predictor.predict(gray(0))):
            try:
                call()
            except UsageError as exc:
                told.append(f"{exc.what} {exc.found}")
        predictor.close()
        return told

    with ReloadingPredictor(bundle) as predictor:
        assert dataclasses.astuple(in_child(use)) == (["predictor forked"] * 2, 0)
        assert predictor.predict(IMAGE), "the parent goes on"
