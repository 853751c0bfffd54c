"""Differences of outputs, on handmade numbers."""

from __future__ import annotations

import decimal
import json
import math
from typing import Any

import numpy as np
import pytest
from raising import raises

from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, Difference, compare_outputs
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import UsageError


def difference_of(reference: Any, candidate: Any, name: str = "logits", **options: Any) -> Difference:
    outputs, others = ({name: np.asarray(values, np.float32)} for values in (reference, candidate))
    (difference,) = compare_outputs(outputs, others, **options)
    return difference


def test_numbers_by_hand() -> None:
    difference = difference_of([[3, 4], [0, 8]], [[4, 3], [0, 6]])
    assert difference == Difference(
        output="logits",
        count=2,
        finite=True,
        max_abs=2.0,
        mean_abs=1.0,  # (1 + 1 + 0 + 2) / 4
        max_relative=0.25,  # 2 of 8
        min_cosine=0.96,  # (12 + 12) / 25; the other image's is 1
        top1_agreement=0.5,
        mean_relative=4 / 15,
        mean_cosine=0.98,
        psnr_db=20 * math.log10(8 / math.sqrt(6 / 4)),  # (1 + 1 + 0 + 4) / 4
    )
    assert difference.required_tolerance == 0.25
    assert difference.within(0.25)
    assert not difference.within(0.2499)
    assert json.loads(json.dumps(difference.to_dict()))["required_tolerance"] == 0.25


def test_equal_outputs_pass_at_zero() -> None:
    difference = difference_of([[1, -2]], [[1, -2]])
    assert (difference.max_abs, difference.max_relative) == (0, 0)
    assert difference.min_cosine == pytest.approx(1, abs=1e-15)
    assert (difference.min_cosine or math.inf) <= 1
    assert (difference.mean_relative, difference.psnr_db, difference.required_tolerance) == (0, None, 0)
    assert difference.within(0)


def test_only_logits_have_a_best_class() -> None:
    assert difference_of([[1, 2]], [[2, 1]], "pooler_output").top1_agreement is None


def test_outputs_of_any_rank() -> None:
    reference = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    difference = difference_of(reference, reference + 1, "last_hidden_state")
    assert (difference.count, difference.max_abs, difference.mean_abs) == (2, 1, 1)
    assert difference.max_relative == pytest.approx(1 / 23)


def test_differences_are_computed_in_float64() -> None:
    """The difference of two float16 numbers, and the sum of many squares, would be lost in their own type."""
    reference, candidate = np.full((1, 4096), 200, np.float16), np.full((1, 4096), 200.125, np.float16)
    (difference,) = compare_outputs({"x": reference}, {"x": candidate})
    assert difference.max_abs == difference.mean_abs == 0.125
    assert difference.min_cosine == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["reference", "candidate", "both"])
def test_a_value_that_is_not_finite_never_passes(value: float, where: str) -> None:
    good, bad = [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, value]]
    difference = difference_of(good if where == "candidate" else bad, good if where == "reference" else bad)
    assert not difference.finite
    assert not difference.within(math.inf)
    assert (difference.required_tolerance, difference.top1_agreement) == (math.inf, 0)


@pytest.mark.parametrize(
    ("candidate", "relative", "cosine"),
    [([[0, 0]], 0.0, 1.0), ([[0, 1e-30]], math.inf, 0.0), ([[3, 0]], math.inf, 0.0)],
)
def test_a_reference_of_zeros(candidate: list[list[float]], relative: float, cosine: float) -> None:
    difference = difference_of([[0, 0]], candidate)
    assert difference.finite
    assert (difference.max_relative, difference.min_cosine) == (relative, cosine)
    assert difference.within(1e6) == (relative == 0)


def test_one_image_of_zeros_among_others() -> None:
    assert difference_of([[0, 0], [1, 1]], [[0, 0], [1, 1]]).min_cosine == pytest.approx(1, abs=1e-15)
    assert difference_of([[1, 1]], [[0, 0]]).min_cosine == 0


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 3e38])
def test_extreme_scales(scale: float) -> None:
    difference = difference_of([[scale, scale / 2]], [[scale / 2, scale / 2]])
    assert difference.max_relative == pytest.approx(0.5, rel=1e-4)
    assert difference.min_cosine == pytest.approx(math.cos(math.atan2(1, 1) - math.atan2(1, 2)), rel=1e-4)


