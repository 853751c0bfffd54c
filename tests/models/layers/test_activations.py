"""Each activation against transformers' function of that name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from raising import raises
from transformers.activations import ACT2CLS, ACT2FN

from vitdeploy.errors import CheckpointError
from vitdeploy.models.layers.activations import ACTIVATIONS, activation

WITH_WEIGHTS = {"prelu", "xielu"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_is_that_of_transformers(name: str) -> None:
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    got, want = activation(name, "hidden_act")(x), ACT2FN[name](x)
    # Some are written differently: units in the last place, of values up to 144.
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_none_without_weights_is_missing() -> None:
    assert set(ACTIVATIONS) == set(ACT2CLS) - WITH_WEIGHTS


@pytest.mark.parametrize("name", [*sorted(WITH_WEIGHTS), "", "GELU", "gelu\n", None, 3, ["gelu"], {}])
def test_an_unknown_one_is_named(name: Any) -> None:
    with raises(CheckpointError, what="pooler_act", expected=tuple(ACTIVATIONS), found=name):
        activation(name, "pooler_act")
