"""Every public function and option value refuses a value of a wrong type by its name, before anything is opened."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from raising import raises

import vitdeploy
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.assess.gate.gate import planned_checks
from vitdeploy.assess.gate.rules import GateRules
from vitdeploy.demo import run_demo
from vitdeploy.errors import UsageError
from vitdeploy.runtimes.engine.options import EngineRuntimeOptions
from vitdeploy.runtimes.onnxrt.tensorrt_provider import TensorRTOnnxRuntimeOptions
from vitdeploy.runtimes.pytorch import PyTorchRuntimeOptions
from vitdeploy.runtimes.torchscript import TorchScriptRuntimeOptions
from vitdeploy.system.argument_types import check_type

PUBLIC: list[Any] = [getattr(vitdeploy, name) for name in vitdeploy.__all__]
FUNCTIONS: list[Any] = [
    *filter(inspect.isfunction, PUBLIC),
    compare_layers,
    planned_checks,
    run_demo,
    vitdeploy.Bundle.open,
]
OPTIONS = [
    *(kind for kind in PUBLIC if inspect.isclass(kind) and kind.__module__.endswith("options")),
    *(TensorRTOnnxRuntimeOptions, EngineRuntimeOptions, PyTorchRuntimeOptions, TorchScriptRuntimeOptions, GateRules),
]
GIVEN: dict[str, Any] = {  # required
    "accuracy": vitdeploy.MinAgreement(0.9),
    "scenario": vitdeploy.Scenario("offline"),
    "predictor": object.__new__(vitdeploy.Predictor),
}
WRONG = object()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (function, name)
        for function in FUNCTIONS
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ],
)
def test_every_parameter(function: Any, name: str) -> None:
    required = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    right = {parameter: GIVEN.get(parameter, "nowhere") for parameter in required}
    with raises(UsageError, what=name, found=type(WRONG) if name == "token" else WRONG):
        function(**{**right, name: WRONG})


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, field.name) for kind in OPTIONS for field in dataclasses.fields(kind)]
)
def test_every_option(kind: Any, name: str) -> None:
    given: dict[Any, dict[str, Any]] = {
        vitdeploy.Calibration: {"images": "images"},
        vitdeploy.Scenario: {"name": "server", "p99_ms": 1.0},
        vitdeploy.WeightsFile: {"path": "weights.pth"},
    }
    argument = {"limit": f"m{kind.__name__[1:3]}_{kind.__name__[3:].lower()}"}.get(name, name)
    with raises(UsageError) as caught:
        kind(**{**given.get(kind, {}), name: WRONG})
    assert caught.value.what == argument
    assert caught.value.found in (WRONG, (WRONG,), type(WRONG) if name == "token" else WRONG)
    assert name != "token" or repr(WRONG) not in str(caught.value)


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, (0, np.int64(3)), (True, 1.5, "1", None)),
        (float, (1, 0.5, np.float32(1)), (True, "1", 1j)),
        (str | None, ("", None), (b"", 0)),
        (Literal[False], (False,), (0, True, None)),
        (Sequence[str], ([], ("a",)), ("a", b"a", ["a", 1], {"a"})),
        (Mapping[str, Mapping[str, Any]], ({}, {"a": {"b": 1}}), ([], {"a": 1})),
        (vitdeploy.Progress, (vitdeploy.Progress(),), (None, vitdeploy.Progress)),
    ],
)
def test_values_of_a_type(hint: Any, right: tuple[object, ...], wrong: tuple[object, ...]) -> None:
    for value in right:
        check_type("a", value, hint)
    for value in wrong:
        with raises(UsageError, what="a", found=value):
            check_type("a", value, hint)


def test_arguments_that_the_function_does_not_have_are_told_with_its_name() -> None:
    with pytest.raises(TypeError, match=r"^push\(\) missing .*'name'"):
        vitdeploy.push("vit")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^compare\(\) got an unexpected keyword argument 'nope'"):
        vitdeploy.compare("vit", nope=1)  # type: ignore[call-arg]
