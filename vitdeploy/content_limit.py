"""The most memory that a checkpoint may ask for, by the bytes that its file has: against archives that explode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

# Trained numbers hardly compress (float32 to a half where bfloat16 was widened), and a tied weight is there twice. A
# head of zeros or a small model may compress to nothing, which the floor allows for.
MOST_TIMES = 4
FLOOR_BYTES = 256 * 1024**2


def check_content(path: Path, content_bytes: int) -> None:
    """Refuse a file whose tensors take far more bytes than it has, before they are read.

    Args:
        path: the file.
        content_bytes: of all tensors, by their shapes and types.

    Raises:
        CheckpointError: they take more than `MOST_TIMES` those of the file, and more than `FLOOR_BYTES`.
    """
    size_bytes = path.stat().st_size
    if content_bytes > max(FLOOR_BYTES, MOST_TIMES * size_bytes):
        raise CheckpointError(
            f"{path} has {size_bytes:,} bytes and its tensors would take {content_bytes:,}: they are compressed or "
            f"expanded, more than weights ever are; save the model's own weights, as model.safetensors"
        )
