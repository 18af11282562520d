"""The kernels, which work on runs: COCO run-length codes are read, eroded and compared without decoding to pixels.

They are compiled from C++ (`native/`) when refbench is built. Without a compiler, the same functions in Python
(`plain/`) take their place: they return the same numbers, a thousand times slower. A mask is a list of foreground
intervals `[start, end)` over the column-major pixel index, sorted and disjoint, as two int64 arrays.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    import refbench.masks._kernels as _found
except ModuleNotFoundError:
    import refbench.masks.plain as _found  # type: ignore[no-redef]

    warnings.warn(
        "the kernels of refbench are not compiled, so that masks are counted very slowly; install a C++ compiler, then "
        "install refbench again",
        RuntimeWarning,
        stacklevel=1,
    )

COMPILED = _found.__name__.endswith("_kernels")
# The compiled module must have this number, see `native/module.cpp`.
INTERFACE = 5
if COMPILED and getattr(_found, "INTERFACE", 0) != INTERFACE:
    raise ImportError(f"{_found.__file__} is of an older refbench; run `python hatch_build.py` in its clone")

decode_intervals = _found.decode_intervals
encode_intervals = _found.encode_intervals
subtract_intervals = _found.subtract_intervals
check_codes = _found.check_codes
code_of_polygons = _found.code_of_polygons
area_of_code = _found.area_of_code
count_pairs = _found.count_pairs
count_bands = _found.count_bands
count_outlines = _found.count_outlines
count_errors = _found.count_errors


def array_changes(pixels: NDArray[np.uint8], apart: bool = False) -> NDArray[np.int64]:
    """See `plain.runs.array_changes`."""
    return np.frombuffer(_found.array_changes(pixels, apart), np.int64)


def resize_codes(*arguments: NDArray[Any]) -> tuple[bytes, NDArray[np.int64]]:
    """See `plain.runs.resize_codes`."""
    text, positions = _found.resize_codes(*arguments)
    return text, np.frombuffer(positions, np.int64)


class Codes(NamedTuple):
    """The codes of N masks one after the other: code k is `text[at[k] : at[k + 1]]`."""

    text: NDArray[np.uint8]
    at: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]


def read_masks(masks: list[Any], kind: type) -> Codes | None:
    """See `plain.runs.read_masks`."""
    found = _found.read_masks(masks, kind)
    if found is None:
        return None
    text, *numbers = found
    return Codes(np.frombuffer(text, np.uint8), *(np.frombuffer(part, np.int64) for part in numbers))


def read_polygons(polygons: list[Any], most: float) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """See `plain.runs.read_polygons`."""
    found = _found.read_polygons(polygons, most)
    if found is None:
        return None
    corners, counts = found
    return np.frombuffer(corners, np.float64).reshape(-1, 2), np.frombuffer(counts, np.int64)