def test_the_required_tolerance_passes_and_the_next_smaller_one_does_not() -> None:
    generator = np.random.default_rng(0)
    values = [
        *(10.0 ** generator.uniform(-300, 3, 2000)),
        *(1e-5 * index / 10 for index in range(1, 200)),  # two digits, or an ulp beside them
        *(math.nextafter(index * 1e-6, 1) for index in range(1, 200)),
        *(math.nextafter(index * 1e-6, 0) for index in range(1, 200)),
    ]
    for value in map(float, values):
        difference = Difference("logits", 1, True, value, value, value, 1.0, 1.0, value, 1.0, None)
        tolerance = difference.required_tolerance
        assert difference.within(tolerance), value
        assert float(f"{tolerance:.1e}") == tolerance, "two digits say all of it"
        assert difference.within(float(f"{tolerance:g}")), value
        smaller = decimal.Decimal(f"{tolerance:.1e}").next_minus(decimal.Context(prec=2))
        assert not difference.within(float(smaller)), value


def test_random_outputs_pass_at_the_tolerance_that_they_are_told() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        reference = generator.standard_normal((3, 5), np.float32) * np.float32(10 ** generator.uniform(-8, 8))
        noise = generator.standard_normal((3, 5), np.float32) * np.float32(10 ** generator.uniform(-8, 0))
        difference = difference_of(reference, reference * (1 + noise))
        assert difference.within(difference.required_tolerance)
        assert difference.min_cosine is not None
        assert -1 <= difference.min_cosine <= 1


@pytest.mark.parametrize(
    ("reference", "candidate", "what", "found"),
    [
        ({"a": (2, 3)}, {"b": (2, 3)}, "outputs", ("b",)),
        ({"a": (2, 3), "b": (2, 3)}, {"a": (2, 3)}, "outputs", ("a",)),
        ({"a": (2, 3)}, {}, "outputs", ()),
        ({}, {}, "outputs", ()),
        ({"a": (2, 3)}, {"a": (2, 4)}, "a", (2, 4)),
        ({"a": (2, 3)}, {"a": (6,)}, "a", (6,)),
        ({"a": (0, 3)}, {"a": (0, 3)}, "a", (0, 3)),
        ({"a": (2, 0)}, {"a": (2, 0)}, "a", (2, 0)),
    ],
)
def test_what_cannot_be_compared(
    reference: dict[str, tuple[int, ...]], candidate: dict[str, tuple[int, ...]], what: str, found: object
) -> None:
    with raises(UsageError, what=what, found=found):
        compare_outputs(
            {name: np.ones(shape) for name, shape in reference.items()},
            {name: np.ones(shape) for name, shape in candidate.items()},
        )


def test_the_order_is_the_references() -> None:
    one = np.ones((1, 1))
    assert [item.output for item in compare_outputs({"b": one, "a": one}, {"a": one, "b": one})] == ["b", "a"]


def test_every_precision_that_can_be_exported_has_a_tolerance() -> None:
    from vitdeploy.exporters import EXPORTERS

    assert {precision for row in EXPORTERS.values() for precision in row.precisions} <= set(DEFAULT_TOLERANCES)


def test_each_value_of_a_regression_has_its_own_scale() -> None:
    """An age of 0.5 that comes out as -1.5 is 2e-4 of a weight of 10,000."""
    reference, candidate = [[0.5, 10_000], [0.25, 8000]], [[-1.5, 10_000], [-0.75, 8001]]
    assert difference_of(reference, candidate, problem_type=ProblemType.REGRESSION) == Difference(
        output="logits",
        count=2,
        finite=True,
        max_abs=2.0,
        mean_abs=1.5,
        max_relative=4.0,
        min_cosine=None,
        top1_agreement=None,
        mean_relative=4.0,
        mean_cosine=None,
        psnr_db=20 * math.log10(0.5 / math.sqrt((4 + 1) / 2)),
    )
    assert difference_of(reference, candidate).max_relative == pytest.approx(2e-4), "of one scale"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_of_a_regression_that_is_not_finite_is_the_worst(value: float) -> None:
    """Beside a reference of zeros that differs, which is infinite as well."""
    difference = difference_of([[0, 1], [0, 1]], [[1, 1], [1, value]], problem_type=ProblemType.REGRESSION)
    assert not difference.finite
    assert difference.required_tolerance == math.inf


def test_only_the_logits_of_a_regression_have_scales_of_their_own() -> None:
    values = [[0.5, 10_000]], [[1.0, 10_000]]
    difference = difference_of(*values, "pooler_output", problem_type=ProblemType.REGRESSION)
    assert difference.max_relative == pytest.approx(5e-5)
    assert difference.min_cosine is not None
