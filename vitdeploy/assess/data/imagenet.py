"""The 1,000 classes of ILSVRC 2012 (ImageNet-1k): their WordNet ids and synonyms.

`imagenet_classes.tsv` has one line per class, sorted by id, the logit order of practically every ImageNet-1k model:
WordNet 3.0's offset of a noun's synset, and the synset's words (Russakovsky et al. 2015, arXiv:1409.0575; Miller 1995,
doi:10.1145/219717.219748).
"""

from __future__ import annotations

import collections
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_WORDNET_ID = re.compile("n[0-9]{8}")


def is_wordnet_id(label: str) -> bool:
    """True for the WordNet id of a noun, such as "n01440764"."""
    return _WORDNET_ID.fullmatch(label) is not None


@functools.cache
def synsets() -> Mapping[str, frozenset[str]]:
    """The words of each synset by WordNet id, in ILSVRC's class order."""
    lines = Path(__file__).with_name("imagenet_classes.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return {wordnet_id: frozenset(words.split(", ")) for wordnet_id, words in pairs}


@functools.cache
def _ids_by_word() -> Mapping[str, Collection[str]]:
    ids: dict[str, list[str]] = collections.defaultdict(list)
    for wordnet_id, words in synsets().items():
        for word in words:
            ids[word].append(wordnet_id)
    return ids


def synset_of(synonyms: Collection[str]) -> str | None:
    """The WordNet id of the only synset that fits a class with these synonyms; None for none or several.

    A synset fits if it has all of them and no other word; failing that, if it is the only one that has all of them.
    "maillot" is n03710637, although n03710721 is "maillot, tank suit"; "crane" is the whole of two synsets, and "horn"
    a part of two.
    """
    wanted = frozenset(synonyms)
    candidates = [key for key in _ids_by_word().get(next(iter(wanted), ""), ()) if wanted <= synsets()[key]]
    matches = [key for key in candidates if synsets()[key] == wanted] or candidates
    return matches[0] if len(matches) == 1 else None


def in_ilsvrc_order(synonyms_of_classes: Sequence[Collection[str]]) -> bool:
    """True if these are the 1,000 classes in ILSVRC's order.

    Each class must share a word with the synset at its position. Synsets that share a word with another one are not
    checked, such as the two cranes: lists of class names distinguish them in different ways.
    """
    if len(synonyms_of_classes) != len(synsets()):
        return False
    return all(
        not words.isdisjoint(synonyms)
        for words, synonyms in zip(synsets().values(), synonyms_of_classes, strict=True)
        if all(len(_ids_by_word()[word]) == 1 for word in words)
    )
