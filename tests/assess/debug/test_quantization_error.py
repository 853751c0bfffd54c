"""Errors of a graph's variants, and of each node alone."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from small_graphs import graph_of
from told import Told

from vitdeploy.assess.debug.quantization_error import VariantErrors, sensitivities
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.exporters.graph.variants import Variants
from vitdeploy.system.progress import SILENT

ADDING = "g (float[n, 4] pixel_values) => (float[n, 4] y) { y = Add(pixel_values, w) }"
HARM = {"a": 0.0, "b": 3.0, "c": 0.5}  # what each node adds to every value where it is not kept


def write(kept: Collection[str], path: Path) -> None:
    added = np.array(sum(harm for node, harm in HARM.items() if node not in kept), np.float32)
    write_onnx(graph_of(ADDING, w=added), path)


def variant(text: str, value: float) -> Variants:
    """The graph, whatever is kept."""

    def write_graph(_: Collection[str], path: Path) -> None:
        write_onnx(graph_of(text, w=np.array(value, np.float32)), path)

    return Variants(("a",), write_graph)


VARIANTS = Variants(tuple(HARM), write)
IMAGES = [np.full((1, 4), 3, np.float32), np.full((2, 4), 4, np.float32)]
YARDSTICK = VariantErrors(IMAGES, {"y": np.concatenate(IMAGES)})
LENGTH = math.sqrt((9 + 2 * 16) / 3)  # root of the mean square


def test_the_error_of_a_variant() -> None:
    assert YARDSTICK.error(VARIANTS, HARM) == 0
    assert YARDSTICK.error(VARIANTS, ()) == pytest.approx(3.5 / LENGTH)
    assert YARDSTICK.error(VARIANTS, {"b"}) == pytest.approx(0.5 / LENGTH)


def test_the_effect_of_each_node() -> None:
    told: list[tuple[int, int]] = []
    effects = sensitivities(
        VARIANTS, lambda kept: YARDSTICK.error(VARIANTS, kept), Told(None, lambda *done: told.append(done))
    )
    assert effects == pytest.approx({node: harm / LENGTH for node, harm in HARM.items()})
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_effect_of_nodes_that_are_one_layer() -> None:
    layers = {"first": ("a", "b"), "second": ("c",)}
    effects = sensitivities(VARIANTS, lambda kept: YARDSTICK.error(VARIANTS, kept), SILENT, layers)
    assert effects == pytest.approx({"first": 3 / LENGTH, "second": 0.5 / LENGTH})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_no_result(value: float) -> None:
    assert YARDSTICK.error(variant(ADDING, value), ()) == math.inf


def test_nothing_is_expected() -> None:
    nothing = VariantErrors([np.zeros((1, 4), np.float32)], {"y": np.zeros((1, 4), np.float32)})
    assert (nothing.error(VARIANTS, HARM), nothing.error(VARIANTS, ())) == (0, math.inf)


def test_of_several_outputs_the_largest_error_counts_and_others_do_not() -> None:
    text = "g (float[n, 4] pixel_values) => (float[n, 4] y, float[n, 4] z) { y = Add(pixel_values, w) z = Neg(y) }"
    variants = variant(text, 0.3)
    ones = np.ones((1, 4), np.float32)
    assert VariantErrors([ones], {"y": ones, "z": -2 * ones}).error(variants, ()) == pytest.approx(0.35)
    assert VariantErrors([ones], {"y": ones}).error(variants, ()) == pytest.approx(0.3)


def test_a_file_lies_where_it_may_and_goes_again(tmp_path: Path) -> None:
    seen = []

    def note(kept: Collection[str], path: Path) -> None:
        seen.append(path)
        write(kept, path)

    VariantErrors(IMAGES, {"y": np.concatenate(IMAGES)}, tmp_path).error(Variants(tuple(HARM), note), ())
    assert tmp_path in seen[0].parents
    assert list(tmp_path.iterdir()) == []


def test_an_output_of_zeros_is_not_near() -> None:
    zeros = variant("g (float[n, 4] pixel_values) => (float[n, 4] y) { y = Mul(pixel_values, w) }", 0.0)
    assert YARDSTICK.closeness(zeros, (), one_by_one=False) == (1.0, 0.0, 0.0)


def test_each_value_of_a_regression_counts_by_itself() -> None:
    """1 added to a value of 2 and to one of 1000."""
    graph = "g (float[n, 2] pixel_values) => (float[n, 2] logits) { logits = Add(pixel_values, w) }"
    images = np.array([[2, 1000]], np.float32)
    expected = {"logits": images}
    by_value = VariantErrors([images], expected, problem_type=ProblemType.REGRESSION)
    assert by_value.error(variant(graph, 1), ()) == 0.5
    assert by_value.closeness(variant(graph, 1), (), one_by_one=True) == (0.5, None, None)
    assert VariantErrors([images], expected).error(variant(graph, 1), ()) == pytest.approx(
        math.sqrt(2) / 1000, rel=1e-5
    )
