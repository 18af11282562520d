"""Masks as COCO run-length codes, and exact counts of pairs of them.

A `Mask` holds the compressed code and nothing else: 0.3 kB where the pixels would be 0.3 MB. Polygons are rasterised
here, as pycocotools does it, so that they have the same pixels on every processor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refbench.errors import MaskError
from refbench.masks import kernels

Result = TypeVar("Result")

MAX_SIDE_PX = 65_535
MAX_PIXELS = 2**28
MAX_OUTLINE_PX = 1_000_000.0
CHUNK_PAIRS = 128

_REASONS = {
    kernels.BAD_CHARACTER: "it holds a character outside '0'..'o'",
    kernels.TRUNCATED: "it ends in the middle of a count",
    kernels.TOO_LONG: "one of its counts is longer than 35 bits",
    kernels.NEGATIVE: "one of its counts is negative",
    kernels.WRONG_SUM: "its counts do not add up to height times width",
}


@dataclass(frozen=True, slots=True)
class Mask:
    """A binary mask of `height` x `width` pixels as a compressed COCO run-length code.

    `counts` is the canonical code (column-major, cocoapi `rleToString`), so equal masks are equal objects.

    Raises:
        MaskError: the size is not 1..65535 a side and at most 2^28 pixels, or the code is broken. Encode
            with `pycocotools.mask.encode(np.asfortranarray(mask))` or `Mask.from_array(mask)`.
    """

    height: int
    width: int
    counts: bytes

    def __post_init__(self) -> None:
        check_size(self.height, self.width)
        if not isinstance(self.counts, bytes):
            raise MaskError(f"counts must be bytes, not {type(self.counts).__name__}; use Mask.from_rle")
        starts, ends = _intervals(self.counts, self.height, self.width)
        object.__setattr__(self, "height", int(self.height))
        object.__setattr__(self, "width", int(self.width))
        object.__setattr__(self, "counts", _encode(starts, ends, int(self.height) * int(self.width)))

    @staticmethod
    def from_array(array: Any) -> Mask:
        """From a bool array (H, W), or one of integers that holds only 0 and 1.

        Raises:
            MaskError: another shape or dtype, or other values. Threshold scores yourself: `scores > 0.5`.
        """
        pixels = np.asarray(array)
        if pixels.ndim != 2:
            raise MaskError(f"a mask has the shape (height, width), not {pixels.shape}")
        check_size(*pixels.shape)
        if pixels.dtype != np.bool_:
            if pixels.dtype.kind not in "ui":
                raise MaskError(f"a mask is bool, not {pixels.dtype}; threshold it first, e.g. scores > 0.5")
            if pixels.size and (pixels.min() < 0 or pixels.max() > 1):
                raise MaskError(
                    f"a mask of {pixels.dtype} may hold 0 and 1 only, not {pixels.min()}..{pixels.max()}; "
                    "pass `array > 0` if every other value means foreground"
                )
        code = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
        return _known(pixels.shape[0], pixels.shape[1], code["counts"])

    @staticmethod
    def from_crop(array: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> Mask:
        """A mask of `height` x `width` that holds the bool array (h, w) at `top`, `left` and background elsewhere.

        Raises:
            MaskError: the array does not lie inside.
        """
        check_size(height, width)
        rows, columns = array.shape
        if array.dtype != np.bool_ or min(top, left) < 0 or top + rows > height or left + columns > width:
            raise MaskError(f"{array.dtype} {array.shape} at {top}, {left} is no part of a mask of {height} x {width}")
        most = columns * (rows // 2 + 1)
        starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
        n = kernels.crop_intervals(array, top, left, int(height), starts, ends)
        return _known(height, width, _encode(starts[:n], ends[:n], int(height) * int(width)))

    @staticmethod
    def from_intervals(starts: NDArray[np.int64], ends: NDArray[np.int64], height: int, width: int) -> Mask:
        """From N runs of foreground, counted in column-major order: int64 (N,) first pixels, and those after the last.

        Raises:
            MaskError: a run is empty, out of order, or reaches outside.
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
            raise MaskError(f"the runs of a mask of {height} x {width} must be ordered, apart and inside")
        return _known(height, width, _encode(starts, ends, size))

    @staticmethod
    def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Mask:
        """The union of COCO polygons `[x1, y1, x2, y2, ...]` in pixels, rasterised as by pycocotools on x86-64.

        Raises:
            MaskError: a polygon with fewer than three points, an odd number of values, a value that is not
                a finite number, or an outline absurdly far outside the image.
        """
        check_size(height, width)
        checked = [_check_polygon(p, k) for k, p in enumerate(polygons)]
        if not checked:
            return Mask.empty(height, width)
        parts = [_drawn_polygon(points, int(height), int(width)) for points in checked]
        return parts[0].union(*parts[1:])

    @staticmethod
    def from_rle(rle: Mapping[str, Any]) -> Mask:
        """From a COCO dict `{"size": [h, w], "counts": str, bytes or a list of integers}`.

        Raises:
            MaskError: a key is missing, or the size or the code is broken.
        """
        if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
            raise MaskError("a run-length mask is a dict with the keys 'size' and 'counts'")
        size, counts = rle["size"], rle["counts"]
        if not isinstance(size, (list, tuple, np.ndarray)) or len(size) != 2:
            raise MaskError(f"size must be [height, width], not {_shown(size)}")
        height, width = size
        check_size(height, width)
        if isinstance(counts, str):
            try:
                counts = counts.encode("ascii")
            except UnicodeEncodeError:
                raise MaskError("counts is not ASCII: this is no compressed COCO run-length code") from None
        elif isinstance(counts, (list, tuple, np.ndarray)):
            starts, ends = _intervals_from_counts(counts, int(height) * int(width))
            counts = _encode(starts, ends, int(height) * int(width))
        elif not isinstance(counts, bytes):
            raise MaskError(f"counts must be str, bytes or a list of integers, not {type(counts).__name__}")
        return Mask(height, width, counts)

    @staticmethod
    def empty(height: int, width: int) -> Mask:
        """A mask of background only."""
        check_size(height, width)
        none = np.empty(0, np.int64)
        return _known(height, width, _encode(none, none, int(height) * int(width)))

    @staticmethod
    def full(height: int, width: int) -> Mask:
        """A mask of foreground only."""
        check_size(height, width)
        size = int(height) * int(width)
        return _known(height, width, _encode(np.zeros(1, np.int64), np.array([size], np.int64), size))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Foreground pixels."""
        return int(coco_mask.area(self.to_rle()))

    @property
    def box_xywh(self) -> tuple[float, float, float, float]:
        """Tight box [left, top, width, height] in pixels; all zero for an empty mask."""
        left, top, width, height = (float(v) for v in coco_mask.toBbox(self.to_rle()))
        return left, top, width, height

    def to_array(self) -> NDArray[np.bool_]:
        """The pixels, bool (H, W)."""
        pixels: NDArray[np.bool_] = coco_mask.decode(self.to_rle()).astype(bool)
        return pixels

    def to_rle(self) -> dict[str, Any]:
        """The COCO dict that pycocotools takes: `size` [h, w] and `counts` as bytes."""
        return {"size": [self.height, self.width], "counts": self.counts}

    def union(self, *others: Mask) -> Mask:
        """All pixels of this mask and of the others, which must have the same size."""
        for other in others:
            if other.size != self.size:
                raise MaskError(f"masks of sizes {self.size} and {other.size} have no union; resize one first")
        if not others:
            return self
        merged = coco_mask.merge([m.to_rle() for m in (self, *others)])
        return _known(self.height, self.width, merged["counts"])

    def without(self, other: Mask) -> Mask:
        """The pixels of this mask that the other one, which must have the same size, does not have."""
        if other.size != self.size:
            raise MaskError(f"masks of sizes {self.size} and {other.size} have no difference; resize one first")
        ours, theirs = (_intervals(m.counts, m.height, m.width) for m in (self, other))
        most = len(ours[0]) + len(theirs[0])
        starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
        n = kernels.subtract_intervals(*ours, len(ours[0]), *theirs, len(theirs[0]), starts, ends)
        return _known(self.height, self.width, _encode(starts[:n], ends[:n], self.height * self.width))

    def taken(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Mask:
        """The mask resized by taking pixels: pixel (i, j) is pixel (rows[i], columns[j]) of this one.

        Args:
            rows, columns: int64 (h,) and (w,), the source of each row and column; they never fall.

        Raises:
            MaskError: an index is outside, falls, or the size is none that a mask may have.
        """
        check_size(len(rows), len(columns))
        for name, places, side in (("rows", rows, self.height), ("columns", columns, self.width)):
            if places[0] < 0 or places[-1] >= side or (np.diff(places) < 0).any():
                raise MaskError(f"{name} must rise and lie in 0..{side - 1}")
        first_row = np.searchsorted(rows, np.arange(self.height + 1))
        found = _intervals(self.counts, self.height, self.width)
        fixed = (len(found[0]), self.height, columns, first_row, len(rows))
        # A second pass where an enlarged mask has more runs than there was room for.
        room = 2 * len(found[0]) + 2 * len(columns)
        while True:
            starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
            n = kernels.gather_intervals(found[0], found[1], *fixed, starts, ends)
            if n <= room:
                return _known(len(rows), len(columns), _encode(starts[:n], ends[:n], len(rows) * len(columns)))
            room = n

    @staticmethod
    def from_codes(codes: Sequence[bytes], heights: Sequence[int], widths: Sequence[int]) -> list[Mask]:
        """N compressed codes at once, checked as one by one but in a single call; equal masks are one object.

        Raises:
            MaskError: as `Mask`; names the position of the first code that is broken.
        """
        rows = list(zip(heights, widths, codes, strict=True))
        made: dict[tuple[int, int, bytes], Any] = dict.fromkeys(rows)
        keys = list(made)
        for height, width in set(zip(heights, widths, strict=True)):
            check_size(height, width)
        sizes = np.fromiter((h * w for h, w, _ in keys), np.int64, len(keys))
        states = np.empty(len(keys), np.int8)
        text, at = _end_to_end([code for _, _, code in keys])

        def check(chunk: slice) -> None:
            kernels.check_codes(text, at[chunk.start : chunk.stop + 1], sizes[chunk], states[chunk])

        _in_chunks(check, len(keys), None)
        for key, state in zip(keys, states.tolist(), strict=True):
            if state == 1:
                made[key] = _known(*key)
                continue
            try:
                made[key] = Mask(*key)
            except MaskError as error:
                raise MaskError(f"mask {rows.index(key)}: {error}") from None
        return [made[row] for row in rows]


def _drawn_polygon(points: NDArray[np.float64], height: int, width: int) -> Mask:
    n, starts, ends = kernels.polygon_intervals(points, height, width)
    return _known(height, width, _encode(starts[:n], ends[:n], height * width))


def run_lengths(flat: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of a flat mask, bool (N,) with N > 0, background first: 0 where it begins with foreground."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else list(runs)


def _known(height: int, width: int, counts: bytes) -> Mask:
    """A Mask of a code that is canonical for certain (pycocotools or our own kernel wrote it), unchecked."""
    mask = object.__new__(Mask)
    object.__setattr__(mask, "height", int(height))
    object.__setattr__(mask, "width", int(width))
    object.__setattr__(mask, "counts", counts)
    return mask


def pair_counts(
    predictions: Sequence[Mask | Mapping[str, Any]],
    targets: Sequence[Mask | Mapping[str, Any]],
    boundary: float = 0.02,
    threads: int | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Count the pixels of N pairs of masks, exactly and without decoding them.

    Args:
        predictions, targets: N masks each, `Mask` or COCO run-length dicts; the two of a pair have one size.
        boundary: width of the Boundary IoU band as a share of the image diagonal, in (0, 1]: the band is
            what an erosion by a (2d+1)x(2d+1) square takes off, with d = max(1, round(boundary * diagonal))
            and background outside the image.
        threads: how many to use; all cores if None.

    Returns:
        int64 arrays of shape (N,), in pixels: `intersection`, `union`, `prediction_area`, `target_area`,
        `boundary_intersection`, `boundary_union`.

    Raises:
        MaskError: the lists differ in length, a pair differs in size, or a code is broken; names the pair.

    Source: Cheng et al., Boundary IoU, CVPR 2021, and bowenc0221/boundary-iou-api `mask_to_boundary`.
    """
    if len(predictions) != len(targets):
        raise MaskError(f"{len(predictions)} predictions cannot be paired with {len(targets)} targets")
    predictions = _as_masks(predictions, "prediction")
    targets = _as_masks(targets, "target")
    heights, widths = _numbers(targets, "height"), _numbers(targets, "width")
    different = (_numbers(predictions, "height") != heights) | (_numbers(predictions, "width") != widths)
    if different.any():
        k = int(different.argmax())
        raise MaskError(
            f"pair {k}: the prediction is {predictions[k].size}, the target {targets[k].size} (height, width); "
            "resize one"
        )
    codes = attrgetter("counts")
    counts = count_codes(list(map(codes, predictions)), list(map(codes, targets)), heights, widths, boundary, threads)
    return {name: np.ascontiguousarray(counts[:, k]) for k, name in enumerate(kernels.COLUMNS)}


