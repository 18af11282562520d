"""A mask in its image: where the image has edges near the outline, and which pixels look like the object.

Floating-point results (powers, exponentials, weighted sums) may differ in their last bits between processors. They are
rounded before any decision, so that findings, proposals and decisions are always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import find_contours

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
Window = tuple[slice, slice]

MARGIN_PX = 14
# Measurements are rounded to this part of a unit. A power of two, so that sums and products of a few are exact.
PARTS = 1024.0
# Edges are looked for this far to both sides of the outline.
REACH_PX, STEP_PX = 5.0, 0.25
# Differences of Lab below this are noise, above that any edge is as good as another.
FAINT_EDGE, CLEAR_EDGE = 3.0, 20.0
# An edge counts where it has this share of the strongest one within reach.
NOTABLE_EDGE = 0.35
# Farther edges are of something else; from fewer points nothing can be told.
MOST_MISFIT_PX, LEAST_POINTS = 2.0, 8


def quantised(values: FloatArray, parts: float = PARTS) -> FloatArray:
    """The values rounded to multiples of 1 / `parts`."""
    rounded: FloatArray = np.rint(np.asarray(values) * parts) / parts
    return rounded


def lab_of(picture: NDArray[np.uint8]) -> FloatArray:
    """The image in CIE Lab, float64 (H, W, 3)."""
    return quantised(rgb2lab(picture))


def window_of(mask: BoolArray, margin_px: int) -> Window:
    """Rows and columns of the bounding box of a mask, enlarged by `margin_px`; the mask must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(0, int(rows[0]) - margin_px), int(rows[-1]) + 1 + margin_px),
        slice(max(0, int(columns[0]) - margin_px), int(columns[-1]) + 1 + margin_px),
    )


def signed_distance(mask: BoolArray) -> FloatArray:
    """Distance to the outline in pixels, negative inside; everything outside the array is ignored."""
    if mask.all() or not mask.any():
        far = float(np.hypot(*mask.shape))
        return np.full(mask.shape, -far if mask.all() else far)
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    distance: FloatArray = np.where(mask, 0.5 - inside, outside - 0.5)
    return distance


def edge_strength(lab: FloatArray, sigma_px: float = 0.8) -> FloatArray:
    """Gradient magnitude of a Lab image (H, W, 3) over all channels, per pixel."""
    parts = [ndimage.gaussian_gradient_magnitude(lab[..., k], sigma_px) for k in range(3)]
    return quantised(np.sqrt(np.sum(np.square(parts), axis=0)))


def edge_offsets_px(
    mask: BoolArray, strength: FloatArray, frame: tuple[int, int, int, int] | None = None
) -> FloatArray:
    """For points along an outline, the signed distance to the nearest strong edge of the image, positive outwards;
    float (N,).

    Points without an edge within reach are omitted, and so are points outside `frame` (top, left, bottom, right). By
    default, `frame` is the array without its border of one pixel.
    """
    height, width = mask.shape
    top, left, bottom, right = frame or (1, 1, height - 2, width - 2)
    contours = find_contours(np.pad(mask, 1).astype(np.float64), 0.5)
    points = np.concatenate(contours) - 1 if contours else np.empty((0, 2))
    rows, columns = points[:, 0], points[:, 1]
    points = points[(rows > top) & (rows < bottom) & (columns > left) & (columns < right)]
    if not len(points):
        return np.empty(0)
    slopes = np.gradient(ndimage.gaussian_filter(signed_distance(mask), 1.0))
    normals = np.stack([_at(slope, points) for slope in slopes], axis=1)
    normals = quantised(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6))
    offsets = np.arange(-REACH_PX, REACH_PX + STEP_PX / 2, STEP_PX)
    places = points[:, None, :] + offsets[None, :, None] * normals[:, None, :]
    found = _at(strength, places.reshape(-1, 2)).reshape(places.shape[:2])
    peaks = np.zeros(found.shape, bool)
    peaks[:, 1:-1] = (found[:, 1:-1] >= found[:, :-2]) & (found[:, 1:-1] >= found[:, 2:])
    least = np.maximum(NOTABLE_EDGE * found.max(axis=1), FAINT_EDGE)
    peaks &= found >= least[:, None]
    nearest = np.where(peaks, np.abs(offsets)[None, :], np.inf).argmin(axis=1)
    chosen: FloatArray = offsets[nearest][peaks.any(axis=1)]
    return chosen


