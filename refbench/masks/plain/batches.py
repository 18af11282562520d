"""Kernels for batches of pairs of masks, given as concatenated run-length codes; they release the GIL."""

from __future__ import annotations

import numpy as np

from refbench.masks.plain.morphology import dilate_intervals, erode_intervals, half_width_px, intersect_runs
from refbench.masks.plain.runs import decode_intervals, intervals_area, intervals_intersection, subtract_intervals


def _most_intervals(at):
    """The largest number of intervals that any of the codes can have; code i lies between `at[i]` and `at[i + 1]`."""
    longest = np.int64(0)
    for i in range(at.shape[0] - 1):
        longest = max(longest, at[i + 1] - at[i])
    return longest // 2 + 1


def count_pairs(prediction_codes, prediction_at, target_codes, target_at, heights, widths, bands_px, out):
    r"""Count N pairs of masks. Returns -1, or the position of the first invalid code.

    The position is 2 i for the prediction of pair i, and 2 i + 1 for its target.

    Codes are concatenated uint8 characters; mask i is `codes[at[i]:at[i + 1]]`. `out` is int64 (N, 6), with the columns
    in the order of `pairs.COUNTS`. With E(M) the eroded mask and B = M \ E the inner band, |Bp n Bt| = |P n T| - |P n
    Et| - |Ep n T| + |Ep n Et|, so the bands are never computed.
    """
    room = max(_most_intervals(prediction_at), _most_intervals(target_at))
    starts_p = np.empty(room, np.int64)
    ends_p = np.empty(room, np.int64)
    starts_t = np.empty(room, np.int64)
    ends_t = np.empty(room, np.int64)
    eroded_starts_p = np.empty(1024, np.int64)
    eroded_ends_p = np.empty(1024, np.int64)
    eroded_starts_t = np.empty(1024, np.int64)
    eroded_ends_t = np.empty(1024, np.int64)
    for i in range(heights.shape[0]):
        height, width = heights[i], widths[i]
        size = height * width
        n_p = decode_intervals(prediction_codes[prediction_at[i] : prediction_at[i + 1]], size, starts_p, ends_p)
        if n_p < 0:
            return 2 * i
        n_t = decode_intervals(target_codes[target_at[i] : target_at[i + 1]], size, starts_t, ends_t)
        if n_t < 0:
            return 2 * i + 1
        area_p = intervals_area(starts_p, ends_p, n_p)
        area_t = intervals_area(starts_t, ends_t, n_t)
        both = intervals_intersection(starts_p, ends_p, n_p, starts_t, ends_t, n_t)
        m_p, eroded_starts_p, eroded_ends_p = erode_intervals(
            starts_p, ends_p, n_p, height, width, bands_px[i], eroded_starts_p, eroded_ends_p
        )
        m_t, eroded_starts_t, eroded_ends_t = erode_intervals(
            starts_t, ends_t, n_t, height, width, bands_px[i], eroded_starts_t, eroded_ends_t
        )
        band_p = area_p - intervals_area(eroded_starts_p, eroded_ends_p, m_p)
        band_t = area_t - intervals_area(eroded_starts_t, eroded_ends_t, m_t)
        band_both = both
        if both > 0:
            band_both -= intervals_intersection(starts_p, ends_p, n_p, eroded_starts_t, eroded_ends_t, m_t)
            band_both -= intervals_intersection(eroded_starts_p, eroded_ends_p, m_p, starts_t, ends_t, n_t)
            band_both += intervals_intersection(
                eroded_starts_p, eroded_ends_p, m_p, eroded_starts_t, eroded_ends_t, m_t
            )
        out[i, 0] = both
        out[i, 1] = area_p + area_t - both
        out[i, 2] = area_p
        out[i, 3] = area_t
        out[i, 4] = band_both
        out[i, 5] = band_p + band_t - band_both
    return -1