def count_codes(
    predictions: Sequence[bytes],
    targets: Sequence[bytes],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    boundary: float = 0.02,
    threads: int | None = None,
) -> NDArray[np.int64]:
    """`pair_counts` for compressed codes of known sizes; returns int64 (N, 6), columns as `kernels.COLUMNS`.

    Raises:
        MaskError: a code is broken or a size absurd; names the pair.
    """
    if not 0 < boundary <= 1:
        raise MaskError(f"boundary is a share of the diagonal in (0, 1], not {boundary}")
    n = len(predictions)
    if n and (heights.min() < 1 or widths.min() < 1 or int((heights * widths).max()) > MAX_PIXELS):
        raise MaskError(f"every side must be at least 1 px and the image at most {MAX_PIXELS} pixels")
    bands = boundary_widths_px(heights, widths, boundary)
    out = np.empty((n, len(kernels.COLUMNS)), np.int64)

    codes_p, at_p = _end_to_end(predictions)
    codes_t, at_t = _end_to_end(targets)

    def count(chunk: slice) -> int:
        # Nothing but the kernel, which holds no GIL: the threads never wait for each other.
        at = slice(chunk.start, chunk.stop + 1)
        bad: int = kernels.count_pairs(
            codes_p, at_p[at], codes_t, at_t[at], heights[chunk], widths[chunk], bands[chunk], out[chunk]
        )
        return bad

    for chunk, bad in _in_chunks(count, n, threads):
        if bad >= 0:
            pair, is_target = chunk.start + bad // 2, bad % 2
            code = (targets if is_target else predictions)[pair]
            try:
                _intervals(code, int(heights[pair]), int(widths[pair]))
            except MaskError as error:
                raise MaskError(f"{'target' if is_target else 'prediction'} of pair {pair}: {error}") from None
    return out


