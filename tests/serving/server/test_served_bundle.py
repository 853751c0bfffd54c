"""A bundle in a real Triton, asked over HTTP and gRPC; tests that change or end a server have one of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from PIL import Image
from served_bundle import SECONDS, Served, answers, serve

import vitdeploy
from vitdeploy import PythonBackend, write_python_model
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.files.polling import poll
from vitdeploy.serving.server import bundle_server
from vitdeploy.specs import Task

SIDE = 2_000  # of an image that takes long to read, and few bytes
MOST_BYTES, MOST_PIXELS, MOST_IMAGES, MOST_WAITING = 20_000, SIDE * SIDE, 4, 6
DELAY_MS = 400
SCORE_TOLERANCE = 1e-6  # a batch of another size may add in another order


class Case:
    """The server, its bundles, and images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = write_bundle(folder / "classifier").path
        self.images = []
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, (40 + index, 50, 3), np.uint8)
            self.images.append(self.write(f"{index}.png", pixels))
        self.corrupt = folder / "corrupt.png"
        self.corrupt.write_bytes(self.images[0].read_bytes()[:200])
        self.features: Path
        self.served: Served

    def write(self, name: str, pixels: np.ndarray) -> Path:
        Image.fromarray(pixels).save(self.folder / name)
        return self.folder / name

    def request(self, *images: Path, protocol: str = "http") -> dict[str, Any]:
        return {"protocol": protocol, "images": [str(image) for image in images]}


@contextlib.contextmanager
def served(case: Case, *options: object) -> Iterator[Case]:
    with serve(
        case.bundle, case.folder, "--name", "pets",
        "--max-batch-size", MOST_IMAGES, "--max-delay", DELAY_MS, "--max-queue", MOST_WAITING, *options,
    ) as case.served:  # fmt: skip
        yield case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = Case(tmp_path_factory.mktemp("served"))
    made.features = write_bundle(made.folder / "features", Task.FEATURES).path
    repository = made.folder / "models"
    write_python_model(made.features, repository, name="vectors")
    write_python_model(made.bundle, repository, PythonBackend(input="tensors", max_batch_size=4), name="tensors")
    limits = ("--max-image-bytes", MOST_BYTES, "--max-image-pixels", MOST_PIXELS)
    with served(made, "--repository", repository, *limits):
        yield made


@pytest.fixture
def fresh_case(tmp_path: Path) -> Iterator[Case]:
    """With a server that the test may change and end."""
    with served(Case(tmp_path)) as made:
        yield made


def predicts(bundle: Path, images: list[Path], answer: dict[str, Any]) -> bool:
    """True if an answer has the labels, scores and indices of `predict`."""
    with vitdeploy.load(bundle) as predictor:
        expected = predictor.predict([*images])
    outputs = answer["outputs"]
    assert outputs["scores"] == [
        pytest.approx([best.score for best in image], abs=SCORE_TOLERANCE) for image in expected
    ]
    found = [list(zip(*rows, strict=True)) for rows in zip(outputs["labels"], outputs["indices"], strict=True)]
    return found == [[(best.label, best.index) for best in image] for image in expected]


def test_answers_are_those_of_predict_over_both_protocols(case: Case) -> None:
    requests = [
        case.request(*images, protocol=protocol)
        for protocol in ("http", "grpc")
        for images in (case.images[:1], case.images[1:])
    ]
    for request, answer in zip(requests, case.served.ask(requests), strict=True):
        assert predicts(case.bundle, [Path(image) for image in request["images"]], answer)
        assert answer["version"] == "1"


