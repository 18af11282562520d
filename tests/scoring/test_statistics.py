"""Intervals, tests and corrections: against plain restatements, scipy and textbook values; repeatable to the bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from refbench.scoring.statistics.bootstrap import BCA, PERCENTILE, ImageSums, image_codes, intervals, sums_by_image
from refbench.scoring.statistics.paired import (
    as_pair,
    difference_intervals,
    difference_replicates,
    difference_standard_errors,
    equivalence_p_values,
    permutation_p_values,
    standard_errors,
)
from refbench.scoring.statistics.power import holm, smallest_detectable, standard_error_against


def sums(top: np.ndarray, bottom: np.ndarray, images: np.ndarray, when_empty: float = 1.0) -> ImageSums:
    return sums_by_image(np.atleast_2d(top), np.atleast_2d(bottom), images, int(images.max()) + 1, when_empty)


def test_against_a_plain_cluster_bootstrap() -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 40, 300)
    top, bottom = random.random(300), 1 + random.random(300)
    low, high = intervals(sums(top, bottom, images), replicates=4000)
    plain = []
    for _ in range(4000):
        drawn = random.integers(0, 40, 40)
        rows = np.concatenate([np.flatnonzero(images == d) for d in drawn])
        plain.append(top[rows].sum() / bottom[rows].sum())
    assert np.allclose([low[0], high[0]], np.percentile(plain, [2.5, 97.5]), atol=0.004)


@pytest.mark.parametrize("method", [PERCENTILE, BCA])
def test_against_scipy(method: str) -> None:
    # One sample per image and a mean: the case that scipy's bootstrap knows. Skewed, so that BCa has something to mend.
    values = np.random.default_rng(4).exponential(1.0, 60)
    low, high = intervals(sums(values, np.ones(60), np.arange(60)), method, replicates=20_000)
    theirs = stats.bootstrap((values,), np.mean, method=method, n_resamples=20_000, rng=np.random.default_rng(5))
    expected = theirs.confidence_interval
    assert np.allclose([low[0], high[0]], [expected.low, expected.high], atol=0.012)


def test_bca_of_a_ratio_against_its_definition() -> None:
    random = np.random.default_rng(6)
    top, bottom = random.exponential(1, 50), 1 + random.exponential(1, 50)
    low, high = intervals(sums(top, bottom, np.arange(50)), BCA, replicates=20_000)

    def ratio(t: np.ndarray, b: np.ndarray) -> float:
        return float(t.sum() / b.sum())

    value = ratio(top, bottom)
    rows = random.integers(0, 50, (20_000, 50))
    found = top[rows].sum(axis=1) / bottom[rows].sum(axis=1)
    bias = stats.norm.ppf((found < value).mean())
    left = np.array([ratio(np.delete(top, k), np.delete(bottom, k)) for k in range(50)])
    moved = left.mean() - left
    skew = (moved**3).sum() / (6 * (moved**2).sum() ** 1.5)
    shares = [stats.norm.cdf(bias + (bias + z) / (1 - skew * (bias + z))) for z in stats.norm.ppf([0.025, 0.975])]
    assert np.allclose([low[0], high[0]], np.quantile(found, shares), atol=0.006)


def test_neither_the_order_of_rows_nor_threads_move_a_bit() -> None:
    random = np.random.default_rng(7)
    names = [f"image {k}" for k in random.integers(0, 300, 5000)]
    terms = [random.random((5, 5000)) for _ in range(2)] + [random.random((5, 5000)) + 0.1 for _ in range(2)]

    def everything(order: np.ndarray) -> list[np.ndarray]:
        codes, count = image_codes([names[k] for k in order])
        a, b = (sums_by_image(t[:, order], u[:, order], codes, count, 0.0) for t, u in (terms[::2], terms[1::2]))
        pair = as_pair(a, b)
        found = difference_replicates(pair)
        return [
            *intervals(a),
            *intervals(a, BCA),
            *difference_intervals(pair, found, BCA),
            permutation_p_values(pair),
            equivalence_p_values(found, 0.01),
        ]

    first, second = everything(np.arange(5000)), everything(random.permutation(5000))
    for x, y in zip(first, second, strict=True):
        assert np.array_equal(x, y)


def test_large_counts_are_exact() -> None:
    # A hundred thousand images of the largest size: every partial sum is still an integer that float64 holds.
    images = np.arange(100_000)
    areas = np.full(100_000, 2.0**28)
    found = sums(areas, areas, images)
    assert found.top.max() * 100_000 < 2.0**53
    assert found.values()[0] == 1.0


def test_one_image_and_empty_ratios() -> None:
    images = np.zeros(4, np.int64)
    for method in (PERCENTILE, BCA):
        low, high = intervals(sums(np.ones(4), np.full(4, 2.0), images), method)
        assert (low[0], high[0]) == (0.5, 0.5)
        low, high = intervals(sums(np.zeros(4), np.zeros(4), images), method)
        assert (low[0], high[0]) == (1.0, 1.0)


def test_image_codes_number_by_name() -> None:
    codes, count = image_codes(["b", "a", "b", "c"])
    assert (codes.tolist(), count) == ([1, 0, 1, 2], 3)


def test_permutations_against_all_of_them() -> None:
    random = np.random.default_rng(8)
    tops, bottoms = random.integers(1, 50, (2, 9)).astype(float), random.integers(50, 90, (2, 9)).astype(float)
    images = np.arange(9)
    found = permutation_p_values(as_pair(sums(tops[0], bottoms[0], images), sums(tops[1], bottoms[1], images)), 50_000)
    observed = abs(tops[1].sum() / bottoms[1].sum() - tops[0].sum() / bottoms[0].sum())
    extreme = 0
    for sides in itertools.product((0, 1), repeat=9):
        s = np.array(sides)
        t = [tops[s, images].sum(), tops[1 - s, images].sum()]
        b = [bottoms[s, images].sum(), bottoms[1 - s, images].sum()]
        extreme += abs(t[1] / b[1] - t[0] / b[0]) >= observed - 1e-12
    assert found[0] == pytest.approx(extreme / 2**9, abs=0.008)


def test_equal_runs_differ_in_nothing() -> None:
    random = np.random.default_rng(9)
    top, images = random.random(100), np.repeat(np.arange(20), 5)
    same = sums(top, np.ones(100), images)
    pair = as_pair(same, same)
    found = difference_replicates(pair)
    assert not found.any()
    assert permutation_p_values(pair)[0] == 1.0
    assert equivalence_p_values(found, 0.001)[0] < 0.001
    assert difference_standard_errors(pair)[0] == 0.0


def test_equivalence_is_the_90_percent_interval() -> None:
    random = np.random.default_rng(10)
    found = random.normal(0.4, 0.3, (1, 9999))
    low, high = np.percentile(found, [5, 95], axis=1)
    just_outside, just_inside = max(-low[0], high[0]) + 0.005, max(-low[0], high[0]) - 0.005
    assert equivalence_p_values(found, just_outside)[0] < 0.05 < equivalence_p_values(found, just_inside)[0]


def test_standard_errors_of_a_mean_are_the_textbooks() -> None:
    values = np.random.default_rng(11).normal(0.5, 0.2, 80)
    found = standard_errors(sums(values, np.ones(80), np.arange(80)))
    assert found[0] == pytest.approx(values.std(ddof=1) / np.sqrt(80), rel=1e-9)


def test_power_and_corrections_are_the_textbooks() -> None:
    # 1.96 + 0.84 standard errors are found four times out of five.
    assert smallest_detectable(1.0) == pytest.approx(2.80159, abs=1e-5)
    assert standard_error_against(1.0, 0.5) == pytest.approx(1.0)
    assert standard_error_against(1.0, 1.0) == 0.0
    # Holm's own example of its paper: 0.01, 0.02, 0.03 and 0.04 of four hypotheses.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
