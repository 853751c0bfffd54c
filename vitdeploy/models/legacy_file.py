"""The index of a torch file from before torch 1.6: tensor sizes, read before torch allocates memory."""

from __future__ import annotations

import operator
import pickle
from typing import Any, BinaryIO, ClassVar

# Element size by storage class; torch reads no others.
_ITEM_BYTES = {
    **dict.fromkeys(("Bool", "Byte", "Char", "QInt8", "QUInt2x4", "QUInt4x2", "QUInt8"), 1),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("ComplexFloat", "Double", "Long"), 8),
    "ComplexDouble": 16,
}
_PICKLES_BEFORE = 3  # a magic number, the format version, and the sizes of C types


def storage_bytes(index: BinaryIO) -> int:
    """Total size, in bytes, of a legacy file's storages, which follow the index uncompressed.

    Nothing is allocated for them, and none of the file's code runs: its classes and functions are replaced by a dummy.

    Args:
        index: Beginning of the file, in memory, so that no claimed length makes a read allocate more.

    Raises:
        Exception: Of any type, as a corrupt pickle raises: if the index is longer, or the file is not a legacy file.
    """
    for _ in range(_PICKLES_BEFORE):
        _Index(index).load()
    unpickler = _Index(index)
    unpickler.load()
    return sum(unpickler.sizes.values())


class _Nothing:
    """Replaces any object that a pickle creates."""

    def __new__(cls, *_: object, **__: object) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def __setitem__(self, _: object, __: object) -> None: ...

    def append(self, _: object) -> None: ...


# The Python implementation: the C one allocates as many places as the largest memo index claims.
class _Index(pickle._Unpickler):
    # An array would get its claimed length; torch's reader has no such operation.
    dispatch: ClassVar = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.sizes: dict[Any, int] = {}

    def find_class(self, _: str, name: str) -> Any:
        return _ITEM_BYTES.get(name.removesuffix("Storage")) or _Nothing

    def persistent_load(self, pid: Any) -> _Nothing:
        _, item_bytes, key, _, count, _ = pid
        size = operator.index(count) * operator.index(item_bytes)
        if size < 0:
            raise ValueError("a storage has a negative size")
        self.sizes[key] = max(size, self.sizes.get(key, 0))
        return _Nothing()
