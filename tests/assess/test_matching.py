"""Labels of a data set and classes of a model."""

from __future__ import annotations

import pytest

from vitdeploy.assess.matching import BY_INDEX, BY_NAME, BY_SYNONYM, Classes
from vitdeploy.errors import InputError

IMAGENET = ("tench, Tinca tinca", "crane", "maillot", "maillot, tank suit", "crane")


@pytest.mark.parametrize(
    ("label", "indices"),
    [
        ("tench, Tinca tinca", [0]),
        ("tench", [0]),
        ("Tinca tinca", [0]),
        ("Tinca tinca, tench", [0]),
        ("Tench", []),
        ("", []),
        ("crane", [1, 4]),
        ("maillot", [2]),  # exactly, although another class has it for a synonym
        ("tank suit", [3]),
    ],
)
def test_what_a_label_may_mean(label: str, indices: list[int]) -> None:
    assert Classes(IMAGENET).find(label) == indices


def test_names_are_matched_in_whatever_order() -> None:
    assert Classes("abc").match_any(["c", "a"], "it") == ({"c": 2, "a": 0}, BY_NAME)
    assert Classes(IMAGENET).match_any(["maillot", "tench"], "it") == ({"maillot": 2, "tench": 0}, BY_SYNONYM)


def test_numbers_are_names_where_one_is_a_name() -> None:
    assert Classes(["0", "2", "1"]).match_any(["1", "2"], "it") == ({"1": 2, "2": 1}, BY_NAME)
    assert Classes("abc").match_any(["1", "2"], "it") == ({"1": 1, "2": 2}, BY_INDEX)
    with pytest.raises(InputError, match=r"it must label images with the model's classes \(1, 2\), has '0'"):
        Classes("12").match_any(["1", "0"], "it")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["tench", "newt"], r"it must label images with the model's classes \(tench, Tinca tinca, .*\), has 'newt'"),
        (["crane"], r"must have labels that mean one class, 'crane' means those of \[1, 4\]"),
        (["tench", "Tinca tinca"], r"one label for a class, 'tench' and 'Tinca tinca' both mean 'tench, Tinca tinca'"),
        (["0", "5"], r"labels from 0 to 4, the model's classes, has 5"),
        (["-1"], r"has '-1'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Classes(IMAGENET).match_any(labels, "it")
