"""Settings: their text, their checks, and the grid of them."""

from __future__ import annotations

from typing import Any

import pytest
from raising import raises

from vitdeploy.assess.benchmark.setting import Setting, read_setting, settings_of
from vitdeploy.assess.runs.targets import Selected
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import UsageError

ONNX = Selected("onnx-fp32", "onnxruntime", "fp32")


def test_a_setting_is_read_with_the_types_of_its_backend(single: Bundle) -> None:
    text = "onnxruntime:fp32,intra_op_threads=1, allow_spinning=False,graph_optimization=basic,providers=A+B"
    (setting,) = read_setting(single, text)
    assert setting.selected == ONNX
    assert setting.options == {
        "intra_op_threads": 1,
        "allow_spinning": False,
        "graph_optimization": "basic",
        "providers": ("A", "B"),
    }
    assert setting.name == (
        "onnxruntime fp32 intra_op_threads=1,allow_spinning=false,graph_optimization=basic,providers=A+B"
    )
    assert read_setting(single, f"onnxruntime,{setting.changes}") == [setting]
    assert len({setting, *read_setting(single, text)}) == 1
    assert [str(item) for item in read_setting(single, "torch")] == ["reference on torch"]


@pytest.mark.parametrize(
    ("text", "what", "found"),
    [
        ("onnxruntime:fp32,threads=1", "threads", "threads"),
        ("onnxruntime,intra_op_threads=many", "intra_op_threads", "many"),
        ("onnxruntime,intra_op_threads=5000", "intra_op_threads", 5000),
        ("onnxruntime,intra_op_threads=-1", "intra_op_threads", -1),
        ("onnxruntime,allow_spinning=1", "allow_spinning", "1"),
        ("onnxruntime,graph_optimization=most", "graph_optimization", "most"),
        ("onnxruntime,provider_options=x", "provider_options", "x"),
        ("onnxruntime,prepack", "settings", "onnxruntime,prepack"),
        ("onnxruntime,prepack=true,prepack=true", "settings", "onnxruntime,prepack=true,prepack=true"),
        ("abacus", "backends", "abacus"),
        ("onnxruntime:fp32:2", "backends", "onnxruntime:fp32:2"),
    ],
)
def test_other_settings_are_refused(single: Bundle, text: str, what: str, found: object) -> None:
    with raises(UsageError, what=what, found=found):
        read_setting(single, text)


def test_threads_are_an_option_of_each_backend() -> None:
    assert Setting(ONNX, threads=2).all_options == {"intra_op_threads": 2}
    stated = Setting(ONNX, {"intra_op_threads": 1})
    assert stated.with_threads(2) is stated
    assert Setting(ONNX).with_threads(2).changes == "threads=2"
    with raises(UsageError, what="threads", found=(2, 1)):
        Setting(ONNX, {"intra_op_threads": 1}, threads=2)
    with raises(UsageError, what="threads", found="tensorrt"):
        Setting(Selected("tensorrt-fp16", "tensorrt", "fp16"), threads=1)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ["torch fp32", "onnxruntime fp32"]),
        ({"threads": (1, 2, 1)}, ["torch fp32 threads=1", "torch fp32 threads=2", "onnxruntime fp32 threads=1",
                                  "onnxruntime fp32 threads=2"]),
        ({"texts": ["onnxruntime,prepack=false"]}, ["onnxruntime fp32 prepack=false"]),
        ({"texts": ["onnxruntime,prepack=false"], "backends": ["onnxruntime"]},
         ["onnxruntime fp32", "onnxruntime fp32 prepack=false"]),
        ({"texts": ["onnxruntime,intra_op_threads=1", "torch"], "threads": (1, 2)},
         ["onnxruntime fp32 intra_op_threads=1", "torch fp32 threads=1", "torch fp32 threads=2"]),
    ],
)  # fmt: skip
def test_a_grid_has_every_combination_once(single: Bundle, arguments: dict[str, Any], names: list[str]) -> None:
    assert [setting.name for setting in settings_of(single, **arguments)] == names
