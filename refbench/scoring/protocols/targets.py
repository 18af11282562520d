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


def drawn(
    objects: Sequence[Polygons],
    mask: Mask,
    target: str,
    canvas: Canvas = ORIGINAL,
    whole_numbers: Collection[int] = (),
) -> Mask:
    """The target on `canvas`, as the rule `target` rasterises it.

    Args:
        objects: the polygons of each target object.
        mask: the stored target. If the polygons do not describe this mask because of holes, crowds or redrawn masks,
            the mask is used unchanged, or resized if there is a canvas. whole_numbers: indices, over all objects, of
            the polygons that have integer coordinates in the annotation file.
    """
    if target == SCALED and canvas.side is not None and _tell(objects, mask):
        return _scaled(objects, mask, canvas.size_of(*mask.size), whole_numbers)
    return canvas.resized(_on_original(objects, mask, target))


def _scaled(objects: Sequence[Polygons], mask: Mask, size: tuple[int, int], whole_numbers: Collection[int]) -> Mask:
    height, width = size
    scale = np.array([width / mask.width, height / mask.height])
    moved = []
    for k, polygon in enumerate(p for polygons in objects for p in polygons):
        corners = np.reshape(polygon, (-1, 2)) * scale
        moved.append((np.trunc(corners) if k in whole_numbers else corners).ravel().tolist())
    return Mask.from_polygons(moved, height, width)


def _on_original(objects: Sequence[Polygons], mask: Mask, target: str) -> Mask:
    if target in (UNION, SCALED) or not _tell(objects, mask):
        return mask
    if target == OPENCV:
        return _filled_by_opencv([p for polygons in objects for p in polygons], mask)
    if target == HOLE and len(objects) > 1:
        # These loaders do not support targets of several objects.
        return mask
    layers = [_layers(polygons, mask.size) for polygons in objects if polygons]
    values: NDArray[np.uint8] = np.bitwise_or.reduce(layers)
    if values.max() < 2:
        return mask
    if target == RLE_CORRUPT:
        return Mask.from_rle(coco_mask.encode(np.asfortranarray(values)))
    return Mask.from_array(values == 1)


def _layers(polygons: Polygons, size: tuple[int, int]) -> NDArray[np.uint8]:
    """How many polygons of an object contain each pixel, uint8 (H, W)."""
    layers = np.zeros(size, np.uint8)
    for polygon in polygons:
        layers += Mask.from_polygons([polygon], *size).to_array()
    return layers


def _tell(objects: Sequence[Polygons], mask: Mask) -> bool:
    polygons = [p for one in objects for p in one]
    return bool(polygons) and Mask.from_polygons(polygons, *mask.size) == mask


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
