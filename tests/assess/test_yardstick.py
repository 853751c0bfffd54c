"""How far the variants of a graph are from the reference, and how much each node alone adds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from small_graphs import graph_of
from vitdeploy.assess.yardstick import Yardstick, effects, relative_error
from vitdeploy.exporters.onnx_file import write_onnx
from vitdeploy.exporters.variants import Variants

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

HARM = {"a": 0.0, "b": 3.0, "c": 0.5}  # what each node adds to every value where it is not kept


def write(kept: Collection[str], path: Path) -> None:
    added = np.array(sum(harm for node, harm in HARM.items() if node not in kept), np.float32)
    write_onnx(graph_of("g (float[n, 4] pixel_values) => (float[n, 4] y) { y = Add(pixel_values, w) }", w=added), path)


VARIANTS = Variants(tuple(HARM), write)
IMAGES = [np.full((1, 4), 3, np.float32), np.full((2, 4), 4, np.float32)]
YARDSTICK = Yardstick(IMAGES, {"y": np.concatenate(IMAGES)})
LENGTH = math.sqrt((9 + 2 * 16) / 3)  # root of the mean square


def test_the_error_of_a_variant() -> None:
    assert YARDSTICK.error(VARIANTS, HARM) == 0
    assert YARDSTICK.error(VARIANTS, ()) == pytest.approx(3.5 / LENGTH)
    assert YARDSTICK.error(VARIANTS, {"b"}) == pytest.approx(0.5 / LENGTH)


def test_the_effect_of_each_node() -> None:
    told: list[tuple[int, int]] = []
    found = effects(VARIANTS, lambda kept: YARDSTICK.error(VARIANTS, kept), lambda *done: told.append(done))
    assert found == pytest.approx({node: harm / LENGTH for node, harm in HARM.items()})
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_effect_of_nodes_that_are_one_layer() -> None:
    layers = {"first": ("a", "b"), "second": ("c",)}
    found = effects(VARIANTS, lambda kept: YARDSTICK.error(VARIANTS, kept), lambda *_: None, layers)
    assert found == pytest.approx({"first": 3 / LENGTH, "second": 0.5 / LENGTH})


def test_of_several_outputs_the_largest_error_counts() -> None:
    want = {"x": np.ones((2, 3)), "y": np.full((2, 3), 2.0)}
    assert relative_error(want, {"x": np.full((2, 3), 1.1), "y": np.full((2, 3), 2.02)}) == pytest.approx(0.1)
    assert relative_error(want, want) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_no_result(value: float) -> None:
    assert relative_error({"x": np.ones(2)}, {"x": np.array([1, value])}) == math.inf


def test_half_floats_do_not_overflow() -> None:
    want = np.full(1000, 300, np.float16)  # whose squares are beyond 65,504
    assert relative_error({"x": want}, {"x": want + np.float16(30)}) == pytest.approx(0.1)


def test_nothing_is_expected() -> None:
    assert relative_error({"x": np.zeros(3)}, {"x": np.zeros(3)}) == 0
    assert relative_error({"x": np.zeros(3)}, {"x": np.ones(3)}) > 1e100