def count_bands(
    predictions: Sequence[bytes],
    targets: Sequence[bytes],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    bands_px: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Areas around the targets' outlines of N checked pairs: int64 (N, 4), see `kernels.count_bands`."""
    return _over_pairs(kernels.count_bands, predictions, targets, heights, widths, bands_px, 4)


def count_outlines(
    predictions: Sequence[bytes],
    targets: Sequence[bytes],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    radii_px: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Outline pixels of N checked pairs and their matches: int64 (N, 4), see `kernels.count_outlines`."""
    return _over_pairs(kernels.count_outlines, predictions, targets, heights, widths, radii_px, 4)


def count_errors(
    predictions: Sequence[bytes],
    targets: Sequence[bytes],
    objects: Sequence[bytes],
    others: Sequence[Sequence[int]],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    bands_px: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where the wrong pixels of N checked pairs lie: int64 (N, 10), columns as `kernels.ERROR_COLUMNS`.

    `others` holds, for each pair, the positions in `objects` of those that it does not mean, of the same image.
    """
    codes_o, at_o = _end_to_end(objects)
    flat = np.fromiter((o for row in others for o in row), np.int64)
    ends = np.zeros(len(others) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, others), np.int64, len(others)), out=ends[1:])
    codes_p, at_p = _end_to_end(predictions)
    codes_t, at_t = _end_to_end(targets)
    out = np.empty((len(predictions), len(kernels.ERROR_COLUMNS)), np.int64)

    def work(chunk: slice) -> None:
        at = slice(chunk.start, chunk.stop + 1)
        kernels.count_errors(
            codes_p, at_p[at], codes_t, at_t[at], codes_o, at_o, flat, ends[at],
            heights[chunk], widths[chunk], bands_px[chunk], out[chunk],
        )  # fmt: skip

    _in_chunks(work, len(predictions), None)
    return out


