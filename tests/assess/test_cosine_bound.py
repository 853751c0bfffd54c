"""The judge of a quantized artifact where nobody says how near it must be."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from vitdeploy.assess.calibration_images import Agreement
from vitdeploy.assess.cosine_bound import CosineBound
from vitdeploy.assess.difference import compare_outputs
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
    found = Agreement.of("pooler_output", cosines, None)
    if passes:
        BOUND.check("onnx-int8", found, held_out=True)
        return
    with pytest.raises(CheckFailedError, match=r"pooler_output has a mean cosine of .* on 20 held-out images"):
        BOUND.check("onnx-int8", found, held_out=True)


@pytest.mark.parametrize(("error", "passes"), [(0.2, True), (0.21, False), (float("inf"), False)])
def test_values_without_a_class_are_judged_by_their_error(error: float, passes: bool) -> None:
    """The cosine of one value is that of its sign, of which even the right one says nothing."""
    found = Agreement.of("logits", [-1.0 if passes else 1.0] * 4, None, error)
    wanted = np.full((4, 1), 3.0, np.float32)
    (difference,) = compare_outputs(
        {"logits": wanted}, {"logits": wanted * np.float32(1 + error * 0.999)}, ranked=False
    )
    with contextlib.nullcontext() if passes else pytest.raises(CheckFailedError, match="logits differs by"):
        BOUND.check("onnx-int8", found, held_out=False)
    with contextlib.nullcontext() if passes else pytest.raises(CheckFailedError, match="logits differs by"):
        BOUND.check_difference("onnx-int8", difference, of_values=True)


def test_a_value_that_stands_out_is_no_reason() -> None:
    """A vector whose largest value is a third off, as in trained ViTs, can be as near as 8 bits go."""
    wanted = np.random.default_rng(0).standard_normal((4, 4000)).astype(np.float32)
    given = wanted.copy()
    given[:, 0] += 0.35 * np.abs(wanted).max()
    (difference,) = compare_outputs({"y": wanted}, {"y": given})
    assert difference.max_relative > 0.3
    BOUND.check_difference("onnx-int8", difference, of_values=False)
    (difference,) = compare_outputs({"y": wanted}, {"y": wanted + 0.3 * np.roll(wanted, 1, axis=1)})
    with pytest.raises(CheckFailedError, match=r"y has a mean cosine of 0.9.* on 4 images"):
        BOUND.check_difference("onnx-int8", difference, of_values=False)
