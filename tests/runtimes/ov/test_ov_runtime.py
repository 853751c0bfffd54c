"""OpenVINO: the artifact's precision alone decides the numbers; options are in force; other files are refused."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import openvino as ov
import pytest
from bundles import FLOAT32_TOLERANCE, export_graph, make_feeds, reference, tiny_model, worst_difference, write_bundle
from command_line import run
from environments import ROOT
from raising import raises
from small_graphs import graph_of

import vitdeploy
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.errors import BundleError, DeviceError, UsageError
from vitdeploy.files.opened import OpenedFile
from vitdeploy.models.signature import input_specs, output_specs
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.ov import model as ov_model
from vitdeploy.runtimes.ov.model import ModelFile
from vitdeploy.runtimes.ov.options import OpenVINOOptions
from vitdeploy.runtimes.ov.runtime import OpenVINORuntime
from vitdeploy.specs import TensorSpec
from vitdeploy.system.cpu import Cpus

X = TensorSpec("x", "float32", ("n",))
WRONG_SIZE = re.compile("^Can't set the input tensor")  # the lines before it are places in OpenVINO's source


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def source(bundle: Bundle) -> ModelFile:
    """The same model as an IR."""
    (artifact,) = bundle.manifest.artifacts
    folder = bundle.path.parent / "ir"
    ov.save_model(ov.Core().read_model(bundle.path / "onnx" / "model.onnx"), folder / "m.xml", compress_to_fp16=False)
    files = (OpenedFile.of(folder / f"m.{end}") for end in ("xml", "bin"))
    file, weights = files
    return ModelFile(file, artifact.inputs, artifact.outputs, weights)


def with_ir(bundle: Bundle, source: ModelFile, folder: Path, **options: Any) -> Bundle:
    """The bundle with an artifact `openvino-fp32` as well."""
    shutil.copytree(bundle.path, folder)
    (folder / "openvino").mkdir()
    names = []
    for file in (source.file, source.weights):
        assert file is not None
        names.append(f"openvino/model_fp32{file.path.suffix}")
        shutil.copy(file.path, folder / names[-1])
    (artifact,) = bundle.manifest.artifacts
    artifact = dataclasses.replace(
        artifact,
        format="openvino",
        files=tuple(FileRecord.of(folder, name) for name in names),
        options={**artifact.options, **options},
    )
    manifest = dataclasses.replace(bundle.manifest, artifacts=(*bundle.manifest.artifacts, artifact))
    return Bundle(folder, manifest)


def small(tmp_path: Path, text: str, outputs: Iterable[TensorSpec] = (), **weights: np.ndarray) -> ModelFile:
    path = tmp_path / "small.onnx"
    ir.save(graph_of(text, **weights), path)
    return ModelFile(OpenedFile.of(path), (X,), tuple(outputs))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_artifacts_precision_is_what_runs(
    bundle: Bundle, source: ModelFile, tmp_path: Path, precision: str
) -> None:
    """OpenVINO's own default is bfloat16 on a CPU that has it."""
    if precision == "bf16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    feeds = make_feeds(tiny_model(), 2)
    with open_runtime(with_ir(bundle, source, tmp_path / "b", inference_precision=precision), "openvino") as runtime:
        assert runtime.details["inference_precision"] == precision
        assert set(runtime.details["computes_in"]) == {"f32", precision}
        difference = worst_difference(runtime.run(feeds), reference(tiny_model(), feeds))
    # bfloat16 has 8 bits of a significand: a unit in the last place is 4e-3.
    assert difference <= FLOAT32_TOLERANCE if precision == "f32" else 1e-4 < difference < 5e-2


@pytest.mark.parametrize("options", [{}, {"inference_precision": "f16"}, {"inference_precision": "dynamic"}])
def test_an_artifact_that_does_not_state_its_precision(
    bundle: Bundle, source: ModelFile, tmp_path: Path, options: dict[str, str]
) -> None:
    found = options.get("inference_precision")
    with raises(BundleError, what="inference_precision", expected=("f32", "bf16"), found=found):
        open_runtime(with_ir(bundle, source, tmp_path / "b", **options), "openvino")


