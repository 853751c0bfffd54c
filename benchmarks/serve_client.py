"""Send requests to a served model at given times and check every answer; started by `serve_load.py`.

It runs in the environment of Triton's clients. The job is JSON on standard input, see `Job`; a line on standard output
tells that the load begins, another one has the outcomes. Requests are sent at their times whatever became of the
others, and a latency begins at the scheduled time. Messages are made before the load and read after it, so that the
client's own work disturbs little.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import grpc
import numpy as np
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc

_LEAD_S = 0.1
_RECONNECT_MS = 100  # gRPC's default is a second and more, which would measure the client
ANSWERED, WRONG, REFUSED, FAILED, LOST, HUNG = "answered", "wrong", "refused", "failed", "lost", "hung"
_REFUSALS = ("Exceeds maximum queue size", "Request for unknown model")  # the second: as Triton starts or ends
_HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclasses.dataclass(frozen=True)
class Job:
    """The requests to send.

    Attributes:
        protocol: "http" or "grpc".
        address: Host and port.
        model: Name of the model.
        input: Name of its input, BYTES of shape (N, 1).
        images: Files; a request has the next one in turn.
        expected: For each image, the outputs by name.
        arrivals: Seconds from the start of the load, ascending.
        timeout_s: A request without a response by then hangs.
        tolerance: Largest relative difference of numbers: batches differ in their last digits.
    """

    protocol: str
    address: str
    model: str
    input: str
    images: list[str]
    expected: list[dict[str, list[Any]]]
    arrivals: list[float]
    timeout_s: float = 10.0
    tolerance: float = 1e-3


class Channel(Protocol):
    """One protocol: send an image by its number, and read what came back once the load is over."""

    async def send(self, image: int) -> tuple[str, Any]:
        """The outcome, ANSWERED without a look at the answer, and what `outputs` or `reason` reads."""
        ...

    def outputs(self, raw: Any) -> Any: ...

    def reason(self, raw: Any) -> str: ...

    async def close(self) -> None: ...


class Http:
    """HTTP, with as many kept connections as requests in flight."""

    def __init__(self, job: Job, contents: list[bytes]) -> None:
        self._url = f"http://{job.address}/v2/models/{job.model}/infer"
        self._messages = []
        for content in contents:
            tensor = triton_http.InferInput(job.input, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[content]], object))
            names = [triton_http.InferRequestedOutput(name) for name in job.expected[0]]
            body, length = triton_http.InferenceServerClient.generate_request_body([tensor], outputs=names)
            self._messages.append((body, {_HEADER_LENGTH: str(length)}))
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout())

    async def send(self, image: int) -> tuple[str, Any]:
        body, headers = self._messages[image]
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError) as exc:
            return LOST, json.dumps({"error": type(exc).__name__}).encode()
        if response.status == 200:
            return ANSWERED, (content, int(response.headers[_HEADER_LENGTH]))
        return _outcome(content.decode(errors="replace")), content

    def outputs(self, raw: Any) -> Any:
        return triton_http.InferenceServerClient.parse_response_body(raw[0], header_length=raw[1])

    def reason(self, raw: Any) -> str:
        return str(json.loads(raw)["error"])

    async def close(self) -> None:
        await self._session.close()


class Grpc:
    """gRPC, over one connection."""

    def __init__(self, job: Job, contents: list[bytes]) -> None:
        self._messages = []
        for content in contents:
            tensor = triton_grpc.InferInput(job.input, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[content]], object))
            message = service_pb2.ModelInferRequest(model_name=job.model)
            message.inputs.append(tensor._get_tensor())
            message.raw_input_contents.append(tensor._get_content())
            self._messages.append(message)
        options = [(f"grpc.{name}_reconnect_backoff_ms", _RECONNECT_MS) for name in ("initial", "min", "max")]
        self._channel = grpc.aio.insecure_channel(job.address, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def send(self, image: int) -> tuple[str, Any]:
        try:
            return ANSWERED, await self._stub.ModelInfer(self._messages[image])
        except grpc.aio.AioRpcError as exc:
            outcome = _outcome(exc.details() or "")
            if outcome is FAILED and exc.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                outcome = LOST  # said by the client's own library
            return outcome, f"{exc.code().name}: {exc.details()}"

    def outputs(self, raw: Any) -> Any:
        return triton_grpc.InferResult(raw)

    def reason(self, raw: Any) -> str:
        return str(raw)

    async def close(self) -> None:
        await self._channel.close()


def _outcome(message: str) -> str:
    return REFUSED if any(text in message for text in _REFUSALS) else FAILED


PROTOCOLS: dict[str, Callable[[Job, list[bytes]], Channel]] = {"http": Http, "grpc": Grpc}


async def load(job: Job, channel: Channel) -> list[tuple[str, float, Any]]:
    """Send the requests; of each the outcome, the seconds from its scheduled time, and what came back."""
    begin = time.perf_counter() + _LEAD_S
    print(json.dumps({"begin": time.time() + _LEAD_S}), flush=True)

    async def one(number: int, due: float) -> tuple[str, float, Any]:
        try:
            outcome, raw = await asyncio.wait_for(channel.send(number % len(job.images)), job.timeout_s)
        except asyncio.TimeoutError:
            outcome, raw = HUNG, None
        return outcome, time.perf_counter() - due, raw

    tasks = []
    for number, arrival in enumerate(job.arrivals):
        due = begin + arrival
        # also when it is late already, so that the tasks of before get their turn
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, due)))
    return await asyncio.gather(*tasks)


def difference(job: Job, image: int, outputs: Any) -> str:
    """How the outputs for an image differ from the expected ones; empty if they do not."""
    for name, values in job.expected[image].items():
        found = outputs.as_numpy(name)
        if found is None or found.shape != (1, len(values)):
            return f"{name} has shape {None if found is None else found.shape}"
        if found.dtype == object:
            texts = [text.decode() for text in found[0]]
            if texts[0] != values[0]:
                return f"{name} {texts[0]!r:.80} instead of {values[0]!r:.80}"
        elif not np.allclose(found[0], values, rtol=job.tolerance, atol=job.tolerance * max(map(abs, values))):
            return f"{name} {found[0][:3].tolist()} instead of {values[:3]}"
    return ""


def checked(job: Job, channel: Channel, sent: list[tuple[str, float, Any]]) -> dict[str, Any]:
    """Outcomes, with a reason for all but right answers."""
    outcomes: list[str] = []
    reasons: dict[str, int] = {}
    for number, (outcome, _, raw) in enumerate(sent):
        reason = ""
        if outcome == ANSWERED:
            reason = difference(job, number % len(job.images), channel.outputs(raw))
            outcome = WRONG if reason else ANSWERED
        elif outcome != HUNG:
            reason = channel.reason(raw)
        if reason:
            reasons[reason[:200]] = reasons.get(reason[:200], 0) + 1
        outcomes.append(outcome)
    return {"outcomes": outcomes, "latencies_s": [latency for _, latency, _ in sent], "reasons": reasons}


async def run(job: Job) -> dict[str, Any]:
    contents = [Path(image).read_bytes() for image in job.images]
    channel = PROTOCOLS[job.protocol](job, contents)
    try:
        await channel.send(0)  # opens the connection
        gc.collect()
        gc.freeze()
        return checked(job, channel, await load(job, channel))
    finally:
        await channel.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Job(**json.load(sys.stdin))))))
