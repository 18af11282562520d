"""The kernels in Python. They state what those in `native/` do, and are used if the latter were not compiled."""

from __future__ import annotations

from refbench.masks.plain.batches import count_bands, count_errors, count_outlines, count_pairs
from refbench.masks.plain.runs import (
    area_of_code,
    array_changes,
    check_codes,
    code_of_polygons,
    decode_intervals,
    encode_intervals,
    read_masks,
    read_polygons,
    resize_codes,
    subtract_intervals,
)

__all__ = [
    "area_of_code",
    "array_changes",
    "check_codes",
    "code_of_polygons",
    "count_bands",
    "count_errors",
    "count_outlines",
    "count_pairs",
    "decode_intervals",
    "encode_intervals",
    "read_masks",
    "read_polygons",
    "resize_codes",
    "subtract_intervals",
]