def test_files_of_another_format(bundle: Bundle, source: ModelFile, tmp_path: Path) -> None:
    made = with_ir(bundle, source, tmp_path / "b", inference_precision="f32")
    onnx_artifact, artifact = made.manifest.artifacts
    for files in (onnx_artifact.files, artifact.files[:1], artifact.files[::-1]):
        manifest = dataclasses.replace(made.manifest, artifacts=(dataclasses.replace(artifact, files=files),))
        with raises(BundleError, what="files", found=[Path(file.path).suffix for file in files]):
            open_runtime(Bundle(made.path, manifest), "openvino")


class WithoutBf16:
    """A core of a CPU without bfloat16."""

    def __init__(self) -> None:
        self._core = ov.Core()

    def get_property(self, *names: str) -> Any:
        found = self._core.get_property(*names)
        return [name for name in found if name != "BF16"] if names[-1] == "OPTIMIZATION_CAPABILITIES" else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def test_bf16_without_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch, source: ModelFile, tmp_path: Path) -> None:
    monkeypatch.setattr(ov_model, "openvino_core", WithoutBf16)
    with raises(DeviceError, what="precision", where=source.file.path, found="bf16"):
        OpenVINORuntime(dataclasses.replace(source, precision="bf16"))
    graph = small(tmp_path, "g (float[n] x) => (float[n] y) { b = Cast<to = 16>(x) c = Add(b, b) y = Cast<to = 1>(c) }")
    with raises(DeviceError, what="precision", where=graph.file.path, found="bf16"):
        OpenVINORuntime(graph)
    OpenVINORuntime(source).close()


@pytest.mark.parametrize(
    ("name", "value"), [("INFERENCE_PRECISION_HINT", ov.Type.bf16), ("DYNAMIC_QUANTIZATION_GROUP_SIZE", 32)]
)
def test_an_openvino_that_does_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, source: ModelFile, name: str, value: Any
) -> None:
    compile_model = ov.Core.compile_model

    def otherwise(core: Any, model: Any, device: str, properties: dict[str, Any]) -> Any:
        return compile_model(core, model, device, {**properties, name: value})

    monkeypatch.setattr(ov.Core, "compile_model", otherwise)
    with raises(DeviceError, what=name, where=source.file.path, found=str(value)):
        OpenVINORuntime(source)


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        (
            'g (float[1, 1, h, w] x, int64[4] s) => (float[1, 1, k, l] y) { y = Resize<mode = "linear", antialias = 1>'
            "(x, , , s) }",
            "Interpolate",
        ),
        (
            "g (float[n] x, bool c) => (float[m] y) { y = If(c) <then_branch = t () => (float[n] a) { a = Relu(x) }, "
            "else_branch = e () => (float[k] b) { b = Neg(x) }> }",
            "If",
        ),
    ],
)
def test_operators_that_openvino_computes_otherwise(tmp_path: Path, text: str, operator: str) -> None:
    with raises(DeviceError, what="openvino", found=[operator]):
        OpenVINORuntime(small(tmp_path, text))


def test_an_embedded_resize_is_refused_and_the_rest_of_preprocessing_runs(bundle: Bundle, tmp_path: Path) -> None:
    checkpoint, pixels = bundle.path, np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    resizing = vitdeploy.export(checkpoint, output=tmp_path / "a", graph=vitdeploy.GraphOptions(embed_resize=True))
    with raises(DeviceError, what="openvino", found=["If"]):
        open_runtime(resizing, "openvino")
    made = vitdeploy.export(checkpoint, output=tmp_path / "b", graph=vitdeploy.GraphOptions(input="uint8"))
    with open_runtime(made, "openvino") as runtime, open_runtime(made, "onnxruntime") as other:
        feeds = {"pixel_values": pixels}
        assert worst_difference(runtime.run(feeds), other.run(feeds)) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-2), ("int8", 5e-2), ("fp8", 5e-2)])
