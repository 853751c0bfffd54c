"""A `tritonserver` process: its arguments, its ports, its answers about itself, and its end."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.errors import UnavailableError, UsageError, first_line
from vitdeploy.files.polling import poll
from vitdeploy.serving.server.installation import Installation
from vitdeploy.serving.server.server_options import ServerOptions
from vitdeploy.serving.server.temporary_folder import ServerFolder

STAGING = ".vitdeploy-next"  # folder in a repository that is no model
_ANSWER_S = 5.0  # for Triton's answers about itself
_KILL_S = 10.0  # after the timeout that Triton knows of
_KEPT_LINES = 40
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (to what a client connects instead)
# Over shared memory, traces and log settings a client could read and write the server's memory and files.
_CLOSED_APIS = "shared-memory,trace,logging"
# An error in Triton's log, whose messages are quoted, and its last line if it does not start.
_ERROR = re.compile(r'(?:E\d{4} [^\]]*\] "?|error: )(?P<text>.*?)"?$')
_NOT_LOADED = ("failed to load '", "Poll failed for ")
_TAKEN, _BREAK = "already in use", "\\n"
_OTHER_PORTS = "choose others with --http-port, --grpc-port and --metrics-port"


class Ports(NamedTuple):
    """Where it listens."""

    http: int
    grpc: int
    metrics: int


class TritonProcess:
    """A running Triton that polls a model repository. Its output goes to standard error, line by line.

    Args:
        installation: The Triton to start.
        repository: Model repository.
        backends: Folder of backends; None for the one that is compiled in.
        options: Addresses and timeouts.
        folder: The server's folder, which stays locked until the process and those of the model have ended.
        verbose: True for all of Triton's messages, False for warnings and errors after the start.

    Raises:
        UsageError: If this machine does not have the address.
        UnavailableError: If a port is taken, or it cannot be started.

    Attributes:
        ports: Where it listens.
        client_host: Address under which this machine reaches it.
    """

    def __init__(
        self,
        installation: Installation,
        repository: Path,
        backends: Path | None,
        options: ServerOptions,
        folder: ServerFolder,
        *,
        verbose: bool = False,
    ) -> None:
        self._options, self._folder, self._verbose = options, folder, verbose
        self._address = _address(options.host)
        self.client_host = _EVERY.get(self._address, self._address)
        self._id = f"{folder.path.name}-{secrets.token_hex(8)}"  # another server may listen on the port
        self.ports = Ports(*_ports(options, self._address))
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._is_shown = threading.Event()
        if verbose:
            self._is_shown.set()
        command = [str(installation.binary), *self._arguments(repository, backends)]
        try:
            self._process = subprocess.Popen(  # noqa: S603  (a server that the user has installed)
                command, env=installation.environ(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
                pass_fds=[folder.lock], preexec_fn=_end_with_parent(),
            )  # fmt: skip
        except OSError as exc:
            raise UnavailableError(
                f"{installation.binary} cannot be started: {first_line(exc)}", what="triton", where=installation.binary
            ) from exc
        self._reader = threading.Thread(target=self._read_output, name="triton-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait_for_model(self, name: str, version: int, *, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until a version of a model is ready; True if it is, False if `until` became true before.

        Raises:
            UnavailableError: If the model does not load, Triton ends, or the time is over; with Triton's reason.
        """

        def state() -> str | None:
            if self.exit_code is not None:
                raise self.ended()
            if until():
                return "left"
            if (self._ask("GET", "/v2") or {}).get("name") != self._id:
                return None
            reason = self._refusal(name, version)
            if reason is not None:
                raise UnavailableError(f"Triton does not load {name}: {reason}", what=name, found=reason)
            answer = self._ask("GET", f"/v2/models/{name}/versions/{version}/ready")
            return None if answer is None else "ready"

        reached = poll(state, self._options.ready_timeout_s)
        if reached is None:
            seconds = self._options.ready_timeout_s
            raise UnavailableError(
                f"{name} was not ready within {seconds} s", what="ready_timeout", expected=seconds,
                hint="raise --ready-timeout",
            )  # fmt: skip
        self._is_shown.set()
        return reached == "ready"

    def ended(self) -> UnavailableError:
        """The error for a Triton that ended by itself."""
        code = self._process.wait()
        self._end_backend()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        reason = "" if self._is_shown.is_set() else self._last_words()  # its lines were shown
        hint = _OTHER_PORTS if _TAKEN in reason else None
        return UnavailableError(f"Triton ended {how}{reason}", what="triton", found=code, hint=hint)

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def stop(self) -> None:
        """End it: requests in progress are answered within the timeout, others refused; raises nothing."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                self._process.wait(self._options.exit_timeout_s + _KILL_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._end_backend()

    def _end_backend(self) -> None:
        """End the model's processes that a killed Triton left, and remove their memory.

        They notice its end by themselves, unless it held a lock that they wait for.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the group of a session that this process began
        self._reader.join(_ANSWER_S)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()
        self._folder.remove_shared_memory()

    def _arguments(self, repository: Path, backends: Path | None) -> list[str]:
        options, ports, address = self._options, self.ports, self._address
        http, grpc = (f"ipv6:{address}", f"[{address}]") if ":" in address else (address, address)
        # A line break cannot be sent in a header: the closed interfaces open for nobody who reads this command.
        closed = f"{_CLOSED_APIS}:vitdeploy={secrets.token_hex(16)}\n{secrets.token_hex(16)}"
        return [
            f"--id={self._id}",
            f"--model-repository={repository}",
            "--model-control-mode=poll",  # in which clients cannot load models, and so no code
            "--repository-poll-secs=1",
            "--disable-auto-complete-config",
            "--strict-readiness=false",  # a bundle whose reload fails leaves the version before, which is ready
            f"--backend-config=python,shm-region-prefix-name={self._id}-",
            *([] if backends is None else [f"--backend-directory={backends}"]),
            f"--http-address={http}",  # of the metrics, too
            f"--http-port={ports.http}",
            f"--grpc-address={grpc}",
            f"--grpc-port={ports.grpc}",
            f"--metrics-port={ports.metrics}",
            f"--exit-timeout-secs={options.exit_timeout_s}",
            f"--http-restricted-api={closed}",
            f"--grpc-restricted-protocol={closed}",
            f"--log-info={str(self._verbose).lower()}",
        ]

    def _refusal(self, name: str, version: int) -> str | None:
        """Reason why a version does not load, in one line; None if it may."""
        models: Any = self._ask("POST", "/v2/repository/index") or ()
        for model in models:
            if (model["name"], model.get("version"), model.get("state")) == (name, str(version), "UNAVAILABLE"):
                return str(model.get("reason", "")).partition("\n")[0] or None
        return None

    def _ask(self, method: str, path: str) -> Any:
        """Triton's answer; None if there is none."""
        connection = http.client.HTTPConnection(self.client_host, self.ports.http, timeout=_ANSWER_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            content = response.read()
            return (json.loads(content) if content else {}) if response.status == http.client.OK else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def _read_output(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  (a pipe was asked for)
        for line in self._process.stdout:
            if STAGING in line:  # Triton says at each look that it has no configuration
                continue
            self._lines.append(line.rstrip())
            if self._is_shown.is_set():
                print(line, end="", file=sys.stderr, flush=True)

    def _last_words(self) -> str:
        """Triton's reason in its last lines, for a message."""
        lines = [match["text"] for match in map(_ERROR.match, self._lines) if match] or self._lines
        reasons = [line for line in lines if any(mark in line for mark in _NOT_LOADED)] or lines
        return f": {reasons[-1].partition(_BREAK)[0].strip():.500}" if reasons else ""


def _address(host: str) -> str:
    """The numeric address of a host: of a name, Triton's HTTP server makes 255.255.255.255."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise _no_address(host, getattr(exc, "strerror", None) or first_line(exc)) from exc
    return str(found[0][4][0])


def _ports(options: ServerOptions, address: str) -> list[int]:
    """The ports, which are free, with different ones for 0."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in (options.http_port, options.grpc_port, options.metrics_port):
            listener = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port > 0))  # despite ended connections
            try:
                listener.bind((address, port))
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise _no_address(options.host, str(exc.strerror), port) from exc
                message = f"port {port} of {options.host} is {_TAKEN}"
                raise UnavailableError(message, what="port", found=port, hint=_OTHER_PORTS) from exc
            ports.append(listener.getsockname()[1])
    return ports


def _no_address(host: str, reason: str, port: int = 0) -> UsageError:
    place = f"{host!r:.80}, port {port}" if port else f"{host!r:.80}"
    return UsageError(f"cannot listen on {place}: {reason}", what="host", found=host)


def _end_with_parent() -> Callable[[], None] | None:
    """On Linux, let the process end gracefully if this one is killed."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
