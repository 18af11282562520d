"""Masks as COCO run-length codes.

A `Mask` stores only the compressed code: about 0.3 kB instead of 0.3 MB for the pixels. Polygons are rasterised as in
pycocotools, so that they have the same pixels on every processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refbench.errors import MaskError
from refbench.masks import kernels
from refbench.masks.polygons import read_polygons
from refbench.masks.rle import (
    check_size,
    encode,
    end_to_end,
    intervals_from_counts,
    intervals_of,
    intervals_of_array,
    shortened,
)
from refbench.masks.threads import in_chunks


@dataclass(frozen=True, slots=True)
class Mask:
    """A binary mask of `height` x `width` pixels, stored as a compressed COCO run-length code.

    `counts` is the canonical code (column-major, cocoapi `rleToString`), so equal masks are equal objects.

    Raises:
        MaskError: a side is not in 1..65535, there are more than 2^28 pixels, or the code is invalid. To encode a mask,
            use `Mask.from_array(mask)` or `pycocotools.mask.encode(np.asfortranarray(mask))`.

    Example:
        >>> import numpy as np
        >>> from refbench import Mask
        >>> mask = Mask.from_array(np.array([[0, 1, 1], [0, 1, 0]]))
        >>> mask.area, mask.box_xywh, mask == Mask.from_rle(mask.to_rle())
        (3, (1.0, 0.0, 2.0, 2.0), True)
    """

    height: int
    width: int
    counts: bytes

    def __repr__(self) -> str:
        return f"Mask({self.height} x {self.width}, {self.area:,} px)"

    def __post_init__(self) -> None:
        check_size(self.height, self.width)
        if not isinstance(self.counts, bytes):
            raise MaskError(
                f"counts must be bytes, got {type(self.counts).__name__}; to read other formats, use Mask.from_rle"
            )
        starts, ends = intervals_of(self.counts, self.height, self.width)
        object.__setattr__(self, "height", int(self.height))
        object.__setattr__(self, "width", int(self.width))
        object.__setattr__(self, "counts", encode(starts, ends, int(self.height) * int(self.width)))

    @staticmethod
    def from_array(array: Any) -> Mask:
        """Create a mask from a bool array (H, W), or from an integer array that contains only 0 and 1.

        Raises:
            MaskError: the array has another shape or another dtype, or contains other values. Apply a threshold to
                scores first: `scores > 0.5`.
        """
        pixels = np.asarray(array)
        if pixels.ndim != 2:
            raise MaskError(f"a mask must have two dimensions (height, width), got the shape {pixels.shape}")
        check_size(*pixels.shape)
        if pixels.dtype != np.bool_:
            if pixels.dtype.kind not in "ui":
                raise MaskError(f"a mask must be bool, got {pixels.dtype}; apply a threshold first, e.g. scores > 0.5")
            if pixels.size and (pixels.min() < 0 or pixels.max() > 1):
                raise MaskError(
                    f"a {pixels.dtype} mask must contain only 0 and 1, got values {pixels.min()}..{pixels.max()}; if "
                    "every non-zero value is foreground, pass `array > 0`"
                )
        height, width = pixels.shape
        if pixels.flags.f_contiguous and not pixels.flags.c_contiguous:
            code = coco_mask.encode((pixels != 0).astype(np.uint8, order="F"))
            return _known(height, width, code["counts"])
        return _known(height, width, encode(*intervals_of_array(pixels), height * width))

    @staticmethod
    def from_crop(array: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> Mask:
        """A mask of `height` x `width` pixels with the bool array (h, w) at `top`, `left`, and background elsewhere.

        Raises:
            MaskError: the array extends beyond the mask.
        """
        check_size(height, width)
        rows, columns = array.shape
        if array.dtype != np.bool_ or min(top, left) < 0 or top + rows > height or left + columns > width:
            raise MaskError(
                f"the array must be bool and fit into {height} x {width} pixels; got {array.dtype} with shape "
                f"{array.shape} at row {top}, column {left}"
            )
        if not array.size:
            return Mask.empty(height, width)
        starts, ends = intervals_of_array(array, apart=True)
        column, row = np.divmod(starts, rows)
        first = (column + left) * int(height) + row + top
        return _known(height, width, encode(first, first + ends - starts, int(height) * int(width)))

    @staticmethod
    def from_intervals(starts: NDArray[np.int64], ends: NDArray[np.int64], height: int, width: int) -> Mask:
        """Create a mask from N foreground runs in column-major order, given as two int64 (N,) arrays: the first pixels
        and the ends (exclusive).

        Raises:
            MaskError: a run is empty, not in order, or extends beyond the mask.
        """
        check_size(height, width)
        starts, ends = (np.ascontiguousarray(v, dtype=np.int64) for v in (starts, ends))
        edges = np.stack([starts, ends], axis=1).reshape(-1) if starts.shape == ends.shape else None
        size = int(height) * int(width)
        if (
            edges is None
            or (starts >= ends).any()
            or (np.diff(edges) < 0).any()
            or (edges.size and (edges[0] < 0 or edges[-1] > size))
        ):
            raise MaskError(
                f"the runs of a mask must be sorted, non-empty and non-overlapping, and must fit into {height} x "
                f"{width} pixels"
            )
        return _known(height, width, encode(starts, ends, size))

    @staticmethod
    def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Mask:
        """The union of COCO polygons `[x1, y1, x2, y2, ...]` in pixels, rasterised as in pycocotools on x86-64.

        Raises:
            MaskError: a polygon has fewer than three points, an odd number of values, a value that is not a finite
                number, or an outline far outside any possible image.
        """
        check_size(height, width)
        polygons = list(polygons)
        if not polygons:
            return Mask.empty(height, width)
        corners, counts = read_polygons(polygons)
        return _known(height, width, kernels.code_of_polygons(corners, counts, int(height), int(width)))

    @staticmethod
    def from_rle(rle: Mapping[str, Any]) -> Mask:
        """Create a mask from a COCO dict `{"size": [h, w], "counts": str, bytes or a list of integers}`.

        Raises:
            MaskError: a key is missing, or the size or the code is invalid.
        """
        if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
            raise MaskError("a run-length encoded mask must be a dict with the keys 'size' and 'counts'")
        size, counts = rle["size"], rle["counts"]
        if not isinstance(size, (list, tuple, np.ndarray)) or len(size) != 2:
            raise MaskError(f"size must be [height, width], got {shortened(size)}")
        height, width = size
        check_size(height, width)
        if isinstance(counts, str):
            try:
                counts = counts.encode("ascii")
            except UnicodeEncodeError:
                raise MaskError("counts is not ASCII, so it is not compressed COCO run-length encoding") from None
        elif isinstance(counts, (list, tuple, np.ndarray)):
            starts, ends = intervals_from_counts(counts, int(height) * int(width))
            counts = encode(starts, ends, int(height) * int(width))
        elif not isinstance(counts, bytes):
            raise MaskError(f"counts must be str, bytes or a list of integers, got {type(counts).__name__}")
        return Mask(height, width, counts)

    @staticmethod
    def empty(height: int, width: int) -> Mask:
        """A mask without foreground."""
        check_size(height, width)
        none = np.empty(0, np.int64)
        return _known(height, width, encode(none, none, int(height) * int(width)))

    @staticmethod
    def full(height: int, width: int) -> Mask:
        """A mask without background."""
        check_size(height, width)
        size = int(height) * int(width)
        return _known(height, width, encode(np.zeros(1, np.int64), np.array([size], np.int64), size))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(kernels.area_of_code(self.counts, self.height * self.width))

    @property
    def box_xywh(self) -> tuple[float, float, float, float]:
        """Bounding box [left, top, width, height] in pixels; all zero for an empty mask."""
        left, top, width, height = (float(v) for v in coco_mask.toBbox(self.to_rle()))
        return left, top, width, height

    def to_array(self) -> NDArray[np.bool_]:
        """The mask as a bool array (H, W)."""
        pixels: NDArray[np.bool_] = coco_mask.decode(self.to_rle()).astype(bool)
        return pixels

    def to_rle(self) -> dict[str, Any]:
        """The mask as a COCO dict for pycocotools and JSON: `size` [h, w] and `counts` as text.

        Example:
            >>> import json
            >>> json.dumps(Mask.full(2, 3).to_rle())
            '{"size": [2, 3], "counts": "06"}'
        """
        return {"size": [self.height, self.width], "counts": self.counts.decode("ascii")}

    def union(self, *others: Mask) -> Mask:
        """The union of this mask and the others, which must have the same size."""
        for other in others:
            if other.size != self.size:
                raise MaskError(
                    f"cannot join masks of different sizes, {self.size} and {other.size}; resize one of them first"
                )
        if not others:
            return self
        merged = coco_mask.merge([m.to_rle() for m in (self, *others)])
        return _known(self.height, self.width, merged["counts"])

    def without(self, other: Mask) -> Mask:
        """The pixels of this mask that are not in the other mask; both must have the same size."""
        if other.size != self.size:
            raise MaskError(
                f"cannot subtract masks of different sizes, {self.size} and {other.size}; resize one of them first"
            )
        ours, theirs = (intervals_of(m.counts, m.height, m.width) for m in (self, other))
        most = len(ours[0]) + len(theirs[0])
        starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
        n = kernels.subtract_intervals(*ours, len(ours[0]), *theirs, len(theirs[0]), starts, ends)
        return _known(self.height, self.width, encode(starts[:n], ends[:n], self.height * self.width))

    @staticmethod
    def from_codes(codes: Sequence[bytes], heights: Sequence[int], widths: Sequence[int]) -> list[Mask]:
        """The masks of N compressed codes, checked in a single call; equal masks share one object.

        Raises:
            MaskError: see `Mask`; the message states the position of the first invalid code.
        """
        rows = list(zip(heights, widths, codes, strict=True))
        made: dict[tuple[int, int, bytes], Any] = dict.fromkeys(rows)
        keys = list(made)
        for height, width in set(zip(heights, widths, strict=True)):
            check_size(height, width)
        sizes = np.fromiter((h * w for h, w, _ in keys), np.int64, len(keys))
        states = np.empty(len(keys), np.int8)
        text, at = end_to_end([code for _, _, code in keys])

        def check(chunk: slice) -> None:
            kernels.check_codes(text, at[chunk.start : chunk.stop + 1], sizes[chunk], states[chunk])

        in_chunks(check, len(keys), None)
        for key, state in zip(keys, states.tolist(), strict=True):
            if state == 1:
                made[key] = _known(*key)
                continue
            try:
                made[key] = Mask(*key)
            except MaskError as error:
                raise MaskError(f"mask {rows.index(key)}: {error}") from None
        return [made[row] for row in rows]


def _known(height: int, width: int, counts: bytes) -> Mask:
    """Create a Mask, without a check, from a code that is certain to be canonical because pycocotools or a kernel of
    refbench wrote it.
    """
    mask = object.__new__(Mask)
    object.__setattr__(mask, "height", int(height))
    object.__setattr__(mask, "width", int(width))
    object.__setattr__(mask, "counts", counts)
    return mask
