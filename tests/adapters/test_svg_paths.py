"""Paths as pixels, against resvg, a renderer of SVG that shares no code with ours."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import resvg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from refbench.adapters.svg_paths import fill_path, path_outlines
from refbench.errors import MaskError

# As potrace writes: compact numbers, relative curves, holes that turn the other way, islands in the holes.
OUTER = "M.5.01C.771.01.99.229.99.5c0 .271-.219.49-.49.49C.229.99.01.771.01.5.01.229.229.01.5.01z"
HOLE = "M.5.2C.334.2.2.334.2.5c0 .166.134.3.3.3.166 0 .3-.134.3-.3 0-.166-.134-.3-.3-.3z"
ISLAND = "M.5.4c.055 0 .1.045.1.1 0 .055-.045.1-.1.1-.055 0-.1-.045-.1-.1 0-.055.045-.1.1-.1z"
LEAF = "M.02 1L.3.35Q.5-.02.98.03T.7.6L.4.98zM.45.5l.1.12.1-.1-.08-.11z"
STAR = "M.5 0L.8 1 0 .38H1L.2 1Z"
ARCS = "M.1.5A.4.3 20 1 1 .9.5a.4.2 0 0 1-.8 0zM.5.45v.1h.1V.45z"
FINER = 4


def rendered(path: str, box: tuple[float, float, float, float], rows: int, columns: int) -> NDArray[np.bool_]:
    """Coverage above one half, rendered four times as large: resvg's own edges are smoothed for the eye, and alone are
    as far from the exact coverage as ours are from them (0.991 to 0.999 on these paths)."""
    left, top, right, bottom = box
    height, width = FINER * rows, FINER * columns
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<g transform="translate({left * width} {top * height}) '
        f'scale({(right - left) * width} {(bottom - top) * height})"><path d="{path}"/></g></svg>'
    )
    tree = resvg.usvg.Tree.from_str(text, resvg.usvg.Options.default())
    png = resvg.render(tree, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    alpha = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))[..., 3].astype(float)
    return alpha.reshape(rows, FINER, columns, FINER).mean(axis=(1, 3)) > 127.5


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("path", [OUTER, OUTER + HOLE, OUTER + HOLE + ISLAND, LEAF, STAR, ARCS])
@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (480, 640, (0.1, 0.2, 0.9, 0.8)),
        (480, 640, (0.0, 0.0, 1.0, 1.0)),
        (1500, 1000, (0.31, 0.05, 0.47, 0.99)),
        (375, 500, (-0.1, 0.4, 0.6, 1.2)),
    ],
)
def test_agrees_with_another_renderer(
    path: str, height: int, width: int, box: tuple[float, float, float, float]
) -> None:
    ours = fill_path(path, box, height, width).to_array()
    assert ours.any()
    assert iou(ours, rendered(path, box, height, width)) >= 0.995


def test_holes_are_empty_and_islands_full() -> None:
    pixels = fill_path(OUTER + HOLE + ISLAND, (0, 0, 1, 1), 300, 300).to_array()
    assert pixels[150, 150]
    assert not pixels[150, 80]
    assert pixels[150, 20]
    assert not pixels[5, 5]


@pytest.mark.slow
@given(st.integers(3, 9), st.integers(0, 2**32 - 1), st.integers(20, 90), st.integers(20, 90))
@settings(max_examples=60, deadline=None)
def test_random_polygons_that_cross_themselves(corners: int, seed: int, height: int, width: int) -> None:
    """Against the winding number of samples, summed angle by angle: pixels that these leave no doubt about."""
    points = np.random.default_rng(seed).random((corners, 2)).round(3)
    path = "M" + "L".join(f"{x} {y}" for x, y in points) + "Z"
    ours = fill_path(path, (0, 0, 1, 1), height, width).to_array()
    grid = (np.arange(8) + 0.5) / 8
    ys = (np.arange(height)[:, None] + grid).reshape(-1)
    xs = (np.arange(width)[:, None] + grid).reshape(-1)
    total = np.zeros((len(ys), len(xs)))
    corner = points * (width, height)
    for a, b in zip(corner, np.roll(corner, -1, axis=0), strict=True):
        turn = np.arctan2(b[1] - ys[:, None], b[0] - xs[None]) - np.arctan2(a[1] - ys[:, None], a[0] - xs[None])
        total += (turn + math.pi) % (2 * math.pi) - math.pi
    inside = np.rint(total / (2 * math.pi)) != 0
    share = inside.reshape(height, 8, width, 8).mean(axis=(1, 3))
    clear = np.abs(share - 0.5) > 0.15
    assert np.array_equal(ours[clear], share[clear] > 0.5)


def test_sizes_and_places() -> None:
    assert fill_path("", (0, 0, 1, 1), 5, 5).area == 0
    assert fill_path("M0 0H1V1H0Z", (0, 0, 1, 1), 5, 7).area == 35
    assert fill_path("M0 0H1V1H0Z", (0.2, 0.2, 0.2, 0.9), 50, 50).area == 0
    assert fill_path("M0 0H1V1H0Z", (2, 2, 3, 3), 50, 50).area == 0
    assert fill_path("M-1-1H2V2H-1Z", (0, 0, 1, 1), 2500, 2000).area == 5_000_000
    assert len(path_outlines("M0 0L1 0L1 1M0 0L0 1L1 1z")) == 2
    # Not closed, several moves, numbers without gaps: all is said by the syntax.
    assert fill_path("m0,0 1,0 0,1-1,0", (0, 0, 1, 1), 8, 8).area == 64


@pytest.mark.parametrize(
    "path",
    ["M 0 0 C 1 2", "M0 0L1", "nonsense", "L 1 1", "M 0 0 L 1e999 0 L 1 1", "M 0 0 L nan 3 Z", "M0 0L5000 0L1 1Z"],
)
def test_broken_paths_are_refused(path: str) -> None:
    with pytest.raises(MaskError, match="path"):
        fill_path(path, (0, 0, 1, 1), 10, 10)


def test_boxes_that_are_none() -> None:
    for box in ((0.5, 0, 0.4, 1), (0, 0, float("nan"), 1), (0, 0, 1e9, 1)):
        with pytest.raises(MaskError, match=r"the box must be \[left"):
            fill_path("M0 0H1V1Z", box, 10, 10)
