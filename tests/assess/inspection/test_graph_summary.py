"""Equal layers are one line."""

from __future__ import annotations

import pytest

from vitdeploy.assess.inspection.graph_summary import merge_layers


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({}, {}),
        ({"embeddings": 1, "layers.0": 1, "head": 1}, {"embeddings": 1, "layer 0": 1, "head": 1}),
        ({f"layers.{index}": 1 for index in range(12)}, {"layers 0-11": 1}),
        ({"layers.0": 1, "layers.1": 2, "layers.2": 2, "layers.3": 1}, {"layer 0": 1, "layers 1-2": 2, "layer 3": 1}),
        ({"layers.0": 1, "layers.2": 1, "layers.3": 1}, {"layer 0": 1, "layers 2-3": 1}),
        ({"graph": 1}, {"graph": 1}),
    ],
)
def test_only_consecutive_layers_of_equal_value_are_merged(values: dict[str, int], want: dict[str, int]) -> None:
    merged = merge_layers(values)
    assert (merged, list(merged)) == (want, list(want))
