"""Numba kernels that count on runs: a COCO run-length code is read, eroded and compared without pixels.

A mask is a list of foreground intervals `[start, end)` over the column-major pixel index, sorted and
disjoint. Every kernel releases the GIL, allocates by what it has read rather than by what a file claims,
and returns a negative code instead of raising; `refbench.masks.mask` turns the code into a message.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BAD_CHARACTER, TRUNCATED, TOO_LONG, NEGATIVE, WRONG_SUM = -1, -2, -3, -4, -5

INTERSECTION, UNION, PREDICTION_AREA, TARGET_AREA, BOUNDARY_INTERSECTION, BOUNDARY_UNION = range(6)
COLUMNS = (
    "intersection",
    "union",
    "prediction_area",
    "target_area",
    "boundary_intersection",
    "boundary_union",
)


@njit(nogil=True, cache=True)
def decode_intervals(code, size, starts, ends):  # type: ignore[no-untyped-def]
    """Read a compressed COCO run-length code (uint8 characters) of a mask of `size` pixels.

    Fills `starts` and `ends` (each at least `len(code) // 2 + 1` long) and returns how many intervals
    there are, or a negative error code. Source: cocoapi `common/maskApi.c`, `rleFrString`: five bits a
    character, the sixth says that more follow, and from the fourth count on the difference to the
    count two before is stored.
    """
    position = np.int64(0)
    index = 0
    length = code.shape[0]
    before = np.int64(0)
    before2 = np.int64(0)
    n = 0
    read = 0
    while index < length:
        value = np.int64(0)
        shift = 0
        more = True
        while more:
            if index >= length:
                return TRUNCATED
            bits = np.int64(code[index]) - 48
            index += 1
            if bits < 0 or bits > 63:
                return BAD_CHARACTER
            if shift > 30:
                return TOO_LONG
            value |= (bits & 31) << shift
            shift += 5
            more = (bits & 32) != 0
            if not more and (bits & 16) != 0:
                value |= np.int64(-1) << shift
        if read > 2:
            value += before2
        if value < 0:
            return NEGATIVE
        before2 = before
        before = value
        if value > size - position:
            return WRONG_SUM
        if (read & 1) == 1 and value > 0:
            if n > 0 and ends[n - 1] == position:
                ends[n - 1] = position + value
            else:
                starts[n] = position
                ends[n] = position + value
                n += 1
        position += value
        read += 1
    if position != size:
        return WRONG_SUM
    return n


@njit(nogil=True, cache=True)
def encode_intervals(starts, ends, n, size, out):  # type: ignore[no-untyped-def]
    """Write the canonical compressed code of `n` intervals to `out` (uint8); returns its length.

    `out` must hold 7 characters for each of the `2 n + 1` counts. Source: `rleToString`, as above.
    """
    length = 0
    before = np.int64(0)
    before2 = np.int64(0)
    position = np.int64(0)
    written = 0
    for i in range(n + 1):
        for part in range(2):
            if i == n:
                count = size - position
                if part == 1 or (count == 0 and written > 0):
                    break
                position = size
            elif part == 0:
                count = starts[i] - position
                position = starts[i]
            else:
                count = ends[i] - position
                position = ends[i]
            value = count
            if written > 2:
                value -= before2
            before2 = before
            before = count
            written += 1
            more = True
            while more:
                bits = value & 31
                value >>= 5
                more = value != -1 if (bits & 16) != 0 else value != 0
                if more:
                    bits |= 32
                out[length] = bits + 48
                length += 1
    return length


@njit(nogil=True, cache=True)
def crop_intervals(array, top, left, height, starts, ends):  # type: ignore[no-untyped-def]
    """The intervals of a bool picture (h, w) at `top`, `left` of an image of `height` rows; returns how many.

    `starts` and `ends` need room for one in two pixels of each column.
    """
    n = 0
    for x in range(array.shape[1]):
        at = (left + x) * height + top
        before = False
        for y in range(array.shape[0]):
            here = array[y, x]
            if here and not before:
                starts[n] = at + y
            elif before and not here:
                ends[n] = at + y
                n += 1
            before = here
        if before:
            ends[n] = at + array.shape[0]
            n += 1
    return n


# pycocotools draws polygons on a grid that is this many times as fine as the pixels.
FINE = 5.0


@njit(nogil=True, cache=True)
def _fine_outline(corners, u, v):  # type: ignore[no-untyped-def]
    """The points of a polygon's outline on the fine grid, corner after corner; returns how many.

    `corners` is float64 (K, 2), x and y; `u` and `v` need room for the longer side of each edge and one more.
    """
    count = corners.shape[0]
    m = 0
    for j in range(count):
        after = (j + 1) % count
        xs = np.int64(FINE * corners[j, 0] + 0.5)
        ys = np.int64(FINE * corners[j, 1] + 0.5)
        xe = np.int64(FINE * corners[after, 0] + 0.5)
        ye = np.int64(FINE * corners[after, 1] + 0.5)
        dx, dy = abs(xe - xs), abs(ye - ys)
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        if flip:
            xs, xe, ys, ye = xe, xs, ye, ys
        if dx >= dy:
            slope = (ye - ys) / dx if dx > 0 else 0.0
            for d in range(dx + 1):
                t = dx - d if flip else d
                u[m] = t + xs
                v[m] = np.int64(ys + slope * t + 0.5)
                m += 1
        else:
            slope = (xe - xs) / dy
            for d in range(dy + 1):
                t = dy - d if flip else d
                v[m] = t + ys
                u[m] = np.int64(xs + slope * t + 0.5)
                m += 1
    return m


@njit(nogil=True, cache=True)
def polygon_intervals(corners, height, width):  # type: ignore[no-untyped-def]
    """The pixels of a polygon, float64 (K, 2) corners x and y in pixels; returns `(count, starts, ends)`.

    The same pixels as pycocotools on a processor that rounds every product and sum (x86-64). Its builds for other
    processors fuse them, and draw one polygon in some hundreds otherwise. Source: cocoapi `common/maskApi.c`,
    `rleFrPoly`: a dense outline on a finer grid; where it passes the middle of a column of pixels, foreground and
    background change from there downwards.
    """
    longest = np.int64(0)
    for j in range(corners.shape[0]):
        after = (j + 1) % corners.shape[0]
        across = abs(np.int64(FINE * corners[j, 0] + 0.5) - np.int64(FINE * corners[after, 0] + 0.5))
        down = abs(np.int64(FINE * corners[j, 1] + 0.5) - np.int64(FINE * corners[after, 1] + 0.5))
        longest += max(across, down) + 1
    u = np.empty(longest, np.int64)
    v = np.empty(longest, np.int64)
    points = _fine_outline(corners, u, v)
    changes = np.empty(points, np.int64)
    k = 0
    for j in range(1, points):
        if u[j] == u[j - 1]:
            continue
        left = u[j] if u[j] < u[j - 1] else u[j] - 1
        column = (left + 0.5) / FINE - 0.5
        if np.floor(column) != column or column < 0 or column > width - 1:
            continue
        row = (min(v[j], v[j - 1]) + 0.5) / FINE - 0.5
        row = np.ceil(min(max(row, 0.0), np.float64(height)))
        changes[k] = np.int64(column) * height + np.int64(row)
        k += 1
    ordered = np.sort(changes[:k])
    starts = np.empty(k // 2 + 1, np.int64)
    ends = np.empty(k // 2 + 1, np.int64)
    n = 0
    inside = False
    j = 0
    while j < k:
        # Two changes at one place are none.
        if j + 1 < k and ordered[j] == ordered[j + 1]:
            j += 2
            continue
        if inside:
            ends[n] = ordered[j]
            n += 1
        else:
            starts[n] = ordered[j]
        inside = not inside
        j += 1
    if inside and starts[n] < height * width:
        ends[n] = height * width
        n += 1
    return n, starts, ends


@njit(nogil=True, cache=True)
def check_codes(codes, at, sizes, out):  # type: ignore[no-untyped-def]
    """Judge many compressed codes, laid end to end in `codes` and cut at `at`, of masks of `sizes` pixels.

    `out[i]` becomes 1 for a canonical code, 0 for one that is valid but written otherwise, else the error.
    """
    longest = np.int64(0)
    for i in range(sizes.shape[0]):
        longest = max(longest, at[i + 1] - at[i])
    starts = np.empty(longest // 2 + 1, np.int64)
    ends = np.empty(longest // 2 + 1, np.int64)
    again = np.empty(7 * (longest + 3), np.uint8)
    for i in range(sizes.shape[0]):
        code = codes[at[i] : at[i + 1]]
        n = decode_intervals(code, sizes[i], starts, ends)
        if n < 0:
            out[i] = n
            continue
        length = encode_intervals(starts, ends, n, sizes[i], again)
        same = length == code.shape[0]
        if same:
            for k in range(length):
                if again[k] != code[k]:
                    same = False
                    break
        out[i] = 1 if same else 0


@njit(nogil=True, cache=True)
def intervals_area(starts, ends, n):  # type: ignore[no-untyped-def]
    area = np.int64(0)
    for i in range(n):
        area += ends[i] - starts[i]
    return area


@njit(nogil=True, cache=True)
def intervals_intersection(starts_a, ends_a, n_a, starts_b, ends_b, n_b):  # type: ignore[no-untyped-def]
    """Pixels in both of two interval lists."""
    total = np.int64(0)
    i = 0
    j = 0
    while i < n_a and j < n_b:
        low = max(starts_a[i], starts_b[j])
        high = min(ends_a[i], ends_b[j])
        if high > low:
            total += high - low
        if ends_a[i] < ends_b[j]:
            i += 1
        else:
            j += 1
    return total


@njit(nogil=True, cache=True)
def _grown(array, needed):  # type: ignore[no-untyped-def]
    out = np.empty(max(needed, 2 * array.shape[0]), array.dtype)
    out[: array.shape[0]] = array
    return out


@njit(nogil=True, cache=True)
def _intersect_runs(low_a, high_a, a, a_end, low_b, high_b, b, b_end, low_out, high_out, at):  # type: ignore[no-untyped-def]
    """Intersect runs `a..a_end` with runs `b..b_end`; append at `at`; returns the new end."""
    while a < a_end and b < b_end:
        low = max(low_a[a], low_b[b])
        high = min(high_a[a], high_b[b])
        if high > low:
            low_out[at] = low
            high_out[at] = high
            at += 1
        if high_a[a] < high_b[b]:
            a += 1
        else:
            b += 1
    return at


@njit(nogil=True, cache=True)
def erode_intervals(starts, ends, n, height, width, d, out_starts, out_ends, framed=False):  # type: ignore[no-untyped-def]
    """Erode by a (2d+1)x(2d+1) square; what lies outside the image is background or, if `framed`, foreground.

    Returns `(count, out_starts, out_ends)`; the output arrays are replaced by longer ones if needed.
    The square is separable: every vertical run shrinks by d at both ends, then each column is
    intersected with its d neighbours on either side, with the prefix/suffix trick of van Herk (1992)
    and Gil & Werman (1993), which costs two intersections a column whatever d is.
    """
    window = 2 * d + 1
    if n == 0 or (not framed and (height < window or width < window)):
        return 0, out_starts, out_ends
    first = starts[0] // height
    last = (ends[n - 1] - 1) // height
    # In a frame, full columns continue a mask that reaches the left or right border.
    before = d if framed and first == 0 else 0
    after = d if framed and last == width - 1 else 0
    columns = last - first + 1 + before + after
    first -= before
    if columns < window:
        return 0, out_starts, out_ends

    # Vertical step. column_at[c] is where the runs of column first + c begin.
    column_at = np.zeros(columns + 1, np.int64)
    lows = np.empty(n + columns, np.int64)
    highs = np.empty(n + columns, np.int64)
    runs = 0
    column = np.int64(0)
    single = True
    for c in range(before):
        column = np.int64(c)
        column_at[c] = runs
        lows[runs] = 0
        highs[runs] = height
        runs += 1
    for i in range(n):
        position = starts[i]
        end = ends[i]
        c = position // height - first
        while position < end:
            top = (first + c) * height
            stop = min(end, top + height)
            low = position - top + d
            high = stop - top - d
            if framed and position == top:
                low = np.int64(0)
            if framed and stop == top + height:
                high = np.int64(height)
            if high > low:
                while column < c:
                    column += 1
                    column_at[column] = runs
                if runs > column_at[column]:
                    single = False
                lows[runs] = low
                highs[runs] = high
                runs += 1
            position = stop
            c += 1
    for c in range(columns - after, columns):
        while column < c:
            column += 1
            column_at[column] = runs
        lows[runs] = 0
        highs[runs] = height
        runs += 1
    while column < columns:
        column += 1
        column_at[column] = runs
    if runs < window:
        return 0, out_starts, out_ends

    count = 0
    if single:
        low_one = np.full(columns, 1, np.int64)
        high_one = np.zeros(columns, np.int64)
        for c in range(columns):
            if column_at[c + 1] > column_at[c]:
                low_one[c] = lows[column_at[c]]
                high_one[c] = highs[column_at[c]]
        suffix_low = np.empty(window, np.int64)
        suffix_high = np.empty(window, np.int64)
        if out_starts.shape[0] < columns:
            out_starts = np.empty(columns, np.int64)
            out_ends = np.empty(columns, np.int64)
        for block in range(0, columns - window + 1, window):
            low = np.int64(0)
            high = np.int64(height)
            for j in range(window - 1, -1, -1):
                low = max(low, low_one[block + j])
                high = min(high, high_one[block + j])
                suffix_low[j] = low
                suffix_high[j] = high
            prefix_low = np.int64(0)
            prefix_high = np.int64(height)
            for j in range(min(window, columns - window + 1 - block)):
                if j > 0:
                    prefix_low = max(prefix_low, low_one[block + window + j - 1])
                    prefix_high = min(prefix_high, high_one[block + window + j - 1])
                low = max(suffix_low[j], prefix_low)
                high = min(suffix_high[j], prefix_high)
                if high > low:
                    top = (first + block + j + d) * height
                    out_starts[count] = top + low
                    out_ends[count] = top + high
                    count += 1
        return count, out_starts, out_ends

    # The same with lists of runs. An intersection of lists with m and k runs has fewer than m + k.
    suffix_at = np.zeros(window + 1, np.int64)
    suffix_lows = np.empty(2 * runs + 64, np.int64)
    suffix_highs = np.empty(2 * runs + 64, np.int64)
    prefix_lows = np.empty(64, np.int64)
    prefix_highs = np.empty(64, np.int64)
    next_lows = np.empty(64, np.int64)
    next_highs = np.empty(64, np.int64)
    for block in range(0, columns - window + 1, window):
        # suffix_at[k] counts from the right: entry k belongs to column block + window - 1 - k.
        used = 0
        for k in range(window):
            c = block + window - 1 - k
            begin = column_at[c]
            end = column_at[c + 1]
            size_before = used - suffix_at[k - 1] if k > 0 else 0
            needed = used + (end - begin) + size_before
            if needed > suffix_lows.shape[0]:
                suffix_lows = _grown(suffix_lows, needed)
                suffix_highs = _grown(suffix_highs, needed)
            suffix_at[k] = used
            if k == 0:
                for r in range(begin, end):
                    suffix_lows[used] = lows[r]
                    suffix_highs[used] = highs[r]
                    used += 1
            else:
                used = _intersect_runs(
                    lows, highs, begin, end,
                    suffix_lows, suffix_highs, suffix_at[k - 1], suffix_at[k],
                    suffix_lows, suffix_highs, used,
                )  # fmt: skip
        suffix_at[window] = used
        prefix = -1
        for j in range(min(window, columns - window + 1 - block)):
            if j > 0:
                c = block + window + j - 1
                begin = column_at[c]
                end = column_at[c + 1]
                needed = (end - begin) + max(prefix, 0)
                if needed > next_lows.shape[0]:
                    next_lows = _grown(next_lows, needed)
                    next_highs = _grown(next_highs, needed)
                if prefix < 0:
                    prefix = 0
                    for r in range(begin, end):
                        next_lows[prefix] = lows[r]
                        next_highs[prefix] = highs[r]
                        prefix += 1
                else:
                    prefix = _intersect_runs(
                        lows, highs, begin, end, prefix_lows, prefix_highs, 0, prefix, next_lows, next_highs, 0
                    )
                prefix_lows, next_lows = next_lows, prefix_lows
                prefix_highs, next_highs = next_highs, prefix_highs
            k = window - 1 - j
            begin = suffix_at[k]
            end = suffix_at[k + 1]
            needed = count + (end - begin) + max(prefix, 0)
            if needed > out_starts.shape[0]:
                out_starts = _grown(out_starts, needed)
                out_ends = _grown(out_ends, needed)
            here = count
            if prefix < 0:
                for r in range(begin, end):
                    out_starts[count] = suffix_lows[r]
                    out_ends[count] = suffix_highs[r]
                    count += 1
            else:
                count = _intersect_runs(
                    suffix_lows, suffix_highs, begin, end,
                    prefix_lows, prefix_highs, 0, prefix,
                    out_starts, out_ends, count,
                )  # fmt: skip
            top = (first + block + j + d) * height
            for r in range(here, count):
                out_starts[r] += top
                out_ends[r] += top
    return count, out_starts, out_ends


@njit(nogil=True, cache=True)
def count_pairs(prediction_codes, prediction_at, target_codes, target_at, heights, widths, bands_px, out):  # type: ignore[no-untyped-def]
    """Count N pairs of masks; returns -1, or the first pair that cannot be read, times two, plus one
    if it is the target.

    Codes are uint8 characters end to end; mask i is `codes[at[i]:at[i + 1]]`. `out` is int64 (N, 6), the
    columns in the order of COLUMNS. With E(M) the eroded mask and B = M \\ E the inner band,
    |Bp n Bt| = |P n T| - |P n Et| - |Ep n T| + |Ep n Et|, so the bands are never built.
    """
    longest = np.int64(0)
    for i in range(heights.shape[0]):
        longest = max(longest, prediction_at[i + 1] - prediction_at[i], target_at[i + 1] - target_at[i])
    room = longest // 2 + 1
    starts_p = np.empty(room, np.int64)
    ends_p = np.empty(room, np.int64)
    starts_t = np.empty(room, np.int64)
    ends_t = np.empty(room, np.int64)
    eroded_starts_p = np.empty(1024, np.int64)
    eroded_ends_p = np.empty(1024, np.int64)
    eroded_starts_t = np.empty(1024, np.int64)
    eroded_ends_t = np.empty(1024, np.int64)
    for i in range(heights.shape[0]):
        height = heights[i]
        width = widths[i]
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


@njit(nogil=True, cache=True)
def complement_intervals(starts, ends, n, size, out_starts, out_ends):  # type: ignore[no-untyped-def]
    """The pixels that are in none of the intervals; `out` needs room for n + 1. Returns how many intervals."""
    count = 0
    position = np.int64(0)
    for i in range(n):
        if starts[i] > position:
            out_starts[count] = position
            out_ends[count] = starts[i]
            count += 1
        position = ends[i]
    if position < size:
        out_starts[count] = position
        out_ends[count] = size
        count += 1
    return count


@njit(nogil=True, cache=True)
def subtract_intervals(starts_a, ends_a, n_a, starts_b, ends_b, n_b, out_starts, out_ends):  # type: ignore[no-untyped-def]
    """Pixels of a that are not in b; `out` needs room for n_a + n_b. Returns how many intervals."""
    count = 0
    j = 0
    for i in range(n_a):
        position = starts_a[i]
        while j < n_b and ends_b[j] <= position:
            j += 1
        k = j
        while k < n_b and starts_b[k] < ends_a[i]:
            if starts_b[k] > position:
                out_starts[count] = position
                out_ends[count] = starts_b[k]
                count += 1
            position = max(position, ends_b[k])
            k += 1
        if position < ends_a[i]:
            out_starts[count] = position
            out_ends[count] = ends_a[i]
            count += 1
    return count


@njit(nogil=True, cache=True)
def gather_intervals(starts, ends, n, height, columns, first_row, new_height, out_starts, out_ends):  # type: ignore[no-untyped-def]
    """A mask resized by taking pixels: column `j` of the result is column `columns[j]`, which never falls.

    `first_row[r]` is the first row of the result that is taken from row `r` or a later one, for `r` in 0..height.
    Fills the intervals as far as the arrays reach, and returns how many there are; intervals may touch.
    """
    found = 0
    first = 0
    for j in range(columns.shape[0]):
        low = columns[j] * height
        high = low + height
        while first < n and ends[first] <= low:
            first += 1
        k = first
        while k < n and starts[k] < high:
            top = first_row[max(starts[k], low) - low]
            bottom = first_row[min(ends[k], high) - low]
            if bottom > top:
                if found < out_starts.shape[0]:
                    out_starts[found] = j * new_height + top
                    out_ends[found] = j * new_height + bottom
                found += 1
            k += 1
    return found


@njit(nogil=True, cache=True)
def dilate_intervals(starts, ends, n, height, width, d):  # type: ignore[no-untyped-def]
    """Dilate by a (2d+1)x(2d+1) square, cut at the image's borders; returns `(count, starts, ends)`.

    What the mask does not reach is what remains of its complement after an erosion in which the outside takes no part.
    """
    size = height * width
    around_starts = np.empty(n + 1, np.int64)
    around_ends = np.empty(n + 1, np.int64)
    m = complement_intervals(starts, ends, n, size, around_starts, around_ends)
    left_starts = np.empty(1024, np.int64)
    left_ends = np.empty(1024, np.int64)
    m, left_starts, left_ends = erode_intervals(
        around_starts, around_ends, m, height, width, d, left_starts, left_ends, True
    )
    out_starts = np.empty(m + 1, np.int64)
    out_ends = np.empty(m + 1, np.int64)
    count = complement_intervals(left_starts, left_ends, m, size, out_starts, out_ends)
    return count, out_starts, out_ends


@njit(nogil=True, cache=True)
def _intervals_of(codes, at, i, size):  # type: ignore[no-untyped-def]
    """`(n, starts, ends)` of the checked code i of those that lie end to end in `codes`, cut at `at`."""
    code = codes[at[i] : at[i + 1]]
    starts = np.empty(code.shape[0] // 2 + 1, np.int64)
    ends = np.empty(code.shape[0] // 2 + 1, np.int64)
    n = decode_intervals(code, size, starts, ends)
    return n, starts, ends


@njit(nogil=True, cache=True)
def count_bands(prediction_codes, prediction_at, target_codes, target_at, heights, widths, bands_px, out):  # type: ignore[no-untyped-def]
    """Areas by which a band of d pixels on both sides of the target's outline is counted, of N pairs.

    `out` is int64 (N, 4): the eroded target, the dilated target, and the prediction's pixels in each of the two. The
    image's border is no outline: beyond it the target may go on. All codes must have been checked.
    """
    eroded_starts = np.empty(1024, np.int64)
    eroded_ends = np.empty(1024, np.int64)
    for i in range(heights.shape[0]):
        height = heights[i]
        width = widths[i]
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


@njit(nogil=True, cache=True)
def half_width_px(starts, ends, n, height, width, limit):  # type: ignore[no-untyped-def]
    """The largest d <= limit whose (2d+1)x(2d+1) square fits into the mask somewhere; 0 if none does."""
    low = 0
    high = limit
    out_starts = np.empty(1024, np.int64)
    out_ends = np.empty(1024, np.int64)
    while low < high:
        middle = (low + high + 1) // 2
        m, out_starts, out_ends = erode_intervals(starts, ends, n, height, width, middle, out_starts, out_ends)
        if m > 0:
            low = middle
        else:
            high = middle - 1
    return low


ERROR_COLUMNS = (
    "deep",
    "deep_missing",
    "band_missing",
    "band_extra",
    "far_on_others",
    "far_elsewhere",
    "other_intersection",
    "other_union",
    "joint_intersection",
    "joint_union",
)


@njit(nogil=True, cache=True)
def count_errors(  # type: ignore[no-untyped-def]
    prediction_codes, prediction_at, target_codes, target_at, object_codes, object_at, others, others_at,
    heights, widths, bands_px, out,
):  # fmt: skip
    """Where the wrong pixels of N predictions lie; `out` is int64 (N, 10), the columns in the order of ERROR_COLUMNS.

    `others[others_at[i]:others_at[i + 1]]` are the positions, among the objects, of those that pair i does not mean.
    The band along the target's outline is `bands_px` wide, but outwards no wider than the target's half-width and
    inwards than half of that, so that a small object does not consist of outline alone. `deep` is what the target
    holds inside of the band, `deep_missing` what of it the prediction lacks, `far_*` the prediction's pixels outside of
    the band. `other_*` are of the object
    whose IoU with the prediction is highest, `joint_*` of that object and the target together. All codes must have
    been checked.
    """
    eroded_starts = np.empty(1024, np.int64)
    eroded_ends = np.empty(1024, np.int64)
    for i in range(heights.shape[0]):
        height = heights[i]
        width = widths[i]
        size = height * width
        n_p, starts_p, ends_p = _intervals_of(prediction_codes, prediction_at, i, size)
        n_t, starts_t, ends_t = _intervals_of(target_codes, target_at, i, size)
        area_p = intervals_area(starts_p, ends_p, n_p)
        area_t = intervals_area(starts_t, ends_t, n_t)
        both = intervals_intersection(starts_p, ends_p, n_p, starts_t, ends_t, n_t)

        half = half_width_px(starts_t, ends_t, n_t, height, width, 2 * bands_px[i])
        inwards = min(bands_px[i], max(1, (half + 1) // 2))
        outwards = min(bands_px[i], max(1, half))
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
        area_far = area_p - in_dilated
        best = np.int64(-1)
        best_both = np.int64(0)
        best_union = np.int64(0)
        for position in range(others_at[i], others_at[i + 1]):
            o = others[position]
            n_o, starts_o, ends_o = _intervals_of(object_codes, object_at, o, size)
            inside = intervals_intersection(starts_p, ends_p, n_p, starts_o, ends_o, n_o)
            joined = area_p + intervals_area(starts_o, ends_o, n_o) - inside
            if inside > 0 and (best < 0 or inside * best_union > best_both * joined):
                best = o
                best_both = inside
                best_union = joined
            if far > 0 and inside > 0:
                rest_starts = np.empty(far + n_o, np.int64)
                rest_ends = np.empty(far + n_o, np.int64)
                far = subtract_intervals(far_starts, far_ends, far, starts_o, ends_o, n_o, rest_starts, rest_ends)
                far_starts = rest_starts
                far_ends = rest_ends
        elsewhere = intervals_area(far_starts, far_ends, far)
        out[i, 4] = area_far - elsewhere
        out[i, 5] = elsewhere
        out[i, 6] = best_both
        out[i, 7] = best_union
        out[i, 8] = 0
        out[i, 9] = 0
        if best >= 0:
            n_o, starts_o, ends_o = _intervals_of(object_codes, object_at, best, size)
            shared_starts = np.empty(n_o + n_t, np.int64)
            shared_ends = np.empty(n_o + n_t, np.int64)
            shared = _intersect_runs(starts_o, ends_o, 0, n_o, starts_t, ends_t, 0, n_t, shared_starts, shared_ends, 0)
            overlap = intervals_area(shared_starts, shared_ends, shared)
            triple = intervals_intersection(starts_p, ends_p, n_p, shared_starts, shared_ends, shared)
            joint = best_both + both - triple
            out[i, 8] = joint
            out[i, 9] = area_p + intervals_area(starts_o, ends_o, n_o) + area_t - overlap - joint


@njit(nogil=True, cache=True)
def _paint(starts, ends, n, height, top, left, out):  # type: ignore[no-untyped-def]
    """Set the pixels of intervals in a picture (h, w) whose corner lies at `top`, `left` of the image."""
    for i in range(n):
        for position in range(starts[i], ends[i]):
            out[position % height - top, position // height - left] = 1


@njit(nogil=True, cache=True)
def _outline(inside, top, left, height, width, out):  # type: ignore[no-untyped-def]
    """The 1-pixel outline of davis2017 `_seg2bmap`: where a pixel differs from its right, lower or diagonal neighbour.

    `inside` is a part of the image at `top`, `left` with a row and a column of its neighbours to spare; the image's
    last row looks to the right alone, its last column down, its last pixel nowhere. Returns the number of pixels.
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


