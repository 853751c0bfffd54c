"""Tools that run a model in ONNX Runtime or OpenVINO, with transformers' image processor as their users do."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch_tools import is_classifier, processor
from worker import Tool


def optimum_onnx(file: Path, model: Path) -> Tool:
    """Optimum's ONNX Runtime model; `file` is the folder that optimum-cli wrote."""
    optimum: Any = importlib.import_module("optimum.onnxruntime")
    classifier = is_classifier(model)
    task = "ImageClassification" if classifier else "FeatureExtraction"
    loaded = getattr(optimum, f"ORTModelFor{task}").from_pretrained(file)

    def infer(pixel_values: Any) -> np.ndarray:
        result = loaded(pixel_values=pixel_values)
        # Its file of features has no pooled output: the class token is what transformers pools here.
        values = result.logits if classifier else result.last_hidden_state[:, 0]
        return np.asarray(values)

    return Tool(processor(model), infer)


def onnxruntime_file(file: Path, model: Path) -> Tool:
    """An ONNX file in ONNX Runtime, with its default options."""
    import onnxruntime as ort

    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    (pixels, *_), output = session.get_inputs(), _pooled([value.name for value in session.get_outputs()])

    def infer(pixel_values: Any) -> np.ndarray:
        return session.run([output], {pixels.name: np.asarray(pixel_values)})[0]  # type: ignore[no-any-return]

    return Tool(processor(model), infer)


def openvino_file(file: Path, model: Path, precision: str = "") -> Tool:
    """An ONNX file or OpenVINO IR in OpenVINO: its latency mode, and its default precision unless one is named."""
    import openvino as ov

    properties = {"PERFORMANCE_HINT": "LATENCY", **({"INFERENCE_PRECISION_HINT": precision} if precision else {})}
    compiled = ov.Core().compile_model(file, "CPU", properties)
    names = [min(port.names) if port.names else "" for port in compiled.outputs]
    output = names.index(_pooled(names))

    def infer(pixel_values: Any) -> np.ndarray:
        return np.array(compiled([np.asarray(pixel_values)])[output])

    return Tool(processor(model), infer)


def vitdeploy_bundle(file: Path, model: Path, backend: str, precision: str, **options: str) -> Tool:  # noqa: ARG001
    """A bundle of vitdeploy; `options` are its runtime's, as JSON."""
    import vitdeploy

    predictor = vitdeploy.load(
        file, backend=backend, precision=precision, **{name: json.loads(value) for name, value in options.items()}
    )
    output = _pooled([spec.name for spec in predictor.runtime.outputs])
    pixels = predictor.runtime.inputs[0].name

    def infer(pixel_values: np.ndarray) -> np.ndarray:
        return predictor.runtime.run({pixels: pixel_values})[output]

    def prepare(files: Any) -> np.ndarray:
        return predictor.processor(files, pixels=predictor.runtime.pixels)

    if output != "logits":
        return Tool(prepare, infer)
    return Tool(prepare, infer, lambda files: predictor.predict(files, batch_size=len(files)))


def _pooled(names: list[str]) -> str:
    return next(name for name in ("logits", "pooler_output", names[-1]) if name in names)
