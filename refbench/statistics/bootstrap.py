"""Bootstrap intervals for ratios of sums, resampled by image.

Expressions of one image share its difficulty, so they are not independent: images are drawn, with all their
expressions (a cluster bootstrap; Efron & Tibshirani 1993, chapter 8). Since every metric is a ratio of two
sums, a replicate needs the sums of each image and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REPLICATES = 1000
SEED = 20_260_102
CONFIDENCE = 0.95
# Replicates drawn at a time: bounds the memory for large splits.
BLOCK_DRAWS = 500_000


def image_codes(image_ids: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Number images by first appearance: int64 (N,) and how many there are."""
    codes: dict[str, int] = {}
    out = np.fromiter((codes.setdefault(i, len(codes)) for i in image_ids), np.int64, len(image_ids))
    return out, len(codes)


def ratio_intervals(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    images: NDArray[np.int64],
    image_count: int,
    when_empty: float,
    replicates: int = REPLICATES,
    seed: int = SEED,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % percentile intervals of M metrics, each sum(numerator) / sum(denominator).

    Args:
        numerators, denominators: float64 (M, N), one row a metric.
        images: int64 (N,) with values in 0..image_count-1.
        when_empty: value of a replicate whose denominator is zero.

    Returns:
        (low, high), float64 (M,). The same arguments give the same bits: sums are taken in one fixed order.
    """
    metrics = numerators.shape[0]
    top = np.stack([np.bincount(images, row, image_count) for row in numerators])
    bottom = np.stack([np.bincount(images, row, image_count) for row in denominators])
    random = np.random.default_rng(seed)
    values = np.empty((metrics, replicates))
    block = max(1, BLOCK_DRAWS // max(1, image_count))
    for first in range(0, replicates, block):
        rows = min(block, replicates - first)
        drawn = random.integers(0, image_count, size=(rows, image_count))
        drawn += np.arange(rows)[:, None] * image_count
        weights = np.bincount(drawn.ravel(), minlength=rows * image_count).reshape(rows, image_count)
        weighted = weights.astype(np.float64)
        # einsum without optimisation is numpy's own loop: a BLAS may sum in another order elsewhere.
        sums_top = np.einsum("ri,mi->mr", weighted, top, optimize=False)
        sums_bottom = np.einsum("ri,mi->mr", weighted, bottom, optimize=False)
        values[:, first : first + rows] = np.where(
            sums_bottom > 0, sums_top / np.where(sums_bottom > 0, sums_bottom, 1), when_empty
        )
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail], axis=1)
    return low, high
