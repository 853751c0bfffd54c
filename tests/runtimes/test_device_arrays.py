"""What says that it is an array, and what its capsule says of it, is checked before an address is believed."""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np
import pytest

from vitdeploy.errors import UsageError
from vitdeploy.runtimes import device_arrays
from vitdeploy.runtimes.device_arrays import view

_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Claimed:
    """An array of two float32, but for what a test says of it."""

    def __init__(self, **fields: Any) -> None:
        self.memory = np.zeros(2, np.float32)
        self.shape = (ctypes.c_int64 * 1)(2)
        values = {
            "data": self.memory.ctypes.data, "device_type": 1, "ndim": 1, "code": 2, "bits": 32, "lanes": 1,
            "shape": ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64)),
        }  # fmt: skip
        self.tensor = device_arrays._DLTensor(**(values | fields))

    def __dlpack_device__(self) -> Any:
        return (1, 0)

    def __dlpack__(self, *, stream: object) -> object:
        return _new_capsule(ctypes.addressof(self.tensor), b"dltensor", None)


def test_the_claim_itself_is_good() -> None:
    found = view("x", Claimed(), None)
    assert (found.shape, str(found.dtype)) == ((2,), "float32")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ndim": -1}, "'x' must have a shape, its DLPack capsule has -1 axes"),
        ({"ndim": 10**9}, "'x' must have a shape"),
        ({"shape": None}, "'x' must have a shape"),
        ({"data": None}, r"'x' must be memory of a size, its DLPack capsule has shape \(2,\) at 0x0"),
        ({"bits": 8}, "'x' must be of a type that numpy has, is of DLPack's type 2 with 8 bits"),
        ({"code": 6}, "type 6 with 32 bits"),
        ({"lanes": 4}, "must be of a type that numpy has"),
    ],
)
def test_what_a_capsule_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        view("x", Claimed(**fields), None)


def test_a_negative_size() -> None:
    claimed = Claimed()
    claimed.shape[0] = -2
    with pytest.raises(UsageError, match="must be memory of a size"):
        view("x", claimed, None)


@pytest.mark.parametrize(
    "answer", [None, 5, (1,), (1, 0, 0), ("cuda", 0), (1, None), KeyError("where"), OSError("gone")]
)
def test_a_device_that_is_none(answer: object) -> None:
    def device() -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    array = types.SimpleNamespace(__dlpack__=lambda **_: None, __dlpack_device__=device)
    with pytest.raises(UsageError, match="'x' must say where it is, does not: "):
        view("x", array, None)


@pytest.mark.parametrize("error", [KeyError("k"), AttributeError("a"), MemoryError(), AssertionError("no")])
def test_a_library_that_fails(error: Exception) -> None:
    def share(**_: object) -> object:
        raise error

    array = types.SimpleNamespace(__dlpack__=share, __dlpack_device__=lambda: (1, 0))
    with pytest.raises(UsageError, match="'x' must be shared through DLPack, is not: "):
        view("x", array, None)
    with pytest.raises(UsageError, match="'x' must say where it is"):
        view("x", np.ndarray, None)
