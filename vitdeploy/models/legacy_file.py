"""The index of a torch file from before torch 1.6: how large its tensors are, before torch allocates them."""

from __future__ import annotations

import operator
import pickle
from typing import Any, BinaryIO, ClassVar

# Of an element, by the class of the storage; torch reads no others.
_ITEM_BYTES = {
    **dict.fromkeys(("Bool", "Byte", "Char", "QInt8", "QUInt2x4", "QUInt4x2", "QUInt8"), 1),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("ComplexFloat", "Double", "Long"), 8),
    "ComplexDouble": 16,
}
_PICKLES_BEFORE = 3  # a magic number, the version of the format, and the sizes of C's types


def storage_bytes(index: BinaryIO) -> int:
    """The bytes of all storages that a legacy file says it has, each of which follows the index as it is.

    Nothing is allocated for them, and no code of the file runs: its classes and functions are replaced by one that
    does nothing.

    Args:
        index: The begin of the file, in memory, so that no claimed length makes a read allocate more than there is.

    Raises:
        Exception: If of any kind, as a corrupt pickle does; the index ends after those bytes, or it is no legacy file.
    """
    for _ in range(_PICKLES_BEFORE):
        _Index(index).load()
    unpickler = _Index(index)
    unpickler.load()
    return sum(unpickler.sizes.values())


class _Nothing:
    """Stands for whatever a pickle builds."""

    def __new__(cls, *_: object, **__: object) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def __setitem__(self, _: object, __: object) -> None: ...

    def append(self, _: object) -> None: ...


# Python's own in Python: that in C allocates as many places as the largest number of an object that it is told.
class _Index(pickle._Unpickler):
    # An array would be made as long as it is told; torch's reader has no such operation.
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
