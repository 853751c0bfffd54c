"""Settings of a Triton process."""

from __future__ import annotations

import dataclasses
import os

from vitdeploy.errors import UsageError
from vitdeploy.system.option_fields import check_options, described, option

_PORTS = (0, 65_535)
_MOST_SECONDS = 86_400


@described
@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """A Triton process. An invalid value raises UsageError."""

    triton: str | os.PathLike[str] | None = option(
        None, "A tritonserver, or a folder with bin/tritonserver.", path=True, metavar="PATH",
        unset="that on PATH, else that of nvidia-pytriton",
    )  # fmt: skip
    host: str = option("127.0.0.1", "Address to listen on. 0.0.0.0 is every address of the machine.")
    http_port: int = option(8000, "Port of HTTP; 0 for a free one.", limits=_PORTS, metavar="N")
    grpc_port: int = option(8001, "Port of gRPC; 0 for a free one.", limits=_PORTS, metavar="N")
    metrics_port: int = option(8002, "Port of Prometheus metrics; 0 for a free one.", limits=_PORTS, metavar="N")
    ready_timeout_s: int = option(
        120, "Seconds until the model must be ready.", limits=(1, _MOST_SECONDS), typed="ready_timeout", metavar="S"
    )
    exit_timeout_s: int = option(
        30, "Seconds for the requests in progress when it ends.", limits=(0, _MOST_SECONDS), typed="exit_timeout",
        metavar="S",
    )  # fmt: skip
    watch: bool = option(True, "Reload the bundle when it is exported again.", off="no_watch")

    def __post_init__(self) -> None:
        check_options(self)
        ports = [port for port in (self.http_port, self.grpc_port, self.metrics_port) if port]
        if len(set(ports)) < len(ports):
            message = f"HTTP, gRPC and metrics need a port each, got {', '.join(map(str, ports))}"
            raise UsageError(
                message, what="ports", found=tuple(ports), hint="choose different ones, or 0 for a free one"
            )


DEFAULTS = ServerOptions()
