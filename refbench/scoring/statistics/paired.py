"""Two runs on the same samples: differences with intervals, a permutation test, and a test of equivalence.

The unit is always the image, as in `bootstrap`: both runs are resampled together, and a permutation swaps whole images
between the runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refbench.scoring.statistics.bootstrap import (
    BLOCK_DRAWS,
    CONFIDENCE,
    PERCENTILE,
    REPLICATES,
    SEED,
    FloatArray,
    ImageSums,
    draws,
    limits,
)

PERMUTATIONS = 4999
# Two figures that differ by rounding alone are equal.
SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Pair:
    """The sums of M metrics of two runs over the same images, with the same scale."""

    first: ImageSums
    second: ImageSums

    def differences(self) -> FloatArray:
        """Second minus first, (M,)."""
        found: FloatArray = self.second.values() - self.first.values()
        return found


def as_pair(first: ImageSums, second: ImageSums) -> Pair:
    """Convert the integers of two runs to one scale, so that images can be swapped between the runs."""
    top = np.minimum(first.scale_top, second.scale_top)
    bottom = np.minimum(first.scale_bottom, second.scale_bottom)
    return Pair(_on_scale(first, top, bottom), _on_scale(second, top, bottom))


def _on_scale(sums: ImageSums, top: FloatArray, bottom: FloatArray) -> ImageSums:
    return ImageSums(
        np.rint(sums.top * (top / sums.scale_top)[:, None]),
        np.rint(sums.bottom * (bottom / sums.scale_bottom)[:, None]),
        top,
        bottom,
        sums.when_empty,
    )


def difference_replicates(pair: Pair, replicates: int = REPLICATES, seed: int = SEED) -> FloatArray:
    """Differences (M, R) in resamples of the images, which are the same for both runs."""
    blocks = [pair.second.replicates(w) - pair.first.replicates(w) for w in draws(pair.first.images, replicates, seed)]
    return np.concatenate(blocks, axis=1)


def difference_intervals(
    pair: Pair, found: FloatArray, method: str = PERCENTILE, confidence: float = CONFIDENCE
) -> tuple[FloatArray, FloatArray]:
    """Intervals (low, high), each (M,), from `found`, the replicates that `difference_replicates` returns."""
    without_each = pair.second.without_each() - pair.first.without_each()
    return limits(found, method, confidence, pair.differences(), without_each)


def permutation_p_values(pair: Pair, permutations: int = PERMUTATIONS, seed: int = SEED) -> FloatArray:
    """Two-sided p-values (M,) of the hypothesis that the runs are exchangeable.

    Each permutation decides at random which images are swapped. Source: the sign-flip test of Edgington & Onghena,
    Randomization Tests, 2007, with ratios instead of means.
    """
    first, second = pair.first, pair.second
    top_total = first.top.sum(axis=1) + second.top.sum(axis=1)
    bottom_total = first.bottom.sum(axis=1) + second.bottom.sum(axis=1)
    observed = np.abs(pair.differences()) * (1 - SLACK) - SLACK
    as_large = np.zeros(len(observed))
    for coins in _coins(first.images, permutations, seed):
        top = first.top.sum(axis=1)[:, None] + (second.top - first.top) @ coins.T
        bottom = first.bottom.sum(axis=1)[:, None] + (second.bottom - first.bottom) @ coins.T
        there = second.ratio(top_total[:, None] - top, bottom_total[:, None] - bottom)
        as_large += (np.abs(there - first.ratio(top, bottom)) >= observed[:, None]).sum(axis=1)
    p_values: FloatArray = (1 + as_large) / (1 + permutations)
    return p_values


def _coins(images: int, permutations: int, seed: int) -> Iterator[FloatArray]:
    random = np.random.default_rng(seed)
    block = max(1, BLOCK_DRAWS // max(1, images))
    for start in range(0, permutations, block):
        rows = min(block, permutations - start)
        yield random.integers(0, 2, size=(rows, images), dtype=np.int8).astype(np.float64)


def equivalence_p_values(found: FloatArray, margin: float) -> FloatArray:
    """P-values (M,) of the hypothesis that a difference is at least `margin` in either direction; a small p-value means
    that the runs are equivalent.

    Two one-sided tests on the replicates `found` (M, R). The p-value is below 0.05 exactly if the 90 % percentile
    interval is inside -margin..margin. Source: Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    above = (1 + (found >= margin).sum(axis=1)) / (1 + found.shape[1])
    below = (1 + (found <= -margin).sum(axis=1)) / (1 + found.shape[1])
    p_values: FloatArray = np.maximum(above, below)
    return p_values


def standard_errors(sums: ImageSums) -> FloatArray:
    """Standard error of each metric (M,), from its linear approximation over images (delta method)."""
    return _spread(_influence(sums))


def difference_standard_errors(pair: Pair) -> FloatArray:
    """Standard error of each difference (M,), from the paired images, so that variation common to both runs cancels
    out.
    """
    return _spread(_influence(pair.second) - _influence(pair.first))


def _influence(sums: ImageSums) -> FloatArray:
    top, bottom = sums.top / sums.scale_top[:, None], sums.bottom / sums.scale_bottom[:, None]
    total = bottom.sum(axis=1, keepdims=True)
    moved: FloatArray = (top - sums.values()[:, None] * bottom) / np.where(total > 0, total, 1)
    return moved


def _spread(influence: FloatArray) -> FloatArray:
    images = influence.shape[1]
    if images < 2:
        return np.full(len(influence), np.nan)
    centred = influence - influence.mean(axis=1, keepdims=True)
    found: FloatArray = np.sqrt((centred**2).sum(axis=1) * images / (images - 1))
    return found
