"""Draws the images of the `scenes` dataset: textured shapes on a cluttered background, with exact masks.

Every shape is given by its signed distance at the pixel centres, negative inside, as integers in units of 1/256 pixel.
The mask consists of the pixels whose centres are inside; at the outline, the image is blended over one pixel. Image and
mask are computed from the same formula, so the mask is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

from refbench.masks.whole_numbers import ONE, PX, STEPS, Draws, IntArray, cosine_and_sine, length, root, simplified

BoolArray = NDArray[np.bool_]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (206, 38, 42),
    "orange": (238, 132, 24),
    "yellow": (236, 212, 44),
    "green": (44, 148, 62),
    "blue": (38, 82, 196),
    "purple": (132, 52, 162),
    "white": (240, 240, 236),
    "black": (26, 26, 30),
}
PATTERNS = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "medium", "large")
RADIUS_PX = {"small": (13, 19), "medium": (26, 33), "large": (42, 56)}
CANVASES_PX = ((240, 320), (320, 240), (256, 256), (230, 345), (300, 300))
MIN_VISIBLE_PERCENT = 60
MIN_APART_PX = 24
# Objects are turned by at most 0.35 radians to either side.
MOST_TURNED = 35 * STEPS // 628
# Outlines are given in quarters of a pixel, which floats hold exactly.
CORNER_PX = PX // 4


@dataclass(frozen=True, eq=False)
class DrawnObject:
    """One object of a scene; `mask`, bool (H, W), is its visible part.

    `centre_x` and `centre_y` are in units of 1/PX pixel (`whole_numbers.PX`).
    """

    shape: str
    colour: str
    pattern: str
    size: str
    centre_x: int
    centre_y: int
    mask: BoolArray

    @cached_property
    def area(self) -> int:
        """Number of visible pixels in the finished scene."""
        return int(np.count_nonzero(self.mask))


def _largest(*distances: IntArray) -> IntArray:
    return reduce(np.maximum, distances)


def _smallest(*distances: IntArray) -> IntArray:
    return reduce(np.minimum, distances)


def _box(x: IntArray, y: IntArray, half_width: int, half_height: int) -> IntArray:
    """A box; all lengths are in units of 1/PX pixel."""
    return _largest(abs(x) - half_width, abs(y) - half_height)


def _circle(x: IntArray, y: IntArray, r: int) -> IntArray:
    return length(x, y) - r


def _square(x: IntArray, y: IntArray, r: int) -> IntArray:
    return _box(x, y, 84 * r // 100, 84 * r // 100)


def _triangle(x: IntArray, y: IntArray, r: int) -> IntArray:
    planes = []
    for third in range(3):
        cosine, sine = cosine_and_sine(STEPS // 4 + third * STEPS // 3)
        planes.append((x * cosine + y * sine) // ONE - 55 * r // 100)
    return _largest(*planes)


def _star(x: IntArray, y: IntArray, r: int) -> IntArray:
    # Fold the plane into one wedge, of 36 degrees beside the tip: three mirrors. The outline there is the line from the
    # tip to the inner corner.
    along, across = -y, abs(x)
    for tenths in (3, 1):
        cosine, sine = cosine_and_sine(tenths * STEPS // 10)
        behind = np.maximum((across * cosine - along * sine) // ONE, 0)
        along, across = along + 2 * behind * sine // ONE, across - 2 * behind * cosine // ONE
    across = abs(across)
    cosine, sine = cosine_and_sine(STEPS // 10)
    inner_x, inner_y = 42 * r * cosine // (100 * ONE), 42 * r * sine // (100 * ONE)
    side = int(length(np.array([r - inner_x]), np.array([inner_y]))[0])
    return ((along - r) * inner_y + across * (r - inner_x)) // side


def _ring(x: IntArray, y: IntArray, r: int) -> IntArray:
    return abs(length(x, y) - 78 * r // 100) - 22 * r // 100


def _frame(x: IntArray, y: IntArray, r: int) -> IntArray:
    outer, inner = (95 * r // 100, 75 * r // 100), (62 * r // 100, 42 * r // 100)
    return _largest(_box(x, y, *outer), -_box(x, y, *inner))


def _cross(x: IntArray, y: IntArray, r: int) -> IntArray:
    return _smallest(_box(x, y, r, 28 * r // 100), _box(x, y, 28 * r // 100, r))


def _crescent(x: IntArray, y: IntArray, r: int) -> IntArray:
    return _largest(length(x, y) - r, 82 * r // 100 - length(x - r // 2, y))


def _fork(x: IntArray, y: IntArray, r: int) -> IntArray:
    handle = _box(x, y - r // 2, 9 * r // 100, r // 2)
    bridge = _box(x, y + r // 20, 42 * r // 100, r // 10)
    tines = [_box(x - k * 33 * r // 100, y + r // 2, 85 * r // 1000, r // 2) for k in (-1, 0, 1)]
    return _smallest(handle, bridge, *tines)


def _arrow(x: IntArray, y: IntArray, r: int) -> IntArray:
    shaft = _box(x + 35 * r // 100, y, 60 * r // 100, 16 * r // 100)
    eighth, _ = cosine_and_sine(STEPS // 8)
    head = _largest(15 * r // 100 - x, (x - 95 * r // 100 + abs(y)) * eighth // ONE)
    return _smallest(shaft, head)


SHAPES: dict[str, Callable[[IntArray, IntArray, int], IntArray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "frame": _frame,
    "cross": _cross,
    "crescent": _crescent,
    "fork": _fork,
    "arrow": _arrow,
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Position and size of a shape.

    Radius and centre are in 1/PX pixels, `height` and `width` of the image in pixels; the angle is in the form of
    `cosine_and_sine`.
    """

    shape: str
    radius: int
    centre_x: int
    centre_y: int
    cosine: int
    sine: int
    height: int
    width: int

    def distances(self) -> tuple[tuple[slice, slice], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The window of the shape. For the pixels of the window, also the signed distance from the outline, x and y,
        each int64 (h, w).
        """
        reach = 135 * self.radius // 100 + 2 * PX
        window = (
            slice(max(0, (self.centre_y - reach) // PX), min(self.height, (self.centre_y + reach) // PX + 1)),
            slice(max(0, (self.centre_x - reach) // PX), min(self.width, (self.centre_x + reach) // PX + 1)),
        )
        rows, columns = (side.astype(np.int64) * PX for side in np.ogrid[window])
        across, down = columns - self.centre_x, rows - self.centre_y
        x = (across * self.cosine + down * self.sine) // ONE
        y = (down * self.cosine - across * self.sine) // ONE
        return window, SHAPES[self.shape](x, y, self.radius), x, y


def _choose_place(draws: Draws, shape: str, size: str, height: int, width: int) -> _Place:
    low, high = RADIUS_PX[size]
    radius = draws.between(low * PX, high * PX)
    margin = 8 * radius // 10
    centre_x, centre_y = draws.between(margin, width * PX - margin), draws.between(margin, height * PX - margin)
    cosine, sine = cosine_and_sine(draws.between(-MOST_TURNED, MOST_TURNED))
    return _Place(shape, radius, centre_x, centre_y, cosine, sine, height, width)


def draw_objects(draws: Draws, height: int, width: int, count: int) -> tuple[NDArray[np.uint8], list[DrawnObject]]:
    """Paint up to `count` objects, back to front.

    Returns the image, uint8 (H, W, 3) RGB, and the objects with their visible masks. If an object would hide too much
    of another one, other positions are tried; after some attempts it is left out.
    """
    picture = _ground(draws, height, width)
    objects: list[DrawnObject] = []
    full_areas: list[int] = []
    areas: list[int] = []
    for _ in range(count):
        shape, colour, pattern, size = _choose_looks(draws, objects)
        for _attempt in range(12):
            place = _choose_place(draws, shape, size, height, width)
            # A centre on top of another would make every word about position ambiguous.
            if any(
                (o.centre_x - place.centre_x) ** 2 + (o.centre_y - place.centre_y) ** 2 <= (MIN_APART_PX * PX) ** 2
                for o in objects
            ):
                continue
            window, distance, x, y = place.distances()
            inside = distance <= 0
            left = [area - int((o.mask[window] & inside).sum()) for o, area in zip(objects, areas, strict=True)]
            in_sight = all(
                100 * seen >= MIN_VISIBLE_PERCENT * full for seen, full in zip(left, full_areas, strict=True)
            )
            if in_sight and inside.any():
                break
        else:
            continue
        _paint(draws, picture[window], distance, x, y, colour, pattern, place.radius)
        for o in objects:
            o.mask[window] &= ~inside
        mask = np.zeros((height, width), dtype=bool)
        mask[window] = inside
        objects.append(DrawnObject(shape, colour, pattern, size, place.centre_x, place.centre_y, mask))
        full_areas.append(int(inside.sum()))
        areas = [*left, full_areas[-1]]
    # Noise in brightness, not in colour, as in a camera image after denoising.
    picture += draws.normal(height * width, 4 * PX).reshape(height, width, 1)
    return np.clip((picture + PX // 2) // PX, 0, 255).astype(np.uint8), objects


def _choose_looks(draws: Draws, objects: list[DrawnObject]) -> tuple[str, str, str, str]:
    """Choose shape, colour, pattern and size. They are often similar to those of an existing object, so that only
    the expression tells the two apart.
    """
    shape, colour = draws.pick(list(SHAPES)), draws.pick(list(COLOURS))
    pattern = draws.pick(PATTERNS, (55, 15, 15, 15))
    size = draws.pick(SIZES, (25, 45, 30))
    if objects and draws.percent(60):
        model = draws.pick(objects)
        shape = model.shape
        if draws.percent(40):
            colour = model.colour
    return shape, colour, pattern, size


def _paint(
    draws: Draws,
    picture: IntArray,
    distance: IntArray,
    x: IntArray,
    y: IntArray,
    colour: str,
    pattern: str,
    radius: int,
) -> None:
    base = np.array(COLOURS[colour], np.int64) * PX + draws.normal(3, 7 * PX)
    # Dark objects get lighter marks, all others darker ones, so that the pattern shows on every colour.
    mark = base + 95 * PX if colour == "black" else base // 2
    period = min(max(36 * radius // 100, 6 * PX), 12 * PX)
    if pattern == "striped":
        marked = (x + y // 2) % period < period // 2
    elif pattern == "dotted":
        marked = length(x % period - period // 2, y % period - period // 2) < 32 * period // 100
    elif pattern == "checked":
        marked = (x % period < period // 2) ^ (y % period < period // 2)
    else:
        marked = np.zeros(x.shape, dtype=bool)
    # Lighter to the upper left, by at most 12 %.
    light = 100 * PX - 12 * PX * np.clip(x + y, -2 * radius, 2 * radius) // (2 * radius)
    surface = np.where(marked[..., None], mark, base) * light[..., None] // (100 * PX)
    alpha = np.clip(PX // 2 - distance, 0, PX)[..., None]
    picture += (surface - picture) * alpha // PX


def _ground(draws: Draws, height: int, width: int) -> IntArray:
    """A mottled greyish background with faint strokes, without colours that expressions use.

    int64 (H, W, 3), in 1/PX of a brightness level.
    """
    coarse = draws.normal(49, 16 * PX).reshape(7, 7)
    mottle = _weights(height, 7) @ coarse @ _weights(width, 7).T // (ONE * ONE)
    tone = draws.between(105 * PX, 170 * PX) + np.array([draws.between(-14 * PX, 14 * PX) for _ in range(3)])
    picture: IntArray = tone + mottle[..., None]
    for _ in range(draws.between(5, 11)):
        cosine, sine = cosine_and_sine(draws.below(STEPS // 2))
        # In 65,536ths of a pixel for each squared pixel of the length.
        bend = draws.between(-26, 262)
        half = draws.between(15 * PX, 90 * PX)
        along = half * (2 * np.arange(180, dtype=np.int64) - 179) // 179
        bent = bend * (along * along // PX) // (1 << 16)
        x = draws.below(width * PX) + (along * cosine + bent * sine) // ONE
        y = draws.below(height * PX) + (along * sine - bent * cosine) // ONE
        light = draws.pick((-30, -20, 20, 30))
        thickness = draws.between(1, 3)
        row, column = y // PX, x // PX
        seen = (column >= 0) & (column < width - thickness) & (row >= 0) & (row < height - thickness)
        offsets = [m * width + k for m in range(thickness) for k in range(thickness)]
        stroke = np.unique(np.add.outer(row[seen] * width + column[seen], offsets))
        picture.reshape(-1, 3)[stroke] += light * PX
    return picture


def _weights(size: int, points: int) -> IntArray:
    """Catmull-Rom weights of equally spaced points for each of `size` pixels, as integers, where ONE represents 1."""
    # Position of each pixel centre in units of points; each point is at the middle of its part of the row.
    at = ((2 * np.arange(size, dtype=np.int64) + 1) * points * ONE) // (2 * size) - ONE // 2
    before, t = at // ONE, at % ONE
    t2 = t * t // ONE
    t3 = t2 * t // ONE
    parts = [2 * t2 - t - t3, 2 * ONE - 5 * t2 + 3 * t3, t + 4 * t2 - 3 * t3, t3 - t2]
    out = np.zeros((size, points), np.int64)
    for k, part in enumerate(parts):
        place = np.clip(before + k - 1, 0, points - 1)
        np.add.at(out, (np.arange(size), place), part // 2)
    return out


def contours_of(mask: BoolArray) -> list[IntArray]:
    """The outlines of a mask, longest first. Each is int64 (N, 2), with rows and columns in half pixels.

    Each outline begins and ends at its topmost point; if there are several, at the leftmost of them. Outer outlines and
    holes have opposite directions.
    """
    found = []
    for contour in find_contours(np.pad(mask, 1).astype(np.float64), 0.5):
        # Points lie halfway between two pixels, so they are integers in half pixels; the padding is subtracted.
        points = np.rint(2 * contour).astype(np.int64)[:-1] - 2
        first = int(np.lexsort((points[:, 1], points[:, 0]))[0])
        points = np.roll(points, -first, axis=0)
        found.append(np.concatenate([points, points[:1]]))
    return sorted(found, key=lambda p: (-len(p), p[0].tolist()))


def hurried_polygons(draws: Draws, mask: BoolArray) -> list[list[float]]:
    """The outline that an annotator in a hurry would click: few vertices, slightly off, holes filled.

    Returns COCO polygons `[[x1, y1, x2, y2, ...], ...]` in pixels; none for an empty mask.
    """
    if not mask.any():
        return []
    # A twentieth of the square root of the area, at least one pixel and a half.
    tolerance = max(3 * PX // 2, int(root(np.array([PX * PX * int(np.count_nonzero(mask)) // 400]))[0]))
    polygons: list[list[float]] = []
    outer_sign = 0
    for contour in contours_of(mask):
        y, x = contour[:, 0], contour[:, 1]
        # Eight times the area in pixels: twice the area, in half pixels.
        signed = int((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())
        if polygons and (signed * outer_sign <= 0 or abs(signed) < 8 * 30):
            continue
        if not polygons:
            outer_sign = signed
        corners = contour[simplified(contour, tolerance, PX // 2)[:-1]]
        if len(corners) < 3:
            continue
        jitter = draws.normal(corners.size, 35 * tolerance // 100).reshape(corners.shape)
        # The corner of a pixel is half a pixel off its centre.
        polygons.append(polygon_of(corners * (PX // 2) + PX // 2 + jitter, mask.shape))
    if not polygons:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, bottom, left, right = (float(v) for v in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
        polygons.append([left, top, right, top, right, bottom, left, bottom])
    return polygons


def polygon_of(corners: IntArray, size: tuple[int, ...]) -> list[float]:
    """Convert vertices (row, column), int64 (N, 2) in units of 1/PX pixel, to a COCO polygon in pixels, rounded to
    quarters of a pixel.
    """
    height, width = size
    quarters = (corners + CORNER_PX // 2) // CORNER_PX
    flat = np.stack([np.clip(quarters[:, 1], 0, 4 * width), np.clip(quarters[:, 0], 0, 4 * height)], axis=1)
    polygon: list[float] = (flat / 4).ravel().tolist()
    return polygon
