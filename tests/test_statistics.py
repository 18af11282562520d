"""Intervals: against a plain bootstrap, repeatable, and covering what they promise."""

from __future__ import annotations

import numpy as np

from refbench.statistics.bootstrap import image_codes, ratio_intervals


def test_against_a_plain_cluster_bootstrap() -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 40, 300)
    top, bottom = random.random(300), 1 + random.random(300)
    low, high = ratio_intervals(top[None], bottom[None], images, 40, 1.0, replicates=4000)
    plain = []
    for _ in range(4000):
        drawn = random.integers(0, 40, 40)
        rows = np.concatenate([np.flatnonzero(images == d) for d in drawn])
        plain.append(top[rows].sum() / bottom[rows].sum())
    expected = np.percentile(plain, [2.5, 97.5])
    assert np.allclose([low[0], high[0]], expected, atol=0.004)


def test_bits_do_not_depend_on_blocks(monkeypatch: object) -> None:
    random = np.random.default_rng(4)
    images = np.repeat(np.arange(50), 4)
    values, ones = random.random((3, 200)), np.ones((3, 200))
    first = ratio_intervals(values, ones, images, 50, 1.0)
    second = ratio_intervals(values, ones, images, 50, 1.0)
    assert np.array_equal(first, second)


def test_one_image_and_empty_ratios() -> None:
    images = np.zeros(4, np.int64)
    low, high = ratio_intervals(np.ones((1, 4)), np.full((1, 4), 2.0), images, 1, 1.0)
    assert (low[0], high[0]) == (0.5, 0.5)
    low, high = ratio_intervals(np.zeros((1, 4)), np.zeros((1, 4)), images, 1, 1.0)
    assert (low[0], high[0]) == (1.0, 1.0)


def test_coverage_is_near_what_is_promised() -> None:
    """Of 300 simulated benchmarks with correlated expressions, about 95 % of the intervals hold the truth."""
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        difficulty = random.normal(0.6, 0.15, 120)
        values = np.repeat(difficulty, 5) + random.normal(0, 0.1, 600)
        images = np.repeat(np.arange(120), 5)
        low, high = ratio_intervals(values[None], np.ones((1, 600)), images, 120, 1.0, replicates=400)
        hits += int(low[0] <= 0.6 <= high[0])
    assert 0.90 <= hits / 300 <= 0.985


def test_image_codes_number_by_first_appearance() -> None:
    codes, count = image_codes(["b", "a", "b", "c"])
    assert (codes.tolist(), count) == ([0, 1, 0, 2], 3)
