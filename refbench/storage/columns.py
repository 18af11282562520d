"""Columns of Arrow as NumPy arrays and back, through their buffers.

The conversions of pyarrow import pandas, which takes a third of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DTYPES = {
    "int8": np.int8, "int32": np.int32, "int64": np.int64, "uint64": np.uint64, "float": np.float32,
    "double": np.float64,
}  # fmt: skip


def numbers_of(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """The values of a column of numbers or truth values that has no gaps, one-dimensional."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_numbers_of_chunk(chunk) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, _dtype(column.type))


def _dtype(kind: pa.DataType) -> Any:
    return np.bool_ if pa.types.is_boolean(kind) else DTYPES[str(kind)]


def _numbers_of_chunk(chunk: pa.Array) -> NDArray[Any]:
    if not len(chunk):
        return np.empty(0, _dtype(chunk.type))
    place = slice(chunk.offset, chunk.offset + len(chunk))
    if pa.types.is_boolean(chunk.type):
        return np.unpackbits(np.frombuffer(chunk.buffers()[1], np.uint8), bitorder="little")[place].view(np.bool_)
    return np.frombuffer(chunk.buffers()[1], _dtype(chunk.type))[place]


def column_of(values: NDArray[Any]) -> pa.Array:
    """A column of numbers or truth values without gaps."""
    values = np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        buffer, kind = pa.py_buffer(np.packbits(values, bitorder="little")), pa.bool_()
    else:
        buffer, kind = pa.py_buffer(values), pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, buffer])


def texts_column(texts: Sequence[str]) -> pa.Array:
    """A column of texts without gaps; at most 2 GiB of UTF-8."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    if offsets[-1] >= 2**31:
        raise OverflowError("the texts of a column have more than 2 GiB")
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)
