"""The settings of a Ray Serve deployment, as plain values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from vitdeploy.errors import UsageError, check_count, shown
from vitdeploy.predictor import check_batch_size
from vitdeploy.serving.scale_out.result_columns import Labels, Vectors
from vitdeploy.system.argument_types import check_fields


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

    Raises:
        UsageError: If a value is invalid; the bundle is opened, and its options are checked, by the replicas.
    """

    bundle: str
    rows: dict[str, Any] = dataclasses.field(default_factory=lambda: {"top_k": 5})
    max_batch_size: int = 8
    batch_wait_timeout_s: float = 0.005
    max_body_bytes: int = 16 * 1024**2
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        check_batch_size(self.max_batch_size)
        check_count("max_body_bytes", self.max_body_bytes)
        if not 0 <= self.batch_wait_timeout_s < math.inf:
            message = f"batch_wait_timeout_s takes a number of seconds from 0 up, got {self.batch_wait_timeout_s}"
            raise UsageError(message, what="batch_wait_timeout_s", found=self.batch_wait_timeout_s)
        self.parsed_rows()

    def parsed_rows(self) -> Labels | Vectors:
        kind: type[Labels] | type[Vectors] = Labels if "top_k" in self.rows else Vectors
        if not self.rows.keys() <= {field.name for field in dataclasses.fields(kind)}:
            message = f"rows takes top_k, or pool and normalize, got {shown(self.rows, 80)}"
            raise UsageError(message, what="rows", expected=("top_k", "pool", "normalize"), found=self.rows)
        return kind(**self.rows)
