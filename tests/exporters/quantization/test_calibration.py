"""Ranges measured while a graph runs, and kept by what they were measured from."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest

from small_graphs import graph_of, operators
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.quantization.calibration import CalibrationData, calibrated_ranges
from vitdeploy.exporters.quantization.methods import METHODS, MinMax, Percentile
from vitdeploy.exporters.quantization.number_format import INT8, UINT8, NumberFormat, Range
from vitdeploy.exporters.quantization.range_cache import RangeCache, default_folder
from vitdeploy.specs import PixelFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.methods import Method

IMAGES = [np.random.default_rng(seed).standard_normal((1, 4), np.float32) * (seed + 1) for seed in range(3)]


class Runner:
    """Runs the images, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray]]:
        self.runs += 1
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        for image in IMAGES:
            names = [output.name for output in session.get_outputs()]
            yield dict(zip(names, session.run(None, {"x": image}), strict=True))


def graph(weight: float = 2.0) -> ir.Model:
    text = "agraph (float[N, 4] x) => (float[N, 4] y) { a = Mul (x, w) y = Relu (a) }"
    return graph_of(text, w=np.full((4,), weight, np.float32))


def ranges(
    data: CalibrationData,
    folder: Path,
    *,
    made: ir.Model | None = None,
    method: Method = MinMax(),  # noqa: B008  (frozen)
    number_format: NumberFormat = UINT8,
) -> dict[str, Range]:
    model = made or graph()
    values = [*model.graph.inputs, *(node.outputs[0] for node in model.graph), model.graph.inputs[0]]
    return calibrated_ranges(model, values, number_format, method, data, PixelFormat(), folder)


def test_the_ranges_of_inputs_and_results(tmp_path: Path) -> None:
    model = graph()
    found = ranges(CalibrationData(3, "sha", Runner(), Runner()), tmp_path / "made", made=model)
    x = np.concatenate(IMAGES)
    assert found == {
        "x": Range(x.min(), x.max()),
        "a": Range(2 * x.min(), 2 * x.max()),
        "y": Range(0, 2 * x.max()),
    }
    assert operators(model) == {"Mul": 1, "Relu": 1}, "the graph stays as it is"
    assert list((tmp_path / "made").iterdir()) == []


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    run = Runner()
    data = CalibrationData(3, "sha", run, run, tmp_path / "cache")
    first = ranges(data, tmp_path)
    assert ranges(data, tmp_path) == first
    assert run.runs == 1
    others = (
        {"data": dataclasses.replace(data, sha256="other images")},
        {"data": data, "made": graph(3.0)},
        {"data": data, "method": Percentile(99.0)},
        {"data": data, "number_format": INT8},
    )
    for index, other in enumerate(others, 2):
        ranges(folder=tmp_path, **other)  # type: ignore[arg-type]
        assert run.runs == index
    assert len(list((tmp_path / "cache").iterdir())) == 1 + len(others)
    ranges(dataclasses.replace(data, cache=None), tmp_path)
    assert run.runs == 2 + len(others)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"x": [1]}', b'{"x": [2, 1], "a": [0, 1], "y": [0, 1]}',
                                     b'{"x": [NaN, 1], "a": [0, 1], "y": [0, 1]}',
                                     b'{"x": [-1e300, 1], "a": [0, 1], "y": [0, 1]}',
                                     b'{"x": [0, 1' + b"0" * 400 + b'], "a": [0, 1], "y": [0, 1]}',
                                     b"[" * 100_000])  # fmt: skip
def test_a_spoilt_file_is_measured_again(tmp_path: Path, content: bytes) -> None:
    run = Runner()
    data = CalibrationData(3, "sha", run, run, tmp_path / "cache")
    first = ranges(data, tmp_path)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(content)
    assert ranges(data, tmp_path) == first
    assert run.runs == 2
    assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    run = Runner()
    data = CalibrationData(3, "sha", run, run, tmp_path / "file" / "cache")
    assert ranges(data, tmp_path) == ranges(data, tmp_path)
    assert run.runs == 2


def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, ["a", "b"])
    cache.write({"x": Range(-1, 2)})
    assert json.loads(cache.path.read_text(encoding="utf-8")) == {"x": [-1, 2]}
    assert RangeCache(tmp_path, ["a", "b"]).read(["x"]) == {"x": Range(-1, 2)}
    assert RangeCache(tmp_path, ["a", "c"]).read(["x"]) is None


def test_where_ranges_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "ranges"
    monkeypatch.delenv("VITDEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vitdeploy" / "ranges"


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match="activations to quantize must be finite, a has others"):
        ranges(CalibrationData(3, "sha", Runner(), Runner()), tmp_path, made=graph(np.inf))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_gives_the_same_in_every_run(tmp_path: Path, method: Method) -> None:
    first, second = (ranges(CalibrationData(3, "sha", Runner(), Runner()), tmp_path, method=method) for _ in range(2))
    assert first == second
