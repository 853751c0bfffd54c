"""The table of ILSVRC's classes, and WordNet ids for models with different class names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from environments import environment, run
from raising import raises

from vitdeploy.assess.data.class_labels import BY_ILSVRC_ORDER, BY_NAME, BY_POSITION, BY_SYNONYM, BY_WORDNET_ID, Classes
from vitdeploy.assess.data.imagenet import in_ilsvrc_order, synset_of, synsets
from vitdeploy.errors import InputError

FILE = Path(sys.modules[synsets.__module__].__file__ or "").with_name("imagenet_classes.tsv")
IDS = list(synsets())
# As in id2label of google/vit-base-patch16-224 and others.
NAMES = [line.split("\t")[1] for line in FILE.read_text(encoding="utf-8").splitlines()]
BIRD, MACHINE = IDS[134], IDS[517]


def test_the_table() -> None:
    assert len(IDS) == len(set(IDS)) == 1000
    assert (sorted(IDS), IDS[0], NAMES[0]) == (IDS, "n01440764", "tench, Tinca tinca")
    assert (IDS[999], NAMES[999]) == ("n15075141", "toilet tissue, toilet paper, bathroom tissue")
    assert (BIRD, MACHINE) == ("n02012849", "n03126707")
    assert [index for index, name in enumerate(NAMES) if NAMES.count(name) > 1] == [134, 517]


def test_it_is_what_timm_and_torchvision_have() -> None:
    """Ids and words of timm; and of torchvision, a source of its own, a name a class, two of them changed."""
    code = (
        "import importlib.util as u, sys; print(*(u.find_spec(n).submodule_search_locations[0] for n in sys.argv[1:]))"
    )
    timm, torchvision = map(Path, run(environment("timm"), "-c", code, "timm", "torchvision").split())
    ids = (timm / "data/_info/imagenet_synsets.txt").read_text(encoding="utf-8").split()
    lemmas = (timm / "data/_info/imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t") for line in lemmas)
    assert (ids, [words[key] for key in ids]) == (IDS, NAMES)
    tree = ast.parse((torchvision / "models/_meta.py").read_text(encoding="utf-8"))
    (categories,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_IMAGENET_CATEGORIES"
    )
    assert {index for index, name in enumerate(categories) if name not in synsets()[IDS[index]]} == {134, 639}
    assert in_ilsvrc_order([{name} for name in categories])


def test_it_is_read_only_when_it_is_needed() -> None:
    code = (
        "from pathlib import Path; read = []; real = Path.read_text;"
        "Path.read_text = lambda self, *a, **k: read.append(self.name) or real(self, *a, **k);"
        "from vitdeploy.assess.data.class_labels import Classes;"
        "found = Classes(['cat', 'LABEL_1']).find('dog'); print(read);"
        "Classes(['cat']).find('n01440764'); print(read)"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert lines[:2] == ["[]", "['imagenet_classes.tsv']"]


def test_a_class_is_the_synset_of_its_synonyms() -> None:
    assert synset_of({"tench"}) == synset_of({"tench", "Tinca tinca"}) == "n01440764"
    assert synset_of({"maillot"}) == IDS[638]
    assert synset_of({"maillot", "tank suit"}) == synset_of({"tank suit"}) == IDS[639]
    for unclear in ({"crane"}, {"horn"}, {"tench", "crane"}, {"no such thing"}, set()):
        assert synset_of(unclear) is None


def test_wordnet_ids_of_a_model_with_all_classes() -> None:
    assert Classes(NAMES).match(IDS, "it") == ({each: index for index, each in enumerate(IDS)}, BY_WORDNET_ID)
    short = [name.split(", ")[0] for name in NAMES]  # "maillot" twice, and "crane"
    assert Classes(short).match(IDS, "it")[0] == {each: index for index, each in enumerate(IDS)}
    own = [*NAMES[:134], "crane bird", *NAMES[135:639], "maillot tank suit", *NAMES[640:]]
    assert Classes(own).match([BIRD, MACHINE, IDS[639]], "it")[0] == {BIRD: 134, MACHINE: 517, IDS[639]: 639}


def test_wordnet_ids_of_a_model_with_some_classes_in_another_order() -> None:
    chosen = [639, 638, 0, 657, 744]
    found, rule = Classes([NAMES[index] for index in chosen]).match([IDS[index] for index in chosen], "it")
    assert (list(found.values()), rule) == ([0, 1, 2, 3, 4], BY_WORDNET_ID)
    shuffled = Classes(NAMES[::-1])
    assert shuffled.match([IDS[0]], "it")[0] == {IDS[0]: 999}
    for unclear in (BIRD, MACHINE):
        assert shuffled.find(unclear) == []  # rather than the other crane


def test_wordnet_ids_where_classes_have_no_names() -> None:
    classes = Classes([f"LABEL_{index}" for index in range(1000)])
    assert classes.match([MACHINE, BIRD], "it") == ({MACHINE: 517, BIRD: 134}, BY_ILSVRC_ORDER)
    for count in (999, 1001, 10):
        with raises(InputError, what="label", found=BIRD):
            Classes([f"LABEL_{index}" for index in range(count)]).match([BIRD], "it")


def test_wordnet_ids_of_other_synsets_and_of_classes_that_are_named_by_theirs() -> None:
    with raises(InputError, what="label", found="n00004475"):
        Classes(NAMES).match(["n00004475"], "it")
    classes = Classes([IDS[3], "n00004475", IDS[0]])
    assert classes.match(["n00004475", IDS[0]], "it") == ({"n00004475": 1, IDS[0]: 2}, BY_NAME)
    assert classes.match(["tench"], "it") == ({"tench": 2}, BY_SYNONYM)


def test_a_complete_list_in_order_tells_the_cranes_apart() -> None:
    assert Classes(NAMES).match_list(NAMES, "it") == (list(range(1000)), BY_POSITION)
    numbered = [*NAMES[:517], "crane2", *NAMES[518:]]
    assert Classes(NAMES).match_list(numbered, "it") == (list(range(1000)), BY_POSITION)
    with raises(InputError, what="class names", found="crane"):
        Classes(NAMES).match_list(NAMES[::-1], "it")
    with raises(InputError, what="label", expected=[134, 517], found="crane"):
        Classes(NAMES).match_list(NAMES[:200], "it")
    first = [name.split(", ")[0] for name in NAMES]
    assert Classes(NAMES).match_list(first, "it") == (list(range(1000)), BY_POSITION)
    assert Classes(first).match_list(NAMES, "it") == (list(range(1000)), BY_POSITION)
    swapped = [NAMES[1], NAMES[0], *NAMES[2:]]
    with raises(InputError, what="class names", found="crane"):
        Classes(NAMES).match_list(swapped, "it")
    assert Classes("abc").match_list("cab", "it") == ([2, 0, 1], BY_NAME)
