"""Targets as published loaders draw them: from the stored polygons, where that differs from their union.

`REFER.getMask` (lichengunc/refer `refer.py`, e3bbaa3) adds the rasterised polygons of an object up, so a pixel inside
two of them has the value 2. What a loader makes of that value is a choice of its own:

* `union`: foreground. The stored mask.
* `hole`: background. LAVT, MagNet and DMMI keep `== 1`; LISA, GLaMM and EVF-SAM drop it in `histc(min=0, max=1)`.
* `rle-corrupt`: Sa2VA hands the array to `pycocotools.mask.encode`, which only looks for changes of value, so that
  every step between 1 and 2 flips foreground and background down the column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from refbench.mask import Mask

UNION = "union"
HOLE = "hole"
RLE_CORRUPT = "rle-corrupt"
RULES = (UNION, HOLE, RLE_CORRUPT)


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
    if rule == HOLE:
        return Mask.from_array(layers == 1)
    return Mask.from_rle(coco_mask.encode(np.asfortranarray(layers)))
