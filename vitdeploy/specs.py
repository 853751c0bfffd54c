"""Frozen value types that cross module boundaries."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Precision(str, enum.Enum):
    """The number format that an artifact computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"

    def __str__(self) -> str:
        return self.value


class Task(str, enum.Enum):
    """What a model's head computes; the values are the Hugging Face Hub's task names where it has one."""

    CLASSIFICATION = "image-classification"
    FEATURES = "image-feature-extraction"
    MASKED_IMAGE_MODELING = "masked-image-modeling"

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        name: the tensor's name in the artifact.
        dtype: numpy's name of the element type, such as "float32".
        shape: one entry an axis: a size, or the name of an axis whose size is free. An axis name that occurs twice
            in a call stands for one size.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} '{self.name}' ({', '.join(map(str, self.shape))})"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorSpec:
        """Read what `to_dict` gives.

        Raises:
            KeyError, TypeError: it is something else.
        """
        name, dtype, shape = data["name"], data["dtype"], tuple(data["shape"])
        if (
            not isinstance(name, str)
            or not isinstance(dtype, str)
            or not all(type(axis) in (int, str) for axis in shape)
        ):
            raise TypeError(f"a tensor has a name, a type and axes, got {str(data)[:80]}")
        return cls(name, dtype, shape)
