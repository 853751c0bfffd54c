"""Ranges measured while a graph runs, and cached by content."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from bundles import tiny_model, write_checkpoint_of
from raising import raises
from small_graphs import graph_of, operators

import vitdeploy
from vitdeploy import Calibration, MinCosine, Quantization
from vitdeploy.assets import held_out_images
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.graph.measured_graph import measured_graph
from vitdeploy.exporters.quantization.number_format import INT8, UINT8, NumberFormat, Range
from vitdeploy.exporters.quantization.ranges.extremes import Extremes, ExtremesReducer, channel_extremes
from vitdeploy.exporters.quantization.ranges.methods import METHODS, HistogramReducer, Method, MinMax, Percentile
from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
from vitdeploy.exporting.quantization.measure import measure
from vitdeploy.exporting.quantization.measurement_cache import MeasurementCache
from vitdeploy.specs import PixelFormat, Task

IMAGES = [np.random.default_rng(seed).standard_normal((1, 4), np.float32) * (seed + 1) for seed in range(3)]


class Runner:
    """Runs the images, and counts how often it is asked to."""

    def __init__(self, sha256: str = "sha") -> None:
        self.runs, self._sha256 = 0, sha256

    def sha256(self) -> str:
        return self._sha256

    def run(self, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray]]:
        self.runs += 1
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        for image in IMAGES:
            names = [output.name for output in session.get_outputs()]
            yield dict(zip(names, session.run(None, {"x": image}), strict=True))


def graph(weight: float = 2.0) -> ir.Model:
    text = "agraph (float[N, 4] x) => (float[N, 4] y) { a = Mul (x, w) y = Relu (a) }"
    return graph_of(text, w=np.full((4,), weight, np.float32))


def ranges(
    *parts: Runner,
    folder: Path,
    cache: Path | None = None,
    made: ir.Model | None = None,
    method: Method = MinMax(),  # noqa: B008  (frozen)
    number_format: NumberFormat = UINT8,
) -> dict[str, Range]:
    model = made or graph()
    values = [*model.graph.inputs, *(node.outputs[0] for node in model.graph), model.graph.inputs[0]]
    reducer = HistogramReducer(method, number_format)
    return measure(measured_graph(model, values), parts, reducer, PixelFormat(), cache, folder)


def test_the_ranges_of_inputs_and_results(tmp_path: Path) -> None:
    model = graph()
    found = ranges(Runner(), folder=tmp_path / "made", made=model)
    x = np.concatenate(IMAGES)
    assert found == {"x": Range(x.min(), x.max()), "a": Range(2 * x.min(), 2 * x.max()), "y": Range(0, 2 * x.max())}
    assert operators(model) == {"Mul": 1, "Relu": 1}, "the graph stays as it is"
    assert list((tmp_path / "made").iterdir()) == []


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    run, other = Runner(), Runner("other images")
    kept: dict[str, Any] = {"folder": tmp_path, "cache": tmp_path / "cache"}
    first = ranges(run, **kept)
    assert ranges(run, **kept) == first
    assert run.runs == 1
    changes: list[dict[str, Any]] = [{"made": graph(3.0)}, {"method": Percentile(99.0)}, {"number_format": INT8}]
    for index, change in enumerate(changes, 2):
        ranges(run, **kept, **change)
        assert run.runs == index
    ranges(other, **kept)
    assert other.runs == 1
    assert len(list((tmp_path / "cache").iterdir())) == 2 + len(changes)
    ranges(run, folder=tmp_path)
    assert run.runs == 2 + len(changes)


def test_another_measurement_under_the_name_is_not_believed(tmp_path: Path) -> None:
    """Whole as it is, it is of other weights."""
    run = Runner()
    kept: dict[str, Any] = {"folder": tmp_path, "cache": tmp_path / "cache"}
    first = ranges(run, **kept)
    (file,) = (tmp_path / "cache").iterdir()
    ranges(run, **kept, made=graph(3.0))
    (other,) = {*(tmp_path / "cache").iterdir()} - {file}
    file.write_bytes(other.read_bytes())
    assert ranges(run, **kept) == first
    assert run.runs == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_place_of_a_kept_file_is_left_alone(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path, ["key"])
    os.mkfifo(cache.path)
    cache.write(b"content")  # which would wait for a reader
    assert cache.read() is None


def _flipped(whole: bytes) -> bytes:
    """Eight times the range of one value: still what a cache holds, but not what was measured."""
    match = re.search(rb'"x": \[\s*(-?[0-9.]+)', whole)
    assert match is not None
    return whole.replace(match[1], str(8 * float(match[1])).encode())


@pytest.mark.parametrize(
    "spoil",
    [_flipped, lambda whole: b"", lambda whole: b"[]", lambda whole: whole[:-1], lambda whole: whole + b" ",
     lambda whole: whole.partition(b"\n")[2], lambda whole: b"\xff" + whole[1:]],
    ids=["flipped digits", "empty", "another", "cut", "longer", "no checksum", "checksum"],
)  # fmt: skip
def test_a_damaged_file_is_measured_again(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    run = Runner()
    cached: dict[str, Any] = {"folder": tmp_path, "cache": tmp_path / "cache"}
    first = ranges(run, **cached)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(spoil(whole))
    assert ranges(run, **cached) == first
    assert run.runs == 2
    assert kept.read_bytes() == whole


def measured(run: Runner, folder: Path, made: ir.Model | None = None) -> dict[str, Extremes]:
    model = made or graph()
    values = [*model.graph.inputs, *(node.outputs[0] for node in model.graph)]
    reduced = measured_graph(model, values, channel_extremes)
    return measure(reduced, [run], ExtremesReducer(), PixelFormat(), folder / "cache", folder)


def extremes(run: Runner, folder: Path, made: ir.Model | None = None) -> dict[str, tuple[list[float], list[float]]]:
    return {name: (each.lowest.tolist(), each.highest.tolist()) for name, each in measured(run, folder, made).items()}


def test_the_extremes_of_each_channel_that_products_take(tmp_path: Path) -> None:
    text = "g (float[N, 4] x) => (float[N, 2] y) { a = Relu (x) y = MatMul (a, w) }"
    model = graph_of(text, w=np.ones((4, 2), np.float32))
    seen = extremes(Runner(), tmp_path, model)
    x = np.concatenate(IMAGES)
    assert seen["a"] == (np.maximum(x, 0).min(axis=0).tolist(), np.maximum(x, 0).max(axis=0).tolist())
    assert seen["x"] == ([x.min()], [x.max()]), "of all channels where no product takes it"


def test_the_moments_of_each_channel_that_products_take(tmp_path: Path) -> None:
    """Over images of each image's, which lie in a cache as they were measured; and of images joined in any order."""
    model = graph_of("g (float[N, 4] x) => (float[N, 2] y) { y = MatMul (x, w) }", w=np.ones((4, 2), np.float32))
    run = Runner()
    for _ in range(2):
        found = measured(run, tmp_path, model)["x"]
        means = np.stack([[each.mean(axis=0), np.square(each).mean(axis=0)] for each in IMAGES]).mean(axis=0)
        np.testing.assert_allclose([found.mean, found.mean_square], means, rtol=1e-6, atol=1e-7)
        assert found.images == len(IMAGES)
        largest = np.abs(np.concatenate(IMAGES)).max(axis=0)
        np.testing.assert_allclose(found.magnitudes, np.sqrt(largest * np.sqrt(means[1])), rtol=1e-6)
    assert run.runs == 1
    double = Extremes(2 * found.lowest, 2 * found.highest, 2 * found.mean, 4 * found.mean_square, 2 * found.images)
    for joined in (found.joined(double), double.joined(found)):
        np.testing.assert_allclose([joined.mean, joined.mean_square], [5 / 3 * means[0], 3 * means[1]], rtol=1e-6)
        np.testing.assert_array_equal(joined.highest, np.maximum(found.highest, double.highest))


