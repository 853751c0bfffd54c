"""A server on loopback that speaks the Open Inference Protocol as Triton does, with a runtime behind it."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

HEADER_LENGTH = "Inference-Header-Content-Length"
_TYPES = {"float16": "FP16", "float32": "FP32", "int32": "INT32", "object": "BYTES"}

# An image's bytes to the status, the headers and the body of the answer.
Answer = tuple[int, dict[str, str], bytes]


def error(status: int, message: str) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps({"error": message}).encode()


def outputs_in_json(outputs: Mapping[str, np.ndarray]) -> Answer:
    described = []
    for name, x in outputs.items():
        data = [value.decode() if isinstance(value, bytes) else value for value in x.ravel().tolist()]
        described.append({"name": name, "datatype": _TYPES[str(x.dtype)], "shape": list(x.shape), "data": data})
    return 200, {"Content-Type": "application/json"}, json.dumps({"outputs": described}).encode()


def outputs_in_binary(outputs: Mapping[str, np.ndarray]) -> Answer:
    described, content = [], b""
    for name, x in outputs.items():
        is_text = x.dtype == object
        data = b"".join(len(text).to_bytes(4, "little") + text for text in x.ravel()) if is_text else x.tobytes()
        parameters = {"binary_data_size": len(data)}
        described.append(
            {"name": name, "datatype": _TYPES[str(x.dtype)], "shape": list(x.shape), "parameters": parameters}
        )
        content += data
    header = json.dumps({"outputs": described}).encode()
    return 200, {HEADER_LENGTH: str(len(header))}, header + content


@contextlib.contextmanager
def fake_triton(answer: Callable[[bytes], Answer], model: str, name: str) -> Iterator[int]:
    """The port of a server of `model`, whose input `name` takes the bytes of one image, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == f"/v2/models/{quote(model)}/infer"
            length = int(self.headers[HEADER_LENGTH])
            request, data = json.loads(body[:length]), body[length:]
            (tensor,) = request["inputs"]
            assert (tensor["name"], tensor["shape"], tensor["datatype"]) == (name, [1, 1], "BYTES")
            assert tensor["parameters"]["binary_data_size"] == len(data)
            assert int.from_bytes(data[:4], "little") == len(data) - 4
            status, headers, content = answer(data[4:])
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
