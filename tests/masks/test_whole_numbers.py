"""Draws and geometry in whole numbers: the same everywhere, and near what they stand for."""

from __future__ import annotations

import hashlib
import itertools
import math
import platform

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refbench import Mask
from refbench.masks.whole_numbers import ONE, STEPS, Draws, cosine_and_sine, length, root, simplified, whole


def test_no_cosine_is_decided_by_a_last_digit() -> None:
    for step in range(STEPS):
        angle = 2 * math.pi * step / STEPS
        for value, found in zip((math.cos(angle), math.sin(angle)), cosine_and_sine(step), strict=True):
            assert abs(found - ONE * value) < 0.4999
            assert abs(ONE * value % 1 - 0.5) > 1e-6
    assert cosine_and_sine(STEPS // 4) == (0, ONE)
    assert cosine_and_sine(-STEPS // 4) == (0, -ONE)


def test_roots_are_whole_parts() -> None:
    near = np.arange(1 << 12, dtype=np.int64) + (1 << 24)
    for squares in (near * near - 1, near * near, near * near + 1, np.arange(1 << 12, dtype=np.int64)):
        assert root(squares).tolist() == [math.isqrt(v) for v in squares.tolist()]
    assert length(np.array([3, -5]), np.array([4, 12])).tolist() == [5, 13]
    assert [whole(v) for v in (0, ONE // 2, ONE // 2 - 1, -ONE // 2, -ONE // 2 - 1)] == [0, 1, 0, 0, -1]


def test_draws_are_those_of_every_machine() -> None:
    # Golden: whatever is rendered hangs on them.
    draws = Draws(7, 3)
    assert [draws.below(1000) for _ in range(6)] == [975, 884, 231, 731, 405, 804]
    assert draws.shuffled("abcdef") == list("baedcf")
    assert draws.normal(4, 256).tolist() == [-192, 64, 128, 384]
    assert [Draws(7, 4).below(1000) for _ in range(2)] != [Draws(7, 3).below(1000) for _ in range(2)]


def test_draws_are_spread_as_they_say() -> None:
    draws = Draws(1)
    normal = draws.normal(40_000, 1000)
    assert abs(normal.mean()) < 20
    assert normal.std() == pytest.approx(1000, rel=0.02)
    assert {draws.between(-2, 2) for _ in range(200)} == {-2, -1, 0, 1, 2}
    assert sum(draws.percent(30) for _ in range(4000)) == pytest.approx(1200, rel=0.1)
    picks = [draws.pick("ab", (3, 1)) for _ in range(4000)]
    assert picks.count("a") == pytest.approx(3000, rel=0.05)
    forks = draws.fork(), draws.fork()
    assert forks[0].below(1 << 60) != forks[1].below(1 << 60)


def distance_to_line(point: np.ndarray, corners: np.ndarray) -> float:
    out = math.inf
    for a, b in itertools.pairwise(corners):
        along = b - a
        t = min(1.0, max(0.0, float((point - a) @ along) / max(1.0, float(along @ along))))
        out = min(out, float(np.hypot(*(point - a - t * along))))
    return out


@pytest.mark.parametrize("seed", range(20))
def test_no_corner_that_is_left_out_lies_far_off(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(-40, 40, (60, 2)).cumsum(axis=0)
    if seed % 2:
        points = np.concatenate([points, points[:1]])
    kept = simplified(points, 300, 10)
    assert kept[0] == 0
    assert kept[-1] == len(points) - 1
    assert max(distance_to_line(p, points[kept]) for p in points) <= 30.0 + 1e-9
    assert simplified(points * 3, 900, 10) == kept


def random_polygons(seed: int, count: int) -> list[tuple[list[list[float]], int, int]]:
    """Polygons as datasets have them: hundredths and whole numbers, corners outside, lines that fold back."""
    draws = Draws(seed)
    out = []
    for _ in range(count):
        height, width = draws.between(1, 90), draws.between(1, 90)
        unit = draws.pick((1, 2, 100, 4096))
        parts = []
        for _part in range(draws.between(1, 2)):
            corners = [
                (draws.between(-20 * unit, (width + 20) * unit) / unit, draws.between(0, height * unit) / unit)
                for _ in range(draws.between(3, 9))
            ]
            parts.append([float(v) for corner in corners for v in corner])
        out.append((parts, height, width))
    return out


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="pycocotools draws otherwise here")
def test_polygons_have_the_pixels_of_pycocotools() -> None:
    for polygons, height, width in random_polygons(5, 4000):
        peer = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"]
        assert Mask.from_polygons(polygons, height, width).counts == peer, (polygons, height, width)


def test_polygons_have_the_same_pixels_everywhere() -> None:
    drawn = hashlib.sha256()
    for polygons, height, width in random_polygons(6, 4000):
        drawn.update(Mask.from_polygons(polygons, height, width).counts + b"\n")
    assert drawn.hexdigest()[:16] == "aebcead2ea9fab7c"
