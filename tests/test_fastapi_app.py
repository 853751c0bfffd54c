"""The example of a web service: a real server process, warnings as errors, requests over HTTP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from environments import ROOT
from gated_runtime import WAIT_S, gated_predictor
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import vitdeploy
from vitdeploy.assets import default_checkpoint
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.predictor import Predictor

FOLDER = ROOT / "examples" / "fastapi_app"
START_S = 60.0  # of a process on a busy machine
MAX_BODY = 100_000

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals of a Unix system")


@dataclasses.dataclass
class Server:
    """A server process.

    Attributes:
        lines: What it printed.
    """

    process: subprocess.Popen[str]
    lines: list[str]

    def wait_for(self, pattern: str, seconds: float = START_S) -> str:
        """The first group of a printed line."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            for line in self.lines:
                if found := re.search(pattern, line):
                    return found[1] if found.groups() else found[0]
            time.sleep(0.02)
        raise AssertionError(f"{pattern} not printed:\n{''.join(self.lines)}")


@contextlib.contextmanager
def server(bundle: Path, **settings: str) -> Iterator[tuple[Server, httpx.Client]]:
    command = (FOLDER / "README.md").read_text(encoding="utf-8").partition("BUNDLE=vit ")[2].partition("\n")[0]
    program, *arguments = command.replace("--port 8000", "--port 0").split()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", program, *arguments], cwd=FOLDER, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BUNDLE": str(bundle), **settings},
    )  # fmt: skip
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lines.extend, args=(process.stderr,))
    reader.start()
    try:
        running = Server(process, lines)
        port = running.wait_for(r"running on http://127\.0\.0\.1:(\d+)")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S, trust_env=False) as client:
            yield running, client
    finally:
        process.terminate()
        process.wait(WAIT_S)
        reader.join(WAIT_S)
        process.stderr.close()


