"""Draws the pictures of the `scenes` dataset: textured shapes on a cluttered ground, with exact masks.

Every shape is a signed distance (negative inside, in pixels) evaluated at pixel centres. The mask is the
set of centres inside; the picture blends over one pixel at the outline. So the mask is not an annotation
of the picture: both come from the same formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

FloatArray = NDArray[np.float64]
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
RADIUS_PX = {"small": (13.0, 19.0), "medium": (26.0, 33.0), "large": (42.0, 56.0)}
CANVASES_PX = ((240, 320), (320, 240), (256, 256), (230, 345), (300, 300))
MIN_VISIBLE_SHARE = 0.6


@dataclass(frozen=True, eq=False)
class DrawnObject:
    """One object of a scene, as it is seen: `mask` is bool (H, W) without what others hide."""

    shape: str
    colour: str
    pattern: str
    size: str
    centre_x: float
    centre_y: float
    mask: BoolArray

    @cached_property
    def area(self) -> int:
        """Pixels in sight; ask when the scene is finished."""
        return int(np.count_nonzero(self.mask))


def _box(x: FloatArray, y: FloatArray, half_width: float, half_height: float) -> FloatArray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _circle(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return np.hypot(x, y) - r


def _square(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return _box(x, y, 0.84 * r, 0.84 * r)


def _half_planes(x: FloatArray, y: FloatArray, sides: int, inradius: float) -> FloatArray:
    angles = [2 * np.pi * k / sides + np.pi / 2 for k in range(sides)]
    planes = [x * np.cos(a) + y * np.sin(a) - inradius for a in angles]
    distance: FloatArray = np.maximum.reduce(planes)
    return distance


def _triangle(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return _half_planes(x, y, 3, 0.55 * r)


def _star(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    # Fold the plane into one wedge; the outline there is the line from the tip to the inner corner.
    wedge = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + wedge, 2 * wedge) - wedge)
    radius = np.hypot(x, y)
    inner_x, inner_y = 0.42 * r * np.cos(wedge), 0.42 * r * np.sin(wedge)
    length = np.hypot(r - inner_x, inner_y)
    normal_x, normal_y = inner_y / length, (r - inner_x) / length
    distance: FloatArray = (radius * np.cos(angle) - r) * normal_x + radius * np.sin(angle) * normal_y
    return distance


def _ring(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return np.abs(np.hypot(x, y) - 0.78 * r) - 0.22 * r


def _frame(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return np.maximum(_box(x, y, 0.95 * r, 0.75 * r), -_box(x, y, 0.62 * r, 0.42 * r))


def _cross(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return np.minimum(_box(x, y, r, 0.28 * r), _box(x, y, 0.28 * r, r))


def _crescent(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return np.maximum(np.hypot(x, y) - r, 0.82 * r - np.hypot(x - 0.5 * r, y))


def _fork(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    handle = _box(x, y - 0.5 * r, 0.09 * r, 0.5 * r)
    bridge = _box(x, y + 0.05 * r, 0.42 * r, 0.1 * r)
    tines = [_box(x - k * 0.33 * r, y + 0.5 * r, 0.085 * r, 0.5 * r) for k in (-1, 0, 1)]
    distance: FloatArray = np.minimum.reduce([handle, bridge, *tines])
    return distance


def _arrow(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    shaft = _box(x + 0.35 * r, y, 0.6 * r, 0.16 * r)
    head = np.maximum(0.15 * r - x, (x - 0.95 * r + np.abs(y)) / np.sqrt(2))
    distance: FloatArray = np.minimum(shaft, head)
    return distance


SHAPES: dict[str, Callable[[FloatArray, FloatArray, float], FloatArray]] = {
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


def draw_objects(
    random: np.random.Generator, height: int, width: int, count: int
) -> tuple[NDArray[np.uint8], list[DrawnObject]]:
    """Paint up to `count` objects, back to front.

    Returns the picture, uint8 (H, W, 3) RGB, and the objects with the masks that are left in sight. An
    object that would hide too much of another is tried elsewhere, and left out after some attempts.
    """
    picture = _ground(random, height, width)
    objects: list[DrawnObject] = []
    full_areas: list[int] = []
    areas: list[int] = []
    for _ in range(count):
        shape, colour, pattern, size = _choose_looks(random, objects)
        low, high = RADIUS_PX[size]
        for _attempt in range(12):
            radius = float(random.uniform(low, high))
            centre_x = float(random.uniform(0.8 * radius, width - 0.8 * radius))
            centre_y = float(random.uniform(0.8 * radius, height - 0.8 * radius))
            angle = float(random.uniform(-0.35, 0.35))
            # A centre on top of another would make every word about position ambiguous.
            if any(np.hypot(o.centre_x - centre_x, o.centre_y - centre_y) <= 24 for o in objects):
                continue
            reach = 1.35 * radius + 2
            window = (
                slice(max(0, int(centre_y - reach)), min(height, int(centre_y + reach) + 1)),
                slice(max(0, int(centre_x - reach)), min(width, int(centre_x + reach) + 1)),
            )
            rows, columns = np.ogrid[window]
            x = (columns - centre_x) * np.cos(angle) + (rows - centre_y) * np.sin(angle)
            y = (rows - centre_y) * np.cos(angle) - (columns - centre_x) * np.sin(angle)
            distance = SHAPES[shape](x, y, radius)
            inside = distance <= 0
            left = [area - int((o.mask[window] & inside).sum()) for o, area in zip(objects, areas, strict=True)]
            in_sight = all(seen >= MIN_VISIBLE_SHARE * full for seen, full in zip(left, full_areas, strict=True))
            if in_sight and inside.any():
                break
        else:
            continue
        _paint(random, picture[window], distance, x, y, colour, pattern, radius)
        for o in objects:
            o.mask[window] &= ~inside
        mask = np.zeros((height, width), dtype=bool)
        mask[window] = inside
        objects.append(DrawnObject(shape, colour, pattern, size, centre_x, centre_y, mask))
        full_areas.append(int(inside.sum()))
        areas = [*left, full_areas[-1]]
    # Noise of brightness, not of colour, as a camera's after its own clean-up.
    picture += 4.0 * random.standard_normal((height, width, 1), dtype=np.float32)
    np.clip(picture, 0, 255, out=picture)
    return np.rint(picture, out=picture).astype(np.uint8), objects


def _choose_looks(random: np.random.Generator, objects: list[DrawnObject]) -> tuple[str, str, str, str]:
    """Often a look-alike of an object that is there already: that is what makes expressions necessary."""
    shape = str(random.choice(list(SHAPES)))
    colour = str(random.choice(list(COLOURS)))
    pattern = str(random.choice(PATTERNS, p=[0.55, 0.15, 0.15, 0.15]))
    size = str(random.choice(SIZES, p=[0.25, 0.45, 0.3]))
    if objects and random.random() < 0.6:
        model = objects[int(random.integers(len(objects)))]
        shape = model.shape
        if random.random() < 0.4:
            colour = model.colour
    return shape, colour, pattern, size


def _paint(
    random: np.random.Generator,
    picture: NDArray[np.float32],
    distance: FloatArray,
    x: FloatArray,
    y: FloatArray,
    colour: str,
    pattern: str,
    radius: float,
) -> None:
    base = np.array(COLOURS[colour], dtype=np.float64) + random.normal(0, 7, 3)
    # Dark objects get lighter marks, all others darker ones, so that the pattern shows on every colour.
    mark = base + 95 if colour == "black" else base * 0.5
    period = float(np.clip(radius * 0.36, 6, 12))
    if pattern == "striped":
        marked = np.mod(x + 0.5 * y, period) < period / 2
    elif pattern == "dotted":
        marked = np.hypot(np.mod(x, period) - period / 2, np.mod(y, period) - period / 2) < 0.32 * period
    elif pattern == "checked":
        marked = (np.mod(x, period) < period / 2) ^ (np.mod(y, period) < period / 2)
    else:
        marked = np.zeros(x.shape, dtype=bool)
    light = 1 + 0.12 * np.clip(-(x + y) / (2 * radius), -1, 1)
    surface = np.where(marked[..., None], mark, base) * light[..., None]
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    picture *= 1 - alpha
    picture += alpha * surface


def _ground(random: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """A mottled, greyish ground with faint strokes: clutter without a colour that an expression names."""
    coarse = Image.fromarray(random.normal(0, 1, (7, 7)).astype(np.float32))
    mottle = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    tone = np.array([random.uniform(105, 170)] * 3) + random.uniform(-14, 14, 3)
    picture = (tone + 16.0 * mottle[..., None]).astype(np.float32)
    for _ in range(int(random.integers(5, 12))):
        angle, bend = random.uniform(0, np.pi), random.uniform(-4e-4, 4e-3)
        along = np.linspace(-1, 1, 180) * random.uniform(15, 90)
        x = random.uniform(0, width) + along * np.cos(angle) + bend * along**2 * np.sin(angle)
        y = random.uniform(0, height) + along * np.sin(angle) - bend * along**2 * np.cos(angle)
        light = random.choice([-30, -20, 20, 30])
        thickness = int(random.integers(1, 4))
        seen = (x >= 0) & (x < width - thickness) & (y >= 0) & (y < height - thickness)
        row, column = y[seen].astype(int), x[seen].astype(int)
        offsets = [m * width + k for m in range(thickness) for k in range(thickness)]
        stroke = np.unique(np.add.outer(row * width + column, offsets))
        picture.reshape(-1, 3)[stroke] += light
    return picture


def hurried_polygons(random: np.random.Generator, mask: BoolArray) -> list[list[float]]:
    """The outline that an annotator in a hurry would click: few corners, a little off, holes filled.

    Returns COCO polygons `[[x1, y1, x2, y2, ...], ...]` in pixels; none for an empty mask.
    """
    if not mask.any():
        return []
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    padded = np.pad(mask[top:bottom, left:right], 1)
    contours = sorted(find_contours(padded.astype(np.float64), 0.5), key=len, reverse=True)
    tolerance = max(1.5, 0.05 * float(np.sqrt(mask.sum())))
    height, width = mask.shape
    polygons: list[list[float]] = []
    outer_sign = 0.0
    for contour in contours:
        # skimage closes outer contours in one direction; a signed area tells an outline from a hole.
        y, x = contour[:, 0], contour[:, 1]
        signed_area = 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
        if polygons and (signed_area * outer_sign <= 0 or abs(signed_area) < 30):
            continue
        if not polygons:
            outer_sign = signed_area
        corners = approximate_polygon(contour, tolerance)[:-1]
        if len(corners) < 3:
            continue
        corners = corners + np.array([top - 0.5, left - 0.5]) + random.normal(0, 0.35 * tolerance, corners.shape)
        flat = np.empty(2 * len(corners))
        flat[0::2] = np.clip(corners[:, 1], 0, width)
        flat[1::2] = np.clip(corners[:, 0], 0, height)
        polygons.append([round(float(v), 1) for v in flat])
    if not polygons:
        polygons.append([float(v) for v in (left, top, right, top, right, bottom, left, bottom)])
    return polygons