def test_a_file_is_a_request_by_itself(case: Case) -> None:
    """Triton's raw binary request, as curl sends it; the answer's texts are in its binary part."""
    request = case.images[0].read_bytes()
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": 4 + len(request)},
    }
    header = str({"inputs": [tensor]}).replace("'", '"').encode()
    status, answer = case.served.get(
        "/v2/models/pets/infer", data=header + len(request).to_bytes(4, "little") + request,
        headers={"Inference-Header-Content-Length": str(len(header))},
    )  # fmt: skip
    columns = {output["name"]: output["data"] for output in answer["outputs"]}
    rows = {name: [values] for name, values in columns.items()}
    assert status == 200
    assert predicts(case.bundle, case.images[:1], {"outputs": rows})


def test_requests_that_come_together_are_one_run(case: Case) -> None:
    before = case.served.statistics()
    found = case.served.ask([case.request(case.images[index % 4]) for index in range(MOST_IMAGES)])
    after = case.served.statistics()
    assert all("outputs" in answer for answer in found)
    assert after["inference_count"] - before["inference_count"] == MOST_IMAGES
    assert after["execution_count"] - before["execution_count"] < MOST_IMAGES
    assert max(batch["batch_size"] for batch in after["batch_stats"]) > 1


def test_a_bad_image_is_an_error_of_its_request_alone(case: Case) -> None:
    requests = [
        case.request(case.images[0]),
        case.request(case.images[1], case.corrupt),
        case.request(case.images[2], protocol="grpc"),
        case.request(case.corrupt, protocol="grpc"),
    ]
    first, second, third, fourth = case.served.ask(requests)
    assert predicts(case.bundle, case.images[:1], first)
    assert predicts(case.bundle, case.images[2:3], third)
    assert re.fullmatch(r"\[400\] cannot read images\[1\]: .+", second["error"])
    assert re.fullmatch(r"\[StatusCode.INVALID_ARGUMENT\] cannot read images\[0\]: .+", fourth["error"])


def test_limits_of_a_request(case: Case) -> None:
    noise = case.write("noise.png", np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8))
    large = case.write("large.png", np.zeros((SIDE + 1, SIDE, 3), np.uint8))
    text = case.folder / "text.png"
    text.write_bytes(b"")
    requests = [
        case.request(noise),
        case.request(large),
        case.request(text),
        case.request(*case.images, case.images[0]),
    ]
    wanted = (f"limit of {MOST_BYTES:,}$", f"limit of {MOST_PIXELS} pixels", "empty", f"<= {MOST_IMAGES} for 'pets'")
    for answer, reason in zip(case.served.ask(requests), wanted, strict=True):
        assert answer["error"].startswith("[400] ")
        assert re.search(reason, answer["error"])


def test_a_request_that_overflows_tritons_count_of_images_is_refused(case: Case) -> None:
    tensor = {"name": "image", "shape": [2**32, 1], "datatype": "BYTES", "data": ["?"]}
    status, answer = case.served.get("/v2/models/pets/infer", data=json.dumps({"inputs": [tensor]}).encode())
    assert (status, "shape (N, 1)" in answer["error"]) == (400, True)


def test_vectors_and_prepared_tensors(case: Case) -> None:
    """Models of their own in the same repository."""
    with vitdeploy.load(case.features) as predictor:
        expected = predictor.embed([*case.images])
    (answer,) = case.served.ask([case.request(*case.images)], "vectors")
    np.testing.assert_allclose(answer["outputs"]["embedding"], expected, rtol=0, atol=1e-5)
    with vitdeploy.load(case.bundle) as predictor:
        np.save(case.folder / "tensor.npy", predictor.processor([*case.images]))
    requests = [{"protocol": protocol, "tensor": str(case.folder / "tensor.npy")} for protocol in ("http", "grpc")]
    for answer in case.served.ask(requests, "tensors"):
        assert predicts(case.bundle, case.images, answer)


