"""Relative positions of grids that transformers cannot have, those that are not square, and timm's rule for others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.geometric import axis_weights, resize_offsets
from vitdeploy.models.layers.positions import RelativePositionBias, interpolate, relative_position_index
from vitdeploy.models.signature import input_specs
from vitdeploy.specs import Task

SIDES = [(1, 1), (1, 4), (2, 1), (2, 2), (2, 7), (3, 3), (4, 5), (4, 9), (5, 2), (14, 24), (14, 7), (32, 14), (14, 99)]
GRIDS = pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 5), (4, 1)], ids=str)


def table_of(grid: tuple[int, int], heads: int = 2, **fields: Any) -> RelativePositionBias:
    size = (grid[0] * 4, grid[1] * 4)
    config = ViTConfig(hidden_size=8, num_attention_heads=heads, image_size=size, patch_size=(4, 4), **fields)
    module = RelativePositionBias(config).double()
    torch.nn.init.normal_(module.relative_position_bias_table, generator=torch.Generator().manual_seed(0))
    return module


@GRIDS
def test_each_pair_of_tokens_has_the_bias_of_its_offset(grid: tuple[int, int]) -> None:
    height, width = grid
    module = table_of(grid)
    table = module.relative_position_bias_table.detach().numpy()
    with torch.no_grad():
        bias = module(relative_position_index(grid, torch.device("cpu")), None)[0].numpy()

    tokens = [None, *((row, column) for row in range(height) for column in range(width))]
    for i, one in enumerate(tokens):
        for j, other in enumerate(tokens):
            if one is None or other is None:  # the last rows: class to patch, patch to class, class to class
                row = len(table) - (1 if one is other else 3 if one is None else 2)
            else:
                row = (one[0] - other[0] + height - 1) * (2 * width - 1) + one[1] - other[1] + width - 1
            np.testing.assert_array_equal(bias[:, i, j], table[row])


@GRIDS
def test_interpolating_to_the_same_grid_changes_no_bit(grid: tuple[int, int]) -> None:
    module = table_of(grid)
    index = relative_position_index(grid, torch.device("cpu"))
    assert torch.equal(module(index, grid), module(index, None))


@pytest.mark.parametrize("new", [(5, 2), (3, 4), (1, 1)], ids=str)
def test_a_table_that_is_not_square_is_interpolated_along_its_own_axes(new: tuple[int, int]) -> None:
    module = table_of((2, 5))
    index = relative_position_index(new, torch.device("cpu"))
    want = module(index, new)
    offsets = module.relative_position_bias_table.detach().numpy()[:-3].reshape(3, 9, 2)
    sizes = 2 * new[0] - 1, 2 * new[1] - 1
    rows, columns = (_bilinear(old, size) for old, size in zip((3, 9), sizes, strict=True))
    got = np.einsum("ap,bq,pqh->abh", rows, columns, offsets)

    module.resize(new)
    assert torch.equal(module(index, None), want)
    table = module.relative_position_bias_table.detach().numpy()
    # The same weights in another order: some units in the last place of values of about 1.
    np.testing.assert_allclose(table[:-3].reshape(got.shape), got, rtol=0, atol=1e-14)


def _bilinear(source: int, target: int) -> np.ndarray:
    """Weights of two neighbours at half-pixel centres, the border repeated: (target, source)."""
    matrix = np.zeros((target, source))
    for row in range(target):
        centre = max((row + 0.5) * source / target - 0.5, 0)
        left = min(int(centre), source - 1)
        right = min(left + 1, source - 1)
        matrix[row, left] += 1 - (centre - left)
        matrix[row, right] += centre - left
    return matrix


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_interpolated_in_float32(dtype: torch.dtype) -> None:
    table = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = interpolate(table, (3, 4), (5, 7), "bicubic", antialias=True)
    want = interpolate(table.float(), (3, 4), (5, 7), "bicubic", antialias=True).to(dtype)
    assert torch.equal(got, want)
    offsets = torch.randn(35, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = resize_offsets(offsets.float(), (3, 4), (5, 7)).to(dtype)
    assert torch.equal(resize_offsets(offsets, (3, 4), (5, 7)), want)


def positions(old: int, new: int) -> list[float]:
    """Where timm puts the offsets of a side, by its search as published (Microsoft's unilm, beit)."""
    low, high, ratio = 1.01, 1.5, 0.0
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if sum(ratio**step for step in range(old - 1)) > new - 1:
            high = ratio
        else:
            low = ratio
    positive = [sum(ratio**step for step in range(count)) for count in range(1, old)]
    return [*(-distance for distance in reversed(positive)), 0.0, *positive]


@pytest.mark.parametrize(("old", "new"), SIDES)
def test_geometric_weights_interpolate_between_uneven_offsets(old: int, new: int) -> None:
    weights = axis_weights(old, new).numpy()
    assert weights.shape == (2 * new - 1, 2 * old - 1)
    targets, sources = np.arange(1 - new, new), positions(old, new)
    want = np.stack([np.interp(targets, sources, one) for one in np.eye(2 * old - 1)], axis=1)
    np.testing.assert_allclose(weights, want, rtol=0, atol=1e-12)  # sums of powers up to some hundred, in float64


@pytest.mark.parametrize(
    ("old", "new"),
    [((4, 4), (6, 6)), ((4, 4), (3, 4)), ((5, 3), (2, 9)), ((1, 1), (3, 2)), ((1, 4), (2, 4)), ((3, 2), (1, 1))],
    ids=str,
)
def test_a_geometric_table_is_interpolated_row_by_row_and_column_by_column(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    module = table_of(old, relative_position_interpolation="geometric")
    before = module.relative_position_bias_table.detach().numpy()
    module.resize(new)
    after = module.relative_position_bias_table.detach().numpy()

    (down, across), (new_down, new_across) = ([2 * side - 1 for side in grid] for grid in (old, new))
    want = np.zeros((new_down, new_across, 2))
    for head in range(2):
        table = before[:-3, head].reshape(down, across)
        columns = np.arange(1 - new[1], new[1])
        wide = np.stack([np.interp(columns, positions(old[1], new[1]), row) for row in table])
        rows = np.arange(1 - new[0], new[0])
        want[:, :, head] = np.stack([np.interp(rows, positions(old[0], new[0]), column) for column in wide.T], axis=1)
    np.testing.assert_allclose(after[:-3].reshape(want.shape), want, rtol=0, atol=1e-13)  # of about 1
    np.testing.assert_array_equal(after[-3:], before[-3:])
    bias = module(relative_position_index(new, torch.device("cpu")), None)
    assert bias.shape == (1, 2, 1 + new[0] * new[1], 1 + new[0] * new[1])


@GRIDS
@pytest.mark.parametrize("kind", ["bilinear", "geometric"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_resizing_to_the_same_grid_changes_no_bit(grid: tuple[int, int], kind: str, dtype: torch.dtype) -> None:
    module = table_of(grid, relative_position_interpolation=kind).to(dtype)
    before = module.relative_position_bias_table.detach().clone()
    module.resize(grid)
    assert torch.equal(module.relative_position_bias_table, before)


def test_a_side_of_thousands_of_patches_has_weights() -> None:
    """The powers that the search tries are then beyond a float."""
    weights = axis_weights(5000, 3).numpy()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("field", ["relative_positions", "shared_relative_positions"])
def test_no_image_size_is_dynamic_where_relative_positions_are_geometric(field: str) -> None:
    fields: dict[str, Any] = {field: True, "relative_position_interpolation": "geometric"}
    with raises(UsageError, what="dynamic_image_size", expected="bilinear", found="geometric"):
        input_specs(ViTConfig(**fields), Task.CLASSIFICATION, dynamic_image_size=True)
    assert input_specs(ViTConfig(**fields), Task.CLASSIFICATION)[0].shape == ("batch", 3, 224, 224)
    module = table_of((2, 3), **fields)
    with raises(UsageError, what="relative_position_interpolation", found="geometric"):
        module(relative_position_index((3, 3), torch.device("cpu")), (3, 3))


def test_an_image_size_may_be_dynamic_where_there_are_no_relative_positions() -> None:
    config = ViTConfig(relative_position_interpolation="geometric")
    (pixels,) = input_specs(config, Task.CLASSIFICATION, dynamic_image_size=True)
    assert pixels.shape == ("batch", 3, "height", "width")
