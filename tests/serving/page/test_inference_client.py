"""The client of the Open Inference Protocol: what it sends, reads and refuses."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import numpy as np
import pytest
from fake_triton import HEADER_LENGTH, Answer, error, fake_triton, outputs_in_binary, outputs_in_json
from raising import raises

from vitdeploy.errors import ImageError, OverloadedError, UnavailableError, VitDeployError
from vitdeploy.serving.page.inference_client import BadAnswerError, InferenceClient

OUTPUTS: dict[str, np.ndarray] = {
    "logits": np.array([[0.5, -2.0, 1e-3]], np.float32),
    "half": np.array([[[1.5], [2.5]]], np.float16),
    "indices": np.array([[3]], np.int32),
}


def asked(answer: Answer, image: bytes = b"an image") -> dict[str, np.ndarray]:
    received: list[bytes] = []

    def note(data: bytes) -> Answer:
        received.append(data)
        return answer

    with fake_triton(note, "a model", "image") as port:
        try:
            return InferenceClient("127.0.0.1", port, "a model", 5.0).infer("image", image)
        finally:
            assert received == [image]


@pytest.mark.parametrize("form", [outputs_in_binary, outputs_in_json])
def test_outputs_are_read_in_both_forms(form: Any) -> None:
    found = asked(form(OUTPUTS))
    assert list(found) == list(OUTPUTS)
    for name, values in OUTPUTS.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("form", [outputs_in_binary, outputs_in_json])
def test_texts_are_read_in_both_forms(form: Any) -> None:
    found = asked(form({"labels": np.array([["é <b>".encode(), b""]], object)}))
    assert found["labels"].tolist() == [["é <b>", ""]]


@pytest.mark.parametrize(
    ("answer", "kind", "found"),
    [
        (error(503, "Exceeds maximum queue size"), OverloadedError, "Exceeds maximum queue size"),
        (error(400, "cannot read the image: it is empty"), ImageError, 400),
        (error(500, "failed"), BadAnswerError, 500),
        ((404, {}, b"<html>"), BadAnswerError, 404),
    ],
)
def test_refusals_have_a_type(answer: Answer, kind: type[VitDeployError], found: object) -> None:
    with raises(kind, what="a model", found=found):
        asked(answer)


def test_the_servers_reason_is_told_for_an_image() -> None:
    with pytest.raises(ImageError, match=r"^cannot read the image: it is empty$"):
        asked(error(400, "cannot read images[0]: it is empty"))


def body(output: dict[str, Any], data: bytes = b"") -> Answer:
    header = json.dumps({"outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], **output}]}).encode()
    return 200, {HEADER_LENGTH: str(len(header))}, header + data


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b""),
        (200, {}, b"[]"),
        (200, {HEADER_LENGTH: "many"}, b"{}"),
        (200, {}, b'{"outputs": [3]}'),
        body({"data": [1.0]}),
        body({"data": [1.0, "text"]}),
        body({"datatype": "FP31", "data": [1.0, 2.0]}),
        body({"parameters": {"binary_data_size": 8}}, b"cut off"),
        body({"parameters": {"binary_data_size": 4}}, b"four"),
        body({"datatype": "BYTES", "parameters": {"binary_data_size": 8}}, b"\x09\0\0\0four"),
    ],
)
def test_an_answer_of_another_form_is_an_error(answer: Answer) -> None:
    with pytest.raises(BadAnswerError):
        asked(answer)


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with raises(UnavailableError, what="vit"):
        InferenceClient("127.0.0.1", port, "vit").infer("image", b"x")


def test_a_server_that_is_killed_before_it_answers_and_one_that_never_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = InferenceClient("127.0.0.1", server.getsockname()[1], "vit", timeout_s=0.2)
        with raises(UnavailableError, what="vit"):
            client.infer("image", b"x")

        def accept_and_close() -> None:
            for _ in range(2):  # the first is left of the request above
                server.accept()[0].close()

        thread = threading.Thread(target=accept_and_close)
        thread.start()
        with raises(UnavailableError, what="vit"):
            client.infer("image", b"x")
        thread.join()