def test_a_full_queue_refuses_at_once_and_recovers(case: Case) -> None:
    slow = case.write("slow.png", np.zeros((SIDE, SIDE, 3), np.uint8))  # the server's work is many times a client's
    requests = [case.request(*[slow] * MOST_IMAGES, protocol=("http", "grpc")[index % 2]) for index in range(40)]
    found = case.served.ask(requests)
    refused = [answer["error"] for answer in found if "error" in answer]
    answered = [answer for answer in found if "outputs" in answer]
    assert len(answered) >= MOST_WAITING
    assert refused
    assert {error.partition("]")[0] for error in refused} <= {"[503", "[StatusCode.UNAVAILABLE"}
    assert all("Exceeds maximum queue size" in error for error in refused)
    assert all(predicts(case.bundle, [slow] * MOST_IMAGES, answer) for answer in answered[:2])
    (answer,) = case.served.ask([case.request(case.images[0])])
    assert predicts(case.bundle, case.images[:1], answer)


def test_clients_cannot_load_models_or_reach_files_and_memory(case: Case) -> None:
    for path in ("/v2/systemsharedmemory/status", "/v2/logging", "/v2/trace/setting"):
        assert case.served.get(path)[0] == 403
    status, answer = case.served.get("/v2/repository/models/pets/load", data=b"{}")
    assert (status, "polling" in answer["error"]) == (503, True)


def test_a_new_bundle_is_served_without_a_gap_and_a_bad_one_is_not(fresh_case: Case, digits: Bundle) -> None:
    case = fresh_case
    old = shutil.copytree(case.bundle, case.folder / "old")
    fresh = shutil.copytree(digits.path, case.folder / "fresh")
    shutil.rmtree(case.bundle)
    fresh.rename(case.bundle)
    last = time.monotonic() + SECONDS
    versions: list[str] = []
    while versions[-1:] != ["2"] and time.monotonic() < last:
        (answer,) = case.served.ask([case.request(case.images[0])])
        versions.append(answer["version"])
    assert versions[-1] == "2"
    assert predicts(case.bundle, case.images[:1], answer)
    assert case.served.says("pets version 2 is served")

    bad = shutil.copytree(old, case.folder / "bad")
    with (bad / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"?")
    shutil.rmtree(case.bundle)
    bad.rename(case.bundle)
    case.served.process.send_signal(signal.SIGHUP)
    assert case.served.says("model.onnx was altered")
    (answer,) = case.served.ask([case.request(case.images[0])])
    assert answer["version"] == "2"
    (case.bundle / "manifest.json").write_text("{")
    assert case.served.says("is not valid JSON")
    time.sleep(3 * bundle_server._LOOK_S)
    assert case.served.errors.read_text().count("is not valid JSON") == 1, "told once, not at every look"


def test_a_model_process_that_dies_is_replaced(case: Case) -> None:
    """Triton itself would answer each request with an error, and call the model ready."""
    (worker,) = case.served.workers()
    os.kill(worker, signal.SIGKILL)
    assert case.served.says("Triton was started again")
    assert worker not in case.served.workers()
    (answer,) = case.served.ask([case.request(case.images[0], protocol="grpc")])
    assert predicts(case.bundle, case.images[:1], answer)


def test_sigterm_answers_what_was_accepted(fresh_case: Case) -> None:
    case = fresh_case
    before = case.served.statistics()["inference_count"]
    clients = case.served.clients([case.request(case.images[index]) for index in range(3)])
    assert poll(
        lambda: waiting(case.served) + case.served.statistics()["inference_count"] >= before + 3 or None, SECONDS
    )
    case.served.process.send_signal(signal.SIGTERM)
    assert all(predicts(case.bundle, [case.images[index]], answer) for index, answer in enumerate(answers(clients)))
    assert case.served.process.wait(SECONDS) == 0


def waiting(served: Served) -> int:
    """Requests that have arrived, and wait for others of their batch."""
    with urllib.request.urlopen(served.about["addresses"]["metrics"], timeout=SECONDS) as response:
        metrics = response.read().decode()
    found = re.search('nv_inference_pending_request_count{model="pets",version="[0-9]+"} ([0-9]+)', metrics)
    assert found is not None
    return int(found[1])