@pytest.fixture(scope="module")
def bundle(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(digits.path, tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def running(bundle: Path) -> Iterator[tuple[Server, httpx.Client]]:
    with server(bundle, MAX_BODY_BYTES=str(MAX_BODY), BODY_TIMEOUT="0.5") as started:
        yield started


@pytest.fixture
def client(running: tuple[Server, httpx.Client]) -> httpx.Client:
    return running[1]


def png(height: int = 40, width: int = 50, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def samples(client: httpx.Client) -> dict[tuple[str, str], float]:
    """Values by metric and its first label."""
    text = client.get("/metrics").raise_for_status().text
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_answers_are_those_of_the_predictor(client: httpx.Client, bundle: Path) -> None:
    images = [png(seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda image: client.post("/predict?top_k=3", content=image), images))
    with vitdeploy.load(bundle) as predictor:
        for answer, wanted in zip(answers, predictor.predict(images, top_k=3), strict=True):
            assert answer.status_code == 200
            assert [best["label"] for best in answer.json()] == [best.label for best in wanted]
            assert [best["score"] for best in answer.json()] == pytest.approx([best.score for best in wanted], rel=1e-4)


def test_probes_and_metrics(client: httpx.Client, bundle: Path) -> None:
    assert client.get("/health").json() == {"status": "alive"}
    client.post("/predict", content=png()).raise_for_status()
    client.post("/predict", content=b"no image")
    with vitdeploy.load(bundle) as predictor:
        assert client.get("/ready").json()["fingerprint"] == predictor.fingerprint
    found = samples(client)
    assert found["vitdeploy_images_total", "answered"] >= 1
    assert found["vitdeploy_images_total", "failed"] >= 1
    assert found["vitdeploy_queue_length", ""] == 0
    assert found["vitdeploy_batch_size_sum", ""] == found["vitdeploy_images_total", "answered"]
    assert found["vitdeploy_latency_seconds_bucket", "+Inf"] == found["vitdeploy_images_total", "answered"]
    assert found["process_resident_memory_bytes", ""] > 1e6


@pytest.mark.parametrize("content", [b"", b"no image", png()[:200]])
def test_a_bad_image_has_a_reason(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/predict", content=content)
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) > 20


def test_a_bomb_is_refused_by_its_header(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(file, "PNG")
    answer = client.post("/predict", content=file.getvalue())
    assert answer.status_code == 422
    assert "limit of 50000000 pixels" in answer.text
    assert "VITDEPLOY" not in answer.text, "the hint is not for the client"


@pytest.mark.parametrize("query", ["top_k=0", "top_k=many"])
def test_a_bad_argument(client: httpx.Client, query: str) -> None:
    assert client.post(f"/predict?{query}", content=png()).status_code == 422


def test_a_body_is_read_to_its_limit_only(client: httpx.Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield bytes(1 << 16)

    assert client.post("/predict", content=bytes(MAX_BODY + 1)).status_code == 413
    with contextlib.suppress(httpx.TransportError):  # the server answers, and closes a connection that still sends
        assert client.post("/predict", content=endless()).status_code == 413
    assert sent < 1 << 28
    assert client.post("/predict", content=png()).status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(client: httpx.Client) -> None:
    def slow() -> Iterator[bytes]:
        yield b"\x89PNG"
        time.sleep(1.5)
        yield b"rest"

    with contextlib.suppress(httpx.TransportError):
        assert client.post("/predict", content=slow()).status_code == 408
    assert client.get("/health").status_code == 200


def test_a_new_bundle_is_used_after_sighup(running: tuple[Server, httpx.Client], bundle: Path, tmp_path: Path) -> None:
    started, client = running
    before = client.get("/ready").json()
    (bundle / "manifest.json").rename(tmp_path / "manifest.json")
    started.process.send_signal(signal.SIGHUP)
    started.wait_for("not reloaded")
    failed = client.get("/ready").json()
    assert failed == {**before, "failures": 1, "last_error": failed["last_error"]}
    assert "manifest.json" in failed["last_error"]
    assert client.post("/predict", content=png()).status_code == 200
    (tmp_path / "manifest.json").rename(bundle / "manifest.json")
    vitdeploy.export(default_checkpoint(), output=bundle, graph=vitdeploy.GraphOptions(opset=19))
    started.process.send_signal(signal.SIGHUP)
    started.wait_for("new bundle in use")
    after = client.get("/ready").json()
    assert (after["fingerprint"] != before["fingerprint"], after["reloads"], after["last_error"]) == (True, 1, None)
    assert client.post("/predict", content=png()).status_code == 200


def test_accepted_requests_are_answered_before_the_end(digits: Bundle) -> None:
    with server(digits.path, MAX_DELAY="1.5", MAX_BATCH_SIZE="64") as (started, client), ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(client.post, "/predict", content=png()) for _ in range(5)]
        while samples(client)["vitdeploy_queue_length", ""] < 5:
            time.sleep(0.01)
        started.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 5
        started.process.wait(WAIT_S)
    assert started.process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in "".join(started.lines)


def test_a_bundle_that_cannot_be_opened_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not a vitdeploy bundle"), server(tmp_path):
        pass


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application in this process."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("VITDEPLOY_MAX_IMAGE_PIXELS", "50000000")  # which the application sets
    return importlib.import_module("app")


def test_a_client_that_goes_away_is_no_failure_of_the_server(module: Any) -> None:
    messages: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
    module.app.state.service = module.Service(module.Settings(), None, None, None)
    asyncio.run(module.app(scope, receive, send))
    assert messages[0]["status"] == 400


@contextlib.asynccontextmanager
async def served(module: Any, predictor: Predictor, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application in this process, so that the test decides when a run ends."""
    batcher = vitdeploy.MicroBatcher(predictor, max_batch_size=1, max_delay=0, **options)
    async with vitdeploy.AsyncPredictor(batcher) as opened:
        module.app.state.service = module.Service(module.Settings(), None, opened, None)
        transport = httpx.ASGITransport(module.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def waiting(module: Any, count: int) -> None:
    """Return once as many images wait for a run."""
    while module.app.state.service.predictor.batcher.statistics().waiting != count:
        await asyncio.sleep(0.001)


def test_a_full_queue_is_a_503(module: Any) -> None:
    predictor, runtime = gated_predictor()

    async def main() -> None:
        async with served(module, predictor, max_queue=1) as client:
            runtime.hold()
            tasks = [asyncio.create_task(client.post("/predict", content=png()))]
            await asyncio.to_thread(runtime.wait_for_run)
            tasks.append(asyncio.create_task(client.post("/predict", content=png())))
            await waiting(module, 1)
            refused = await client.post("/predict", content=png())
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            runtime.gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200, 200]

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_a_client_that_goes_away_frees_its_place(module: Any, path: str) -> None:
    predictor, runtime = gated_predictor()
    body = png() if path == "/predict" else images_in_json([png()])

    async def main() -> None:
        async with served(module, predictor, max_queue=1) as client:
            runtime.hold()
            first = asyncio.create_task(client.post("/predict", content=png()))
            await asyncio.to_thread(runtime.wait_for_run)
            messages, gone = [{"type": "http.request", "body": body}], asyncio.Event()

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(_: Any) -> None:
                assert gone.is_set()

            scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
            leaving = asyncio.create_task(module.app(scope, receive, send))
            await waiting(module, 1)
            gone.set()
            await asyncio.wait_for(leaving, WAIT_S)
            await waiting(module, 0)
            runtime.gate.set()
            assert (await first).status_code == 200
        assert len(runtime.shapes) == 1

    asyncio.run(main())


def test_what_is_closed_is_a_503(module: Any) -> None:
    """Requests that outlast the time of a shutdown."""

    async def main() -> None:
        async with served(module, gated_predictor()[0]) as client:
            await module.app.state.service.predictor.close()
            for path, body in (("/predict", png()), ("/predict/batch", images_in_json([png()]))):
                answer = await client.post(path, content=body)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    asyncio.run(main())


def test_a_label_that_is_not_utf_8(module: Any) -> None:
    opened, _ = gated_predictor()
    predictor = Predictor(opened.processor, opened.runtime, ["\ud800", "light"])

    async def main() -> None:
        async with served(module, predictor) as client:
            answer = await client.post("/predict", content=png())
            assert sorted(best["label"] for best in answer.raise_for_status().json()) == ["\\ud800", "light"]

    asyncio.run(main())


def images_in_json(images: list[bytes]) -> bytes:
    return json.dumps([base64.b64encode(image).decode() for image in images]).encode()


def test_several_images_in_a_request(client: httpx.Client, bundle: Path) -> None:
    """A bad one has its own error."""
    images = [png(seed=seed) for seed in range(3)]
    answer = client.post("/predict/batch?top_k=2", content=images_in_json([images[0], b"no image", *images[1:]]))
    first, bad, *others = answer.raise_for_status().json()
    assert list(bad) == ["error"]
    with vitdeploy.load(bundle) as predictor:
        for result, wanted in zip((first, *others), predictor.predict(images, top_k=2), strict=True):
            assert [best["label"] for best in result["predictions"]] == [best.label for best in wanted]
            scores = [best["score"] for best in result["predictions"]]
            assert scores == pytest.approx([best.score for best in wanted], rel=1e-4)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"[1]", 422),
        (b"{}", 422),
        (b"[" * 50_000, 422),
        (b"[]", 422),
        (b'["",' + b'"",' * 10_000 + b'""]', 422),
        (bytes(MAX_BODY + 1), 413),
    ],
)
def test_a_batch_that_is_none(client: httpx.Client, content: bytes, status: int) -> None:
    assert client.post("/predict/batch", content=content).status_code == status


def test_a_batch_for_which_the_queue_has_no_room(module: Any) -> None:
    predictor, runtime = gated_predictor()

    async def main() -> None:
        async with served(module, predictor, max_queue=2) as client:
            runtime.hold()  # or an image could leave its place to the last one
            answer = await client.post("/predict/batch", content=images_in_json([png()] * 4))
            assert answer.status_code == 503
            await waiting(module, 0)
            runtime.gate.set()

    asyncio.run(main())
