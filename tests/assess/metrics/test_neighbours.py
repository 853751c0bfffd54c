"""Nearest neighbours against scikit-learn, ties, and blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from raising import raises
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from vitdeploy.assess.metrics import neighbours
from vitdeploy.assess.metrics.neighbours import RECALLS, neighbourhood, recalled
from vitdeploy.errors import UsageError

COUNT, CLASSES = 150, 7


def blobs(seed: int, count: int = COUNT) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vectors around a centre a class, some of them nearer to another one."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, count).astype(np.int32)
    centres = np.random.default_rng(0).normal(size=(CLASSES, 12))
    return (centres[targets] + 1.5 * random.normal(size=(count, 12))).astype(np.float32), targets


@pytest.fixture(params=[(512, 4096), (40, 31)], ids=["one block", "many blocks"], autouse=True)
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = request.param
    monkeypatch.setattr(neighbours, "_ROWS", rows)
    monkeypatch.setattr(neighbours, "_COLUMNS", columns)


def nearest_first(distances: NDArray[Any]) -> NDArray[Any]:
    """A vote a neighbour, and less than half a vote more for those that are nearer: the first one decides a tie."""
    return np.ones(distances.shape) + 0.25 * 0.5 ** np.arange(distances.shape[1])


def vote(count: int, vectors: NDArray[Any], targets: NDArray[Any]) -> Any:
    classifier = KNeighborsClassifier(count, metric="cosine", algorithm="brute", weights=nearest_first)
    return classifier.fit(vectors.astype(np.float64), targets)


@pytest.mark.parametrize("count", [1, 5, 12])
def test_a_gallery_is_searched_as_by_sklearn(count: int) -> None:
    (queries, targets), (gallery, of_gallery) = blobs(1), blobs(2)
    found = neighbourhood(queries, targets, count, (gallery, of_gallery))
    assert (found.classes == vote(count, gallery, of_gallery).predict(queries.astype(np.float64))).all()
    search = NearestNeighbors(n_neighbors=max(RECALLS), metric="cosine").fit(gallery.astype(np.float64))
    nearest = of_gallery[search.kneighbors(queries.astype(np.float64), return_distance=False)]
    for recall in RECALLS:
        expected = (nearest[:, :recall] == targets[:, None]).any(axis=1)
        assert 0.3 < expected.mean() < 1
        assert (recalled(found.ranks, recall) == expected).all()


def test_leave_one_out_is_that_of_sklearn() -> None:
    vectors, targets = blobs(3)
    found = neighbourhood(vectors, targets, 5)
    for index in range(0, COUNT, 10):
        others = np.arange(COUNT) != index
        wanted = vote(5, vectors[others], targets[others]).predict(vectors[index : index + 1].astype(np.float64))
        assert found.classes[index] == wanted[0]
    search = NearestNeighbors(n_neighbors=max(RECALLS), metric="cosine").fit(vectors.astype(np.float64))
    nearest = targets[search.kneighbors(return_distance=False)]  # without arguments, no point is its own neighbour
    for recall in RECALLS:
        assert (recalled(found.ranks, recall) == (nearest[:, :recall] == targets[:, None]).any(axis=1)).all()


def test_the_first_of_equal_cosines_is_the_nearest_whatever_the_lengths() -> None:
    """Fifty vectors of one direction: their products round differently by length and place in a block."""
    direction = np.random.default_rng(0).normal(size=384)
    lengths = np.geomspace(1e-3, 1e3, 50)[:, None]
    gallery = (lengths * direction).astype(np.float64)
    targets = np.arange(50, dtype=np.int32)
    found = neighbourhood(direction[None], np.array([9]), 1, (gallery, targets))
    assert (found.classes.tolist(), found.ranks.tolist()) == ([0], [9])


def test_of_classes_with_equally_many_votes_the_nearest_wins() -> None:
    angles = np.radians([10, 20, 30, 40])
    gallery = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    targets = np.array([3, 1, 1, 3], np.int32)
    query = np.array([[1.0, 0.0]])
    assert neighbourhood(query, np.array([3]), 4, (gallery, targets)).classes.tolist() == [3]
    assert neighbourhood(query, np.array([3]), 3, (gallery, targets)).classes.tolist() == [1]


def test_vectors_that_are_not_finite_or_zero() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [np.nan, 1], [0, 0], [1, 0.2]], np.float32)
    found = neighbourhood(vectors, np.array([0, 1, 1, 1, 0]), 1)
    assert found.classes.tolist() == [1, 0, -1, 0, 1]  # a zero vector is equally far from all: the first
    assert found.ranks.tolist() == [1, 2, -1, 1, 1]


def test_fewer_images_than_neighbours() -> None:
    found = neighbourhood(np.eye(3)[:2], np.array([0, 1]), 5)
    assert (found.classes.tolist(), found.ranks.tolist()) == ([1, 0], [-1, -1])
    alone = neighbourhood(np.eye(3)[:1], np.array([0]), 5)
    assert (alone.classes.tolist(), alone.ranks.tolist()) == ([-1], [-1])


@pytest.mark.parametrize("count", [0, 201, 1.5, True])
def test_an_invalid_number_of_neighbours_is_refused(count: Any) -> None:
    with raises(UsageError, what="neighbours", found=count):
        neighbourhood(np.eye(2), np.array([0, 1]), count)


def test_other_widths_are_refused() -> None:
    with raises(UsageError, what="gallery", expected=(2, 2), found=(3, 3)):
        neighbourhood(np.eye(2), np.array([0, 1]), 1, (np.eye(3), np.arange(3)))