@njit(nogil=True, cache=True)
def _matched(of, by, down, right):  # type: ignore[no-untyped-def]
    """Pixels of one outline that have a pixel of the other at one of the given distances."""
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


@njit(nogil=True, cache=True)
def count_outlines(prediction_codes, prediction_at, target_codes, target_at, heights, widths, radii_px, out):  # type: ignore[no-untyped-def]
    """Outline pixels of N pairs and how many of them lie within a disc of the other's.

    `out` is int64 (N, 4): of the prediction, of the target, matched of the prediction, matched of the target. All
    codes must have been checked. Source: davisvideochallenge/davis2017-evaluation `metrics.py:f_measure` (ac7c43f).
    """
    for i in range(heights.shape[0]):
        height = heights[i]
        width = widths[i]
        size = height * width
        n_p, starts_p, ends_p = _intervals_of(prediction_codes, prediction_at, i, size)
        n_t, starts_t, ends_t = _intervals_of(target_codes, target_at, i, size)
        out[i, :] = 0
        if n_p + n_t == 0:
            continue
        # The box of both masks, a row and a column more to the left and above.
        top = height
        bottom = np.int64(0)
        left = width
        right = np.int64(0)
        for starts, ends, n in ((starts_p, ends_p, n_p), (starts_t, ends_t, n_t)):
            if n > 0:
                left = min(left, starts[0] // height)
                right = max(right, (ends[n - 1] - 1) // height)
            for j in range(n):
                if starts[j] // height != (ends[j] - 1) // height:
                    top = np.int64(0)
                    bottom = height - 1
                else:
                    top = min(top, starts[j] % height)
                    bottom = max(bottom, (ends[j] - 1) % height)
        top = max(0, top - 1)
        left = max(0, left - 1)
        rows = bottom - top + 1
        columns = right - left + 1
        inside_p = np.zeros((rows + 1, columns + 1), np.uint8)
        inside_t = np.zeros((rows + 1, columns + 1), np.uint8)
        _paint(starts_p, ends_p, n_p, height, top, left, inside_p)
        _paint(starts_t, ends_t, n_t, height, top, left, inside_t)
        edge_p = np.zeros((rows, columns), np.bool_)
        edge_t = np.zeros((rows, columns), np.bool_)
        out[i, 0] = _outline(inside_p, top, left, height, width, edge_p)
        out[i, 1] = _outline(inside_t, top, left, height, width, edge_t)
        # Offsets from near to far: most pixels of a good mask are matched at once.
        r = radii_px[i]
        offsets = 0
        for a in range(-r, r + 1):
            for b in range(-r, r + 1):
                if a * a + b * b <= r * r:
                    offsets += 1
        distances = np.empty(offsets, np.int64)
        down = np.empty(offsets, np.int64)
        across = np.empty(offsets, np.int64)
        k = 0
        for a in range(-r, r + 1):
            for b in range(-r, r + 1):
                if a * a + b * b <= r * r:
                    distances[k] = a * a + b * b
                    down[k] = a
                    across[k] = b
                    k += 1
        order = np.argsort(distances)
        down = down[order]
        across = across[order]
        out[i, 2] = _matched(edge_p, edge_t, down, across)
        out[i, 3] = _matched(edge_t, edge_p, down, across)
