"""Exact pixel counts of pairs of masks, without decoding them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from refbench.errors import MaskError
from refbench.masks import kernels
from refbench.masks.mask import Mask
from refbench.masks.pairs import COUNTS, ERROR_COLUMNS, PairCounts
from refbench.masks.rle import MAX_PIXELS, MAX_SIDE_PX, end_to_end, intervals_of
from refbench.masks.threads import in_chunks


def pair_counts(
    predictions: Sequence[Mask | Mapping[str, Any]],
    targets: Sequence[Mask | Mapping[str, Any]],
    boundary: float = 0.02,
    threads: int | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Count the pixels of N pairs of masks, exactly and without decoding them.

    Args:
        predictions: N masks, as `Mask` or COCO run-length dicts.
        targets: N masks, each of the same size as its prediction.
        boundary: width of the Boundary IoU band as a share of the image diagonal, in (0, 1]. The band is the part of
            the mask that an erosion by a (2d+1)x(2d+1) square removes, with d = max(1, round(boundary * diagonal));
            everything outside the image is background.
        threads: number of threads; all cores if None.

    Returns:
        int64 arrays of shape (N,), in pixels: `intersection`, `union`, `prediction_area`, `target_area`,
            `boundary_intersection`, `boundary_union`.

    Raises:
        MaskError: the lists have different lengths, the masks of a pair have different sizes, or a code is invalid; the
            message names the pair.

    Example:
        >>> from refbench import Mask, pair_counts
        >>> counts = pair_counts([Mask.full(4, 6)], [Mask.from_polygons([[0, 0, 3, 0, 3, 4, 0, 4]], 4, 6)])
        >>> counts["intersection"].tolist(), counts["union"].tolist()
        ([12], [24])

    Source: Cheng et al., Boundary IoU, CVPR 2021, and bowenc0221/boundary-iou-api `mask_to_boundary`.
    """
    if len(predictions) != len(targets):
        raise MaskError(
            f"the number of predictions must equal the number of targets, got {len(predictions)} predictions "
            f"and {len(targets)} targets"
        )
    _check_boundary(boundary)
    n = len(targets)
    given_p, given_t = list(predictions), list(targets)
    out = np.empty((n, len(COUNTS)), np.int64)

    def count(chunk: slice) -> bool:
        # While one thread reads masks, which needs the GIL, others count.
        first, second = kernels.read_masks(given_p[chunk], Mask), kernels.read_masks(given_t[chunk], Mask)
        return first is not None and second is not None and _counted(first, second, boundary, out[chunk])

    if all(counted for _, counted in in_chunks(count, n, threads)):
        return PairCounts.of(out).by_name()
    # The masks one by one: in unusual forms, or for an error that names the mask.
    predictions = _as_masks(predictions, "prediction")
    targets = _as_masks(targets, "target")
    heights, widths = _numbers(targets, "height"), _numbers(targets, "width")
    different = (_numbers(predictions, "height") != heights) | (_numbers(predictions, "width") != widths)
    if different.any():
        k = int(different.argmax())
        raise MaskError(
            f"pair {k}: the prediction has the size {predictions[k].size}, but the size of the target is "
            f"{targets[k].size} (height, width); resize one of them"
        )
    codes = attrgetter("counts")
    counts = count_codes(list(map(codes, predictions)), list(map(codes, targets)), heights, widths, boundary, threads)
    return PairCounts.of(counts).by_name()


def count_codes(
    predictions: Sequence[bytes],
    targets: Sequence[bytes],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    boundary: float = 0.02,
    threads: int | None = None,
) -> NDArray[np.int64]:
    """`pair_counts` for compressed codes of known sizes; returns int64 (N, 6), columns as in `pairs.COUNTS`.

    Raises:
        MaskError: a size is out of range, or a code is invalid (the message names the pair).
    """
    _check_boundary(boundary)
    n = len(predictions)
    heights, widths = _contiguous(heights, widths)
    if n and (heights.min() < 1 or widths.min() < 1 or int((heights * widths).max()) > MAX_PIXELS):
        raise MaskError(f"height and width must be at least 1 px, and the image may have at most {MAX_PIXELS} pixels")
    bands = boundary_widths_px(heights, widths, boundary)
    out = np.empty((n, len(COUNTS)), np.int64)

    codes_p, at_p = end_to_end(predictions)
    codes_t, at_t = end_to_end(targets)

    def count(chunk: slice) -> int:
        # Only the kernel runs here; it releases the GIL, so the threads never wait for each other.
        at = slice(chunk.start, chunk.stop + 1)
        bad: int = kernels.count_pairs(
            codes_p, at_p[at], codes_t, at_t[at], heights[chunk], widths[chunk], bands[chunk], out[chunk]
        )
        return bad

    for chunk, bad in in_chunks(count, n, threads):
        if bad >= 0:
            pair, is_target = chunk.start + bad // 2, bad % 2
            code = (targets if is_target else predictions)[pair]
            try:
                intervals_of(code, int(heights[pair]), int(widths[pair]))
            except MaskError as error:
                raise MaskError(f"{'target' if is_target else 'prediction'} of pair {pair}: {error}") from None
    return out


