"""Arrays and their DLPack capsules are checked before an address is used."""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np
import pytest
from raising import raises

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
    ("fields", "expected", "found"),
    [
        ({"ndim": -1}, "a shape", None),
        ({"ndim": 10**9}, "a shape", None),
        ({"shape": None}, "a shape", None),
        ({"data": None}, "memory", ((2,), 0)),
        ({"bits": 8}, "a type of numpy", (2, 8, 1)),
        ({"code": 6}, "a type of numpy", (6, 32, 1)),
        ({"lanes": 4}, "a type of numpy", (2, 32, 4)),
    ],
)
def test_an_impossible_capsule_is_refused(fields: dict[str, Any], expected: str, found: object) -> None:
    with raises(UsageError, what="x", expected=expected, found=found):
        view("x", Claimed(**fields), None)


def test_a_negative_size() -> None:
    claimed = Claimed()
    claimed.shape[0] = -2
    with raises(UsageError, what="x", expected="memory"):
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
    with raises(UsageError, what="x", expected="a device"):
        view("x", array, None)


@pytest.mark.parametrize("error", [KeyError("k"), AttributeError("a"), MemoryError(), AssertionError("no")])
def test_a_library_that_fails(error: Exception) -> None:
    def share(**_: object) -> object:
        raise error

    array = types.SimpleNamespace(__dlpack__=share, __dlpack_device__=lambda: (1, 0))
    with raises(UsageError, what="x", expected="a capsule"):
        view("x", array, None)
    with raises(UsageError, what="x", expected="a device"):
        view("x", np.ndarray, None)
