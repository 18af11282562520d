"""Converts SVG paths to masks, for models that write an outline instead of pixels.

Source of the syntax and of the filling rule: W3C, Scalable Vector Graphics 2, sections 9.3 and 13.4.2.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import svgelements
from numpy.typing import NDArray

from refbench.errors import MaskError
from refbench.masks.mask import Mask
from refbench.masks.rle import check_size

# Straight pieces of a curve, and lines across each row of pixels along which coverage is exact.
PIECES = 24
LINES = 32
LONGEST_PATH = 1_000_000
PATH = re.compile(r"\s*|\s*[Mm][MmLlHhVvCcSsQqTtAaZzEe0-9.,+\s-]*")
# A model may draw a little beyond its box; what lies further out is nonsense.
FARTHEST = 100.0


def path_outlines(path: str) -> list[NDArray[np.float64]]:
    """The closed outlines of an SVG path: float (N, 2) each, x and y in the units of the path.

    Curves are approximated by straight lines.

    Raises:
        MaskError: the path cannot be read completely, or a coordinate is not a number or not in
            -100..100.
    """
    if len(path) > LONGEST_PATH:
        raise MaskError(f"the SVG path has {len(path)} characters; the maximum is {LONGEST_PATH}")
    if not PATH.fullmatch(path):
        raise MaskError(f"{path[:60]!r} is not valid SVG path data")
    try:
        segments: list[Any] = list(svgelements.Path(path))
    except (ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise MaskError(f"the SVG path {path[:60]!r} cannot be read ({type(error).__name__}: {error})") from None
    outlines: list[list[NDArray[np.float64]]] = []
    along = np.linspace(0.0, 1.0, PIECES + 1)[1:]
    for segment in segments:
        if isinstance(segment, svgelements.Move):
            outlines.append([np.array([[segment.end.x, segment.end.y]], float)])
        elif not outlines:
            raise MaskError(f"the SVG path {path[:60]!r} does not begin with a move command")
        elif isinstance(segment, (svgelements.Line, svgelements.Close)):
            if segment.end is not None:
                outlines[-1].append(np.array([[segment.end.x, segment.end.y]], float))
        else:
            outlines[-1].append(np.array([[p.x, p.y] for p in map(segment.point, along)], float))
    made = [np.concatenate(parts) for parts in outlines]
    for outline in made:
        if not np.isfinite(outline).all() or np.abs(outline).max() > FARTHEST:
            raise MaskError(
                f"the SVG path {path[:60]!r} has a coordinate that is not a number or is outside "
                f"-{FARTHEST:g}..{FARTHEST:g}"
            )
    return made


def fill_path(path: str, box: tuple[float, float, float, float], height: int, width: int) -> Mask:
    """The mask of all pixels that are more than half covered by a path.

    Args:
        path: SVG path data in units of the box: (0, 0) is its upper left corner and (1, 1) is its lower right corner.
        box: x and y of both corners, as shares of the width and height of the image.
        height, width: size of the image in pixels.

    The filling rule is the default of SVG, "nonzero": subpaths with the opposite direction are holes. The coverage is
    exact along 32 lines through each row of pixels. Every outline is closed, even if the path does not close it.

    Raises:
        MaskError: the path cannot be read (see `path_outlines`), or the box is invalid.
    """
    check_size(height, width)
    left, top, right, bottom = box
    if not (np.isfinite(box).all() and left <= right and top <= bottom and np.abs(box).max() <= FARTHEST):
        raise MaskError(
            "the box must be [left, top, right, bottom] in fractions of the image size, with left <= right and "
            f"top <= bottom, got {box}"
        )
    scale = np.array([(right - left) * width, (bottom - top) * height])
    corner = np.array([left * width, top * height])
    outlines = [corner + outline * scale for outline in path_outlines(path)]
    pixels = np.zeros((height, width), bool)
    if not outlines:
        return Mask.from_array(pixels)
    edges = np.concatenate([np.hstack([o, np.roll(o, -1, axis=0)]) for o in outlines])
    return Mask.from_array(_coverage(edges, height, width) > 0.5)


def _coverage(edges: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """The covered share of each pixel, float (H, W); `edges` are x, y, x, y in pixels and form closed outlines.

    Along each scan line, from left to right, every edge changes the winding number by one. A point is inside where the
    number is not zero. An edge covers the scan lines from its upper end (included) to its lower end (excluded), so a
    corner counts once.
    """
    lines = height * LINES
    ya, yb = (edges[:, k] * LINES - 0.5 for k in (1, 3))
    first = np.clip(np.ceil(np.minimum(ya, yb)), 0, lines).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(ya, yb)), 0, lines).astype(np.int64)
    count = last - first
    edge = np.repeat(np.arange(len(edges)), count)
    line = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    share = (line - ya[edge]) / (yb - ya)[edge]
    x = edges[edge, 0] + share * (edges[edge, 2] - edges[edge, 0])
    order = np.lexsort((x, line))
    # Outlines are closed, so every line ends at zero, where the next one begins.
    after = np.cumsum(np.where(yb > ya, 1, -1)[edge][order])
    before = np.concatenate([[0], after[:-1]])
    enters, leaves = (before == 0) & (after != 0), (before != 0) & (after == 0)
    # A change of coverage at x is spread over the two columns beside it; summed up from the left it is exact.
    change = np.zeros((height, width + 2))
    for where, sign in ((enters, 1.0), (leaves, -1.0)):
        at, row = np.clip(x[order][where], 0, width), line[order][where] // LINES
        column = np.floor(at).astype(np.int64)
        np.add.at(change, (row, column), sign * (column + 1 - at))
        np.add.at(change, (row, column + 1), sign * (at - column))
    covered: NDArray[np.float64] = np.cumsum(change, axis=1)[:, :width] / LINES
    return covered
