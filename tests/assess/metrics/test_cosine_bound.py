"""Default bounds for a quantized artifact."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
from raising import raises
from scipy.stats import binomtest

from vitdeploy.assess.metrics.agreement import Agreement
from vitdeploy.assess.metrics.cosine_bound import CosineBound, too_long
from vitdeploy.assess.metrics.features import cosines, nearness
from vitdeploy.assess.metrics.outputs import compare_outputs, relative_error
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import CheckFailedError

BOUND = CosineBound(0.99, 0.97, 0.2)


@pytest.mark.parametrize(
    ("cosines", "passes"),
    [
        ([0.999] * 20, True),
        ([0.999] * 19 + [0.5], False),  # whose 5th percentile is between the last two
        ([0.989] * 20, False),
        ([1.0] * 10 + [0.96] * 10, False),
        ([float("nan")] * 20, False),
    ],
)
def test_the_mean_and_the_5th_percentile_count(cosines: list[float], passes: bool) -> None:
    agreement = Agreement.of("pooler_output", cosines, None, 0.05)
    if passes:
        BOUND.check("onnx-int8", agreement, held_out=True)
        return
    with raises(CheckFailedError, what="pooler_output", where="onnx-int8", found=agreement):
        BOUND.check("onnx-int8", agreement, held_out=True)


@pytest.mark.parametrize(("error", "passes"), [(0.2, True), (0.21, False), (float("inf"), False)])
def test_values_without_a_class_are_judged_by_their_error(error: float, passes: bool) -> None:
    """The cosine of one value is that of its sign, of which even the right one says nothing."""
    agreement = Agreement.of("logits", [-1.0 if passes else 1.0] * 4, None, 0.0, error)
    wanted = np.full((4, 1), 3.0, np.float32)
    (difference,) = compare_outputs(
        {"logits": wanted}, {"logits": wanted * np.float32(1 + error * 0.999)}, problem_type=ProblemType.REGRESSION
    )
    with contextlib.nullcontext() if passes else raises(CheckFailedError, what="logits"):
        BOUND.check("onnx-int8", agreement, held_out=False)
    with contextlib.nullcontext() if passes else raises(CheckFailedError, what="logits"):
        BOUND.check_difference("onnx-int8", difference, 0.0, of_values=True)


def test_a_value_that_stands_out_is_no_reason() -> None:
    """A vector whose largest value is a third off, as in trained ViTs, can be as near as 8 bits go."""
    wanted = np.random.default_rng(0).standard_normal((4, 4000)).astype(np.float32)
    given = wanted.copy()
    given[:, 0] += 0.35 * np.abs(wanted).max()
    (difference,) = compare_outputs({"y": wanted}, {"y": given})
    assert difference.max_relative > 0.3
    BOUND.check_difference("onnx-int8", difference, relative_error(wanted, given), of_values=False)
    (difference,) = compare_outputs({"y": wanted}, {"y": wanted + 0.3 * np.roll(wanted, 1, axis=1)})
    with raises(CheckFailedError, what="y", found=difference):
        BOUND.check_difference("onnx-int8", difference, 0.0, of_values=False)


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.1, True), (0.7, False), (1.3, False), (3.0, False)])
def test_a_constant_factor_is_too_far(factor: float, passes: bool) -> None:
    """Every cosine is 1 and every neighbour the same, and yet who compares distances gets others."""
    wanted = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    given = wanted * np.float32(factor)
    error = relative_error(wanted, given)
    assert error == pytest.approx(abs(factor - 1), abs=1e-6)
    agreement = Agreement.of("pooler_output", [1.0] * 32, None, error)
    (near,) = nearness({"pooler_output": wanted}, {"pooler_output": given})
    (difference,) = compare_outputs({"pooler_output": wanted}, {"pooler_output": given})
    assert (BOUND.why_not(near) is None) is passes
    with contextlib.nullcontext() if passes else raises(CheckFailedError, what="pooler_output"):
        BOUND.check("onnx-int8", agreement, held_out=True)
    with contextlib.nullcontext() if passes else raises(CheckFailedError, what="pooler_output"):
        BOUND.check_difference("onnx-int8", difference, error, of_values=False)
    assert (too_long(near, 0.99) is None) is passes


def test_what_is_added_to_all_classes_hides_nothing() -> None:
    """With a bias of 30 the cosine of any two sets of logits is 1; the classes are others."""
    draw = np.random.default_rng(0)
    wanted, given = (draw.standard_normal((32, 10)).astype(np.float32) + 30 for _ in range(2))
    assert cosines(wanted, given).mean() > 0.99
    assert relative_error(wanted, given) < 0.2 < relative_error(wanted, given, of_classes=True)
    assert relative_error(wanted, wanted + 5, of_classes=True) < 1e-5


@pytest.mark.parametrize(("same", "passes"), [(64, True), (26, True), (20, False), (4, False)])
def test_half_of_the_classes_stay_as_far_as_images_tell(same: int, passes: bool) -> None:
    """The upper end of Wilson's 95 % interval of 26 of 64 is 0.53, of 20 of 64 it is 0.43."""
    assert bool(binomtest(same, 64).proportion_ci(method="wilson").high >= 0.5) is passes
    agreement = Agreement.of("logits", [1.0] * 64, [1.0] * same + [0.0] * (64 - same), 0.0)
    bound = dataclasses.replace(BOUND, classes=0.5)
    with contextlib.nullcontext() if passes else raises(CheckFailedError, what="logits", found=agreement):
        bound.check("onnx-int8", agreement, held_out=True)
