"""Serve a bundle in Triton's Python backend: images or prepared tensors in, the answers of `predict` or `embed` out.

`vitdeploy triton --python-backend` copies this file as `model.py`, the same for every bundle; its settings are the
parameters in `config.pbtxt`. The backend's Python must have vitdeploy and the library of the engine.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# The backend's interpreter is isolated: without this, only packages of its environment are found.
sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]

import triton_python_backend_utils as pb_utils  # a module of Triton's

import vitdeploy
from vitdeploy.errors import VitDeployError
from vitdeploy.images.pixel_limit import MAX_PIXELS_VARIABLE
from vitdeploy.serving.model_repository.batch_answers import BatchAnswers
from vitdeploy.serving.scale_out.batch_callable import resolve
from vitdeploy.system.cpu import session_threads, usable_cpus


class TritonPythonModel:
    """One instance of the model; Triton calls its methods one at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle beside this file, and run the smallest and the largest batch.

        If that fails, Triton does not serve this version, and goes on with the one before.
        """
        config = json.loads(args["model_config"])
        settings = {name: parameter["string_value"] for name, parameter in config["parameters"].items()}
        os.environ[MAX_PIXELS_VARIABLE] = settings["max_image_pixels"]
        given = {name: settings[name] for name in ("backend", "precision", "device") if name in settings}
        instances = sum(group["count"] for group in config["instance_group"])
        self.input = config["input"][0]["name"]
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        threads = _threads(int(settings["threads"]), instances)
        self.answers = BatchAnswers(
            vitdeploy.load(bundle, **(resolve(bundle, given, threads).options if threads else given)),
            [output["name"] for output in config["output"]],
            top_k=int(settings["top_k"]),
            max_batch_size=max(1, config["max_batch_size"]),
            max_image_bytes=int(settings["max_image_bytes"]),
        )
        self.answers.warm_up()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests in as few runs as possible; a bad image is an error of its own request alone."""
        inputs = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        return [_response(answer) for answer in self.answers(inputs)]

    def finalize(self) -> None:
        """End the threads and close the runtime."""
        self.answers.close()


def _threads(threads: int, instances: int) -> int:
    """The number of threads, 0 for the backend's: by default, the instances share the CPUs of the cgroup."""
    if not threads and instances > 1:
        threads = max(1, (session_threads().count or usable_cpus().workers) // instances)
    return threads


def _response(answer: Any) -> Any:
    if isinstance(answer, VitDeployError):
        code = pb_utils.TritonError.INVALID_ARG if answer.exit_code in (2, 4) else pb_utils.TritonError.INTERNAL
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), code))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in answer.items()])
