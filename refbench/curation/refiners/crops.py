"""Crops around a coarse mask, for networks that see one object at a time, and masks from their probabilities."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.morphology import disk

from refbench.curation.refiners.base import Box, Refined, reach_px
from refbench.curation.surroundings import BoolArray, FloatArray

# How much wider than the coarse mask's box the crops are, on each side.
MARGINS = (0.25, 0.10, 0.50, 0.15, 0.35, 0.05, 0.70)
# Probabilities are rounded to steps of this before they are compared with one half.
STEP = 1 / 256
HALF = 0.5

Window = tuple[slice, slice]


def crop_window(box: Box, margin: float, shape: tuple[int, ...]) -> Window:
    """The rows and columns of the box, widened by `margin` of its height and width on each side, within the image."""
    left, top, width, height = box
    return (
        slice(max(0, round(top - margin * height)), min(shape[0], round(top + (1 + margin) * height))),
        slice(max(0, round(left - margin * width)), min(shape[1], round(left + (1 + margin) * width))),
    )


def reachable(mask: BoolArray) -> BoolArray:
    """The pixels that a better mask may contain; those farther outside belong to other objects."""
    return np.asarray(ndimage.binary_dilation(mask, disk(reach_px(mask))))


def rounded(probability: FloatArray) -> FloatArray:
    """Probabilities as multiples of STEP, so that a last bit of another processor does not change a mask."""
    steps: FloatArray = np.round(np.asarray(probability, np.float64) / STEP) * STEP
    return steps


def refined_of(probability: FloatArray, mask: BoolArray, near: BoolArray, window: Window) -> Refined:
    """The answer of a network about a crop.

    Args:
        probability: foreground, float (h, w) between 0 and 1, for the pixels of the window.
        mask: the coarse mask, bool (H, W).
        near: what `reachable` returns for it.

    Returns:
        The mask, and as confidence twice the mean distance of the probabilities from 0.5, over the pixels of both
        masks.
    """
    inside = (probability > HALF) & near[window]
    whole = np.zeros(mask.shape, bool)
    whole[window] = inside
    sure = np.abs(probability - HALF)[inside | mask[window]]
    return Refined(whole, float(2 * sure.mean()) if sure.size else 0.0)
