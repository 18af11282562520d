"""Reads and validates polygons from annotation files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.errors import MaskError
from refbench.masks import kernels

MAX_OUTLINE_PX = 1_000_000.0


def read_polygons(polygons: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The vertices of polygons one after the other, float64 (K, 2), and how many each has, int64 (N,).

    Raises:
        MaskError: as `Mask.from_polygons`.
    """
    found = kernels.read_polygons(polygons, MAX_OUTLINE_PX)
    if found is not None:
        return found
    # In unusual forms, for example arrays, or wrong.
    checked = [_check_polygon(p, k) for k, p in enumerate(polygons)]
    return np.concatenate(checked), np.array([len(points) for points in checked], np.int64)


def _check_polygon(polygon: Any, index: int) -> NDArray[np.float64]:
    """The vertices of a polygon, float64 (K, 2)."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise MaskError(f"polygon {index} must be a flat list of numbers") from None
    if points.ndim != 1 or points.size < 6 or points.size % 2:
        raise MaskError(
            f"polygon {index} must be a flat list of x, y values for at least three points; it has {points.size} values"
        )
    low, high = float(points.min()), float(points.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise MaskError(f"polygon {index} contains a value that is not a finite number")
    corners = points.reshape(-1, 2)
    if max(-low, high, (high - low) * (points.size // 2)) <= MAX_OUTLINE_PX:
        return corners
    if max(-low, high) > MAX_OUTLINE_PX:
        raise MaskError(
            f"polygon {index} has a vertex at {max(-low, high):.3g} px, which is outside any possible image"
        )
    outline = float(np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum())
    if outline > MAX_OUTLINE_PX:
        raise MaskError(
            f"the outline of polygon {index} is {outline:.3g} px long; the maximum is {MAX_OUTLINE_PX:.0f} px"
        )
    return corners