def _over_pairs(
    kernel: Callable[..., None],
    predictions: Sequence[bytes],
    targets: Sequence[bytes],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    sizes_px: NDArray[np.int64],
    columns: int,
) -> NDArray[np.int64]:
    codes_p, at_p = _end_to_end(predictions)
    codes_t, at_t = _end_to_end(targets)
    out = np.empty((len(predictions), columns), np.int64)

    def work(chunk: slice) -> None:
        at = slice(chunk.start, chunk.stop + 1)
        kernel(codes_p, at_p[at], codes_t, at_t[at], heights[chunk], widths[chunk], sizes_px[chunk], out[chunk])

    _in_chunks(work, len(predictions), None)
    return out


def _in_chunks(work: Callable[[slice], Result], n: int, threads: int | None) -> list[tuple[slice, Result]]:
    """Do `work` on slices of 0..n in threads; it must hold no GIL to gain from them."""
    chunks = [slice(k, min(k + CHUNK_PAIRS, n)) for k in range(0, n, CHUNK_PAIRS)]
    workers = min(threads or available_cores(), len(chunks))
    if workers <= 1:
        return [(c, work(c)) for c in chunks]
    with ThreadPoolExecutor(workers) as pool:
        return list(zip(chunks, pool.map(work, chunks), strict=True))


