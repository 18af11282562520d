"""The outlines that annotators draw around the objects of `scenes`: with care, in a hurry, or around another object.

A model of the faults of coarse ground truth, each of which is known: corners left out, borders drawn 1 to 4 px too
wide, holes filled, thin parts left out, another object outlined. Nothing here looks at the picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours
from skimage.morphology import disk

from refbench.builders.scenes_drawing import hurried_polygons

BoolArray = NDArray[np.bool_]

# What can be wrong with an outline.
THINNED, INFLATED, FILLED = "corners-left-out", "too-wide", "holes-filled"
LOST, WRONG = "thin-parts-lost", "other-object"
FAULTS = (THINNED, INFLATED, FILLED, LOST, WRONG)
CAREFUL_SHARE, WRONG_SHARE = 0.15, 0.10
THINNED_SHARE, INFLATED_SHARE, LOST_SHARE, FILLED_SHARE = 0.6, 0.6, 0.5, 0.7
WIDEST_PX = 4
# An annotator who takes care clicks a corner wherever a straight line would leave the outline by more than this: a
# square has four corners on paper, in pixels its sides are stairs of half a pixel.
CAREFUL_TOLERANCE_PX = 0.8
# A part is thin, and a hole is one, where at least this share of the object goes with it.
NOTABLE_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class Outline:
    """COCO polygons around `drawn`, the position of an object of the scene, and the faults that they have."""

    polygons: list[list[float]]
    drawn: int
    faults: tuple[str, ...]


def draw_outlines(random: np.random.Generator, masks: Sequence[BoolArray], *, chains: bool = False) -> list[Outline]:
    """What one annotator draws around the objects of a scene, given what is in sight of each, bool (H, W).

    An object taken for another has its own outline too, and a right one: two outlines lie on it. With `chains` it may
    have been missed itself, so that nothing but the words tells that its only outline is another's.
    """
    plans = [_plan(random) for _ in masks]
    wrong = [plan.kind < WRONG_SHARE and len(masks) > 1 for plan in plans]
    outlines = []
    for k, plan in enumerate(plans):
        others = [j for j in range(len(masks)) if j != k and (chains or not wrong[j])]
        taken = others[int(plan.choice * len(others))] if wrong[k] and others else k
        outlines.append(_outline(plan, masks[taken], taken, taken != k))
    return outlines


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is drawn by chance for one outline, whether it is needed or not: no outline hangs on another's."""

    kind: float
    choice: float
    chances: dict[str, float]
    width_px: int
    corners: np.random.Generator


def _plan(random: np.random.Generator) -> _Plan:
    kind, choice = random.random(2)
    chances = dict(zip((THINNED, INFLATED, FILLED, LOST), random.random(4).tolist(), strict=True))
    width_px = int(random.integers(1, WIDEST_PX + 1))
    return _Plan(float(kind), float(choice), chances, width_px, np.random.default_rng(random.integers(2**63)))


def _outline(plan: _Plan, seen: BoolArray, drawn: int, wrong: bool) -> Outline:
    if WRONG_SHARE <= plan.kind < WRONG_SHARE + CAREFUL_SHARE:
        return Outline(careful_polygons(seen), drawn, ())
    faults = [WRONG] if wrong else []
    shape, kept = seen, _without_thin_parts(seen)
    filled = ndimage.binary_fill_holes(seen)
    if plan.chances[FILLED] < FILLED_SHARE and _notable(filled & ~seen, seen):
        shape = filled
        faults.append(FILLED)
    if plan.chances[LOST] < LOST_SHARE and _notable(seen & ~kept, seen):
        shape = kept | (shape & ~seen)
        faults.append(LOST)
    if plan.chances[INFLATED] < INFLATED_SHARE:
        shape = ndimage.binary_dilation(shape, disk(plan.width_px))
        faults.append(INFLATED)
    # Who makes no other fault leaves corners out: in a hurry something goes wrong.
    if plan.chances[THINNED] < THINNED_SHARE or not set(faults) - {WRONG}:
        return Outline(hurried_polygons(plan.corners, shape), drawn, (*faults, THINNED))
    return Outline(careful_polygons(shape), drawn, tuple(faults))


def careful_polygons(mask: BoolArray) -> list[list[float]]:
    """Every bend of the outline, as COCO polygons; a hole is cut by a slit, since polygons cannot have one."""
    height, width = mask.shape
    polygons = []
    for part in _without_holes(mask):
        padded = np.pad(part, 1).astype(np.float64)
        for contour in find_contours(padded, 0.5):
            corners = approximate_polygon(contour, CAREFUL_TOLERANCE_PX)[:-1] - 0.5
            if len(corners) >= 3:
                flat = np.empty(2 * len(corners))
                flat[0::2] = np.clip(corners[:, 1], 0, width)
                flat[1::2] = np.clip(corners[:, 0], 0, height)
                polygons.append([round(float(v), 1) for v in flat])
    return polygons


def _without_holes(mask: BoolArray) -> list[BoolArray]:
    """The mask in pieces that have no holes: cut in rows through the middle of each hole."""
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
    radius = max(2, round(0.08 * float(np.sqrt(np.count_nonzero(mask)))))
    opened = ndimage.binary_opening(mask, disk(radius))
    return opened if opened.any() else mask


def _notable(part: BoolArray, whole: BoolArray) -> bool:
    return bool(np.count_nonzero(part) >= NOTABLE_SHARE * np.count_nonzero(whole))
