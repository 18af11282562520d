"""Simulated annotations of the objects in `scenes`. An outline can be careful, hurried, or around the wrong object.

The annotations model coarse ground truth with known errors: missing vertices, outlines that are 1 to 4 px too wide,
filled holes, missing thin parts, and outlines around another object. The image itself is not used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import disk

from refbench.datasets.builders.scenes_drawing import contours_of, hurried_polygons, polygon_of
from refbench.masks.whole_numbers import PX, Draws, simplified

BoolArray = NDArray[np.bool_]

# What can be wrong with an outline.
THINNED, INFLATED, FILLED = "corners-left-out", "too-wide", "holes-filled"
LOST, WRONG = "thin-parts-lost", "other-object"
FAULTS = (THINNED, INFLATED, FILLED, LOST, WRONG)
CAREFUL_PERCENT, WRONG_PERCENT = 15, 10
THINNED_PERCENT, INFLATED_PERCENT, LOST_PERCENT, FILLED_PERCENT = 60, 60, 50, 70
WIDEST_PX = 4
# A careful annotator clicks a corner wherever a straight line would deviate from the outline by more than this. Without
# the tolerance, every step of a rasterised edge (half a pixel) would be a corner.
CAREFUL_TOLERANCE = 8 * PX // 10
# A thin part or a hole counts only if removing or filling it changes at least this share of the object.
NOTABLE_PERCENT = 3


@dataclass(frozen=True, slots=True)
class Outline:
    """COCO polygons around the object with the index `drawn` in the scene; `faults` lists their errors."""

    polygons: list[list[float]]
    drawn: int
    faults: tuple[str, ...]


def draw_outlines(draws: Draws, masks: Sequence[BoolArray], *, chains: bool = False) -> list[Outline]:
    """Draw the outline of each object in a scene, as one annotator would, from its visible mask, bool (H, W).

    If an object is outlined by mistake instead of another one, it also has its own correct outline, so it has two
    outlines. With `chains`, the outline that was meant for this object may also be around a third object. Then the
    object has only one outline, and only the expression shows that this outline was meant for another object.
    """
    plans = [_plan(draws) for _ in masks]
    wrong = [plan.kind < WRONG_PERCENT and len(masks) > 1 for plan in plans]
    outlines = []
    for k, plan in enumerate(plans):
        others = [j for j in range(len(masks)) if j != k and (chains or not wrong[j])]
        taken = others[plan.choice * len(others) // CHOICES] if wrong[k] and others else k
        outlines.append(_outline(plan, masks[taken], taken, taken != k))
    return outlines


@dataclass(frozen=True, slots=True)
class _Plan:
    """The random values for one outline. All values are generated, even if some are not used, so that outlines do not
    depend on each other.

    `kind` and the values of `chances` are percentages from 0 to 99. `choice` is less than CHOICES.
    """

    kind: int
    choice: int
    chances: dict[str, int]
    width_px: int
    corners: Draws


CHOICES = 1 << 32


def _plan(draws: Draws) -> _Plan:
    kind, choice = draws.below(100), draws.below(CHOICES)
    chances = {fault: draws.below(100) for fault in (THINNED, INFLATED, FILLED, LOST)}
    return _Plan(kind, choice, chances, draws.between(1, WIDEST_PX), draws.fork())


def _outline(plan: _Plan, seen: BoolArray, drawn: int, wrong: bool) -> Outline:
    if WRONG_PERCENT <= plan.kind < WRONG_PERCENT + CAREFUL_PERCENT:
        return Outline(careful_polygons(seen), drawn, ())
    faults = [WRONG] if wrong else []
    shape, kept = seen, _without_thin_parts(seen)
    filled = ndimage.binary_fill_holes(seen)
    if plan.chances[FILLED] < FILLED_PERCENT and _notable(filled & ~seen, seen):
        shape = filled
        faults.append(FILLED)
    if plan.chances[LOST] < LOST_PERCENT and _notable(seen & ~kept, seen):
        shape = kept | (shape & ~seen)
        faults.append(LOST)
    if plan.chances[INFLATED] < INFLATED_PERCENT:
        shape = ndimage.binary_dilation(shape, disk(plan.width_px))
        faults.append(INFLATED)
    # A hurried outline without any other fault gets corners left out, so that it always has a fault.
    if plan.chances[THINNED] < THINNED_PERCENT or not set(faults) - {WRONG}:
        return Outline(hurried_polygons(plan.corners, shape), drawn, (*faults, THINNED))
    return Outline(careful_polygons(shape), drawn, tuple(faults))


def careful_polygons(mask: BoolArray) -> list[list[float]]:
    """COCO polygons with every vertex of the outline; the mask is cut at holes, because polygons cannot have holes."""
    polygons = []
    for part in _without_holes(mask):
        for contour in contours_of(part):
            corners = contour[simplified(contour, CAREFUL_TOLERANCE, PX // 2)[:-1]]
            if len(corners) >= 3:
                polygons.append(polygon_of(corners * (PX // 2) + PX // 2, mask.shape))
    return polygons


def _without_holes(mask: BoolArray) -> list[BoolArray]:
    """The mask in pieces without holes: it is cut along rows through the middle of each hole."""
    holes, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    cuts = sorted({round(c[0]) for c in ndimage.center_of_mass(holes, holes, range(1, count + 1))})
    edges = [0, *cuts, len(mask)]
    pieces = []
    for top, bottom in itertools.pairwise(edges):
        piece = np.zeros_like(mask)
        piece[top:bottom] = mask[top:bottom]
        if piece.any():
            pieces.append(piece)
    return pieces


def _without_thin_parts(mask: BoolArray) -> BoolArray:
    # 0.08 of the square root of the area, rounded; at least 2 px.
    radius = max(2, (math.isqrt(256 * int(np.count_nonzero(mask)) // 10_000) + 1) // 2)
    opened = ndimage.binary_opening(mask, disk(radius))
    return opened if opened.any() else mask


def _notable(part: BoolArray, whole: BoolArray) -> bool:
    return bool(100 * np.count_nonzero(part) >= NOTABLE_PERCENT * np.count_nonzero(whole))
