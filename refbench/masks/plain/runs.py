"""Runs of masks: read from COCO run-length codes, written, drawn, compared and resized without decoding to pixels.

The memory that a function allocates depends on the data it has read, not on the sizes that a file states. On an error,
a function returns a negative code instead of raising an exception; `refbench.masks.rle` converts it to a message.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refbench.masks.code_errors import BAD_CHARACTER, NEGATIVE, TOO_LONG, TRUNCATED, WRONG_SUM


def decode_intervals(code, size, starts, ends):
    """Read a compressed COCO run-length code (uint8 characters) of a mask of `size` pixels.

    Fills `starts` and `ends` (each of length at least `len(code) // 2 + 1`) and returns the number of intervals, or a
    negative error code. Source: cocoapi `common/maskApi.c`, `rleFrString`. Each character contains five bits of a
    count; a sixth bit is set if more characters of the same count follow. From the fourth count on, the code contains
    the difference to the count two positions earlier.
    """
    length = code.shape[0]
    position = before = before2 = np.int64(0)
    index = n = read = 0
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


def encode_intervals(starts, ends, n, size, out):
    """Write the canonical compressed code of `n` intervals to `out` (uint8); returns its length.

    `out` needs 7 characters for each of the `2 n + 1` counts. Source: `rleToString`, in the same file.
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


# pycocotools draws polygons on a grid that is this many times as fine as the pixels.
FINE = 5.0


def array_changes(pixels, apart):
    """Positions, in column-major order, at which a mask (H, W) changes between background and foreground, int64 (N,).

    Every value but zero is foreground. The pixel before the first is background. If `apart`, every column ends in
    background.
    """
    columns = np.ascontiguousarray((pixels != 0).T)
    if apart:
        edges = np.diff(columns.astype(np.int8), axis=1, prepend=0, append=0) != 0
        column, row = np.nonzero(edges)
        return column * len(pixels) + row
    return np.flatnonzero(np.diff(columns.reshape(-1).astype(np.int8), prepend=0))


def _fine_outline(corners, u, v):
    """The points of the outline of a polygon on the fine grid, vertex after vertex; returns their number.

    `corners` is float64 (K, 2), x and y; for each edge, `u` and `v` need room for max(dx, dy) + 1 points, where dx and
    dy are the extents of the edge on the fine grid.
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


def _between_changes(changes, size):
    """The intervals of a mask of `size` pixels in which foreground and background alternate at the sorted `changes`."""
    k = changes.shape[0]
    starts = np.empty(k // 2 + 1, np.int64)
    ends = np.empty(k // 2 + 1, np.int64)
    n = 0
    inside = False
    j = 0
    while j < k:
        # Two changes at the same position cancel out.
        if j + 1 < k and changes[j] == changes[j + 1]:
            j += 2
            continue
        if inside:
            ends[n] = changes[j]
            n += 1
        else:
            starts[n] = changes[j]
        inside = not inside
        j += 1
    if inside and starts[n] < size:
        ends[n] = size
        n += 1
    return n, starts, ends


def polygon_intervals(corners, height, width):
    """The pixels of a polygon, given by float64 (K, 2) vertices x and y in pixels; returns `(starts, ends)`.

    The pixels are those of pycocotools on a processor that rounds every product and sum (x86-64). The builds of
    pycocotools for other processors fuse products and sums, so about one polygon in several hundred gets different
    pixels there. Source: cocoapi `common/maskApi.c`, `rleFrPoly`: the outline is drawn on a finer grid. Where the
    outline crosses the middle of a pixel column, the pixels below the crossing switch between foreground and
    background.
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
    n, starts, ends = _between_changes(np.sort(changes[:k]), height * width)
    return starts[:n], ends[:n]


def check_codes(codes, at, sizes, out):
    """Check many compressed codes: code i is `codes[at[i]:at[i + 1]]`, and its mask has `sizes[i]` pixels.

    `out[i]` is 1 for a canonical code, 0 for a valid code in another form, and a negative error code for an invalid
    code.
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


def intervals_area(starts, ends, n):
    area = np.int64(0)
    for i in range(n):
        area += ends[i] - starts[i]
    return area


def intervals_intersection(starts_a, ends_a, n_a, starts_b, ends_b, n_b):
    """Number of pixels that are in both lists of intervals."""
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


def complement_intervals(starts, ends, n, size, out_starts, out_ends):
    """The pixels that are in none of the intervals; `out` needs room for n + 1 intervals. Returns their number."""
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


def subtract_intervals(starts_a, ends_a, n_a, starts_b, ends_b, n_b, out_starts, out_ends):
    """Pixels of a that are not in b; `out` needs room for n_a + n_b intervals. Returns their number."""
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


def gather_intervals(starts, ends, n, height, columns, first_row, new_height, out_starts, out_ends):
    """Resize a mask by sampling: column `j` of the result is column `columns[j]` of the mask; `columns` must be
    non-decreasing.

    For each `r` in 0..height, `first_row[r]` is the first row of the result that comes from row `r` of the mask or from
    a later row. Fills the arrays up to their length, and returns the total number of intervals; intervals may touch.
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


