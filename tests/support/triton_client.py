"""Ask a Triton over HTTP and gRPC, several requests at a time; run with the Python of .venvs/triton.

Standard input has a JSON object: `addresses` by protocol, the `model`, and `requests`, each with its `protocol`, and
its `images` (paths) or its `tensor` (a .npy file). Standard output has a list of answers: `outputs` by name, and the
`version` of the model; or the `error`.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np


def text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def ask(client: Any, protocol: Any, model: str, request: dict[str, Any]) -> dict[str, Any]:
    if "tensor" in request:
        array, name, datatype = np.load(request["tensor"]), "pixel_values", "FP32"
    else:
        contents = [Path(path).read_bytes() for path in request["images"]]
        array, name, datatype = np.array(contents, object).reshape(-1, 1), "image", "BYTES"
    tensor = protocol.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    try:
        result = client.infer(model, [tensor])
    except Exception as exc:  # noqa: BLE001  (an answer of this test)
        return {"error": str(exc)}
    answer = result.get_response()
    described = answer if isinstance(answer, dict) else {"model_version": answer.model_version}
    outputs = answer["outputs"] if isinstance(answer, dict) else answer.outputs
    names = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
    arrays = {name: result.as_numpy(name) for name in names}
    lists = {name: [[text(value) for value in row] for row in array.tolist()] for name, array in arrays.items()}
    return {"outputs": lists, "version": described["model_version"]}


def main() -> None:
    job = json.load(sys.stdin)
    requests = job["requests"]
    answers: list[Any] = [None] * len(requests)
    protocols = {
        name: importlib.import_module(f"tritonclient.{name}") for name in {one["protocol"] for one in requests}
    }
    start = threading.Barrier(len(requests))

    def run(index: int) -> None:
        protocol = protocols[requests[index]["protocol"]]
        client = protocol.InferenceServerClient(job["addresses"][requests[index]["protocol"]])
        client.is_server_live()  # connects
        start.wait()
        answers[index] = ask(client, protocol, job["model"], requests[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
