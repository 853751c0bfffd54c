"""The deployment on a local Ray Serve, over HTTP."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import math
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environments import ROOT, environment
from raising import raises

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.serving.scale_out.serve_config import ServeConfig
from vitdeploy.specs import Task

DEPLOYMENT = {
    "max_ongoing_requests": 4, "max_queued_requests": 4, "ray_actor_options": {"num_cpus": 1},
    "graceful_shutdown_timeout_s": 0.1,
}  # fmt: skip
_NEVER_S = 3600.0


class Server:
    """A process with Ray Serve."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self._port = process, port

    def deploy(self, **config: Any) -> None:
        """Change settings, and wait until they are in use."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(config) + "\n")
        self._process.stdin.flush()
        self.wait()

    def wait(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "RUNNING\n"

    def post(self, body: bytes) -> tuple[int, Any]:
        """Status and content of the answer to a body."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request("POST", "/", body)
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if response.status != 503 else None


@pytest.fixture(scope="module")
def server(digits: Bundle) -> Iterator[Server]:
    """The example, with Ray's files in a folder of a short path: those of sockets have 107 bytes at most."""
    python, folder = environment("ray"), tempfile.mkdtemp(prefix="ray-")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": folder, "HOME": folder}
    command: list[str | Path] = [
        python,
        ROOT / "examples/ray/serve_app.py",
        digits.path,
        "--port",
        str(port),
        "--cpus",
        "2",
    ]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [*command, "--deployment", json.dumps(DEPLOYMENT)], text=True, cwd="/", env=environ, **pipes
    ) as process:
        server = Server(process, port)
        server.wait()
        yield server
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [path.read_bytes() for path in sorted(held_out_images().rglob("*.png"))[:4]]


def test_it_answers_refuses_batches_and_reloads(
    server: Server, digits: Bundle, images: list[bytes], tmp_path: Path
) -> None:
    with vitdeploy.load(digits.path, backend="onnxruntime", intra_op_threads=1) as predictor:
        expected = [{"predictions": [best.to_dict() for best in row]} for row in predictor.predict(images, top_k=5)]
    assert [server.post(image) for image in images] == [(200, answer) for answer in expected]
    for body in (b"", b"no image", images[0][:60]):
        status, answer = server.post(body)
        assert (status, list(answer)) == (422, ["error"])
    server.deploy(max_body_bytes=100_000)
    assert server.post(bytes(100_001))[0] == 413

    # A batch that is not full is never run, so that four answers are one batch.
    server.deploy(max_batch_size=4, batch_wait_timeout_s=_NEVER_S)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(server.post, images)) == [(200, answer) for answer in expected]

    # Another bundle, whose vectors are asked for.
    source = vitdeploy.SourceOptions(task=Task.FEATURES)
    features = vitdeploy.export(default_checkpoint(), source=source, output=tmp_path / "features")
    with vitdeploy.load(features.path, backend="onnxruntime", intra_op_threads=1) as predictor:
        (vector,) = predictor.embed(images[0], normalize=True)
    server.deploy(bundle=str(features.path), rows={"normalize": True}, batch_wait_timeout_s=0.01)
    status, answer = server.post(images[0])
    np.testing.assert_array_equal(np.array(answer["vector"], np.float32), vector)
    server.deploy(version="2")
    assert server.post(images[0]) == (status, answer)

    # Four requests wait for a fifth, four wait for their turn, and all others are refused.
    server.deploy(max_batch_size=5, batch_wait_timeout_s=_NEVER_S)
    pool = concurrent.futures.ThreadPoolExecutor(12)
    waiting = [pool.submit(server.post, images[0]) for _ in range(12)]
    first = next(concurrent.futures.as_completed(waiting, timeout=60))
    assert first.result()[0] == 503
    pool.shutdown(wait=False, cancel_futures=True)


_RECONFIGURED = """
import asyncio, sys
from pathlib import Path
from types import SimpleNamespace
from vitdeploy.errors import UsageError
from vitdeploy.serving.scale_out import ray_serve

context = SimpleNamespace(get_assigned_resources=dict)  # of a replica
ray_serve.ray = SimpleNamespace(get_runtime_context=lambda: context)
replica, config = ray_serve.BundleReplica(), {"bundle": sys.argv[1]}
link, replaced = map(Path, sys.argv[1:])

async def reconfigure():
    for rows in ({"normalize": True}, {"top_k": 2}, {"pool": "cls"}):
        try:
            await replica.reconfigure({**config, "rows": rows})
        except UsageError as error:
            print(error.what)
        else:
            print(replica._config.rows)
    manifest = link / "manifest.json"
    await replica.reconfigure({**config, "bundle": str(manifest)})
    await replica.reconfigure({**config, "max_batch": 4})
    await replica.reconfigure({**config, "options": {"threads": 4}})
    with replica._model.lease() as predictor:
        print(replica._config.bundle == str(link), predictor.runtime.precision)
    link.unlink()
    link.symlink_to(replaced)
    await replica.reconfigure({**config, "version": "2"})
    with replica._model.lease() as predictor:
        print(predictor.runtime.precision)
    replica._model.close()

    async def stream():
        yield b"image"

    print((await replica(SimpleNamespace(stream=stream))).status_code)

asyncio.run(reconfigure())
"""


def test_a_replica_takes_what_its_model_gives_keeps_its_bundle_if_another_fails_and_opens_what_a_replaced_bundle_has(
    digits: Bundle, tmp_path: Path
) -> None:
    half = vitdeploy.export(default_checkpoint(), precision="fp16", output=tmp_path / "half")
    bundle = tmp_path / "bundle"
    bundle.symlink_to(digits.path)
    command: list[str | Path] = [environment("ray"), "-c", _RECONFIGURED, bundle, half.path]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert ran.stdout.split("\n") == [
        "outputs", "{'top_k': 2}", "{'top_k': 2}", "True fp32", "fp16", "503", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("max_batch_size", 0, "batch_size"),
        ("max_batch_size", "8", "max_batch_size"),
        ("max_body_bytes", -1, "max_body_bytes"),
        ("batch_wait_timeout_s", "0.01", "batch_wait_timeout_s"),
        ("batch_wait_timeout_s", -1, "batch_wait_timeout_s"),
        ("batch_wait_timeout_s", math.nan, "batch_wait_timeout_s"),
        ("options", [], "options"),
        ("rows", [], "rows"),
        ("rows", {"top_k": 0}, "top_k"),
        ("rows", {"topk": 5}, "rows"),
        ("rows", {"top_k": 5, "pool": "mean"}, "rows"),
        ("rows", {"pool": "largest"}, "pool"),
        ("rows", {"normalize": "no"}, "normalize"),
    ],
)
def test_settings_are_checked(name: str, value: Any, what: str) -> None:
    with raises(UsageError, what=what):
        ServeConfig("bundle", **{name: value})
