"""Checks of images: whether they can be read, and whether the masks fit them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from refbench.curation.checks.base import ERROR, ImageView, Reporter
from refbench.curation.items import ImageItems
from refbench.curation.surroundings import quantised
from refbench.errors import DatasetError
from refbench.records import Finding
from refbench.storage.images import load_image


@dataclass(frozen=True)
class BrokenImage(Reporter):
    """An image is missing, cannot be decoded, or has another size than its annotations state."""

    code: ClassVar[str] = "image-broken"
    severity: ClassVar[str] = ERROR
    needs_images: ClassVar[bool] = True

    def find(self, image: ImageView) -> Iterator[Finding]:
        if image.picture_error:
            yield self.on_image(image.items, image.picture_error)


@dataclass(frozen=True)
class OffEdges(Reporter):
    """The outline does not follow the edges of the image: it is shifted by `most_px` or more, or misses them at many
    points.

    A point misses if the nearest strong edge is `from_px` to `to_px` away. An edge that is farther away belongs to
    another object.
    """

    code: ClassVar[str] = "mask-off-edges"
    needs_images: ClassVar[bool] = True
    most_px: float = 1.0
    from_px: float = 0.75
    to_px: float = 1.5
    most_missing: float = 0.2
    least_points: int = 100

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            around = image.surroundings(target)
            if around is None or len(around.edge_offsets_px) < self.least_points:
                continue
            offsets = around.edge_offsets_px
            shift = float(np.median(offsets))
            missing = float(np.mean((np.abs(offsets) >= self.from_px) & (np.abs(offsets) <= self.to_px)))
            if abs(shift) >= self.most_px:
                side = "inside" if shift < 0 else "outside"
                yield self.on_mask(
                    target, f"the image's edge lies {abs(shift):.1f} px {side} the outline (median)", shift
                )
            elif missing > self.most_missing:
                yield self.on_mask(target, f"{missing:.0%} of the outline miss the image's edge", missing)


@dataclass(frozen=True)
class HoldsGround(Reporter):
    """A part inside the mask looks like its surroundings: the mask fills a hole, or its outline is too wide."""

    code: ClassVar[str] = "mask-holds-ground"
    needs_images: ClassVar[bool] = True
    least_px: int = 12
    least_share: float = 0.006

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            around = image.surroundings(target)
            if around is None:
                continue
            found, area = around.largest_ground_px(), target.mask.area
            if found >= self.least_px and found >= self.least_share * area:
                yield self.on_mask(target, f"{found} pixels in one place look like the ground", found)


@dataclass(frozen=True)
class LacksPart(Reporter):
    """A region next to the mask looks like the mask and belongs to no other object, so the mask lacks a thin part."""

    code: ClassVar[str] = "mask-lacks-part"
    needs_images: ClassVar[bool] = True
    least_px: int = 8
    least_share: float = 0.004

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            around = image.surroundings(target)
            if around is None:
                continue
            found, area = around.largest_missing_px(), target.mask.area
            if found >= self.least_px and found >= self.least_share * area:
                yield self.on_mask(target, f"{found} pixels beside the mask look like the object", found)


@dataclass(frozen=True)
class ImageTwice(Reporter):
    """The split contains an image twice, as the same bytes or as nearly the same picture.

    Two pictures are nearly the same if their perceptual hashes differ in at most `most_bits` bits. A hash consists of
    the signs of 63 low-frequency coefficients of the brightness.
    """

    code: ClassVar[str] = "image-twice"
    needs_images: ClassVar[bool] = True
    most_bits: int = 3

    def find_in_split(self, images: Sequence[ImageItems]) -> Iterator[Finding]:
        known: list[ImageItems] = []
        digests: dict[str, ImageItems] = {}
        hashes: list[int] = []
        for items in images:
            read = _digest_and_hash(items)
            if read is None:
                continue
            digest, number = read
            if digest in digests:
                yield self.on_image(items, f"the same file as image {digests[digest].image_id}", 0)
                continue
            digests[digest] = items
            distances = [(number ^ other).bit_count() for other in hashes]
            near = int(np.argmin(distances)) if distances else 0
            if distances and distances[near] <= self.most_bits:
                message = f"looks like image {known[near].image_id} ({distances[near]} of 63 bits differ)"
                yield self.on_image(items, message, distances[near])
            known.append(items)
            hashes.append(number)


def _digest_and_hash(items: ImageItems) -> tuple[str, int] | None:
    try:
        picture = load_image(items.image_path, items.height, items.width)
    except DatasetError:
        return None  # BrokenImage tells of it
    path = Path(items.image_path)
    content = path.read_bytes() if path.is_file() else picture.tobytes()
    return hashlib.sha256(content).hexdigest(), perceptual_hash(picture)


def perceptual_hash(picture: Image.Image) -> int:
    """A hash of 63 bits that is nearly the same for nearly the same pictures.

    Each bit stands for one of the lowest 8 x 8 frequencies of a 32 x 32 copy (cosine transform, without the mean), and
    states whether its coefficient is above the median of all.
    """
    small = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    low: NDArray[np.float64] = quantised(dctn(small, norm="ortho")[:8, :8].ravel()[1:])
    return sum(1 << k for k, bit in enumerate(low > np.median(low)) if bit)
