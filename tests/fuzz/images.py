"""Images, given to a model for normalised pixels and to one that resizes by itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import vitdeploy
from fuzz.cases import DAMAGED, PASSED, Case
from fuzz.damage import choose, damaged
from fuzz.pictures import RECIPES, huge, valid_images
from fuzz.special_files import replace

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

_HUGE_SHARE = 0.01  # which take a second each
_SPECIAL_SHARE = 0.02


class Images:
    """Of each format: damaged, odd, lying, huge, animated, and with odd metadata.

    Oracle: refused with 4, or each class has a finite score, and they sum to 1. Pixels have no checksum, so that damage
    to them is not seen; the same file gives the same scores twice.
    """

    def __init__(self, base: Path) -> None:
        self._bundles = [base / "bundle", base / "embedded"]
        self._predictors = [vitdeploy.load(bundle) for bundle in self._bundles]

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        note, content = self.content(rng)
        path = folder / choose(rng, ("a.jpg", "a.png", "a", "a.tif", "a.eps", "-é\udcff.gif"))
        path.write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, path)
        which = int(rng.integers(2))

        def call() -> list[Any]:
            predictor = self._predictors[which]
            first = predictor.predict([path])
            if not note.startswith("huge"):
                assert predictor.predict([path.read_bytes()]) == first, "a file and its bytes give two results"
            return first

        args = ("predict", str(self._bundles[which]), "--json", "--", path.name)
        return Case(f"{note} ({'embedded' if which else 'plain'})", args, frozenset({PASSED, DAMAGED}), _check, call)

    @staticmethod
    def content(rng: np.random.Generator) -> tuple[str, bytes]:
        """How an image was made, and the file."""
        draw = rng.random()
        if draw < _HUGE_SHARE:
            return huge(rng)
        if draw < 0.5:
            kind, content = choose(rng, tuple(valid_images().items()))
            note, content = damaged(rng, content, head=64)
            return f"damaged {kind}: {note}", content
        note, content = choose(rng, RECIPES)(rng)
        if rng.random() < 0.3:
            more, content = damaged(rng, content, head=64)
            note = f"{note}, {more}"
        return note, content


def _check(results: list[Any]) -> str | None:
    scores = [prediction.score for prediction in results[0]]
    if len(scores) != 3 or not all(map(math.isfinite, scores)) or abs(sum(scores) - 1) > 1e-5:
        return f"scores of three classes must sum to 1, are {scores}"
    return None