def test_values_whose_squares_are_not_finite_have_extremes(tmp_path: Path) -> None:
    found = measured(Runner(), tmp_path, graph(1e30))["a"]
    assert np.isinf(found.mean_square).all()
    assert found.highest == np.float32(1e30) * np.concatenate(IMAGES).max()


def test_damaged_extremes_are_measured_again(tmp_path: Path) -> None:
    run = Runner()
    first = extremes(run, tmp_path)
    assert extremes(run, tmp_path) == first
    assert run.runs == 1
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    place = whole.index(np.float32(first["x"][1][0]).tobytes())
    kept.write_bytes(whole[:place] + np.float32(8 * first["x"][1][0]).tobytes() + whole[place + 4 :])
    assert extremes(run, tmp_path) == first
    assert run.runs == 2
    assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    run = Runner()
    kept: dict[str, Any] = {"folder": tmp_path, "cache": tmp_path / "file" / "cache"}
    assert ranges(run, **kept) == ranges(run, **kept)
    assert run.runs == 2


def test_a_cache_is_found_by_what_it_depends_on(tmp_path: Path) -> None:
    MeasurementCache(tmp_path, ["a", "b"]).write(b"content\nof two lines")
    assert MeasurementCache(tmp_path, ["a", "b"]).read() == b"content\nof two lines"
    assert MeasurementCache(tmp_path, ["a", "c"]).read() is None


