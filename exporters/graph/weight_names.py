"""What is put behind the name of a weight when a new one is made of it."""

from __future__ import annotations

TRANSPOSED = ".transposed"
SMOOTHED = ".smoothed"
CORRECTED = ".corrected"
