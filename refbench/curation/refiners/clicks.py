"""Segments an object from a few clicks of a person, without weights: floods that start at the clicks and meet at edges.

Source of the flooding: Meyer, "Color image segmentation", ICIP 1992, as scikit-image implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from skimage.segmentation import watershed

from refbench.curation.refiners.base import core_of, reach_px, unfold
from refbench.curation.surroundings import BoolArray, FloatArray, signed_distance, window_of

# Radius of the disc that a click stands for, in pixels.
CLICK_PX = 3
# The object is searched this far around the mask and the clicks, as a share of their size, but at least so many pixels.
MARGIN_SHARE, LEAST_MARGIN_PX = 0.5, 24
GROUND, OBJECT = 1, 2


@dataclass(frozen=True, slots=True)
class Click:
    """A click on the pixel `x`, `y`; `inside` states whether this pixel belongs to the object."""

    x: int
    y: int
    inside: bool


def segment_clicks(strength: FloatArray, mask: BoolArray, clicks: Sequence[Click]) -> BoolArray:
    """The object that the clicks describe, bool (H, W).

    The middle of `mask` belongs to the object. Pixels that are far from `mask` and from all clicks inside the object
    are background. Clicks override both rules. Between these two regions, the two floods meet at the edges of the
    image.

    Args:
        strength: edge strength of the image, float (H, W), see `surroundings.edge_strength`.
        mask: the mask so far, bool (H, W); it may be empty.
        clicks: at least one.
    """
    seeds = np.zeros(mask.shape, bool)
    for click in clicks:
        seeds |= _disc(mask.shape, click) if click.inside else False
    known = mask | seeds
    if not known.any():
        return np.zeros(mask.shape, bool)
    size = float(np.sqrt(np.count_nonzero(known)))
    window = window_of(known, max(LEAST_MARGIN_PX, round(MARGIN_SHARE * size)))
    inside = mask[window]
    markers = np.zeros(inside.shape, np.int32)
    markers[0, :] = markers[-1, :] = markers[:, 0] = markers[:, -1] = GROUND
    if inside.any():
        reach = reach_px(inside)
        far = signed_distance(inside) > 2 * reach
        if seeds.any():
            # A click inside may be far from the mask; the object may reach from there to the mask.
            far &= signed_distance(seeds[window]) > max(2 * reach, round(MARGIN_SHARE * size))
        markers[far] = GROUND
        markers[core_of(inside, reach)] = OBJECT
    for click in clicks:
        markers[_disc(mask.shape, click)[window]] = OBJECT if click.inside else GROUND
    found = watershed(strength[window], markers) == OBJECT
    return unfold(found, window, mask.shape)


def _disc(shape: tuple[int, ...], click: Click) -> BoolArray:
    out = np.zeros(shape, bool)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    top, left = max(0, click.y - CLICK_PX), max(0, click.x - CLICK_PX)
    part = slice(top, click.y + CLICK_PX + 1), slice(left, click.x + CLICK_PX + 1)
    near = (rows[part[0]] - click.y) ** 2 + (columns[:, part[1]] - click.x) ** 2 <= CLICK_PX**2
    out[part] = near
    return out
