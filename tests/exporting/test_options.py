"""Option values refuse invalid values and combinations, without torch and before any file is read."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raising import raises

import vitdeploy
from vitdeploy import (
    Calibration,
    EngineOptions,
    GraphOptions,
    MaxDrop,
    MinAgreement,
    MinCosine,
    Quantization,
    SourceOptions,
    ValidationOptions,
)
from vitdeploy.errors import CheckpointError, UsageError
from vitdeploy.exporters.quantization.schemes.lookup import scheme_for
from vitdeploy.exporting.graph_options import spec_of
from vitdeploy.specs import PixelFormat, PixelStage
from vitdeploy.system.option_fields import changed, options_in

VALUES = (GraphOptions, Calibration, Quantization, SourceOptions, ValidationOptions, EngineOptions)
IMAGES = Calibration("images")
ARRAY = np.zeros((2, 2))  # of a repr in two lines, and neither true nor false


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((GraphOptions, "opset", value) for value in (17, 24, 20.0, True, "20")),
        *((GraphOptions, "image_size", value) for value in (0, -1, True, 3.5, "32x32", {"a": 1}, [], [32], (32,) * 4)),
        *((GraphOptions, "image_size", value) for value in ((32.0, 32), (True, 32), (3, 2, 1))),
        (GraphOptions, "image_size", ((8, 8), (8, 4), (8, 8))),
        (GraphOptions, "optimize", "O3"),
        (GraphOptions, "keep_fp32", "logits"),
        *((GraphOptions, "outputs", value) for value in ("logits", 5, [5])),
        *((GraphOptions, "input", value) for value in ("int8", None)),
        (GraphOptions, "io_dtype", "bfloat16"),
        (GraphOptions, "layout", "triton"),
        (GraphOptions, "dynamic_image_size", 1),
        (GraphOptions, "embed_resize", "no"),
        *((Calibration, "images", value) for value in (3, "", None)),
        (Calibration, "method", "x"),
        *((Calibration, "count", value) for value in (0, 1.5, True)),
        *((Calibration, "cache", value) for value in ("", True, 0)),
        *((Calibration, "seed", value) for value in (-1, 2**63, 1.5, True)),
        (Quantization, "calibration", "images"),
        (Quantization, "target", "gpu"),
        (Quantization, "scheme", "x"),
        (Quantization, "reduce_range", None),
        (Quantization, "rest", "fp32"),
        *((Quantization, "smooth_quant", value) for value in (1.1, -0.1, "on", True, math.nan, None, 10**400, ARRAY)),
        *((Quantization, "accuracy", value) for value in (0.99, "99%")),
        *((SourceOptions, "seed", value) for value in (-1, 2**63, 1.5, True, None)),
        *((SourceOptions, name, value) for name in ("random_weights", "revision", "token") for value in (5, b"a")),
        *((SourceOptions, "task", value) for value in ("x", ARRAY)),
        (SourceOptions, "cache_dir", ""),
        (SourceOptions, "offline", None),
        (SourceOptions, "processor", "google/vit-base-patch16-224"),
        (ValidationOptions, "images", 5),
        *((ValidationOptions, "tolerance", value) for value in (-1, "-1%", math.inf, math.nan, True, "x", "", "9e999")),
        *((EngineOptions, "workspace_mib", value) for value in (0, 2**24 + 1, True)),
        *((EngineOptions, "batch", value) for value in ("1:8:32", ("1:8:32",), ())),
        *((EngineOptions, name, value) for name, value in (("tf32", "no"), ("strip_weights", 1))),
        *((EngineOptions, "timing_cache", value) for value in ("", 5)),
        *((EngineOptions, "optimization_level", value) for value in (6, None)),
        (EngineOptions, "hardware_compatibility", "all"),
        *((EngineOptions, "compute_capabilities", value) for value in ("8.9", ["8"])),
        *(
            (EngineOptions, "image_sizes", value)
            for value in ("1:2:3", (((8, 8), (8, 4), (8, 8)),), (((0, 8), (8, 8), (8, 8)),))
        ),
    ],
)
def test_a_value_that_an_option_cannot_have(kind: Any, name: str, value: Any) -> None:
    images = {"images": "images"} if kind is Calibration else {}
    with raises(UsageError, what=name) as caught:
        kind(**{**images, name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "what"),
    [
        (GraphOptions, {"image_size": 32, "dynamic_image_size": True}, "image_size"),
        (GraphOptions, {"embed_resize": True, "dynamic_image_size": True}, "embed_resize"),
        (GraphOptions, {"embed_resize": True, "image_size": (8, 16, 32)}, "embed_resize"),
        (GraphOptions, {"layout": "nhwc"}, "layout"),
        (GraphOptions, {"embed_resize": True, "layout": "nchw"}, "layout"),
        (SourceOptions, {"random_weights": "a", "revision": "main"}, "revision"),
        (Quantization, {"accuracy_data": "x"}, "accuracy_data"),
        (Quantization, {"accuracy": MinAgreement(0.9)}, "accuracy"),
        (Quantization, {"accuracy": MinAgreement(0.9), "calibration": IMAGES, "scheme": "dynamic"}, "accuracy"),
        (Quantization, {"smooth_quant": 0.5}, "smooth_quant"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(kind: Any, options: dict[str, Any], what: str) -> None:
    with raises(UsageError, what=what):
        kind(**options)


KEEPS = GraphOptions(keep_fp32=["head"])
OF_OPENVINO: list[tuple[dict[str, Any], str]] = [
    ({"precision": "fp8", "quantization": Quantization(IMAGES)}, "precision"),
    ({"graph": GraphOptions(opset=20)}, "opset"),
    ({"graph": GraphOptions(optimize="onnxruntime")}, "optimize"),
    ({"graph": GraphOptions(external_data=True)}, "external_data"),
    ({"precision": "bf16", "graph": KEEPS}, "keep_fp32"),
    ({"precision": "int8", "graph": KEEPS, "quantization": Quantization(IMAGES, rest="bf16")}, "keep_fp32"),
    ({"precision": "int8"}, "calibration_data"),
    ({"precision": "int8", "quantization": Quantization()}, "calibration_data"),
    ({"precision": "int8", "quantization": Quantization(IMAGES, scheme="dynamic")}, "scheme"),
    ({"precision": "int8", "quantization": Quantization(IMAGES, target="tensorrt")}, "target"),
    ({"precision": "int8", "quantization": Quantization(IMAGES, rest="fp16")}, "rest"),
    ({"precision": "bf16", "quantization": Quantization(rest="bf16")}, "rest"),
]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"to": "coreml"}, "to"),
        ({"to": []}, "to"),
        *(({"precision": value}, "precision") for value in ("int4", ARRAY)),
        ({"to": "torchscript", "precision": "int8"}, "precision"),
        ({"to": "torchscript", "graph": GraphOptions(embed_resize=True)}, "embed_resize"),
        ({"to": "torchscript", "graph": GraphOptions(opset=18)}, "opset"),
        ({"to": "torchscript", "precision": "fp16", "graph": GraphOptions(keep_fp32=["a"])}, "keep_fp32"),
        ({"to": "tensorrt", "graph": GraphOptions(optimize="onnxruntime")}, "optimize"),
        ({"to": "tensorrt", "graph": GraphOptions(external_data=True)}, "external_data"),
        ({"to": "torchscript", "graph": GraphOptions(external_data=True)}, "external_data"),
        ({"precision": "fp16", "graph": GraphOptions(optimize="onnxruntime")}, "optimize"),
        ({"precision": "bf16", "graph": GraphOptions(optimize="onnxruntime")}, "optimize"),
        ({"graph": GraphOptions(keep_fp32=["a"])}, "keep_fp32"),
        ({"engine": EngineOptions()}, "engine"),
        ({"engine": EngineOptions(tf32=True)}, "tf32"),
        ({"precision": "fp16", "quantization": Quantization(target="cpu")}, "target"),
        ({"precision": "fp16", "quantization": Quantization(target="tensorrt")}, "target"),
        ({"precision": "fp16", "quantization": Quantization(reduce_range=True)}, "reduce_range"),
        ({"precision": "fp16", "quantization": Quantization(rest="fp16")}, "rest"),
        ({"quantization": Quantization(IMAGES)}, "calibration"),
        ({"precision": "fp16", "quantization": Quantization(IMAGES, accuracy=MaxDrop("1%"))}, "calibration"),
        ({"to": "torchscript", "quantization": Quantization(target="cpu")}, "target"),
        ({"precision": "fp8", "quantization": Quantization(IMAGES, target="cpu")}, "target"),
        ({"to": "tensorrt", "precision": "int8", "quantization": Quantization(target="cpu")}, "target"),
        ({"to": "tensorrt", "precision": "int8", "quantization": Quantization(scheme="dynamic")}, "scheme"),
        ({"to": "tensorrt", "precision": "int8", "quantization": Quantization(reduce_range=True)}, "reduce_range"),
        ({"precision": "int8", "quantization": Quantization(IMAGES, rest="fp16")}, "rest"),
        ({"precision": "int8", "quantization": Quantization(IMAGES, rest="bf16")}, "rest"),
        ({"precision": "int8", "quantization": Quantization(IMAGES, target="tensorrt", rest="bf16")}, "rest"),
        ({"to": "tensorrt", "precision": "fp8", "quantization": Quantization(IMAGES, rest="bf16")}, "rest"),
        *(({"to": "openvino", **given}, what) for given, what in OF_OPENVINO),
    ],
    ids=str,
)
def test_options_that_are_not_for_a_format_or_a_precision(given: dict[str, Any], what: str) -> None:
    arguments = {"to": "onnx", "precision": "fp32", "graph": GraphOptions(), "quantization": None, "engine": None}
    with raises(UsageError, what=what):
        spec_of(**{**arguments, **given})


@pytest.mark.parametrize(
    ("precision", "quantization", "what"),
    [
        ("fp8", Quantization(), "calibration_data"),
        ("fp8", Quantization(IMAGES, reduce_range=True), "reduce_range"),
        ("int8", Quantization(Calibration("images", "mse"), scheme="dynamic"), "calibration"),
    ],
    ids=str,
)
def test_a_scheme_that_cannot_be(precision: str, quantization: Quantization, what: str) -> None:
    spec = spec_of("onnx", precision, GraphOptions(), quantization, None)
    with raises(UsageError, what=what):
        scheme_for(spec, calibrated=quantization.calibration is not None)


@pytest.mark.parametrize(
    ("kind", "value", "limit"),
    [
        (MaxDrop, "0.5%", 0.005), (MaxDrop, 0.005, 0.005), (MaxDrop, "0.005", 0.005), (MaxDrop, 0, 0),
        (MaxDrop, "50%", 0.5),
        (MinAgreement, "99%", 0.99), (MinAgreement, 0.99, 0.99), (MinAgreement, "99.9%", 0.999), (MinAgreement, 1, 1),
        (MinCosine, "99.9%", 0.999), (MinCosine, 0.999, 0.999),
    ],
)  # fmt: skip
def test_a_percentage_and_its_share_are_the_same(kind: Any, value: Any, limit: float) -> None:
    assert kind(value).limit == limit


@pytest.mark.parametrize(
    ("kind", "value", "forms"),
    [
        (MaxDrop, 0.5, "write 0.5% or 50%"), (MaxDrop, "0.1", "write 0.1% or 10%"), (MaxDrop, 5, "write 5% or 0.05"),
        (MinAgreement, 99, "write 99% or 0.99"), (MinAgreement, "99.5", "write 99.5% or 0.995"),
        (MinCosine, 98, "write 98% or 0.98"), (MaxDrop, -1, None), (MaxDrop, "100%", None), (MaxDrop, 100, None),
        (MaxDrop, math.nan, None), (MaxDrop, True, None), (MaxDrop, "1%%", None), (MaxDrop, "%", None),
        (MinAgreement, 0, None), (MinAgreement, "101%", None), (MinCosine, 1, None), (MinCosine, "nan%", None),
        (MinCosine, None, None), (MinAgreement, "9" * 400, None), (MinAgreement, 10**400, None),
        (MaxDrop, 1, "write 1%"),
    ],
)  # fmt: skip
def test_a_number_that_is_no_share_is_refused_with_the_right_forms(kind: Any, value: Any, forms: str | None) -> None:
    with raises(UsageError, hint=forms, found=pytest.approx(value, nan_ok=True)):
        kind(value)


def test_shortcuts() -> None:
    assert GraphOptions(image_size=224) == GraphOptions(image_size=[224, 224])  # type: ignore[arg-type]
    sizes = GraphOptions(image_size=(112, (224, 224), 384))
    assert (sizes.size, sizes.bounds, sizes.any_size) == ((224, 224), ((112, 112), (384, 384)), True)
    assert GraphOptions(outputs=["logits"]).outputs == ("logits",)
    assert GraphOptions(embed_resize=True).pixels == PixelFormat(PixelStage.DECODED, "nhwc", "uint8")
    assert GraphOptions(input="uint8", layout="nchw").pixels == PixelFormat(PixelStage.RESIZED, "nchw", "uint8")
    assert Quantization.of("photos") == Quantization(Calibration("photos"))
    assert Quantization.of(None) is None
    assert str(MaxDrop("0.5%")) == "max_drop 0.5%"
    assert "hf_secret" not in repr(SourceOptions(token="hf_secret"))


@pytest.mark.parametrize("kind", VALUES)
def test_each_option_says_its_default_and_is_in_the_docstring(kind: Any) -> None:
    given = {"images": "images"} if kind is Calibration else {}
    assert set(changed(kind(**given))) == set(given)
    for field, option in options_in(kind):
        assert f"    {field.name}: {option.help}" in str(kind.__doc__)
        assert option.help.endswith(".")
    assert [field.name for field, _ in options_in(kind)] == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(
    ("arguments", "error", "fields"),
    [
        ({}, UsageError, {"what": "model"}),
        ({"model": "a", "source": SourceOptions(random_weights="b")}, UsageError, {"what": "random_weights"}),
        ({"engine": {"batch": "1"}}, UsageError, {"what": "engine"}),
        ({"engine": False}, UsageError, {"what": "engine", "found": False}),
        ({"graph": {"opset": 18}}, UsageError, {"what": "graph"}),
        *(({name: None}, UsageError, {"what": name}) for name in ("graph", "source", "validation")),
        ({"source": SourceOptions(random_weights="resnet50")}, UsageError, {}),
        ({"model": "./nowhere"}, CheckpointError, {}),
    ],
    ids=str,
)
def test_arguments_of_an_export_leave_nothing_behind(
    tmp_path: Path, arguments: dict[str, Any], error: type[vitdeploy.VitDeployError], fields: dict[str, Any]
) -> None:
    with raises(error, **fields):
        vitdeploy.export(**{"output": tmp_path / "out", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_values_need_no_torch() -> None:
    code = "import sys, vitdeploy; vitdeploy.Quantization, vitdeploy.EngineOptions; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
