"""OpenVINO's IR: the graph that ONNX has, weights as stored, the same bytes again, and no other precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import openvino as ov
import pytest
import torch
from bundles import FLOAT32_TOLERANCE, make_feeds, reference, tiny_model, worst_difference
from raising import raises
from small_graphs import graph_of

from vitdeploy.errors import CheckFailedError, DeviceError, UsageError
from vitdeploy.exporters import openvino_ir
from vitdeploy.exporters.openvino_ir import trace_openvino, write_ir
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.signature import output_names
from vitdeploy.runtimes.pytorch import PyTorchRuntime, PyTorchRuntimeOptions
from vitdeploy.specs import ExportSpec, PixelFormat, PixelStage, Precision

if TYPE_CHECKING:
    from vitdeploy.exporters import Exported
    from vitdeploy.models.vit import VisionTransformer

BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU does not compute in bfloat16")
FAMILIES = ("deit", "beit", "dinov2")


def write(model: VisionTransformer, folder: Path, **spec: Any) -> Exported:
    processor = ImageProcessor(size=Size(*model.config.image_size))
    return trace_openvino(model, ExportSpec(**spec), processor).write(folder)


def run(folder: Path, exported: Exported, arrays: dict[str, np.ndarray], precision: str = "") -> dict[str, np.ndarray]:
    settings = {"INFERENCE_PRECISION_HINT": precision or exported.options["inference_precision"]}
    compiled = ov.Core().compile_model(folder / exported.files[0], "CPU", settings)
    results = compiled(arrays)
    return {spec.name: results[spec.name] for spec in exported.outputs}


def of_torch(
    model: VisionTransformer, arrays: dict[str, np.ndarray], names: tuple[str, ...] | None = None
) -> dict[str, np.ndarray]:
    options = PyTorchRuntimeOptions(outputs=names, dynamic_image_size=True)
    with PyTorchRuntime(model.with_attention("eager"), options) as runtime:
        return runtime.run(arrays)


def weight_types(folder: Path, exported: Exported) -> dict[str, str]:
    model = ov.Core().read_model(folder / exported.files[0])
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return {node.get_friendly_name(): node.get_output_element_type(0).get_type_name() for node in constants}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_output_of_a_family(tmp_path: Path, family: str) -> None:
    model = tiny_model(model_type=family)
    names = output_names(model, (*output_names(model), "hidden_states", "attentions"))
    exported = write(model, tmp_path, outputs=names)
    for batch_size in (1, 3):
        arrays = make_feeds(model, batch_size)
        got = run(tmp_path, exported, arrays)
        assert {"hidden_states.0", "hidden_states.2", "attentions.1"} < set(got)
        assert worst_difference(got, of_torch(model, arrays, names)) <= FLOAT32_TOLERANCE


def test_a_filter_that_openvino_lacks(tmp_path: Path) -> None:
    text = """g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) {
        sizes = Constant<value = int64[4] {1, 1, 2, 2}>()
        y = Resize<mode = "linear", antialias = 1>(x, , , sizes)
    }"""
    ir.save(graph_of(text), tmp_path / "model.onnx")
    with raises(CheckFailedError, found="linear_onnx"):
        write_ir(tmp_path / "model.onnx", tmp_path / "model.xml", "g")


def test_the_same_bytes_without_a_trace_of_the_machine(tmp_path: Path) -> None:
    model = tiny_model()
    contents = []
    for name in ("a", "b"):
        exported = write(model, tmp_path / name)
        contents.append([(tmp_path / name / file).read_bytes() for file in exported.files])
    assert exported.files == ("openvino/model_fp32.xml", "openvino/model_fp32.bin")
    assert sorted(path.name for path in (tmp_path / "b").rglob("*.*")) == ["model_fp32.bin", "model_fp32.xml"]
    assert contents[0] == contents[1]
    for secret in (str(tmp_path), ov.get_version(), ov.get_version().partition("-")[0]):
        assert secret.encode() not in contents[0][0]
    assert exported.tools["openvino"] == ov.get_version().partition("-")[0]


def test_operators_have_the_names_of_the_onnx_graph(tmp_path: Path) -> None:
    exported = write(tiny_model(), tmp_path)
    model = ov.Core().read_model(tmp_path / exported.files[0])
    for operator in model.get_ordered_ops():
        names = operator.output(0).get_names() if operator.get_output_size() else set()
        if names and operator.get_type_name() != "Result":
            assert operator.get_friendly_name() in names
    assert "layers.1.mlp.fc2.weight.transposed" in weight_types(tmp_path, exported)


def test_weights_of_16_bits_compute_in_float32(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("layers.0.mlp.fc1.weight")[0, 0] = 7e4  # more than float16 holds
    exported = write(model, tmp_path, precision=Precision.FP16, keep_fp32=("layers.1.mlp.fc2",))
    types = weight_types(tmp_path, exported)
    products = {name: dtype for name, dtype in types.items() if "weight" in name and "norm" not in name}
    wide = {name for name, dtype in products.items() if dtype == "f32"}
    assert wide == {"layers.0.mlp.fc1.weight.transposed", "layers.1.mlp.fc2.weight.transposed"}
    assert set(products.values()) == {"f16", "f32"}
    assert len(exported.options["float32_nodes"]) == 2
    assert exported.options["inference_precision"] == "f32"
    arrays = make_feeds(model, 2)
    got = run(tmp_path, exported, arrays)
    assert worst_difference(got, reference(model, arrays)) > FLOAT32_TOLERANCE
    kept = ("layers.0.mlp.fc1.weight", "layers.1.mlp.fc2.weight")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1 and name not in kept:
                parameter.copy_(parameter.half())
    assert worst_difference(got, reference(model, arrays)) <= FLOAT32_TOLERANCE
    with raises(UsageError, what="keep_fp32", found=("layers.9",)):
        write(model, tmp_path, precision=Precision.FP16, keep_fp32=("layers.9",))


@needs_bf16
def test_storing_in_bfloat16_changes_no_bit_of_the_result(tmp_path: Path) -> None:
    model = tiny_model()
    arrays = make_feeds(model, 2)
    plain, half = write(model, tmp_path / "a"), write(model, tmp_path / "b", precision=Precision.BF16)
    sizes = [(tmp_path / name / each.files[1]).stat().st_size for name, each in (("a", plain), ("b", half))]
    assert sizes[1] < 0.6 * sizes[0]
    stored = run(tmp_path / "b", half, arrays)
    assert half.options["inference_precision"] == "bf16"
    np.testing.assert_array_equal(stored["logits"], run(tmp_path / "a", plain, arrays, "bf16")["logits"])
    single = run(tmp_path / "a", plain, arrays)
    assert 1e-3 < worst_difference(stored, single) < 6e-2


@pytest.mark.parametrize(
    ("pixels", "io_dtype"),
    [(PixelFormat(PixelStage.RESIZED, "nhwc", "uint8"), "float32"), (PixelFormat(dtype="float16"), "float16")],
    ids=["uint8", "float16"],
)
def test_types_of_inputs_and_outputs(tmp_path: Path, pixels: PixelFormat, io_dtype: str) -> None:
    model = tiny_model()
    exported = write(model, tmp_path, pixels=pixels, io_dtype=io_dtype)
    assert (exported.inputs[0].dtype, exported.outputs[0].dtype) == (pixels.dtype, io_dtype)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    processor = ImageProcessor(size=Size(32, 32))
    got = run(tmp_path, exported, {"pixel_values": processor([image], pixels=pixels)})
    assert got["logits"].dtype == io_dtype
    tolerance = FLOAT32_TOLERANCE if io_dtype == "float32" else 2e-3  # pixels and logits have 11 bits
    assert worst_difference(got, of_torch(model, {"pixel_values": processor([image])})) <= tolerance


def test_a_cpu_without_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino_ir, "openvino_core", Other)
    for spec in ({"precision": Precision.BF16}, {"precision": Precision.INT8, "rest": Precision.BF16}):
        with raises(DeviceError, what="precision", expected="BF16"):
            write(tiny_model(), tmp_path, **spec)


def test_a_graph_that_openvino_refuses(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with raises(CheckFailedError, what="graph"):
        write_ir(tmp_path / "model.onnx", tmp_path / "model.xml", "g")
    assert not (tmp_path / "model.xml").exists()