def resize_codes(codes, at, heights, widths, columns, columns_at, first_rows, first_rows_at, new_heights, new_widths):
    """The codes of N masks resized by sampling, as `(text, at)`: code i is `text[at[i]:at[i + 1]]`.

    See `gather_intervals`: the columns of mask i begin at `columns_at[i]` of all columns, its first rows at
    `first_rows_at[i]`. All codes must have been checked.
    """
    text = bytearray()
    positions = [0]
    for i in range(heights.shape[0]):
        height, new_height, new_width = heights[i], new_heights[i], new_widths[i]
        code = codes[at[i] : at[i + 1]]
        starts = np.empty(code.shape[0] // 2 + 1, np.int64)
        ends = np.empty(code.shape[0] // 2 + 1, np.int64)
        n = decode_intervals(code, height * widths[i], starts, ends)
        own_columns = columns[columns_at[i] : columns_at[i] + new_width]
        own_rows = first_rows[first_rows_at[i] : first_rows_at[i] + height + 1]
        room = 0
        while True:
            out_starts = np.empty(room, np.int64)
            out_ends = np.empty(room, np.int64)
            found = gather_intervals(starts, ends, n, height, own_columns, own_rows, new_height, out_starts, out_ends)
            if found <= room:
                break
            room = found
        # Runs that touch are joined.
        first = np.flatnonzero(np.append(True, out_starts[1:found] != out_ends[: found - 1])[:found])
        last = np.append(first[1:] - 1, found - 1)[: len(first)]
        out = np.empty(7 * (2 * len(first) + 1), np.uint8)
        length = encode_intervals(out_starts[first], out_ends[last], len(first), new_height * new_width, out)
        text += out[:length].tobytes()
        positions.append(len(text))
    return bytes(text), np.array(positions, np.int64)


def code_of_polygons(corners, counts, height, width):
    """The code of the union of polygons, whose vertices, float64 (K, 2), follow each other.

    `counts` are the numbers of vertices, int64.
    """
    starts = ends = np.empty(0, np.int64)
    size = height * width
    first = 0
    for count in counts.tolist():
        other_starts, other_ends = polygon_intervals(corners[first : first + count], height, width)
        k = len(other_starts)
        first += count
        # Not in a, and not in b: the union is the rest.
        rest_starts, rest_ends = np.empty(len(starts) + 1, np.int64), np.empty(len(starts) + 1, np.int64)
        n = complement_intervals(starts, ends, len(starts), size, rest_starts, rest_ends)
        out_starts, out_ends = np.empty(n + k, np.int64), np.empty(n + k, np.int64)
        n = subtract_intervals(rest_starts, rest_ends, n, other_starts, other_ends, k, out_starts, out_ends)
        starts, ends = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
        m = complement_intervals(out_starts, out_ends, n, size, starts, ends)
        starts, ends = starts[:m], ends[:m]
    out = np.empty(7 * (2 * len(starts) + 1), np.uint8)
    return out[: encode_intervals(starts, ends, len(starts), size, out)].tobytes()


def area_of_code(code, size):
    """The number of foreground pixels of a checked code."""
    characters = np.frombuffer(code, np.uint8)
    starts, ends = (np.empty(len(code) // 2 + 1, np.int64) for _ in range(2))
    return int(intervals_area(starts, ends, decode_intervals(characters, size, starts, ends)))


def read_masks(masks, kind):
    """The codes of a list of masks one after the other, where each begins, and their heights and widths (int64).

    A mask is of the type `kind`, which has height, width and counts, or a COCO dict. None if one has another form, for
    example an uncompressed code.
    """
    codes, heights, widths = [], [], []
    size: Any
    for mask in masks:
        if type(mask) is kind:
            size, counts = [mask.height, mask.width], mask.counts
        elif type(mask) is dict:
            size, counts = mask.get("size"), mask.get("counts")
        else:
            return None
        if type(counts) is str:
            try:
                counts = counts.encode()
            except UnicodeEncodeError:
                return None
        if type(counts) is not bytes or type(size) not in (list, tuple) or len(size) != 2:
            return None
        if not all(type(side) is int and 1 <= side < 2**31 for side in size):
            return None
        codes.append(counts)
        heights.append(size[0])
        widths.append(size[1])
    at = np.cumsum([0, *map(len, codes)], dtype=np.int64)
    return b"".join(codes), at.tobytes(), np.array(heights, np.int64).tobytes(), np.array(widths, np.int64).tobytes()


def read_polygons(polygons, most):
    """The vertices of a list of polygons (float64 x, y, one after the other), and how many each has (int64).

    None unless each is a flat list or tuple of at least three points, no coordinate is beyond ±`most` pixels, and no
    outline can be longer than that.
    """
    corners, counts = [], []
    for polygon in polygons:
        if type(polygon) not in (list, tuple) or len(polygon) < 6 or len(polygon) % 2:
            return None
        if not all(type(value) in (int, float) and -most <= value <= most for value in polygon):
            return None
        values = list(map(float, polygon))
        if not (max(values) - min(values)) * (len(values) // 2) <= most:
            return None
        corners += values
        counts.append(len(values) // 2)
    return np.array(corners, np.float64).tobytes(), np.array(counts, np.int64).tobytes()