def test_other_precisions_of_onnx_give_what_onnxruntime_gives(
    bundle: Bundle, tmp_path: Path, precision: str, tolerance: float
) -> None:
    """fp16 to its unit in the last place, 1e-3; values of 8 bits to a few steps, where two roundings differ by one."""
    by_precision: dict[str, dict[str, Any]] = {
        "fp16": {"graph": vitdeploy.GraphOptions(io_dtype="float16")},
        "int8": {},  # dynamic: MatMulInteger
        "fp8": {"quantization": vitdeploy.Quantization(vitdeploy.Calibration(held_out_images() / "7"))},
    }
    made = vitdeploy.export(bundle.path, output=tmp_path / "b", precision=precision, **by_precision[precision])
    draws = [make_feeds(tiny_model(), 4, seed)["pixel_values"] for seed in range(16)]
    with (
        open_runtime(made, "openvino", precision=precision) as runtime,
        open_runtime(made, "onnxruntime", precision=precision) as other,
    ):
        dtype = runtime.inputs[0].dtype
        assert dtype == ("float16" if precision == "fp16" else "float32")
        assert "bf16" not in runtime.details["computes_in"]
        feeds = [{"pixel_values": draw.astype(dtype)} for draw in draws]
        # in fp8, one draw has 0.02 to 0.11: a value that two roundings separate moves by 6 %
        assert np.median([worst_difference(runtime.run(feed), other.run(feed)) for feed in feeds]) <= tolerance


@pytest.mark.parametrize("memory_map", [False, True])
def test_external_data(tmp_path: Path, memory_map: bool) -> None:
    model = tiny_model()
    exported = export_graph(model, tmp_path, max_bytes=0)
    assert len(exported.files) == 2
    file = OpenedFile.of(tmp_path / exported.files[0])
    source = ModelFile(file, input_specs(model.config, model.task), output_specs(model))
    arrays = make_feeds(model, 2)
    with OpenVINORuntime(source, OpenVINOOptions(memory_map=memory_map)) as runtime:
        assert worst_difference(runtime.run(arrays), reference(model, arrays)) <= FLOAT32_TOLERANCE
    (tmp_path / exported.files[1]).unlink()
    with raises(BundleError, where=file.path):
        OpenVINORuntime(source)


def test_options_are_in_force(source: ModelFile) -> None:
    options = OpenVINOOptions(hint="throughput", streams=1, inference_threads=1, pinning=True, memory_map=True)
    with OpenVINORuntime(source, options) as runtime:
        found = {name: runtime.details[name] for name in vars(options)}
        assert found == vars(options)
        assert runtime.details["one_image_a_run"]
        assert runtime.threads is not None
        assert (runtime.threads.count, runtime.threads.reason) == (1, "as asked for")


def test_threads_that_there_are_no_cores_for(source: ModelFile) -> None:
    with OpenVINORuntime(source, OpenVINOOptions(inference_threads=1000)) as runtime:
        assert runtime.threads is not None
        assert runtime.threads.count < 1000
        assert runtime.threads.reason == "OpenVINO's limit, 1000 asked for"


def test_the_default_threads_fit_the_quota(monkeypatch: pytest.MonkeyPatch, source: ModelFile) -> None:
    monkeypatch.setattr("vitdeploy.system.cpu.usable_cpus", lambda: Cpus(8, 8, 8, quota=1.0))
    monkeypatch.setenv("ORT_INTRA_OP_NUM_THREADS", "2")  # another engine's
    with OpenVINORuntime(source) as runtime:
        assert runtime.details["inference_threads"] == 1
        assert "quota" in runtime.details["threads_reason"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("hint", "fast"), ("streams", -1), ("streams", 1.0), ("inference_threads", "2"), ("pinning", 1)],
)
def test_values_that_cannot_be(option: str, value: Any) -> None:
    with raises(UsageError, what=option, found=value):
        OpenVINOOptions(**{option: value})