def boundary_widths_px(
    heights: NDArray[np.int64], widths: NDArray[np.int64], boundary: float = 0.02
) -> NDArray[np.int64]:
    """d = max(1, round(boundary * diagonal)) in pixels, rounding halves to even as Python does."""
    diagonals = np.sqrt(heights.astype(np.float64) ** 2 + widths.astype(np.float64) ** 2)
    return np.maximum(1, np.rint(boundary * diagonals)).astype(np.int64)


def available_cores() -> int:
    """Cores that this process may use (a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_code(counts: bytes, height: int, width: int) -> None:
    """Raise MaskError if `counts` is no run-length code of a mask of this size."""
    check_size(height, width)
    _intervals(counts, height, width)


def check_size(height: Any, width: Any) -> None:
    """Raise MaskError unless these are the sides of a mask."""
    for name, side in (("height", height), ("width", width)):
        if isinstance(side, (bool, np.bool_)) or not isinstance(side, (int, np.integer)):
            raise MaskError(f"{name} must be an integer, not {_shown(side)}")
        if not 1 <= side <= MAX_SIDE_PX:
            raise MaskError(f"{name} must be 1..{MAX_SIDE_PX} px, not {side}")
    if int(height) * int(width) > MAX_PIXELS:
        raise MaskError(f"{height} x {width} is more than the {MAX_PIXELS} pixels that a mask may have")


def _intervals(counts: bytes, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    code = np.frombuffer(counts, np.uint8)
    starts = np.empty(len(counts) // 2 + 1, np.int64)
    ends = np.empty(len(counts) // 2 + 1, np.int64)
    n = kernels.decode_intervals(code, int(height) * int(width), starts, ends)
    if n < 0:
        raise MaskError(f"broken run-length code {_shown(counts)} for {height} x {width} pixels: {_REASONS[n]}")
    return starts[:n], ends[:n]


def _intervals_from_counts(counts: Any, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    try:
        values = np.asarray(counts)
    except ValueError:
        raise MaskError("uncompressed counts must be a flat list of integers") from None
    if values.ndim != 1 or (values.size and values.dtype.kind not in "ui"):
        raise MaskError("uncompressed counts must be a flat list of integers")
    if values.size and (values.min() < 0 or values.max() > size):
        raise MaskError(f"uncompressed counts must lie in 0..{size}, not {values.min()}..{values.max()}")
    edges = np.cumsum(values.astype(np.int64))
    total = int(edges[-1]) if edges.size else 0
    if total != size or (edges.size and edges.min() < 0):
        raise MaskError(f"the counts add up to {total}, not to height times width, {size}")
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    kept = ends > starts
    return starts[kept], ends[kept]


def _encode(starts: NDArray[np.int64], ends: NDArray[np.int64], size: int) -> bytes:
    # Intervals that touch (a background run of length zero between them) are joined, so the code is canonical.
    if len(starts) > 1 and bool((starts[1:] == ends[:-1]).any()):
        apart = starts[1:] != ends[:-1]
        starts = starts[np.concatenate([[True], apart])]
        ends = ends[np.concatenate([apart, [True]])]
    out = np.empty(7 * (2 * len(starts) + 1), np.uint8)
    length = kernels.encode_intervals(starts, ends, len(starts), int(size), out)
    return out[:length].tobytes()


def _check_polygon(polygon: Any, index: int) -> NDArray[np.float64]:
    """Its corners, float64 (K, 2)."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise MaskError(f"polygon {index} is not a flat list of numbers") from None
    if points.ndim != 1 or points.size < 6 or points.size % 2:
        raise MaskError(f"polygon {index} needs at least three x, y points, it has {points.size} values")
    low, high = float(points.min()), float(points.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise MaskError(f"polygon {index} holds a value that is not a finite number")
    corners = points.reshape(-1, 2)
    if max(-low, high, (high - low) * (points.size // 2)) <= MAX_OUTLINE_PX:
        return corners
    if max(-low, high) > MAX_OUTLINE_PX:
        raise MaskError(f"polygon {index} has a corner at {max(-low, high):.3g} px, which no image reaches")
    outline = float(np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum())
    if outline > MAX_OUTLINE_PX:
        raise MaskError(f"polygon {index} is {outline:.3g} px around; at most {MAX_OUTLINE_PX:.0f} px is rasterised")
    return corners


def _numbers(masks: Sequence[Mask], name: str) -> NDArray[np.int64]:
    return np.fromiter(map(attrgetter(name), masks), np.int64, len(masks))


def _as_masks(masks: Sequence[Mask | Mapping[str, Any]], role: str) -> Sequence[Mask]:
    if set(map(type, masks)) <= {Mask}:
        return cast("Sequence[Mask]", masks)
    out = []
    for k, mask in enumerate(masks):
        if isinstance(mask, Mask):
            out.append(mask)
            continue
        try:
            out.append(Mask.from_rle(mask))
        except MaskError as error:
            raise MaskError(f"{role} of pair {k}: {error}") from None
    return out


def _end_to_end(codes: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    at = np.zeros(len(codes) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, codes), np.int64, len(codes)), out=at[1:])
    return np.frombuffer(b"".join(codes), np.uint8), at


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"{text[:40]}... ({math.ceil(len(text) / 1000)} kB)" if len(text) > 1000 else f"{text[:57]}..."
