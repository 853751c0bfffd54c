"""The settings of a Ray Serve deployment, as plain values."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitdeploy.errors import check_count
from vitdeploy.predictor import check_batch_size
from vitdeploy.serving.scale_out.result_columns import Labels, Vectors


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """A replica's settings, the `user_config` of the deployment, which can change while it runs.

    Attributes:
        bundle: The bundle's folder, which every machine sees under this path.
        rows: `{"top_k": K}` for predictions; `{"pool": P, "normalize": B}` or `{}` for a vector.
        max_batch_size: Images per run.
        batch_wait_timeout_s: Longest wait for a full batch, in seconds.
        max_body_bytes: Largest body.
        options: See `vitdeploy.load`: backend, precision, device, and options of the backend.
        version: Any text; another one opens the bundle again if its files have changed.
    """

    bundle: str
    rows: dict[str, Any] = dataclasses.field(default_factory=lambda: {"top_k": 5})
    max_batch_size: int = 8
    batch_wait_timeout_s: float = 0.005
    max_body_bytes: int = 16 * 1024**2
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        check_batch_size(self.max_batch_size)
        check_count("max_body_bytes", self.max_body_bytes)
        self.parsed_rows()

    def parsed_rows(self) -> Labels | Vectors:
        return Labels(**self.rows) if "top_k" in self.rows else Vectors(**self.rows)
