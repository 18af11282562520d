"""Erosion, dilation and half-widths of masks, computed on their runs."""

from __future__ import annotations

import numpy as np

from refbench.masks.plain.runs import complement_intervals


def _grown(array, needed):
    out = np.empty(max(needed, 2 * array.shape[0]), array.dtype)
    out[: array.shape[0]] = array
    return out


def intersect_runs(low_a, high_a, a, a_end, low_b, high_b, b, b_end, low_out, high_out, at):
    """Intersect runs `a..a_end` with runs `b..b_end`, write the result from position `at` onwards, and return its
    end.
    """
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


def _shrunk_columns(starts, ends, n, height, d, framed, first, columns, before, after):
    """The vertical step of an erosion: the runs of each column, shortened by d at both ends.

    Also returns whether each column has at most one run. The runs of column first + c start at
    `lows[column_at[c]:column_at[c + 1]]` and end at `highs[column_at[c]:column_at[c + 1]]`.
    """
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
            low = np.int64(0) if framed and position == top else position - top + d
            high = np.int64(height) if framed and stop == top + height else stop - top - d
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
    column_at[column + 1 :] = runs
    return column_at, lows, highs, single


def _intersect_single(column_at, lows, highs, height, d, first, out_starts, out_ends):
    """The horizontal step of an erosion, for masks with at most one run per column."""
    window = 2 * d + 1
    columns = column_at.shape[0] - 1
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
    count = 0
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


def _suffixes(column_at, lows, highs, end, suffix_at, suffix_lows, suffix_highs):
    """The intersections of the last 0, 1, 2, ... columns before `end`; entry k begins at `suffix_at[k]`.

    Entry 0, a full column, must exist. Returns the arrays, replaced by longer ones if needed.
    """
    for k in range(suffix_at.shape[0] - 2):
        c = end - 1 - k
        used = suffix_at[k + 1]
        needed = 2 * used - suffix_at[k] + column_at[c + 1] - column_at[c]
        if needed > suffix_lows.shape[0]:
            suffix_lows = _grown(suffix_lows, needed)
            suffix_highs = _grown(suffix_highs, needed)
        suffix_at[k + 2] = intersect_runs(
            lows, highs, column_at[c], column_at[c + 1],
            suffix_lows, suffix_highs, suffix_at[k], used,
            suffix_lows, suffix_highs, used,
        )  # fmt: skip
    return suffix_lows, suffix_highs


def _intersect_lists(column_at, lows, highs, height, d, first, out_starts, out_ends):
    """The horizontal step of an erosion, for columns with several runs.

    The intersection of two lists with m and k runs has fewer than m + k runs.
    """
    window = 2 * d + 1
    columns = column_at.shape[0] - 1
    runs = column_at[columns]
    suffix_at = np.zeros(window + 2, np.int64)
    suffix_lows = np.empty(2 * runs + 64, np.int64)
    suffix_highs = np.empty(2 * runs + 64, np.int64)
    prefix_lows = np.empty(runs + 1, np.int64)
    prefix_highs = np.empty(runs + 1, np.int64)
    next_lows = np.empty(runs + 1, np.int64)
    next_highs = np.empty(runs + 1, np.int64)
    # Entry 0 of the suffixes: a full column.
    suffix_lows[0] = 0
    suffix_highs[0] = height
    suffix_at[1] = 1
    count = 0
    for block in range(0, columns - window + 1, window):
        suffix_lows, suffix_highs = _suffixes(
            column_at, lows, highs, block + window, suffix_at, suffix_lows, suffix_highs
        )
        prefix_lows[0] = 0
        prefix_highs[0] = height
        prefix = 1
        for j in range(min(window, columns - window + 1 - block)):
            if j > 0:
                c = block + window + j - 1
                prefix = intersect_runs(
                    lows, highs, column_at[c], column_at[c + 1],
                    prefix_lows, prefix_highs, 0, prefix,
                    next_lows, next_highs, 0,
                )  # fmt: skip
                prefix_lows, next_lows = next_lows, prefix_lows
                prefix_highs, next_highs = next_highs, prefix_highs
            begin = suffix_at[window - j]
            end = suffix_at[window - j + 1]
            if count + end - begin + prefix > out_starts.shape[0]:
                out_starts = _grown(out_starts, count + end - begin + prefix)
                out_ends = _grown(out_ends, count + end - begin + prefix)
            here = count
            count = intersect_runs(
                suffix_lows, suffix_highs, begin, end,
                prefix_lows, prefix_highs, 0, prefix,
                out_starts, out_ends, count,
            )  # fmt: skip
            top = (first + block + j + d) * height
            for r in range(here, count):
                out_starts[r] += top
                out_ends[r] += top
    return count, out_starts, out_ends


def erode_intervals(starts, ends, n, height, width, d, out_starts, out_ends, framed=False):
    """Erode by a (2d+1)x(2d+1) square; everything outside the image is background or, if `framed`, foreground.

    Returns `(count, out_starts, out_ends)`; the output arrays are replaced by longer ones if needed. The square is
    separable: every vertical run is shortened by d at both ends, then each column is intersected with its d neighbours
    on either side. This uses the prefix/suffix method of van Herk (1992) and Gil & Werman (1993), which needs two
    intersections per column for any d.
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
    column_at, lows, highs, single = _shrunk_columns(starts, ends, n, height, d, framed, first, columns, before, after)
    if column_at[columns] < window:
        return 0, out_starts, out_ends
    if single:
        return _intersect_single(column_at, lows, highs, height, d, first, out_starts, out_ends)
    return _intersect_lists(column_at, lows, highs, height, d, first, out_starts, out_ends)


def dilate_intervals(starts, ends, n, height, width, d):
    """Dilate by a (2d+1)x(2d+1) square, cut at the image's borders; returns `(count, starts, ends)`.

    Computed as the complement of the eroded complement; that erosion treats the outside of the image as foreground.
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


def half_width_px(starts, ends, n, height, width, limit):
    """The largest d <= limit for which a (2d+1)x(2d+1) square fits into the mask; 0 if none does."""
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
