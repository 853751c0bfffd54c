"""Labels of a data set and classes of a model."""

from __future__ import annotations

import unicodedata

import pytest

from vitdeploy.assess.matching import BY_INDEX, BY_NAME, BY_POSITION, BY_SYNONYM, Classes
from vitdeploy.errors import InputError

IMAGENET = ("tench, Tinca tinca", "crane", "maillot", "maillot, tank suit", "crane")
# Of PlantVillage, in which commas are no marks between synonyms.
PLANTS = ("Pepper,_bell___healthy", "Cherry_(including_sour)___healthy", "Pepper,_bell___rust", "Corn, sweet, rust")


@pytest.mark.parametrize(
    ("label", "indices"),
    [
        ("tench, Tinca tinca", [0]),
        ("tench", [0]),
        ("Tinca tinca", [0]),
        ("Tinca tinca,tench", [0]),
        ("tench, newt", []),  # a part that is not the class's
        ("tench, tank suit", []),  # the parts of two classes
        ("tench, maillot, tank suit", []),
        ("Tench", []),
        ("", []),
        (",", []),
        ("crane", [1, 4]),
        ("maillot", [2]),  # exactly, although another class has it for a synonym
        ("tank suit", [3]),
        ("suit", []),
        (" tench\t", [0]),
        ("\ufefftench", [0]),
    ],
)
def test_what_a_label_may_mean(label: str, indices: list[int]) -> None:
    assert Classes(IMAGENET).find(label) == indices


@pytest.mark.parametrize(
    ("label", "indices"),
    [
        ("Pepper,_bell___healthy", [0]),
        ("Pepper,_bell___Bacterial_spot", []),  # on the whole no class, whatever it has in common with one
        ("Pepper", [0, 2]),
        ("Corn, sweet, healthy", []),
        ("rust, sweet, Corn", [3]),
    ],
)
def test_a_part_of_a_label_is_not_enough(label: str, indices: list[int]) -> None:
    assert Classes(PLANTS).find(label) == indices


def test_forms_of_unicode_are_one_text() -> None:
    """File systems of macOS give the letters and accents of a name apart."""
    names = ("Köttbullar", "crème brûlée, custard", "寿司", "Å")
    apart = [unicodedata.normalize("NFD", name) for name in names]
    assert [each != name for each, name in zip(apart, names, strict=True)] == [True, True, False, True]
    for labels, classes in ((apart, names), (names, apart)):
        assert list(Classes(classes).match(labels, "it")[0].values()) == [0, 1, 2, 3]
    assert Classes(names).find(unicodedata.normalize("NFD", "crème brûlée")) == [1]


def test_white_space_around_a_class_is_not_looked_at_unless_it_tells_two_apart() -> None:
    assert Classes(["cat ", " dog"]).match(["dog", "cat"], "it")[0] == {"dog": 1, "cat": 0}
    two = Classes(["cat ", "cat"])
    assert (two.find("cat"), two.find("cat "), two.find(" cat")) == ([1], [0], [0, 1])


def test_names_are_matched_in_whatever_order() -> None:
    assert Classes("abc").match_any(["c", "a"], "it") == ({"c": 2, "a": 0}, BY_NAME)
    assert Classes(IMAGENET).match_any(["maillot", "tench"], "it") == ({"maillot": 2, "tench": 0}, BY_SYNONYM)


def test_numbers_are_names_where_one_is_a_name() -> None:
    assert Classes(["0", "2", "1"]).match_any(["1", "2"], "it") == ({"1": 2, "2": 1}, BY_NAME)
    assert Classes("abc").match_any(["1", "02"], "it") == ({"1": 1, "02": 2}, BY_INDEX)
    with pytest.raises(InputError, match="'0' is no class"):
        Classes("12").match_any(["1", "0"], "it")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["tench", "newt"], "it: 'newt' is no class of the model"),
        (["Tench"], "'Tench' is no class of the model; the nearest are 'tench'"),
        (["tank_suit"], "the nearest are 'tank suit'"),
        (["crane"], r"'crane' may mean class 1 \('crane'\) or 4 \('crane'\)"),
        (["tench", "Tinca tinca"], "'tench' and 'Tinca tinca' both mean class 0"),
        (["0", "5"], "5 is not the index of a class; the model's 5 classes are numbered from 0 to 4"),
        (["1", "01"], "'1' and '01' both mean class 1"),
        (["-1"], "'-1' is no class"),
        (["1.0"], r"'1\.0' is no class"),
        (["²"], "'²' is no class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Classes(IMAGENET).match_any(labels, "it")


def test_a_complete_list_in_the_models_order_matches_by_position() -> None:
    assert Classes(IMAGENET).match_list(IMAGENET, "it") == ([0, 1, 2, 3, 4], BY_POSITION)
    spelled = ("Tinca tinca", "crane", "maillot", "tank suit", "crane (2)")
    assert Classes(IMAGENET).match_list(spelled, "it") == ([0, 1, 2, 3, 4], BY_POSITION)
    for other in (IMAGENET[:2], IMAGENET[::-1], ("tench", "crane", "maillot", "tank suit", "crane4wheels")):
        with pytest.raises(InputError):
            Classes(IMAGENET).match_list(other, "it")
    assert Classes(IMAGENET).match_list(["tank suit", "tench"], "it") == ([3, 0], BY_SYNONYM)
