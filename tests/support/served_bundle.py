"""`vitdeploy serve` in the environment .venvs/triton, and its clients."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments import ROOT, environment

from vitdeploy.files.polling import poll
from vitdeploy.serving.server.model_processes import children, model_processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SECONDS = 180  # on a machine that does other things
_FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@dataclasses.dataclass
class Served:
    """A running `serve`.

    Attributes:
        process: The command.
        about: Its JSON.
        errors: File with its standard error.
    """

    process: subprocess.Popen[str]
    about: dict[str, Any]
    errors: Path

    @property
    def url(self) -> str:
        """The address of the server."""
        http: str = self.about["addresses"]["http"]
        return http.partition("/v2/")[0]

    def get(self, path: str, *, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """The status and the JSON of an HTTP answer; a request with data is a POST."""
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                content = response.read()
                return response.status, json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def clients(self, requests: Sequence[dict[str, Any]], model: str | None = None) -> subprocess.Popen[str]:
        """Clients that send all requests at the same time."""
        addresses = {"http": self.url.removeprefix("http://"), "grpc": self.about["addresses"]["grpc"]}
        job = {"addresses": addresses, "model": model or self.about["name"], "requests": list(requests)}
        script = ROOT / "tests" / "support" / "triton_client.py"
        process = subprocess.Popen(
            [environment("triton"), script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        json.dump(job, process.stdin)
        process.stdin.close()
        return process

    def ask(self, requests: Sequence[dict[str, Any]], model: str | None = None) -> list[dict[str, Any]]:
        """The answers to requests that are sent at the same time."""
        return answers(self.clients(requests, model))

    def statistics(self, model: str | None = None) -> dict[str, Any]:
        _, found = self.get(f"/v2/models/{model or self.about['name']}/stats")
        statistics: dict[str, Any] = found["model_stats"][0]
        return statistics

    def workers(self, version: int = 1) -> frozenset[int]:
        """The model's processes, of whichever Triton runs now."""
        (triton,) = children(self.process.pid)
        return model_processes(triton, self.about["name"], version)

    def says(self, text: str) -> bool:
        """Wait until standard error has this text; fails if the command ends without it."""

        def told() -> bool | None:
            has_ended = self.process.poll() is not None  # first: what it says is complete then
            content = self.errors.read_text(encoding="utf-8")
            assert text in content or not has_ended, content
            return text in content or None

        return poll(told, SECONDS) is not None


def answers(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    with process:
        assert process.stdout is not None
        found: list[dict[str, Any]] = json.load(process.stdout)
    assert process.returncode == 0
    return found


def command(*arguments: object) -> list[str]:
    return [str(environment("triton")), "-m", "vitdeploy", "serve", *map(str, arguments), *_FREE]


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def serve(bundle: Path, folder: Path, *options: object) -> Iterator[Served]:
    """A running server, once its model is ready; SIGTERM ends it, with exit code 0, unless the block did."""
    output, errors = folder / "output.json", folder / "errors.txt"
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(
            command(bundle, "--json", *options), env=environ(), stdout=out, stderr=err, text=True
        )
    try:
        poll(lambda: output.read_text().endswith("}\n") or process.poll(), SECONDS)
        assert process.returncode is None, errors.read_text()
        yield Served(process, json.loads(output.read_text()), errors)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0, errors.read_text()