def misfit_px(mask: BoolArray, strength: FloatArray) -> float:
    """Mean distance of an outline to the edges of the image, between 0 and MOST_MISFIT_PX; MOST_MISFIT_PX if there are
    no edges.
    """
    offsets = edge_offsets_px(mask, strength)
    if len(offsets) < LEAST_POINTS:
        return MOST_MISFIT_PX
    return float(np.minimum(np.abs(offsets), MOST_MISFIT_PX).mean())


def strength_on_outline(strength: FloatArray, mask: BoolArray) -> float:
    """Mean edge strength of the image along the outline, clipped: how well a mask fits the edges."""
    rim = (mask & ~ndimage.binary_erosion(mask, border_value=1)) | (~mask & ndimage.binary_dilation(mask))
    return float(np.minimum(strength[rim], CLEAR_EDGE).mean()) if rim.any() else 0.0


@dataclass(frozen=True)
class Surroundings:
    """The part of an image around a mask; the mask must not be empty.

    `mask` and `others` (other annotated objects) are bool (h, w), `lab` is float (h, w, 3). All of them cover the same
    window, whose upper left corner is at `top`, `left` in an image of `size` (height, width).
    """

    mask: BoolArray
    others: BoolArray
    lab: FloatArray
    top: int
    left: int
    size: tuple[int, int]

    @staticmethod
    def of(picture: NDArray[np.uint8], mask: BoolArray, others: Sequence[BoolArray] = ()) -> Surroundings:
        """Cut the window out of an image, uint8 (H, W, 3); masks are bool (H, W)."""
        window = window_of(mask, MARGIN_PX)
        taken = np.zeros(mask[window].shape, bool)
        for other in others:
            taken |= other[window]
        inside = mask[window]
        return Surroundings(
            inside, taken & ~inside, lab_of(picture[window]), window[0].start, window[1].start, mask.shape
        )

    @cached_property
    def distance(self) -> FloatArray:
        return signed_distance(self.mask)

    @cached_property
    def edge_offsets_px(self) -> FloatArray:
        """See `edge_offsets_px`; points at the border of the image are omitted, but not those at the border of the
        window.
        """
        top, left = self.top, self.left
        frame = (1 - top, 1 - left, self.size[0] - 2 - top, self.size[1] - 2 - left)
        return edge_offsets_px(self.mask, edge_strength(self.lab), frame)

    @cached_property
    def likeness(self) -> FloatArray:
        """For each pixel, the logarithm of the ratio between the frequency of its colour inside the mask and around the
        mask.
        """
        inner, ring = self.distance < -2.5, (self.distance > 3) & (self.distance <= 13) & ~self.others
        if np.count_nonzero(inner) <= 30:
            inner = self.mask
        if not ring.any():
            return np.zeros(self.mask.shape)
        cells = np.clip(np.rint((self.lab - COLOUR_ORIGIN) / COLOUR_STEP), 0, CELLS - 1).astype(np.int64)
        number = (cells[..., 0] * CELLS + cells[..., 1]) * CELLS + cells[..., 2]
        inside, around = _shares(number[inner]), _shares(number[ring])
        ratio = np.log(inside + RARE) - np.log(around + RARE)
        return quantised(ndimage.gaussian_filter(ratio[number], 0.5))

    def largest_ground_px(self) -> int:
        """Area in pixels of the largest part of the mask that has the colours of the surroundings; the rim of the mask
        is not counted.
        """
        return _largest((self.likeness < -0.5) & self.mask & (self.distance < -0.5), self.distance < -1.5)

    def largest_missing_px(self) -> int:
        """Area in pixels of the largest region around the mask that has the colours of the mask and belongs to no other
        object.
        """
        near = ~self.mask & ~self.others & (self.distance < 11)
        return _largest((self.likeness > 0.7) & near, self.distance > 2.0)


# Cells of a histogram over Lab; colours rarer than RARE are all the same.
COLOUR_ORIGIN, COLOUR_STEP, CELLS, RARE = np.array([0, -100, -100]), np.array([7, 12, 12]), 21, 1e-4


def _shares(numbers: NDArray[np.int64]) -> FloatArray:
    counts = np.bincount(numbers, minlength=CELLS**3).astype(np.float64).reshape(CELLS, CELLS, CELLS)
    smooth = ndimage.gaussian_filter(counts, 0.7).ravel()
    shares: FloatArray = smooth / max(float(smooth.sum()), 1.0)
    return shares


def _largest(parts: BoolArray, counted: BoolArray) -> int:
    labels, count = ndimage.label(parts)
    if not count:
        return 0
    return int(ndimage.sum_labels(counted, labels, np.arange(1, count + 1)).max())


def _at(values: FloatArray, points: FloatArray) -> FloatArray:
    found: FloatArray = ndimage.map_coordinates(values, points.T, order=1, mode="nearest")
    return found
