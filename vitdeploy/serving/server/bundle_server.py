"""Serve a bundle with a Triton process, and replace it by a new export without a gap."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import py_compile
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import OutputError, UnavailableError, VitDeployError
from vitdeploy.files.atomic import replace_folder
from vitdeploy.serving.model_repository.python_options import DEFAULTS, PythonBackend
from vitdeploy.serving.model_repository.python_repository import MODEL_FILE, served_artifact, write_python_model
from vitdeploy.serving.server import server_options
from vitdeploy.serving.server.installation import find_installation
from vitdeploy.serving.server.model_processes import children, is_running, model_processes
from vitdeploy.serving.server.temporary_folder import server_folder
from vitdeploy.serving.server.triton_process import STAGING, TritonProcess
from vitdeploy.system.closing import ClosedOnExit

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitdeploy.serving.model_repository.model_folder import TritonModel
    from vitdeploy.serving.server.server_options import ServerOptions

_LOOK_S, _RETRY_S = 0.5, 10.0
_STEADY_S = 10.0  # a Triton that breaks down sooner after a restart would do so again


class BundleServer(ClosedOnExit):
    """A bundle in a Triton process of its own; a context manager that starts and drains it.

    Args:
        bundle: The bundle; the files in use are verified.
        options: The model in Triton's Python backend.
        server: The process.
        name: Name of the model. Default: the bundle's.
        repository: Model repository. Default: a temporary folder.
        verbose: True for all of Triton's messages.

    Raises:
        MissingDependencyError: If no Triton is installed.
        VitDeployError: As `write_python_model`.

    Attributes:
        process: The Triton process.
        model: The model as first written.
        version: Version of the model that is served.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        options: PythonBackend = DEFAULTS,
        server: ServerOptions = server_options.DEFAULTS,
        *,
        name: str | None = None,
        repository: str | os.PathLike[str] | None = None,
        verbose: bool = False,
    ) -> None:
        self._bundle, self._options, self._server = Path(bundle), options, server
        installation = find_installation(server.triton)
        self.version = self._next = 1
        self._restarted_s = float("-inf")
        self._stopped = self._asked = False
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(server_folder())
            self._repository = folder.path / "models" if repository is None else Path(repository).resolve()
            self._seen, self._content = self._manifest_state(), self._served_content()
            self.model = self._write(self._repository, name, self.version)
            backends = installation.backends(folder.path / "backends")

            def start(settings: ServerOptions) -> TritonProcess:
                return TritonProcess(installation, self._repository, backends, settings, folder, verbose=verbose)

            self._start, self.process = start, start(server)
            stack.callback(lambda: self.process.stop())
            self._stack = stack.pop_all()

    @property
    def addresses(self) -> dict[str, str]:
        """Where clients find the model, by protocol."""
        host, ports = self._server.host, self.process.ports
        host = f"[{host}]" if ":" in host else host
        return {
            "http": f"http://{host}:{ports.http}/v2/models/{self.model.name}",
            "grpc": f"{host}:{ports.grpc}",
            "metrics": f"http://{host}:{ports.metrics}/metrics",
        }

    def to_dict(self) -> dict[str, Any]:
        model = {"name": self.model.name, "artifact": self.model.artifact, "version": self.version}
        return {**model, "addresses": self.addresses, "triton_pid": self.process.pid}

    def wait_until_ready(self) -> bool:
        """Wait for the model; False if it was stopped before. UnavailableError with Triton's reason if it fails."""
        is_ready = self.process.wait_for_model(self.model.name, self.version, until=lambda: self._stopped)
        self._note_processes()
        return is_ready

    def run(self, report: Callable[[str | VitDeployError], None]) -> None:
        """Watch the bundle and the process until `stop` is called. A Triton that breaks down is started again.

        Args:
            report: Told of each reload and restart, and of their errors.

        Raises:
            UnavailableError: If Triton breaks down again soon after a restart, or cannot be started again.
        """
        retry_s = float("inf")
        while self._goes_on():
            broken = self._breakdown()
            if broken is not None:
                if time.monotonic() < self._restarted_s + _STEADY_S:
                    raise broken
                report(broken)
                if self._restart():
                    report(f"Triton was started again, and {self.model.name} is served")
            asked, self._asked = self._asked, False
            if not (asked or time.monotonic() >= retry_s or (self._server.watch and self._is_replaced())):
                continue
            retry_s = float("inf")
            try:
                if self.reload():
                    report(f"{self.model.name} version {self.version} is served")
                elif asked:
                    report(f"{self._bundle} has not changed")
            except VitDeployError as exc:
                report(exc.with_message(f"{exc}; the version before is still served"))
                retry_s = time.monotonic() + _RETRY_S

    def reload(self) -> bool:
        """Serve the bundle that is in the folder now; False if it is the one that is served.

        Triton opens the new version, verifies its checksums and runs it before it takes requests. The version before
        answers until then, and goes on if the new one fails.

        Raises:
            VitDeployError: If the new bundle cannot be served; the version before still is.
        """
        self._seen = self._manifest_state()  # also of a manifest that cannot be read
        content = self._served_content()
        if content == self._content:
            return False
        staging = self._staging()
        self._next = version = self._next + 1
        try:
            model = self._write(staging, self.model.name, version)
            replace_folder(model.path, self.model.path)  # the version before is now in the staging folder
            try:
                if not self.process.wait_for_model(self.model.name, version, until=lambda: self._stopped):
                    return False
            except VitDeployError:
                replace_folder(model.path, self.model.path)
                raise
        except OSError as exc:
            where = self._repository
            message = f"{where} cannot hold version {version}: {exc.strerror}"
            raise OutputError(message, what="repository", where=where, found=exc.strerror) from exc
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.version, self._content = version, content
        self._note_processes()
        return True

    def _staging(self) -> Path:
        """A folder for the next version that a rename can exchange with a folder of the repository.

        It is beside the repository, and not in Triton's sight, unless the repository is a mount point, or the only
        folder that may be written to.
        """
        beside = self._repository.with_name(f".{self._repository.name}{STAGING}")
        probe, moved = beside / "probe", self._repository / f".probe{STAGING}"
        try:  # mounts of one file system differ in nothing else
            beside.mkdir(exist_ok=True)
            probe.touch()
            probe.rename(moved)
            moved.unlink()
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            return self._repository / STAGING
        return beside

    def _goes_on(self) -> bool:
        """Wait a moment; False once it was stopped."""
        time.sleep(_LOOK_S)  # not on an event: a signal handler could interrupt it with the event's lock held
        return not self._stopped

    def ask_for_reload(self) -> None:
        """Let `run` reload the bundle if it has changed; safe in a signal handler."""
        self._asked = True

    def stop(self) -> None:
        """Let `run` and `wait_until_ready` return; at the second call, end Triton at once. Safe in a signal handler."""
        if self._stopped:
            self.process.kill()
        self._stopped = True

    def close(self) -> None:
        """Answer the requests in progress, end Triton, and remove temporary files."""
        self._stopped = True
        self._stack.close()

    def _write(self, repository: Path, name: str | None, version: int) -> TritonModel:
        model = write_python_model(self._bundle, repository, self._options, name=name, version=version)
        # Python would write it later, and Triton take that for a change and load the model again.
        py_compile.compile(str(model.path / str(version) / MODEL_FILE), doraise=True)
        return model

    def _note_processes(self) -> None:
        """Note the processes of the model, and how many of them ended before."""
        self._workers = model_processes(self.process.pid, self.model.name, self.version)
        are_listed = self.process.pid in children(os.getpid())  # not by every system
        self._lost = self._options.instances - len(self._workers) if are_listed else 0

    def _breakdown(self) -> UnavailableError | None:
        """The error for a Triton, or a process of the model, that has ended by itself."""
        if self.process.exit_code is not None:
            return self.process.ended()
        ended = [worker for worker in self._workers if not is_running(worker)]
        if not ended and not self._lost:
            return None
        process = f"process {ended[0]}" if ended else "a process"
        message = f"{process} of {self.model.name} ended, and Triton does not replace it"
        running = len(self._workers) - len(ended)
        return UnavailableError(message, what="model", expected=self._options.instances, found=running)

    def _restart(self) -> bool:
        """Start Triton again on the same ports and wait, as `wait_until_ready`.

        A Triton whose model has ended would wait for its requests in vain, and is killed.
        """
        self.process.kill()
        self.process.stop()
        ports = self.process.ports
        self.process = self._start(
            dataclasses.replace(self._server, http_port=ports.http, grpc_port=ports.grpc, metrics_port=ports.metrics)
        )
        is_ready = self.wait_until_ready()
        self._restarted_s = time.monotonic()
        return is_ready

    def _is_replaced(self) -> bool:
        return self._manifest_state() not in (None, self._seen)

    def _manifest_state(self) -> tuple[int, int, int] | None:
        """Identity of the bundle's manifest; None while there is none."""
        try:
            stat = (self._bundle / MANIFEST).stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _served_content(self) -> list[str]:
        """Checksums of the files that are served, and of a tuned choice's measurements."""
        opened = Bundle.open(self._bundle)
        artifact, opening = served_artifact(opened, self._options)
        tuned = opened.manifest.tuned
        choice = [] if opening or tuned is None else [tuned.evidence]
        return [record.sha256 for record in (*opened.records_for(artifact), *choice)]
