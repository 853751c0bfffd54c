"""A lazy predictor opens once a process, travels closed, and never runs the engine of another process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from forking import Outcome, in_child
from raising import raises

import vitdeploy
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.serving.in_process import lazy_predictor
from vitdeploy.serving.in_process.lazy_predictor import LazyPredictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.bundle.bundle import Bundle

IMAGE = np.arange(9 * 9 * 3, dtype=np.uint8).reshape(9, 9, 3)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of each opening in this process."""
    calls: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        calls.append((*arguments, options))
        return vitdeploy.load(*arguments, **options)

    monkeypatch.setattr(lazy_predictor, "load", load)
    return calls


def best(predictor: LazyPredictor) -> Any:
    """Label, and the process that predicted it."""
    return [predictor.predict(IMAGE)[0][0].label, os.getpid()]


def test_it_opens_on_first_use_and_once(digits: Bundle, opened: list[Any]) -> None:
    with LazyPredictor(digits.path, backend="onnxruntime", intra_op_threads=1) as lazy:
        assert not opened
        assert "not open" in repr(lazy)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: lazy.predict([IMAGE]), range(8)))
        assert opened == [(str(digits.path), {"backend": "onnxruntime", "intra_op_threads": 1})]
        assert found == [lazy.predictor.predict([IMAGE])] * 8
        assert [each.batch_size for each in lazy.warm_up([1, 2], callers=2)] == [1, 2]
        assert lazy.lease().predictor is lazy.predictor
    with raises(UsageError, what="predictor", found="closed"):
        lazy.predict(IMAGE)
    lazy.close()


def test_one_that_was_never_used_opens_nothing(tmp_path: Path, opened: list[Any]) -> None:
    LazyPredictor(tmp_path).close()
    with raises(UsageError, what="path", found=3):
        LazyPredictor(3)  # type: ignore[arg-type]
    assert not opened


def test_an_opening_that_failed_is_tried_again(digits: Bundle, tmp_path: Path) -> None:
    with LazyPredictor(tmp_path / "later") as lazy:
        with raises(BundleError, where=tmp_path / "later"):
            lazy.predict(IMAGE)
        (tmp_path / "later").symlink_to(digits.path)
        assert lazy.predict(IMAGE)


def test_a_copy_has_the_path_and_the_options(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Any]
) -> None:
    monkeypatch.chdir(digits.path.parent)
    with LazyPredictor(digits.path.name, intra_op_threads=1) as lazy:
        expected = lazy.predict(IMAGE)
        monkeypatch.chdir(tmp_path)
        content = pickle.dumps(lazy)
        assert len(content) < 1000
        with pickle.loads(content) as copy:
            assert copy.predict(IMAGE) == expected
            assert copy.predictor is not lazy.predictor
        assert lazy.predict(IMAGE) == expected
    assert len(opened) == 2


def test_the_key_of_a_copy_is_found_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lazy = LazyPredictor("vit", public_key="key.pem", precision="fp32")
    assert (lazy.path, lazy.options) == (
        str(tmp_path / "vit"), {"public_key": str(tmp_path / "key.pem"), "precision": "fp32"}
    )  # fmt: skip
    assert LazyPredictor("vit", public_key=None).options == {"public_key": None}
    with raises(UsageError, what="public_key", found=3):
        LazyPredictor("vit", public_key=3)


@forks
@pytest.mark.parametrize("held", [False, True])
def test_a_forked_child_opens_its_own_even_in_the_middle_of_an_opening(
    digits: Bundle, opened: list[Any], held: bool
) -> None:
    def runs() -> list[Any]:
        with lazy:
            return [*best(lazy), id(lazy.predictor.runtime) != parents, len(opened)]

    with LazyPredictor(digits.path, backend="onnxruntime", intra_op_threads=2) as lazy:  # threads that a child lacks
        label, process = best(lazy)
        parents = id(lazy.predictor.runtime)
        with lazy._lock if held else contextlib.nullcontext():
            outcome = in_child(runs)
        assert best(lazy) == [label, process]
    assert outcome.exit_code == 0
    assert [outcome.answer[0], *outcome.answer[2:]] == [label, True, 2]
    assert outcome.answer[1] != process
    assert len(opened) == 1


@forks
def test_a_child_ends_that_forgets_it_unused(digits: Bundle) -> None:
    lazy = [LazyPredictor(digits.path, backend="onnxruntime", intra_op_threads=2)]
    best(lazy[0])
    assert in_child(lazy.clear) == Outcome(None, 0)
    lazy.pop().close()


def test_a_spawned_process_opens_its_own(digits: Bundle) -> None:
    with (
        LazyPredictor(digits.path, intra_op_threads=1) as lazy,
        multiprocessing.get_context("spawn").Pool(1) as workers,
    ):
        label, here = best(lazy)
        found = workers.map(best, [lazy])
        workers.close()
        workers.join()
    assert [found[0][0], found[0][1] != here] == [label, True]


class Labels(torch.utils.data.Dataset[Any]):
    """What each image is predicted to be."""

    def __init__(self, predictor: LazyPredictor, images: Sequence[np.ndarray]) -> None:
        self._predictor, self._images = predictor, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        return self._predictor.predict(self._images[index])[0][0].index, os.getpid()


@forks
def test_workers_of_a_data_loader_open_their_own(digits: Bundle) -> None:
    with LazyPredictor(digits.path) as lazy:
        expected = lazy.predict(IMAGE)[0][0].index
        loader = torch.utils.data.DataLoader(
            Labels(lazy, [IMAGE] * 4), num_workers=2, multiprocessing_context="fork", timeout=60
        )
        found = [(int(label), int(process)) for label, process in loader]
    assert {label for label, _ in found} == {expected}
    assert os.getpid() not in {process for _, process in found}