@pytest.mark.parametrize("dtype", ["INT8", "UINT16", "INT32", "UINT64", "DOUBLE", "FLOAT16", "BOOL"])
def test_types_that_numpy_has(tmp_path: Path, dtype: str) -> None:
    number = onnx.TensorProto.DataType.Value(dtype)
    numpy_dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    stated = TensorSpec("y", numpy_dtype.name, ("n",))
    text = f"g (float[n] x) => ({dtype.lower()}[n] y) {{ y = Cast<to = {number}>(x) }}"
    with OpenVINORuntime(small(tmp_path, text, [stated])) as runtime:
        assert runtime.outputs == (stated,)
        result = runtime.run({"x": np.array([0, 1], np.float32)})["y"]
        assert (result.dtype, result.tolist()) == (numpy_dtype, [0, 1])


def test_a_type_that_numpy_lacks_does_not_open(tmp_path: Path) -> None:
    with raises(BundleError, what="y", found="bf16"):
        OpenVINORuntime(small(tmp_path, "g (float[n] x) => (bfloat16[n] y) { y = Cast<to = 16>(x) }"))


def test_an_operator_that_openvino_lacks(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "of.nobody" : 1]> g (float[n] x) => (float[n] y) { '
        "y = of.nobody.Frobnicate(x) }"
    )
    onnx.save(proto, tmp_path / "m.onnx")
    with raises(DeviceError, what="openvino", where=tmp_path / "m.onnx"):
        OpenVINORuntime(ModelFile(OpenedFile.of(tmp_path / "m.onnx"), (X,), ()))


