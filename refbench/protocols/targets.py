"""Targets as published loaders draw them: from the stored polygons, where that differs from their union.

`REFER.getMask` (lichengunc/refer `refer.py`, e3bbaa3) adds the rasterised polygons of an object up, so a pixel inside
two of them has the value 2. What a loader makes of that value is a choice of its own:

* `union`: foreground. The stored mask.
* `hole`: background. LAVT, MagNet and DMMI keep `== 1`; LISA, GLaMM and EVF-SAM drop it in `histc(min=0, max=1)`.
* `rle-corrupt`: Sa2VA hands the array to `pycocotools.mask.encode`, which only looks for changes of value, so that
  every step between 1 and 2 flips foreground and background down the column.

Others do not use pycocotools' rasteriser, or use it elsewhere:

* `opencv`: PSALM cuts corners off at the point and fills with `cv2.fillPoly`, which draws the outline as well.
* `scaled`: ReLA moves the corners of the polygons to its canvas and rasterises them there, as their union.

A canvas is the image's own size, or 480 x 480 whatever the image's proportions: there `scaled` is rasterised anew, and
everything else is resized with Pillow's nearest neighbour, as LAVT, MagNet and DMMI resize.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from refbench.mask import Mask
from refbench.plugins import load_attribute

UNION, HOLE, RLE_CORRUPT, OPENCV, SCALED = "union", "hole", "rle-corrupt", "opencv", "scaled"
ORIGINAL, CANVAS_480 = "original size", "480 x 480"
SIDES_PX = {CANVAS_480: 480}
# These differ from the union only for an object of several polygons.
OF_SEVERAL_POLYGONS = (HOLE, RLE_CORRUPT)


def drawn(
    polygons: Sequence[Sequence[float]], one_object: bool, mask: Mask, target: str, canvas: str = ORIGINAL
) -> Mask:
    """The target under a rule, on its canvas.

    Args:
        polygons: those of all objects that are meant.
        one_object: whether they are of a single object; with more than one, each pixel counts once, as no evaluator
            adds the polygons of several objects up.
        mask: the stored target. It stays as it is (on a canvas: is resized) where the polygons do not tell it: holes,
            crowds, masks that were drawn anew.
    """
    if canvas == ORIGINAL:
        return _on_original(polygons, one_object, mask, target)
    side = SIDES_PX[canvas]
    if target != SCALED:
        return resized(_on_original(polygons, one_object, mask, target), side)
    if not _tell(polygons, mask):
        return resized(mask, side)
    scale = np.array([side / mask.width, side / mask.height])
    return Mask.from_polygons([(np.reshape(p, (-1, 2)) * scale).ravel().tolist() for p in polygons], side, side)


def _on_original(polygons: Sequence[Sequence[float]], one_object: bool, mask: Mask, target: str) -> Mask:
    if target in (UNION, SCALED):
        return mask
    if target == OPENCV:
        return _filled_by_opencv(polygons, mask) if _tell(polygons, mask) else mask
    if not one_object or len(polygons) < 2 or not _tell(polygons, mask):
        return mask
    parts = coco_mask.frPyObjects([list(p) for p in polygons], *mask.size)
    layers = coco_mask.decode(parts).sum(axis=2).astype(np.uint8)
    if layers.max() < 2:
        return mask
    if target == HOLE:
        return Mask.from_array(layers == 1)
    return Mask.from_rle(coco_mask.encode(np.asfortranarray(layers)))


def _tell(polygons: Sequence[Sequence[float]], mask: Mask) -> bool:
    return bool(polygons) and Mask.from_polygons(polygons, *mask.size) == mask


def _filled_by_opencv(polygons: Sequence[Sequence[float]], mask: Mask) -> Mask:
    fill = load_attribute("cv2:fillPoly")
    outlines = [np.asarray(p).astype(np.int32).reshape(-1, 2) for p in polygons]
    corners = np.concatenate(outlines)
    low, high = corners.min(axis=0), corners.max(axis=0) + 1
    if low.min() < 0 or high[0] > mask.width or high[1] > mask.height:
        # OpenCV draws a line that leaves the picture a little otherwise than the same line in a larger one.
        low, high = np.zeros(2, np.int64), np.array([mask.width, mask.height])
    picture: NDArray[np.uint8] = np.zeros((int(high[1] - low[1]), int(high[0] - low[0])), np.uint8)
    for outline in outlines:
        fill(picture, [(outline - low).astype(np.int32)], 1)
    return Mask.from_crop(picture > 0, int(low[1]), int(low[0]), *mask.size)


def resized(mask: Mask, side: int) -> Mask:
    """The mask on a square canvas by Pillow's nearest neighbour, whose ties fall as its own rounding has it."""
    picture = Image.fromarray(mask.to_array().astype(np.uint8))
    return Mask.from_array(np.asarray(picture.resize((side, side), Image.Resampling.NEAREST)) > 0)
