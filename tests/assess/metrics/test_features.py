"""Comparison of vectors with the reference's; scikit-learn and numpy are the oracles."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.neighbors import NearestNeighbors

from vitdeploy.assess.metrics import features
from vitdeploy.assess.metrics.features import TokenVector, cosines, nearness, same_neighbours, vectors

COUNT, WIDTH = 60, 24


def noisy(scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(COUNT, WIDTH) vectors, and the same with noise."""
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal((COUNT, WIDTH)).astype(np.float32)
    return vector, vector + np.float32(scale) * rng.standard_normal(vector.shape).astype(np.float32)


def neighbours(vector: np.ndarray) -> np.ndarray:
    """(N,) the nearest of each but itself, by scikit-learn."""
    found = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vector).kneighbors(return_distance=False)
    return np.asarray(found)[:, 0]


@pytest.mark.parametrize("scale", [0.0, 0.05, 0.3, 2.0])
def test_figures_are_those_of_sklearn_and_numpy(scale: float) -> None:
    reference, artifact = noisy(scale)
    (found,) = nearness({"pooler_output": reference}, {"pooler_output": artifact})
    wanted = 1 - paired_cosine_distances(reference.astype(np.float64), artifact.astype(np.float64))
    assert found.images == COUNT
    assert found.mean_cosine == pytest.approx(wanted.mean(), abs=1e-9)
    assert found.p5_cosine == pytest.approx(np.percentile(wanted, 5), abs=1e-9)
    assert found.min_cosine == pytest.approx(wanted.min(), abs=1e-9)
    same = int((neighbours(reference) == neighbours(artifact)).sum())
    assert found.same_neighbours == same
    assert found.neighbour_agreement == pytest.approx(same / COUNT)
    assert (same == COUNT) == (scale == 0)


def test_rows_of_the_similarities_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = same_neighbours(*noisy(0.5))
    assert 0 < whole.sum() < COUNT
    monkeypatch.setattr(features, "_ROWS", 7)
    np.testing.assert_array_equal(same_neighbours(*noisy(0.5)), whole)


@pytest.mark.parametrize("token", [TokenVector("cls_token", 1), TokenVector("mean_token", 2)], ids=str)
@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        (("pooler_output", "last_hidden_state"), ["pooler_output", "token"]),
        (("last_hidden_state", "hidden_states.1"), ["token"]),
        (("logits", "last_hidden_state"), ["logits"]),
        (("reconstruction",), ["reconstruction"]),
    ],
)
def test_what_is_judged(outputs: tuple[str, ...], wanted: list[str], token: TokenVector) -> None:
    rng = np.random.default_rng(1)
    shapes = {"pooler_output": (3, 8), "logits": (3, 5)}
    given = {name: rng.standard_normal(shapes.get(name, (3, 7, 8))) for name in outputs}
    found = vectors(given, token)
    names = [token.name if name == "token" else name for name in wanted]
    assert list(found) == names
    if token.name in found:
        tokens = given["last_hidden_state"]
        by_hand = {"cls_token": tokens[:, 0], "mean_token": tokens[:, 2:].sum(axis=1) / 5}
        np.testing.assert_allclose(found[token.name], by_hand[token.name], rtol=1e-5)
    searched = [each.output for each in nearness(found, found) if each.same_neighbours is not None]
    assert searched == ([names[0]] if names[0] in ("pooler_output", token.name) else [])
    assert all(each.same_neighbours is None for each in nearness(found, found, search=False))


def test_logits_of_patches_are_judged_whole() -> None:
    assert vectors({"logits": np.ones((2, 9, 4))}, TokenVector("cls_token", 1))["logits"].shape == (2, 9, 4)


def test_what_has_no_cosine() -> None:
    reference = np.array([[0.0, 0], [0, 0], [1, 0], [3e38, 3e38]], np.float32)
    artifact = np.array([[0.0, 0], [1, 0], [np.nan, 0], [3e38, 3e38]], np.float32)
    np.testing.assert_allclose(cosines(reference, artifact), [1, 0, -1, 1])
    assert not same_neighbours(reference, artifact)[2]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_two_images_have_no_choice_of_neighbours(count: int) -> None:
    """Each is the other's, of whatever artifact."""
    reference, artifact = (rng.standard_normal((count, 4)) for rng in map(np.random.default_rng, (0, 1)))
    (found,) = nearness({"pooler_output": reference}, {"pooler_output": artifact})
    assert (found.same_neighbours is None) == (found.neighbour_agreement is None) == (count < 3)


def test_of_images_that_are_equally_near_any_is_the_same() -> None:
    """Two copies of a photograph: which of them comes first is rounding."""
    reference = np.array([[1.0, 0.1], [1, 0], [1, 0], [0, 1]])
    artifact = reference + np.array([[0, 0], [0, -1e-5], [0, 1e-5], [0, 0]])
    assert neighbours(artifact)[0] == 2
    assert same_neighbours(reference, artifact).all()
    artifact[3] = [0.99, 0.11]  # which makes it the nearest
    assert same_neighbours(reference, artifact).tolist() == [False, True, True, True]