def damaged(text: bytes, weights: bytes, kind: str) -> tuple[bytes, bytes | None]:
    """An IR's two files after a fault."""
    declared = b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY t SYSTEM "file:///etc/hostname">]>'
    return {
        "half the text": (text[: len(text) // 2], weights),
        "half the weights": (text, weights[: len(weights) // 2]),
        "no weights": (text, None),
        "empty weights": (text, b""),
        "empty": (b"", weights),
        "no XML": (b"not a model", weights),
        "another XML": (b'<?xml version="1.0"?><svg/>', weights),
        "an entity": (declared + text.partition(b"?>")[2].replace(b'type="Const"', b'type="&t;"'), weights),
        "an unknown operator": (text.replace(b'type="Const"', b'type="Konst"', 1), weights),
        "an offset before the file": (text.replace(b'offset="0"', b'offset="-8"'), weights),
        "an offset after the file": (text.replace(b'offset="0"', b'offset="99999999999"'), weights),
        "another version": (text.replace(b'version="11"', b'version="99"', 1), weights),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["half the text", "half the weights", "no weights", "empty weights", "empty", "no XML", "another XML", "an entity",
     "an unknown operator", "an offset before the file", "an offset after the file", "another version"],
)  # fmt: skip
def test_a_file_that_is_no_model(
    source: ModelFile, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert source.weights is not None
    text, weights = damaged(source.file.path.read_bytes(), source.weights.path.read_bytes(), kind)
    (tmp_path / "m.xml").write_bytes(text)
    if weights is not None:
        (tmp_path / "m.bin").write_bytes(weights)
    file, other = (OpenedFile.of(tmp_path / name) for name in ("m.xml", "m.bin"))
    with raises(BundleError) as caught:
        OpenVINORuntime(dataclasses.replace(source, file=file, weights=other))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_another_frontend_reads(source: ModelFile, bundle: Bundle) -> None:
    """An ONNX file named .xml could lead to external data that nobody verified."""
    path = OpenedFile.of(bundle.path / "onnx" / "model.onnx")
    with raises(BundleError, where=path.path, expected="an OpenVINO model"):
        OpenVINORuntime(dataclasses.replace(source, file=path))
    with raises(BundleError, where=source.file.path, expected="an ONNX model"):
        OpenVINORuntime(dataclasses.replace(source, weights=None))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_folder_whose_name_is_no_utf_8(bundle: Bundle, source: ModelFile, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    shutil.copy(bundle.path / "onnx" / "model.onnx", folder)
    with raises(UsageError, what="openvino"):
        OpenVINORuntime(dataclasses.replace(source, file=OpenedFile.of(folder / "model.onnx"), weights=None))


def test_a_failure_while_running_is_a_device_error(source: ModelFile) -> None:
    with OpenVINORuntime(source) as runtime, raises(DeviceError, what="openvino", found=WRONG_SIZE):
        runtime._run({"pixel_values": np.ones((1, 3, 32, 31), np.float32)})


def test_tensors_that_differ_from_the_manifest(bundle: Bundle) -> None:
    (artifact,) = bundle.manifest.artifacts
    other = dataclasses.replace(artifact, outputs=(TensorSpec("scores", "float32", ("batch", 3)),))
    changed = Bundle(bundle.path, dataclasses.replace(bundle.manifest, artifacts=(other,)))
    with raises(BundleError, what="inputs and outputs", found=(artifact.inputs, artifact.outputs)):
        open_runtime(changed, "openvino")


def test_it_needs_numpy_pillow_and_openvino_alone(bundle: Bundle) -> None:
    code = """
import sys
sys.modules |= dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors", "rich", "click"))
import numpy, vitdeploy
with vitdeploy.load(sys.argv[1], backend="openvino") as predictor:
    print(len(predictor.predict(numpy.zeros((9, 9, 3), numpy.uint8))[0]))
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", code, bundle.path], env=environ, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (0, "3\n"), process.stderr


def test_every_command_takes_it(digits: Bundle, tmp_path: Path) -> None:
    """Beside ONNX Runtime, on the same artifact."""
    images = held_out_images()
    backends = ("--backend", "onnxruntime", "--backend", "openvino")
    for command in (
        ("compare", digits.path, "--images", images / "7", *backends),
        ("evaluate", digits.path, "--data", images, "--limit", 40, *backends),
        ("gate", digits.path, "--data", images, *backends),
        ("benchmark", digits.path, *backends, "--threads", 1, "--batch-sizes", 1, "--rounds", 1, "--runs", 1),
    ):
        answer = run(*command, "--json")
        assert answer.code == 0, answer.err
        assert answer.json["status"] == "passed"
        assert "onnx-fp32" in answer.out
        assert '"openvino"' in answer.out or "openvino fp32" in answer.out
    predicted = run("predict", digits.path, next(iter(sorted((images / "3").iterdir()))), "--backend", "openvino")
    assert predicted.out.startswith(f"{digits.path} on openvino fp32\n")


def test_opened_and_closed_models_leave_no_memory(source: ModelFile) -> None:
    feeds = make_feeds(tiny_model(), 2)

    def resident() -> int:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux's /proc")
    before = 0
    for turn in range(60):
        with OpenVINORuntime(source) as runtime:
            runtime.run(feeds)
        before = resident() if turn == 20 else before
    assert resident() - before < 8 << 20  # models that stayed took 118 MB


CLOSED_IN_THE_ORDER_OF_OPENING = """
import signal, sys, vitdeploy
first, second = (vitdeploy.load(sys.argv[1], backend="openvino") for _ in range(2))
first.close()
del first
second.close()
del second
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_after_two_models_were_closed(bundle: Bundle) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CLOSED_IN_THE_ORDER_OF_OPENING, str(bundle.path)]
    process = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "interrupted\n"), process.stderr


def test_arrays_of_the_caller_are_not_written_to(source: ModelFile) -> None:
    feeds = make_feeds(tiny_model(), 2)
    feeds["pixel_values"].flags.writeable = False
    kept = feeds["pixel_values"].copy()
    with OpenVINORuntime(source) as runtime:
        wanted = runtime.run(feeds)["logits"]
        result = np.empty_like(wanted)
        runtime.run_device(feeds, {"logits": result})
        runtime.run(make_feeds(tiny_model(), 2, seed=1))  # writes to other memory
    np.testing.assert_array_equal(result, wanted)
    np.testing.assert_array_equal(feeds["pixel_values"], kept)
