"""Targets as published loaders draw them: from the stored polygons, where that differs from their union.

`REFER.getMask` (lichengunc/refer `refer.py`, e3bbaa3) adds the rasterised polygons of an object up, so a pixel inside
two of them has the value 2. What a loader makes of that value is a choice of its own:

* `union`: foreground. The stored mask.
* `hole`: background. LAVT, MagNet and DMMI keep `== 1`; LISA, GLaMM and EVF-SAM drop it in `histc(min=0, max=1)`.
* `rle-corrupt`: Sa2VA hands the array to `pycocotools.mask.encode`, which only looks for changes of value, so that
  every step between 1 and 2 flips foreground and background down the column.

Two families score on a canvas of 480 x 480 pixels, whatever the image's proportions:

* `hole-480`: LAVT, MagNet and DMMI resize the array of `hole` with Pillow's nearest neighbour.
* `polygons-480`: ReLA scales the corners of the polygons and rasterises them anew, as their union.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refbench.mask import Mask

UNION = "union"
HOLE = "hole"
RLE_CORRUPT = "rle-corrupt"
HOLE_480 = "hole-480"
POLYGONS_480 = "polygons-480"
# Drawings on a canvas of their own, for which predictions are resized as well.
CANVAS = {HOLE_480: 480, POLYGONS_480: 480}


def redrawn(polygons: Sequence[Sequence[float]], mask: Mask, rule: str) -> Mask:
    """The target of one object under `rule`, at the image's size.

    `mask` is the stored target. It stays as it is where the polygons do not tell it (holes, crowds, masks that were
    drawn anew) or where none of them overlap.
    """
    if rule == UNION or len(polygons) < 2 or Mask.from_polygons(polygons, *mask.size) != mask:
        return mask
    parts = coco_mask.frPyObjects([list(p) for p in polygons], *mask.size)
    layers = coco_mask.decode(parts).sum(axis=2).astype(np.uint8)
    if layers.max() < 2:
        return mask
    if rule in (HOLE, HOLE_480):
        return Mask.from_array(layers == 1)
    return Mask.from_rle(coco_mask.encode(np.asfortranarray(layers)))


def on_canvas(polygons: Sequence[Sequence[float]], one_object: bool, mask: Mask, rule: str) -> Mask:
    """The target under a rule of CANVAS, on its canvas.

    `polygons` are those of all objects that are meant; with more than one of them, each pixel counts once, as no
    evaluator of that canvas adds the polygons of several objects up.
    """
    side = CANVAS[rule]
    if rule == HOLE_480:
        return resized(redrawn(polygons, mask, HOLE) if one_object else mask, side)
    if not polygons or Mask.from_polygons(polygons, *mask.size) != mask:
        return resized(mask, side)
    scale = np.array([side / mask.width, side / mask.height])
    return Mask.from_polygons([(np.reshape(p, (-1, 2)) * scale).ravel().tolist() for p in polygons], side, side)


def resized(mask: Mask, side: int) -> Mask:
    """The mask on a square canvas by Pillow's nearest neighbour, whose ties fall as its own rounding has it."""
    picture = Image.fromarray(mask.to_array().astype(np.uint8))
    return Mask.from_array(np.asarray(picture.resize((side, side), Image.Resampling.NEAREST)) > 0)
