"""Targets as published loaders rasterise them, where this differs from the union of the stored polygons.

`REFER.getMask` (lichengunc/refer `refer.py`, e3bbaa3) adds the rasterised polygons of an object, so a pixel inside two
of them has the value 2. Loaders treat this value in different ways:

* `union`: foreground. This is the stored mask.
* `hole`: background. LAVT, MagNet and CARIS keep `== 1`; LISA and EVF-SAM drop it in `histc(min=0, max=1)`.
* `or-hole`: like `hole`, but the values of several objects are first combined by a bitwise OR. GLaMM.
* `rle-corrupt`: Sa2VA combines the array in the same way and encodes it with `pycocotools.mask.encode`. That function
  looks only at changes of value, so each change between 1, 2 and 3 swaps foreground and background below it.

Other loaders use a different rasteriser, or the rasteriser of pycocotools on a canvas of another size:

* `opencv`: PSALM truncates the vertices to integers and fills with `cv2.fillPoly`, which also draws the outline.
* `scaled`: ReLA scales the vertices of the polygons to its canvas and rasterises them there, as their union. ReLA holds
  a polygon with integer coordinates in the annotation file as an integer array, so its scaled vertices are truncated.

On a canvas (`refbench.scoring.protocols.canvases`), the target of `scaled` is rasterised again, and all other targets
are resized.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refbench.masks.mask import Mask
from refbench.plugins.loading import load_attribute
from refbench.scoring.protocols.canvases import ORIGINAL, Canvas

UNION, HOLE, OR_HOLE, RLE_CORRUPT, OPENCV, SCALED = "union", "hole", "or-hole", "rle-corrupt", "opencv", "scaled"
# These differ from the union only for targets with several polygons, of one object or of several.
OF_SEVERAL_POLYGONS = (HOLE, OR_HOLE, RLE_CORRUPT)
# These need to know which polygon belongs to which object.
BY_OBJECT = (OR_HOLE, RLE_CORRUPT)

Polygons = Sequence[Sequence[float]]


class Outlines:
    """The polygons of each target object and the stored mask; what several rules need of them is computed once."""

    def __init__(self, objects: Sequence[Polygons], mask: Mask) -> None:
        self.objects = objects
        self.mask = mask

    @cached_property
    def polygons(self) -> list[Sequence[float]]:
        """The polygons of all objects."""
        return [p for one in self.objects for p in one]

    @cached_property
    def parts(self) -> list[list[Mask]]:
        """Each polygon of each object as a mask."""
        return [[Mask.from_polygons([p], *self.mask.size) for p in one] for one in self.objects]

    @cached_property
    def describe_mask(self) -> bool:
        """Whether the union of the polygons is the stored mask, which has no holes then, and is no crowd."""
        parts = [part for one in self.parts for part in one]
        return bool(parts) and parts[0].union(*parts[1:]) == self.mask

    @cached_property
    def overlap(self) -> bool:
        """Whether two polygons of one object share a pixel."""
        unions = [one[0].union(*one[1:]) for one in self.parts if one]
        return sum(union.area for union in unions) != sum(part.area for one in self.parts for part in one)


def drawn(outlines: Outlines, target: str, canvas: Canvas = ORIGINAL, whole_numbers: Collection[int] = ()) -> Mask:
    """The target on `canvas`, as the rule `target` rasterises it.

    If the polygons do not describe the stored mask because of holes, crowds or redrawn masks, the stored mask is used,
    resized if there is a canvas.

    `whole_numbers` are indices, over all objects, of the polygons that have integer coordinates in the annotation file.
    """
    if target == SCALED and canvas.side is not None and outlines.describe_mask:
        return _scaled(outlines, canvas.size_of(*outlines.mask.size), whole_numbers)
    return canvas.resized(_on_original(outlines, target))


def _scaled(outlines: Outlines, size: tuple[int, int], whole_numbers: Collection[int]) -> Mask:
    height, width = size
    scale = np.array([width / outlines.mask.width, height / outlines.mask.height])
    moved = []
    for k, polygon in enumerate(outlines.polygons):
        corners = np.reshape(polygon, (-1, 2)) * scale
        moved.append((np.trunc(corners) if k in whole_numbers else corners).ravel().tolist())
    return Mask.from_polygons(moved, height, width)


def _on_original(outlines: Outlines, target: str) -> Mask:
    mask = outlines.mask
    if target in (UNION, SCALED) or not outlines.describe_mask:
        return mask
    if target == OPENCV:
        return _filled_by_opencv(outlines.polygons, mask)
    if target == HOLE and len(outlines.objects) > 1:
        # These loaders do not support targets of several objects.
        return mask
    if not outlines.overlap:
        return mask
    # How many polygons of an object contain each pixel.
    layers = [sum((m.to_array() for m in one), np.zeros(mask.size, np.uint8)) for one in outlines.parts if one]
    values: NDArray[np.uint8] = np.bitwise_or.reduce(layers)
    if target == RLE_CORRUPT:
        return Mask.from_rle(coco_mask.encode(np.asfortranarray(values)))
    return Mask.from_array(values == 1)


def _filled_by_opencv(polygons: Polygons, mask: Mask) -> Mask:
    fill = load_attribute("cv2:fillPoly")
    outlines = [np.asarray(p).astype(np.int32).reshape(-1, 2) for p in polygons]
    corners = np.concatenate(outlines)
    low, high = corners.min(axis=0), corners.max(axis=0) + 1
    if low.min() < 0 or high[0] > mask.width or high[1] > mask.height:
        # OpenCV draws a line that leaves the image slightly differently from the same line in a larger image.
        low, high = np.zeros(2, np.int64), np.array([mask.width, mask.height])
    picture: NDArray[np.uint8] = np.zeros((int(high[1] - low[1]), int(high[0] - low[0])), np.uint8)
    for outline in outlines:
        fill(picture, [(outline - low).astype(np.int32)], 1)
    return Mask.from_crop(picture > 0, int(low[1]), int(low[0]), *mask.size)