def _check_boundary(boundary: float) -> None:
    if not 0 < boundary <= 1:
        raise MaskError(f"boundary must be in (0, 1] (a share of the image diagonal), got {boundary}")


def _counted(first: kernels.Codes, second: kernels.Codes, boundary: float, out: NDArray[np.int64]) -> bool:
    """Count pairs into `out` (N, 6). Returns whether their sizes are equal and allowed, and all codes are valid."""
    heights, widths = second.heights, second.widths
    if not (np.array_equal(first.heights, heights) and np.array_equal(first.widths, widths)):
        return False
    if max(heights.max(), widths.max()) > MAX_SIDE_PX or (heights * widths).max() > MAX_PIXELS:
        return False
    bands = boundary_widths_px(heights, widths, boundary)
    bad: int = kernels.count_pairs(first.text, first.at, second.text, second.at, heights, widths, bands, out)
    return bad < 0


def count_bands(
    predictions: Sequence[bytes],
    targets: Sequence[bytes],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    bands_px: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Areas around the outlines of the targets of N checked pairs: int64 (N, 4), see `plain.batches.count_bands`."""
    return _over_pairs(kernels.count_bands, predictions, targets, heights, widths, bands_px, 4)


def count_outlines(
    predictions: Sequence[bytes],
    targets: Sequence[bytes],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    radii_px: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Numbers of outline pixels and of matched outline pixels of N checked pairs: int64 (N, 4), see
    `plain.batches.count_outlines`.
    """
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
    """Where the wrong pixels of N checked pairs are: int64 (N, 10), columns as in `ERROR_COLUMNS`.

    `others` contains, for each pair, the positions in `objects` of the non-target objects of its image.
    """
    heights, widths, bands_px = _contiguous(heights, widths, bands_px)
    codes_o, at_o = end_to_end(objects)
    flat = np.fromiter((o for row in others for o in row), np.int64)
    ends = np.zeros(len(others) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, others), np.int64, len(others)), out=ends[1:])
    codes_p, at_p = end_to_end(predictions)
    codes_t, at_t = end_to_end(targets)
    out = np.empty((len(predictions), len(ERROR_COLUMNS)), np.int64)

    def work(chunk: slice) -> None:
        at = slice(chunk.start, chunk.stop + 1)
        kernels.count_errors(
            codes_p, at_p[at], codes_t, at_t[at], codes_o, at_o, flat, ends[at],
            heights[chunk], widths[chunk], bands_px[chunk], out[chunk],
        )  # fmt: skip

    in_chunks(work, len(predictions), None)
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
    heights, widths, sizes_px = _contiguous(heights, widths, sizes_px)
    codes_p, at_p = end_to_end(predictions)
    codes_t, at_t = end_to_end(targets)
    out = np.empty((len(predictions), columns), np.int64)

    def work(chunk: slice) -> None:
        at = slice(chunk.start, chunk.stop + 1)
        kernel(codes_p, at_p[at], codes_t, at_t[at], heights[chunk], widths[chunk], sizes_px[chunk], out[chunk])

    in_chunks(work, len(predictions), None)
    return out


def _contiguous(*arrays: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The arrays as the kernels read them."""
    return [np.ascontiguousarray(array, np.int64) for array in arrays]


def boundary_widths_px(
    heights: NDArray[np.int64], widths: NDArray[np.int64], boundary: float = 0.02
) -> NDArray[np.int64]:
    """d = max(1, round(boundary * diagonal)) in pixels, rounding halves to even as Python does."""
    diagonals = np.sqrt(heights.astype(np.float64) ** 2 + widths.astype(np.float64) ** 2)
    return np.maximum(1, np.rint(boundary * diagonals)).astype(np.int64)


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
