"""A process of `vitdeploy serve`, loads on it, and its memory; shared by `serve_load.py` and the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from common import resident_mb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LOOK_S = 0.1
_CLIENT = Path(__file__).with_name("serve_client.py")


class Server:
    """A process of `vitdeploy serve`, which can be started again on the same ports; a context manager.

    Args:
        python: Interpreter of the environment with Triton.
        bundle: The bundle.
        options: Further options.

    Attributes:
        process: The running process.
        described: Its description: name, addresses, Triton's process.
    """

    def __init__(self, python: Path, bundle: Path, *options: str) -> None:
        self._command = [str(python), "-m", "vitdeploy", "serve", str(bundle), "--json", *options]
        self._ports: list[str] = []
        self.process: subprocess.Popen[str]
        self.described: dict[str, Any]

    def start(self, limit_s: float = 60.0) -> None:
        """Start it and wait until it is ready; while a port is not free, start it again, as a supervisor would.

        Raises:
            RuntimeError: If it is not ready by then.
        """
        begin = time.monotonic()
        ports = self._ports or [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
        while True:
            self.process = subprocess.Popen([*self._command, *ports], stdout=subprocess.PIPE, text=True)
            assert self.process.stdout is not None
            text = ""
            for line in self.process.stdout:
                text += line
                if line == "}\n":
                    self.described = json.loads(text)
                    addresses = self.described["addresses"]
                    found = {name: urlsplit(f"//{address.split('//')[-1]}").port for name, address in addresses.items()}
                    self._ports = [f"--{name}-port={port}" for name, port in found.items()]
                    return
            code = self.wait(limit_s)
            if time.monotonic() - begin > limit_s:
                raise RuntimeError(f"serve was not ready within {limit_s:g} s, and ended with exit code {code}")

    def address(self, protocol: str) -> str:
        """Host and port."""
        return urlsplit(f"//{self.described['addresses'][protocol].split('//')[-1]}").netloc

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.wait(60.0)

    def kill(self, program: str, limit_s: float = 60.0) -> None:
        """SIGKILL "Triton" or "serve", and wait until the model is served again.

        `serve` starts a Triton again that ends by itself; if it ends, it is started again, as a supervisor would.
        """
        triton = self._triton()
        process = triton if program == "Triton" else self.process.pid
        if process is None:
            raise RuntimeError("there is no Triton to kill")
        os.kill(process, signal.SIGKILL)
        begin = time.monotonic()
        while time.monotonic() - begin < limit_s:
            if self.process.poll() is not None:
                self.wait(limit_s)
                self.start(limit_s)
                return
            if self._triton() not in (None, triton) and self._is_ready():
                return
            time.sleep(_LOOK_S)
        raise RuntimeError(f"the model was not served again within {limit_s:g} s")

    def _triton(self) -> int | None:
        """Its Triton, which may be another one than at first."""
        for process in tree(self.process.pid)[1:]:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process}/comm").read_text().strip() == "tritonserver":
                    return process
        return None

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.address("http"), timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", f"/v2/models/{self.described['name']}/ready")
            return connection.getresponse().status == http.client.OK
        return False

    def wait(self, limit_s: float) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(limit_s)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@dataclasses.dataclass(frozen=True)
class Load:
    """The requests of a client, see `serve_client.Job`."""

    protocol: str
    address: str
    model: str
    input: str
    images: Sequence[str]
    expected: Sequence[dict[str, list[Any]]]
    timeout_s: float = 10.0

    @contextlib.contextmanager
    def sending(self, python: Path, arrivals: Sequence[float]) -> Iterator[Sending]:
        """A client that has begun to send, at given seconds from its begin; ended with the block."""
        job = {**dataclasses.asdict(self), "arrivals": list(arrivals)}
        with subprocess.Popen([python, _CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(job))
                process.stdin.close()
                yield Sending(process, float(json.loads(process.stdout.readline())["begin"]))
            finally:
                process.kill()


@dataclasses.dataclass(frozen=True)
class Sending:
    """A client at work.

    Attributes:
        process: Its process.
        begin: Time of the load's start, seconds since the epoch.
    """

    process: subprocess.Popen[str]
    begin: float

    def sleep_until(self, second: float) -> None:
        """Wait until that second of the load."""
        time.sleep(max(0.0, self.begin + second - time.time()))

    def outcomes(self) -> Outcomes:
        """Wait for the end of the load."""
        assert self.process.stdout is not None
        found = json.loads(self.process.stdout.readline())
        return Outcomes(found["outcomes"], found["latencies_s"], found["reasons"])


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Requests in their order.

    Attributes:
        outcomes: Of each: "answered", "wrong", "refused" (busy), "failed" (another error), "lost" (the connection) or
            "hung".
        latencies_s: Seconds from its scheduled time to its outcome.
        reasons: Texts of all but right answers, with their number.
    """

    outcomes: list[str]
    latencies_s: list[float]
    reasons: dict[str, int]

    def count(self, outcome: str) -> int:
        return self.outcomes.count(outcome)

    def percentile_ms(self, percent: int, outcome: str = "answered") -> float | None:
        """A percentile of the latency of requests with an outcome; None without one."""
        values = sorted(
            latency for of_it, latency in zip(self.outcomes, self.latencies_s, strict=True) if of_it == outcome
        )
        return 1e3 * values[min(len(values) * percent // 100, len(values) - 1)] if values else None

    def to_dict(self) -> dict[str, Any]:
        """Counts and percentiles, for JSON."""
        counts = {outcome: self.count(outcome) for outcome in sorted(set(self.outcomes))}
        return {
            "outcomes": counts,
            "p50_ms": self.percentile_ms(50),
            "p99_ms": self.percentile_ms(99),
            "refused_p99_ms": self.percentile_ms(99, "refused"),
            "reasons": self.reasons,
        }


class Memory:
    """Resident memory of processes and their descendants, several times a second; a context manager.

    Pages that they share count once for each.
    """

    def __init__(self, process: int, every_s: float = 0.25) -> None:
        self._process, self._every_s, self._end = process, every_s, threading.Event()
        self.mb: list[float] = []
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(self._every_s):
            total = 0.0
            for process in tree(self._process):
                with contextlib.suppress(OSError):  # it ended
                    total += resident_mb(process)
            self.mb.append(total)


def tree(process: int) -> list[int]:
    """A process and its descendants."""
    found, waiting = [], [process]
    while waiting:
        found.append(waiting.pop())
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
    return found
