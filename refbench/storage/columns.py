"""Columns of Arrow as NumPy arrays and back, through their buffers.

The conversions of pyarrow import pandas, which takes a third of a second.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    if chunk.null_count:
        raise ValueError("a number is missing")
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


# Any odd number: texts are read as digits of it.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_HASHED_ROWS = 65_536


def all_different(column: pa.ChunkedArray) -> bool:
    """Whether no text of a column without gaps occurs twice. Arrow's count of different texts takes ten times the
    memory, so it is asked only if two hashes agree.
    """
    hashes = np.concatenate([np.empty(0, np.uint64), *map(_hashes, _parts(column))])
    hashes.sort()
    if not (hashes[1:] == hashes[:-1]).any():
        return True
    return bool(pc.count_distinct(column).as_py() == len(column))


def _parts(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        for first in range(0, len(chunk), _HASHED_ROWS):
            yield chunk.slice(first, _HASHED_ROWS)


def _hashes(texts: pa.Array) -> NDArray[np.uint64]:
    """A polynomial of the bytes of each text, uint64 (N,)."""
    _, offsets, data = texts.buffers()
    at = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    lengths = np.diff(at)
    characters = np.frombuffer(data or b"", np.uint8)[at[0] : at[-1]]
    place = np.arange(len(characters)) - np.repeat(at[:-1] - at[0], lengths)
    powers = np.full(int(lengths.max(initial=0)) + 1, _BASE, np.uint64).cumprod()
    values = np.append((characters.astype(np.uint64) + np.uint64(1)) * powers[place], np.uint64(0))
    sums = np.add.reduceat(values, at[:-1] - at[0])
    return np.where(lengths > 0, sums, np.uint64(0))


class TextColumn(Sequence[str]):
    """A column of texts without gaps that stays in Arrow: a Python list of short texts takes four times the memory.

    It is meant to be read in order; some rows at a time become Python texts.
    """

    BLOCK = 4096

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column
        # The first row of the block that was read last, and its texts.
        self._read: tuple[int, list[str]] = (0, [])

    def __len__(self) -> int:
        return len(self.column)

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self[:3]))
        return f"TextColumn({len(self):,} texts{f': {first}' if first else ''}{', ...' if len(self) > 3 else ''})"

    def __eq__(self, other: object) -> bool:
        """Whether the other is a sequence of the same texts: a TextColumn, a list or a tuple."""
        if isinstance(other, TextColumn):
            return self.equals(other)
        if isinstance(other, (list, tuple)):
            return len(self) == len(other) and all(map(operator.eq, self, other))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        row = place + len(self) if place < 0 else place
        if not 0 <= row < len(self):
            raise IndexError(place)
        first, block = self._read
        if not first <= row < first + len(block):
            first = row - row % self.BLOCK
            block = self.column.slice(first, self.BLOCK).to_pylist()
            self._read = first, block
        return block[row - first]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), self.BLOCK):
            yield from self.column.slice(first, self.BLOCK).to_pylist()

    def to_pylist(self) -> list[str]:
        """All texts."""
        texts: list[str] = self.column.to_pylist()
        return texts

    def take(self, rows: NDArray[np.int64]) -> TextColumn:
        """The texts in these rows, in this order."""
        return TextColumn(self.column.take(column_of(np.asarray(rows, np.int64))))

    def equals(self, other: TextColumn) -> bool:
        """Whether both have the same texts in the same order."""
        return bool(self.column.equals(other.column))

    def numbered_by_first(self) -> tuple[NDArray[np.int64], list[str]]:
        """The different texts in the order in which they first occur, and for each row the position of its text among
        them: int64 (N,), texts.
        """
        encoded = self._encoded()
        return numbers_of(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()

    def _encoded(self) -> pa.DictionaryArray:
        encoded = self.column.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.unify_dictionaries().combine_chunks()
        return encoded

    def all_start_with(self, start: str) -> bool:
        """Whether every text starts with these characters."""
        return bool(pc.all(pc.starts_with(self.column, start), min_count=0).as_py())

    def rows_in(self, other: TextColumn) -> NDArray[np.int64]:
        """The row of each text in another column, whose texts are all different; -1 if it is not there; int64 (N,)."""
        if self.equals(other):
            return np.arange(len(self))
        found = pc.fill_null(pc.index_in(self.column, value_set=other.column), -1)
        return numbers_of(found).astype(np.int64)

    def first_repeated(self) -> int | None:
        """The first row whose text occurs in an earlier row; None if all texts are different."""
        if all_different(self.column):
            return None
        codes, _ = self.numbered()
        first = np.full(len(codes), len(codes), np.int64)
        np.minimum.at(first, codes, np.arange(len(codes)))
        return int(np.argmax(first[codes] < np.arange(len(codes))))

    def numbered(self) -> tuple[NDArray[np.int64], int]:
        """The number of each text among the different ones in sorted order, int64 (N,), and how many these are."""
        encoded = self._encoded()
        # UTF-8 sorts as code points do, in which Python compares texts.
        order = numbers_of(pc.sort_indices(encoded.dictionary)).astype(np.int64)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return place[numbers_of(encoded.indices)], len(order)


def as_texts(values: Sequence[str]) -> TextColumn:
    """The texts as a column in Arrow. Other sequences are copied; they may have at most 2 GiB of UTF-8."""
    return values if isinstance(values, TextColumn) else TextColumn(pa.chunked_array([texts_column(values)]))
