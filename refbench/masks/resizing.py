"""Resizes many masks by sampling, as run-length codes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from refbench.masks import kernels
from refbench.masks.rle import end_to_end
from refbench.masks.threads import in_chunks

Places = NDArray[np.int64]


def resize_codes(
    codes: Sequence[bytes],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    size_of: Callable[[int, int], tuple[int, int]],
    nearest: Callable[[int, int], Places],
) -> list[bytes]:
    """The canonical codes of N resized masks; equal masks are resized once.

    Args:
        codes: N checked run-length codes.
        heights: int64 (N,), in pixels.
        widths: int64 (N,), in pixels.
        size_of: the new (height, width) for a height and a width.
        nearest: for an old and a new length, the old position that each new one copies, int64, non-decreasing.
    """
    masks = list(zip(codes, heights.tolist(), widths.tolist(), strict=True))
    different = list(dict.fromkeys(masks))
    sizes = list(dict.fromkeys((height, width) for _, height, width in different))
    columns, first_rows, places_of = [], [], {}
    column, row = 0, 0
    for height, width in sizes:
        new_height, new_width = size_of(height, width)
        columns.append(nearest(width, new_width))
        first_rows.append(np.searchsorted(nearest(height, new_height), np.arange(height + 1)))
        places_of[height, width] = (height, width, new_height, new_width, column, row)
        column += new_width
        row += height + 1
    if not different:
        return []
    table = np.array([places_of[height, width] for _, height, width in different], np.int64)
    heights, widths, new_heights, new_widths, columns_at, first_rows_at = np.ascontiguousarray(table.T)
    all_columns = np.concatenate(columns).astype(np.int64)
    all_rows = np.concatenate(first_rows).astype(np.int64)
    text, at = end_to_end([code for code, _, _ in different])

    def work(chunk: slice) -> list[bytes]:
        positions = at[chunk.start : chunk.stop + 1]
        out, ends = kernels.resize_codes(
            text, positions, heights[chunk], widths[chunk], all_columns, columns_at[chunk],
            all_rows, first_rows_at[chunk], new_heights[chunk], new_widths[chunk],
        )  # fmt: skip
        places = ends.tolist()
        return [out[a:b] for a, b in itertools.pairwise(places)]

    found = [code for _, part in in_chunks(work, len(different), None) for code in part]
    resized = dict(zip(different, found, strict=True))
    return [resized[mask] for mask in masks]
