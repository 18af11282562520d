"""Checks of masks. They do not need the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage

from refbench.curation.checks.base import ERROR, NOTE, ImageView, Reporter
from refbench.curation.surroundings import window_of
from refbench.masks.mask import Mask
from refbench.records import Finding


@dataclass(frozen=True)
class EmptyMask(Reporter):
    """A mask is empty, although its expressions have a target."""

    code: ClassVar[str] = "mask-empty"
    severity: ClassVar[str] = ERROR

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            if target.mask.area == 0:
                yield self.on_mask(target, "the mask is empty", 0)


@dataclass(frozen=True)
class TinyMask(Reporter):
    """A mask has fewer than `least_px` pixels, so that an error of one pixel along its outline is a large share of
    its area.
    """

    code: ClassVar[str] = "mask-tiny"
    severity: ClassVar[str] = NOTE
    least_px: int = 200

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            if 0 < (area := target.mask.area) < self.least_px:
                yield self.on_mask(target, f"the mask has {area} pixels only", area)


@dataclass(frozen=True)
class Slivers(Reporter):
    """A mask has parts or holes of fewer than `most_px` pixels, which are usually errors of annotation."""

    code: ClassVar[str] = "mask-slivers"
    severity: ClassVar[str] = NOTE
    most_px: int = 12

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            if target.mask.area == 0:
                continue
            pixels = image.pixels(target)[window_of(image.pixels(target), 1)]
            holes = ndimage.binary_fill_holes(pixels) & ~pixels
            (parts, count), (gaps, _) = (_small(a, self.most_px) for a in (pixels, holes))
            # A mask that is no larger itself is tiny, not a leftover.
            parts = parts if count > 1 else 0
            if parts or gaps:
                told = [f"{n} {w}{'s' * (n > 1)}" for n, w in ((parts, "part"), (gaps, "hole")) if n]
                yield self.on_mask(
                    target, f"{' and '.join(told)} of fewer than {self.most_px} pixels", float(parts + gaps)
                )


@dataclass(frozen=True)
class PartsApart(Reporter):
    """A part of the mask is far from the largest part: the mask covers two objects, or contains a wrong click.

    Far means farther than the length of the largest part.
    """

    code: ClassVar[str] = "mask-parts-apart"
    least_px: int = 12

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            if target.mask.area == 0:
                continue
            pixels = image.pixels(target)[window_of(image.pixels(target), 1)]
            labels, count = ndimage.label(pixels, np.ones((3, 3)))
            areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
            if count < 2:
                continue
            largest = int(areas.argmax()) + 1
            rows, columns = ndimage.find_objects(labels)[largest - 1]
            length = max(rows.stop - rows.start, columns.stop - columns.start)
            gaps = ndimage.distance_transform_edt(labels != largest)
            far = [
                float(gaps[labels == k].min())
                for k in range(1, count + 1)
                if k != largest and areas[k - 1] >= self.least_px
            ]
            if far and max(far) > length:
                yield self.on_mask(
                    target, f"a part lies {max(far):.0f} px away, the largest one is {length} px long", max(far)
                )


@dataclass(frozen=True)
class AtBorder(Reporter):
    """A mask touches the border of the image along more than `least_px` pixels, so the object is cut off."""

    code: ClassVar[str] = "mask-at-border"
    severity: ClassVar[str] = NOTE
    least_px: int = 8

    def find(self, image: ImageView) -> Iterator[Finding]:
        height, width = image.items.height, image.items.width
        for target in image.items.masks:
            left, top, w, h = target.mask.box_xywh
            if target.mask.area == 0 or (left > 0 and top > 0 and left + w < width and top + h < height):
                continue
            pixels = image.pixels(target)
            touching = sum(int(line.sum()) for line in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
            if touching > self.least_px:
                yield self.on_mask(target, f"{touching} px of the mask lie on the border of the image", touching)


@dataclass(frozen=True)
class CoarsePolygon(Reporter):
    """The sides of the polygons are on average longer than `share` times the square root of the area. Round shapes
    therefore look angular.
    """

    code: ClassVar[str] = "polygon-coarse"
    severity: ClassVar[str] = NOTE
    share: float = 0.5
    least_area_px: int = 1024

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            if not target.polygons or target.mask.area < self.least_area_px:
                continue
            corners = sum(len(p) // 2 for p in target.polygons)
            mean_side = round(sum(map(_length, target.polygons)) / corners, 6)
            if mean_side > self.share * np.sqrt(target.mask.area):
                yield self.on_mask(
                    target, f"{corners} corners, {mean_side:.0f} px apart, for {target.mask.area} pixels", mean_side
                )


@dataclass(frozen=True)
class UnlikeBox(Reporter):
    """The box of an annotation has an IoU below `least` with the box of its mask, so one of the two is of another
    object.
    """

    code: ClassVar[str] = "mask-unlike-box"
    least: float = 0.8

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            if target.mask.area == 0 or len(target.ann_ids) > 1 or min(target.box_xywh[2:]) <= 0:
                continue  # a box of no size says nothing
            iou = _box_iou(target.box_xywh, target.mask.box_xywh)
            # Boxes of the sources are rounded to a hundredth or drawn around the polygon: small masks suffer most.
            slack = 2.0 / max(1.0, min(target.mask.box_xywh[2:]))
            if iou < self.least - slack:
                yield self.on_mask(target, f"box and mask overlap with an IoU of {iou:.2f}", iou)


@dataclass(frozen=True)
class LikeAnother(Reporter):
    """Two annotations are on one object: the IoU of their masks is at least `least`.

    One of the two masks is wrong. The check cannot tell which one, so both get a finding.
    """

    code: ClassVar[str] = "mask-like-another"
    least: float = 0.4

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            others = [o for o in image.items.others(target) if o.mask.area]
            if target.mask.area == 0 or len(target.ann_ids) != 1 or not others:
                continue
            ious = coco_mask.iou([target.mask.to_rle()], [o.mask.to_rle() for o in others], [0] * len(others))[0]
            k = int(np.argmax(ious))
            if ious[k] >= self.least:
                yield self.on_mask(
                    target, f"overlaps with annotation {others[k].ann_id} ({others[k].category}), IoU {ious[k]:.2f}",
                    float(ious[k]),
                )  # fmt: skip


@dataclass(frozen=True)
class UnlikePolygons(Reporter):
    """A mask differs from its own polygons (IoU below `least`), so either the mask or the polygons were replaced."""

    code: ClassVar[str] = "mask-unlike-polygons"
    least: float = 0.9

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            if not target.polygons or target.mask.area < TinyMask.least_px:
                continue
            drawn = Mask.from_polygons(target.polygons, *target.mask.size)
            iou = float(coco_mask.iou([drawn.to_rle()], [target.mask.to_rle()], [0])[0, 0])
            if iou < self.least:
                yield self.on_mask(target, f"mask and polygons overlap with an IoU of {iou:.2f}", iou)


def _small(pixels: NDArray[np.bool_], most_px: int) -> tuple[int, int]:
    """The number of parts with fewer than `most_px` pixels, and the number of all parts."""
    labels, count = ndimage.label(pixels, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return int((areas < most_px).sum()), int(count)


def _length(polygon: tuple[float, ...]) -> float:
    points = np.reshape(polygon, (-1, 2))
    sides = np.roll(points, -1, axis=0) - points
    # Not np.hypot, whose last bit differs between processors.
    return float(np.sqrt(np.square(sides).sum(axis=1)).sum())


def _box_iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = a[2] * a[3] + b[2] * b[3] - shared
    return shared / union if union > 0 else 0.0
