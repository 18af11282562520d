"""COCO run-length codes: validation, decoding to foreground runs, encoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.errors import MaskError
from refbench.masks import kernels
from refbench.masks.code_errors import REASONS

MAX_SIDE_PX = 65_535
MAX_PIXELS = 2**28


def run_lengths(flat: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of a flat mask, bool (N,) with N > 0. The first run is background; its length is 0 if the
    mask begins with foreground.
    """
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else list(runs)


def check_code(counts: bytes, height: int, width: int) -> None:
    """Raise MaskError if `counts` is not a run-length code of a mask of this size."""
    check_size(height, width)
    intervals_of(counts, height, width)


def check_size(height: Any, width: Any) -> None:
    """Raise MaskError unless height and width are allowed for a mask."""
    for name, side in (("height", height), ("width", width)):
        if isinstance(side, (bool, np.bool_)) or not isinstance(side, (int, np.integer)):
            raise MaskError(f"{name} must be an integer, got {shortened(side)}")
        if not 1 <= side <= MAX_SIDE_PX:
            raise MaskError(f"{name} must be between 1 and {MAX_SIDE_PX} px, got {side}")
    if int(height) * int(width) > MAX_PIXELS:
        raise MaskError(f"{height} x {width} pixels is too large; a mask may have at most {MAX_PIXELS} pixels")


def intervals_of(counts: bytes, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    code = np.frombuffer(counts, np.uint8)
    starts = np.empty(len(counts) // 2 + 1, np.int64)
    ends = np.empty(len(counts) // 2 + 1, np.int64)
    n = kernels.decode_intervals(code, int(height) * int(width), starts, ends)
    if n < 0:
        raise MaskError(f"invalid run-length code {shortened(counts)} for {height} x {width} pixels: {REASONS[n]}")
    return starts[:n], ends[:n]


def intervals_from_counts(counts: Any, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends (exclusive) of the foreground runs of uncompressed counts, int64 (N,) each."""
    try:
        values = np.asarray(counts)
    except ValueError:
        raise MaskError("uncompressed counts must be a flat list of integers") from None
    if values.ndim != 1 or (values.size and values.dtype.kind not in "ui"):
        raise MaskError("uncompressed counts must be a flat list of integers")
    if values.size and (values.min() < 0 or values.max() > size):
        raise MaskError(f"uncompressed counts must be between 0 and {size}, got values {values.min()}..{values.max()}")
    edges = np.cumsum(values.astype(np.int64))
    total = int(edges[-1]) if edges.size else 0
    if total != size or (edges.size and edges.min() < 0):
        raise MaskError(f"the sum of the counts is {total}, but height times width is {size}")
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    kept = ends > starts
    return starts[kept], ends[kept]


def intervals_of_array(pixels: NDArray[Any], apart: bool = False) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends (exclusive) of the foreground runs of an array (H, W) of 0 and 1, int64 (N,) each, column by
    column. If `apart`, no run continues in the next column.
    """
    height, width = pixels.shape
    pixels = np.ascontiguousarray(pixels if pixels.dtype.itemsize == 1 else pixels != 0)
    changes = kernels.array_changes(pixels.view(np.uint8), apart)
    starts, ends = changes[0::2], changes[1::2]
    if len(ends) < len(starts):
        ends = np.append(ends, height * width)
    return np.ascontiguousarray(starts), np.ascontiguousarray(ends)


def encode(starts: NDArray[np.int64], ends: NDArray[np.int64], size: int) -> bytes:
    # Intervals that touch (a background run of length zero between them) are joined, so the code is canonical.
    if len(starts) > 1 and bool((starts[1:] == ends[:-1]).any()):
        apart = starts[1:] != ends[:-1]
        starts = starts[np.concatenate([[True], apart])]
        ends = ends[np.concatenate([apart, [True]])]
    out = np.empty(7 * (2 * len(starts) + 1), np.uint8)
    length = kernels.encode_intervals(starts, ends, len(starts), int(size), out)
    return out[:length].tobytes()


def end_to_end(codes: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    at = np.zeros(len(codes) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, codes), np.int64, len(codes)), out=at[1:])
    return np.frombuffer(b"".join(codes), np.uint8), at


def shortened(value: Any) -> str:
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"{text[:40]}... ({math.ceil(len(text) / 1000)} kB)" if len(text) > 1000 else f"{text[:57]}..."
