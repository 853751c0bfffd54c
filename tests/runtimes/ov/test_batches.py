"""A batch as runs of one image: each result in its place, and the same as alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
import pytest
from bundles import export_graph, make_feeds, tiny_model
from openvino import opset13 as opset

from vitdeploy.runtimes.ov.batches import run_images
from vitdeploy.runtimes.ov.layout import fix_to_one_image
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def compiled(model: ov.Model, streams: int = 1) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": streams, "NUM_STREAMS": streams}
    return ov.Core().compile_model(model, "CPU", settings)


def outputs_of(model: Any, count: int) -> list[np.ndarray]:
    return [np.empty((count, *port.get_shape()[1:]), port.get_element_type().to_dtype()) for port in model.outputs]


@pytest.mark.parametrize("streams", [1, 2])
def test_every_image_has_its_own_result(tmp_path: Path, streams: int) -> None:
    model = tiny_model(Task.MASKED_IMAGE_MODELING)
    exported = export_graph(model, tmp_path)
    read = ov.Core().read_model(tmp_path / exported.files[0])
    assert fix_to_one_image(read)
    session = compiled(read, streams)
    arrays = list(make_feeds(model, 7).values())
    together = outputs_of(session, 7)
    run_images(session, arrays, together)
    for index in range(7):
        alone = outputs_of(session, 1)
        run_images(session, [array[index : index + 1] for array in arrays], alone)
        for whole, single in zip(together, alone, strict=True):
            np.testing.assert_array_equal(whole[index], single[0])
    assert len({array.tobytes() for array in together[0]}) == 7
    run_images(session, [array[:0] for array in arrays], outputs_of(session, 0))


def test_an_error_ends_every_run(tmp_path: Path) -> None:
    x = opset.parameter([-1, 4], np.float32)
    model = ov.Model([opset.relu(x)], [x])
    assert fix_to_one_image(model)
    session = compiled(model)
    wrong = np.zeros((3, 5), np.float32)
    with pytest.raises(RuntimeError):
        run_images(session, [wrong], outputs_of(session, 3))


@pytest.mark.parametrize(
    ("shape", "operator"),
    [
        ([-1, -1], opset.relu),
        ([2, 4], opset.relu),
        ([-1, 4], lambda x: opset.reduce_sum(x, np.array([0]), keep_dims=False)),
        ([-1, 4], lambda x: opset.matmul(x, x, transpose_a=False, transpose_b=True)),
    ],
    ids=["size", "fixed batch", "sum over images", "each image with each"],
)
def test_models_that_keep_their_shapes(shape: list[int], operator: Callable[[Any], Any]) -> None:
    x = opset.parameter(shape, np.float32)
    model = ov.Model([operator(x)], [x])
    before = [str(port.get_partial_shape()) for port in (*model.inputs, *model.outputs)]
    assert not fix_to_one_image(model)
    assert [str(port.get_partial_shape()) for port in (*model.inputs, *model.outputs)] == before
