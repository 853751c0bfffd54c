"""Ask a model server over HTTP: the Open Inference Protocol, version 2, with Triton's extension for binary tensors.

https://github.com/kserve/open-inference-protocol and, of triton-inference-server/server, `docs/protocol/`
`extension_binary_data.md`.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from vitdeploy.errors import ImageError, OverloadedError, UnavailableError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER_LENGTH = "Inference-Header-Content-Length"
_MOST_ANSWER = 256 * 2**20  # bytes
_TYPES = {
    "BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
    **{f"{kind}{8 * size}": f"<{kind[0].lower()}{size}" for kind in ("INT", "UINT") for size in (1, 2, 4, 8)},
}  # fmt: skip


class BadAnswerError(UnavailableError):
    """The model server failed, or its answer does not follow the protocol."""


@dataclasses.dataclass(frozen=True)
class InferenceClient:
    """A model on a server; thread-safe, a connection for each request.

    Attributes:
        host, port: The server's HTTP address.
        model: Name of the model.
        timeout_s: Seconds without any byte of the server's.
    """

    host: str
    port: int
    model: str
    timeout_s: float = 60.0

    def infer(self, name: str, image: bytes) -> dict[str, np.ndarray]:
        """Send the encoded bytes of one image as the input `name`, BYTES of shape (1, 1); outputs by name.

        Raises:
            ImageError: If the server refuses the image.
            OverloadedError: If its queue is full.
            BadAnswerError: If it fails, or its answer does not follow the protocol.
            UnavailableError: If it cannot be reached, or does not answer in time.
        """
        element = len(image).to_bytes(4, "little") + image
        request = {
            "inputs": [
                {"name": name, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
            ],
            "parameters": {"binary_data_output": True},
        }
        header = json.dumps(request).encode()
        path = f"/v2/models/{quote(self.model, safe='')}/infer"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            connection.request(
                "POST", path, header + element,
                {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))},
            )  # fmt: skip
            response = connection.getresponse()
            content = response.read(_MOST_ANSWER + 1)
        except TimeoutError as exc:
            raise UnavailableError(
                f"the model server did not answer within {self.timeout_s:g} s", what=self.model, hint="try again"
            ) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise UnavailableError(
                "the model server cannot be reached", what=self.model, found=first_line(exc),
                hint="it may be starting or have stopped: look at the terminal of vitdeploy serve",
            ) from exc  # fmt: skip
        finally:
            connection.close()
        if response.status != HTTPStatus.OK:
            raise self._error(response.status, content)
        return self._outputs(content, response.headers[_HEADER_LENGTH])

    def _error(self, status: int, content: bytes) -> UnavailableError | ImageError:
        try:
            problem = str(json.loads(content)["error"])
        except (ValueError, LookupError, TypeError):
            problem = f"HTTP status {status}"
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            return OverloadedError(
                "the model server is busy", what=self.model, found=problem, hint="try again in a moment"
            )
        if status == HTTPStatus.BAD_REQUEST:
            return ImageError(problem.replace("images[0]", "the image"), what=self.model, found=status)
        return BadAnswerError(f"the model server failed: {problem}", what=self.model, found=status)

    def _outputs(self, content: bytes, header_length: str | None) -> dict[str, np.ndarray]:
        try:
            length = len(content) if header_length is None else int(header_length)
            outputs, place, found = json.loads(content[:length])["outputs"], length, {}
            for output in outputs:
                size = output.get("parameters", {}).get("binary_data_size")
                data = None if size is None else content[place : place + size]
                place += size or 0
                found[str(output["name"])] = _array(output, data)
        except (ValueError, LookupError, TypeError, AttributeError) as exc:
            message = "the model server's answer does not follow the Open Inference Protocol"
            raise BadAnswerError(message, what=self.model, found=first_line(exc)) from exc
        return found


def _array(output: Mapping[str, Any], data: bytes | None) -> np.ndarray:
    """An output's values; ValueError if they are not as many as its shape says."""
    shape = tuple(output["shape"])
    if output["datatype"] == "BYTES":
        values: Any = list(_elements(data)) if data is not None else output["data"]
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(shape)
    dtype = np.dtype(_TYPES[output["datatype"]])
    if data is None:
        return np.asarray(output["data"], dtype).reshape(shape)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{output['name']} has {len(data)} bytes, its shape is {shape}")
    return np.frombuffer(data, dtype).reshape(shape)


def _elements(data: bytes) -> Any:
    """Texts, each after its length in 4 bytes."""
    place = 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        element = data[place + 4 : place + 4 + length]
        if len(element) != length:
            raise ValueError("an element of text is cut off")
        yield element.decode(errors="replace")
        place += 4 + length
