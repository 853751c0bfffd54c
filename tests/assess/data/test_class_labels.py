"""Labels of a data set and classes of a model."""

from __future__ import annotations

import unicodedata

import pytest
from raising import raises

from vitdeploy.assess.data.class_labels import BY_INDEX, BY_NAME, BY_NUMBER, BY_POSITION, BY_SYNONYM, Classes
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
    with raises(InputError, what="label", found="0"):
        Classes("12").match_any(["1", "0"], "it")


@pytest.mark.parametrize("names", ["1 2 3 4 5 6 7 8 9 10", "0 1 2 3 4 5", "3 2 x 1", "01 2 003", "10 20 1 30"])
def test_a_number_means_the_class_of_that_number_whatever_its_zeros(names: str) -> None:
    """By the value of the number; an index would be off by one for classes that count from 1."""
    classes = names.split()
    want = {int(name): index for index, name in enumerate(classes) if name.isdigit()}
    for width in (1, 2, 5):
        labels = {f"{number:0{width}}": index for number, index in want.items()}
        assert Classes(classes).match_any(list(labels), "it")[0] == labels
        (lone, index), *_ = labels.items()
        assert Classes(classes).match_any([lone], "it")[0] == {lone: index}
    assert Classes(["1", "2"]).match_any(["01", "02"], "it")[1] == BY_NUMBER
    assert Classes(["one, 1", "two, 2"]).match_any(["01"], "it") == ({"01": 0}, BY_NUMBER)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["1", "2", "3"], ["0"]),
        (["1", "2", "3"], ["00", "01"]),
        (["1", "01", "2"], ["001"]),  # of two classes
        (["911", "ambulance"], ["0", "1"]),
        (["grade 1", "grade 2", "grade 3"], ["1", "2"]),
        (["1.0", "2.0", "3.0"], ["1"]),
    ],
)
def test_a_number_that_may_be_an_index_or_in_a_name_is_refused(names: list[str], labels: list[str]) -> None:
    with pytest.raises(InputError):
        Classes(names).match_any(labels, "it")


@pytest.mark.parametrize(
    "names", [["grade 0", "grade 1"], ["LABEL_0", "LABEL_1"], ["0.0", "1.0"], ["covid19", "sars2"], ["cat", "dog 1"]]
)
def test_numbers_in_names_are_no_matter_where_they_are_the_indices_or_say_nothing(names: list[str]) -> None:
    assert Classes(names).match_any(["01", "00"], "it") == ({"01": 1, "00": 0}, BY_INDEX)


@pytest.mark.parametrize(
    ("labels", "fields"),
    [
        (["tench", "newt"], {"found": "newt", "expected": []}),
        (["Tench"], {"found": "Tench", "expected": ["tench"]}),
        (["tank_suit"], {"found": "tank_suit", "expected": ["tank suit"]}),
        (["crane"], {"found": "crane", "expected": [1, 4]}),
        (["tench", "Tinca tinca"], {"what": "labels", "found": ("tench", "Tinca tinca")}),
        (["0", "5"], {"found": 5, "expected": range(5)}),
        (["1", "01"], {"what": "labels", "found": ("1", "01")}),
        (["-1"], {"found": "-1", "expected": []}),
        (["1.0"], {"found": "1.0", "expected": []}),
        (["²"], {"found": "²", "expected": []}),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[str], fields: dict[str, object]) -> None:
    with raises(InputError, **{"where": "it", "what": "label", **fields}):
        Classes(IMAGENET).match_any(labels, "it")


def test_a_complete_list_in_the_models_order_matches_by_position() -> None:
    assert Classes(IMAGENET).match_list(IMAGENET, "it") == ([0, 1, 2, 3, 4], BY_POSITION)
    spelled = ("Tinca tinca", "crane", "maillot", "tank suit", "crane (2)")
    assert Classes(IMAGENET).match_list(spelled, "it") == ([0, 1, 2, 3, 4], BY_POSITION)
    for other in (IMAGENET[:2], IMAGENET[::-1], ("tench", "crane", "maillot", "tank suit", "crane4wheels")):
        with pytest.raises(InputError):
            Classes(IMAGENET).match_list(other, "it")
    assert Classes(IMAGENET).match_list(["tank suit", "tench"], "it") == ([3, 0], BY_SYNONYM)


def test_a_list_of_first_words_matches_by_position() -> None:
    """The word of the second suit is the whole name of the first, which no other label of the list may mean."""
    names = ("tench, Tinca tinca", "maillot", "maillot, tank suit", "cat")
    first = [name.split(", ")[0] for name in names]
    for labels, classes in ((first, names), (names, first)):
        assert Classes(classes).match_list(labels, "it") == ([0, 1, 2, 3], BY_POSITION)
        for other in ([*labels[1:], labels[0]], labels[:3], [*labels, labels[0]]):
            with pytest.raises(InputError):
                Classes(classes).match_list(other, "it")


def test_names_count_before_positions() -> None:
    assert Classes(["a", "a, b"]).match_list(["a, b", "a"], "it") == ([1, 0], BY_NAME)
    with raises(InputError, what="labels", found=("a, b", "b")):  # "a, b" is not at its own position
        Classes(["a", "a, b"]).match_list(["a, b", "b"], "it")