def test_where_ranges_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path))
    assert Calibration("photos").cache_folder == tmp_path / "ranges"
    assert Calibration("photos", cache=False).cache_folder is None
    assert Calibration("photos", cache="here").cache_folder == Path("here")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with raises(CheckFailedError, what="a"):
        ranges(Runner(), folder=tmp_path, made=graph(np.inf))
    with raises(CheckFailedError, what="a"):
        extremes(Runner(), tmp_path, graph(np.inf))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_gives_the_same_in_every_run(tmp_path: Path, method: Method) -> None:
    first, second = (ranges(Runner(), folder=tmp_path, method=method) for _ in range(2))
    assert first == second


def test_a_histogram_takes_one_pass_over_each_part(tmp_path: Path) -> None:
    parts = [Runner("ranges"), Runner("choice")]
    assert set(ranges(*parts, folder=tmp_path, method=Percentile(99.0))) == {"x", "a", "y"}
    assert [part.runs for part in parts] == [1, 1]


@pytest.mark.parametrize("bound", [None, vitdeploy.MinCosine(0.999)], ids=["no bound", "bound"])
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"method": "minmax"}, 1),
        ({"method": "mse"}, 2),
        ({"method": "percentile"}, 2),  # without smoothing
        ({"count": 12}, 1),
        ({"count": 12, "method": "mse"}, 2),
    ],
    ids=str,
)
def test_how_often_an_export_runs_the_model_to_calibrate(
    options: dict[str, Any], passes: int, bound: MinCosine | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once for the extremes, and once more for a histogram, however many candidates and variants are measured."""
    runs: Counter[str] = Counter()
    run = CalibrationImages.run

    def counted(images: CalibrationImages, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray]]:
        runs.update(images.images.names)
        return run(images, path, pixels)

    monkeypatch.setattr(CalibrationImages, "run", counted)
    checkpoint = write_checkpoint_of(tiny_model(Task.FEATURES, num_hidden_layers=1), tmp_path / "checkpoint")
    calibration = Calibration(held_out_images(), **{"count": 24, **options}, cache=False)
    smooth = "off" if calibration.method == "percentile" else "auto"
    quantization = Quantization(calibration, smooth_quant=smooth, accuracy=bound)
    bundle = vitdeploy.export(checkpoint, precision="int8", output=tmp_path / "out", quantization=quantization)
    (artifact,) = bundle.manifest.artifacts
    assert len(runs) == artifact.options["calibration_images"]
    assert {*runs.values()} == {passes}