def _intervals_of(codes, at, i, size):
    """`(n, starts, ends)` of code number i.

    `codes` contains the concatenated codes, and `at` their start positions. All codes must have been checked.
    """
    code = codes[at[i] : at[i + 1]]
    starts = np.empty(code.shape[0] // 2 + 1, np.int64)
    ends = np.empty(code.shape[0] // 2 + 1, np.int64)
    n = decode_intervals(code, size, starts, ends)
    return n, starts, ends


def count_bands(prediction_codes, prediction_at, target_codes, target_at, heights, widths, bands_px, out):
    """Areas of N pairs, from which the pixels in a band can be counted; the band extends d pixels to both sides of the
    outline of the target.

    `out` is int64 (N, 4): the areas of the eroded and of the dilated target, and the pixels of the prediction in each
    of them. The border of the image is not an outline, because the target may continue beyond it. All codes must have
    been checked.
    """
    eroded_starts = np.empty(1024, np.int64)
    eroded_ends = np.empty(1024, np.int64)
    for i in range(heights.shape[0]):
        height, width = heights[i], widths[i]
        size = height * width
        n_p, starts_p, ends_p = _intervals_of(prediction_codes, prediction_at, i, size)
        n_t, starts_t, ends_t = _intervals_of(target_codes, target_at, i, size)
        m, eroded_starts, eroded_ends = erode_intervals(
            starts_t, ends_t, n_t, height, width, bands_px[i], eroded_starts, eroded_ends, True
        )
        k, dilated_starts, dilated_ends = dilate_intervals(starts_t, ends_t, n_t, height, width, bands_px[i])
        out[i, 0] = intervals_area(eroded_starts, eroded_ends, m)
        out[i, 1] = intervals_area(dilated_starts, dilated_ends, k)
        out[i, 2] = intervals_intersection(starts_p, ends_p, n_p, eroded_starts, eroded_ends, m)
        out[i, 3] = intervals_intersection(starts_p, ends_p, n_p, dilated_starts, dilated_ends, k)


def _objects_under(starts, ends, n, far_starts, far_ends, far, codes, at, objects, size):
    """`(object, intersection, union, elsewhere)` for the object with the highest IoU with the prediction.

    `objects` are positions in the codes; the object is -1 if the prediction overlaps none of them. The `far` intervals
    of the prediction are `far_starts` and `far_ends`; `elsewhere` is the part of their area that lies outside all
    objects.
    """
    area = intervals_area(starts, ends, n)
    best = np.int64(-1)
    best_both = np.int64(0)
    best_union = np.int64(0)
    for o in objects:
        n_o, starts_o, ends_o = _intervals_of(codes, at, o, size)
        both = intervals_intersection(starts, ends, n, starts_o, ends_o, n_o)
        if both == 0:
            continue
        union = area + intervals_area(starts_o, ends_o, n_o) - both
        if best < 0 or both * best_union > best_both * union:
            best = o
            best_both = both
            best_union = union
        if far > 0:
            rest_starts = np.empty(far + n_o, np.int64)
            rest_ends = np.empty(far + n_o, np.int64)
            far = subtract_intervals(far_starts, far_ends, far, starts_o, ends_o, n_o, rest_starts, rest_ends)
            far_starts = rest_starts
            far_ends = rest_ends
    return best, best_both, best_union, intervals_area(far_starts, far_ends, far)


def _shared(starts_a, ends_a, n_a, starts_b, ends_b, n_b, starts_c, ends_c, n_c):
    """The areas `|A n B|` and `|A n B n C|`."""
    starts = np.empty(n_a + n_b, np.int64)
    ends = np.empty(n_a + n_b, np.int64)
    n = intersect_runs(starts_a, ends_a, 0, n_a, starts_b, ends_b, 0, n_b, starts, ends, 0)
    return intervals_area(starts, ends, n), intervals_intersection(starts, ends, n, starts_c, ends_c, n_c)


def _band_widths(starts, ends, n, height, width, band_px):
    """How far the band extends `(inwards, outwards)` from an outline.

    The band extends outwards by at most the half-width of the mask, and inwards by at most half of the half-width;
    otherwise it would cover all of a small object.
    """
    half = half_width_px(starts, ends, n, height, width, 2 * band_px)
    return min(band_px, max(1, (half + 1) // 2)), min(band_px, max(1, half))


def count_errors(
    prediction_codes, prediction_at, target_codes, target_at, object_codes, object_at, others, others_at,
    heights, widths, bands_px, out,
):  # fmt: skip
    """Where the wrong pixels of N predictions are; `out` is int64 (N, 10), with the columns in the order of
    ERROR_COLUMNS.

    `others[others_at[i]:others_at[i + 1]]` are the positions of the non-target objects of pair i. All codes must have
    been checked.
    """
    eroded_starts = np.empty(1024, np.int64)
    eroded_ends = np.empty(1024, np.int64)
    for i in range(heights.shape[0]):
        height, width = heights[i], widths[i]
        size = height * width
        n_p, starts_p, ends_p = _intervals_of(prediction_codes, prediction_at, i, size)
        n_t, starts_t, ends_t = _intervals_of(target_codes, target_at, i, size)
        area_p = intervals_area(starts_p, ends_p, n_p)
        area_t = intervals_area(starts_t, ends_t, n_t)
        both = intervals_intersection(starts_p, ends_p, n_p, starts_t, ends_t, n_t)

        inwards, outwards = _band_widths(starts_t, ends_t, n_t, height, width, bands_px[i])
        m, eroded_starts, eroded_ends = erode_intervals(
            starts_t, ends_t, n_t, height, width, inwards, eroded_starts, eroded_ends, True
        )
        k, dilated_starts, dilated_ends = dilate_intervals(starts_t, ends_t, n_t, height, width, outwards)
        area_eroded = intervals_area(eroded_starts, eroded_ends, m)
        in_eroded = intervals_intersection(starts_p, ends_p, n_p, eroded_starts, eroded_ends, m)
        out[i, 0] = area_eroded
        out[i, 1] = area_eroded - in_eroded
        out[i, 2] = (area_t - area_eroded) - (both - in_eroded)
        in_dilated = intervals_intersection(starts_p, ends_p, n_p, dilated_starts, dilated_ends, k)
        out[i, 3] = in_dilated - both

        far_starts = np.empty(n_p + k, np.int64)
        far_ends = np.empty(n_p + k, np.int64)
        far = subtract_intervals(starts_p, ends_p, n_p, dilated_starts, dilated_ends, k, far_starts, far_ends)
        best, best_both, best_union, elsewhere = _objects_under(
            starts_p, ends_p, n_p, far_starts, far_ends, far,
            object_codes, object_at, others[others_at[i] : others_at[i + 1]], size,
        )  # fmt: skip
        out[i, 4] = area_p - in_dilated - elsewhere
        out[i, 5] = elsewhere
        out[i, 6] = best_both
        out[i, 7] = best_union
        out[i, 8:] = 0
        if best >= 0:
            n_o, starts_o, ends_o = _intervals_of(object_codes, object_at, best, size)
            overlap, triple = _shared(starts_o, ends_o, n_o, starts_t, ends_t, n_t, starts_p, ends_p, n_p)
            out[i, 8] = best_both + both - triple
            out[i, 9] = area_p + intervals_area(starts_o, ends_o, n_o) + area_t - overlap - out[i, 8]


def _paint(starts, ends, n, height, top, left, out):
    """Set the pixels of the intervals to 1 in `out`, which is a window (h, w) of the image at `top`, `left`."""
    for i in range(n):
        for position in range(starts[i], ends[i]):
            out[position % height - top, position // height - left] = 1


def _outline(inside, top, left, height, width, out):
    """The 1-pixel outline of davis2017 `_seg2bmap`: pixels that differ from their right, lower or diagonal neighbour.

    `inside` is a crop of the mask at `top`, `left` with one extra row and column. Pixels in the last row of the image
    are compared only to the right, those in the last column only downwards, and the last pixel is not compared. Returns
    the number of pixels.
    """
    count = 0
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            here = inside[y, x]
            last_row = top + y == height - 1
            last_column = left + x == width - 1
            if last_row:
                differs = not last_column and here != inside[y, x + 1]
            elif last_column:
                differs = here != inside[y + 1, x]
            else:
                differs = here != inside[y, x + 1] or here != inside[y + 1, x] or here != inside[y + 1, x + 1]
            out[y, x] = differs
            count += differs
    return count


def _matched(of, by, down, right):
    """Pixels of one outline that have a pixel of the other outline at one of the given offsets."""
    count = 0
    for y in range(of.shape[0]):
        for x in range(of.shape[1]):
            if not of[y, x]:
                continue
            for k in range(down.shape[0]):
                v = y + down[k]
                w = x + right[k]
                if 0 <= v < by.shape[0] and 0 <= w < by.shape[1] and by[v, w]:
                    count += 1
                    break
    return count


def _box(starts, ends, n, height, width):
    """`(top, bottom, left, right)` of intervals, both ends included.

    If there are no intervals, the result is an empty box: its union with another box is the other box.
    """
    top = height
    bottom = np.int64(0)
    if n == 0:
        return top, bottom, width, bottom
    for j in range(n):
        if starts[j] // height != (ends[j] - 1) // height:
            top = np.int64(0)
            bottom = height - 1
            break
        top = min(top, starts[j] % height)
        bottom = max(bottom, (ends[j] - 1) % height)
    return top, bottom, starts[0] // height, (ends[n - 1] - 1) // height


def _disc(radius):
    """Offsets `(down, right)` of the pixels of a disc, sorted by distance from the centre, because most outline pixels
    of a good mask match at one of the first offsets.
    """
    side = 2 * radius + 1
    distances = np.empty(side * side, np.int64)
    down = np.empty(side * side, np.int64)
    right = np.empty(side * side, np.int64)
    k = 0
    for a in range(-radius, radius + 1):
        for b in range(-radius, radius + 1):
            if a * a + b * b <= radius * radius:
                distances[k] = a * a + b * b
                down[k] = a
                right[k] = b
                k += 1
    order = np.argsort(distances[:k])
    return down[:k][order], right[:k][order]


def count_outlines(prediction_codes, prediction_at, target_codes, target_at, heights, widths, radii_px, out):
    """Outline pixels of N pairs, and how many of them are within a disc around a pixel of the other outline.

    `out` is int64 (N, 4): number of prediction pixels, target pixels, matched prediction pixels, matched target pixels.
    All codes must have been checked. Source: davisvideochallenge/davis2017-evaluation `metrics.py:f_measure` (ac7c43f).
    """
    for i in range(heights.shape[0]):
        height, width = heights[i], widths[i]
        size = height * width
        n_p, starts_p, ends_p = _intervals_of(prediction_codes, prediction_at, i, size)
        n_t, starts_t, ends_t = _intervals_of(target_codes, target_at, i, size)
        out[i, :] = 0
        if n_p + n_t == 0:
            continue
        top_p, bottom_p, left_p, right_p = _box(starts_p, ends_p, n_p, height, width)
        top_t, bottom_t, left_t, right_t = _box(starts_t, ends_t, n_t, height, width)
        # A row and a column more above and to the left, whose pixels may differ from the mask's.
        top = max(0, min(top_p, top_t) - 1)
        left = max(0, min(left_p, left_t) - 1)
        rows = max(bottom_p, bottom_t) - top + 1
        columns = max(right_p, right_t) - left + 1
        inside_p = np.zeros((rows + 1, columns + 1), np.uint8)
        inside_t = np.zeros((rows + 1, columns + 1), np.uint8)
        _paint(starts_p, ends_p, n_p, height, top, left, inside_p)
        _paint(starts_t, ends_t, n_t, height, top, left, inside_t)
        edge_p = np.zeros((rows, columns), np.bool_)
        edge_t = np.zeros((rows, columns), np.bool_)
        out[i, 0] = _outline(inside_p, top, left, height, width, edge_p)
        out[i, 1] = _outline(inside_t, top, left, height, width, edge_t)
        down, across = _disc(radii_px[i])
        out[i, 2] = _matched(edge_p, edge_t, down, across)
        out[i, 3] = _matched(edge_t, edge_p, down, across)
