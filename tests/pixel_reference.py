"""The published rules restated on pixels, as slowly and plainly as their authors do."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray


def boundary_band(mask: NDArray[np.bool_], share: float = 0.02) -> NDArray[np.bool_]:
    """Boundary IoU's inner band: pad by one, erode d times with 3 x 3, subtract."""
    height, width = mask.shape
    d = max(1, round(share * math.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)
    return mask & (eroded[1:-1, 1:-1] == 0)


def pixel_counts(prediction: NDArray[np.bool_], target: NDArray[np.bool_], share: float = 0.02) -> dict[str, int]:
    """What `pair_counts` must return, counted on pixels."""
    band_p, band_t = boundary_band(prediction, share), boundary_band(target, share)
    return {
        "intersection": int((prediction & target).sum()),
        "union": int((prediction | target).sum()),
        "prediction_area": int(prediction.sum()),
        "target_area": int(target.sum()),
        "boundary_intersection": int((band_p & band_t).sum()),
        "boundary_union": int((band_p | band_t).sum()),
    }


def blobs(random: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """A random mask: noise, rectangles, discs, stripes, holes, nothing or everything."""
    kind = random.integers(8)
    mask = np.zeros((height, width), dtype=bool)
    if kind == 0:
        return random.random((height, width)) < random.choice([0.02, 0.3, 0.5, 0.9, 0.99])
    if kind == 1:
        return np.full((height, width), bool(random.integers(2)))
    if kind == 2:
        mask[:: int(random.integers(1, 5))] = True
        return mask
    rows, columns = np.ogrid[:height, :width]
    for _ in range(int(random.integers(1, 5))):
        y, x = random.integers(0, height), random.integers(0, width)
        radius = float(random.uniform(0.5, 0.7 * max(height, width)))
        if random.random() < 0.5:
            mask ^= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
        else:
            mask[y : y + int(radius), x : x + int(random.uniform(1, radius + 1))] ^= True
    if kind == 3 and mask.size:
        mask &= random.random((height, width)) < 0.995
    return mask
