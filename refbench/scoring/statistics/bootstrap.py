"""Bootstrap intervals for ratios of sums, resampled by image.

Expressions of one image share its difficulty, so they are not independent. Therefore whole images are resampled, with
all their expressions (a cluster bootstrap; Efron & Tibshirani 1993, chapter 8). Because every metric is a ratio of two
sums, a replicate needs only the sums of each image.

The results do not depend on the order of the rows, the number of threads or the BLAS library of numpy. Images are
numbered by their sorted names, and only integers are summed, which needs no rounding. Terms that are not integers, such
as an IoU, are scaled by a power of two and rounded once, to about 1e-9 of their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from refbench.storage.columns import TextColumn

FloatArray = NDArray[np.float64]

REPLICATES = 2000
SEED = 20_260_102
CONFIDENCE = 0.95
PERCENTILE, BCA = "percentile", "bca"
# Draws at a time: bounds the memory for large splits.
BLOCK_DRAWS = 2_000_000
# Draws that are kept for the next call: 40 MB.
KEPT_DRAWS = 5_000_000
# Every sum stays below 2^53, up to which float64 holds every integer.
EXACT_BITS = 53
# Decimals to which the quantile levels of a BCa interval are rounded.
SHARE_DECIMALS = 9
# Terms are rounded to at most this many binary places; printed figures are not affected.
FINEST_BITS = 40


def image_codes(image_ids: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Number the images in the order of their names. Returns the number of each sample's image, int64 (N,), and the
    number of images.
    """
    if isinstance(image_ids, TextColumn):
        return image_ids.numbered()
    codes = {image: k for k, image in enumerate(sorted(set(image_ids)))}
    return np.fromiter(map(codes.__getitem__, image_ids), np.int64, len(image_ids)), len(codes)


@dataclass(frozen=True, slots=True)
class ImageSums:
    """Numerators and denominators of M metrics summed by image; each is an array (M, I) of integers, stored as float64.

    `scale_top` and `scale_bottom` (M,) are the factors by which the terms were scaled to integers: a metric is (top /
    scale_top) / (bottom / scale_bottom). `when_empty` is the value of a ratio whose denominator is zero.
    """

    top: FloatArray
    bottom: FloatArray
    scale_top: FloatArray
    scale_bottom: FloatArray
    when_empty: float

    @property
    def images(self) -> int:
        return int(self.top.shape[1])

    def ratio(self, top: FloatArray, bottom: FloatArray) -> FloatArray:
        """Values of M metrics, (M, ...), from the sums of their numerators and denominators, each (M, ...)."""
        factor = (self.scale_bottom / self.scale_top).reshape(-1, *[1] * (top.ndim - 1))
        found: FloatArray = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1) * factor, self.when_empty)
        return found

    def values(self) -> FloatArray:
        """The metrics over all images, (M,)."""
        return self.ratio(self.top.sum(axis=1), self.bottom.sum(axis=1))

    def replicates(self, weights: FloatArray) -> FloatArray:
        """The metrics (M, R) of R resamples; `weights` (R, I) states how often each image is in each resample."""
        return self.ratio(self.top @ weights.T, self.bottom @ weights.T)

    def without_each(self) -> FloatArray:
        """The metrics (M, I) with one image left out."""
        top, bottom = self.top.sum(axis=1, keepdims=True), self.bottom.sum(axis=1, keepdims=True)
        return self.ratio(top - self.top, bottom - self.bottom)


def sums_by_image(
    numerators: FloatArray, denominators: FloatArray, images: NDArray[np.int64], image_count: int, when_empty: float
) -> ImageSums:
    """Sum M metrics (M, N) by image; `images` (N,) contains the number of the image of each sample."""
    return sums_of_terms(zip(numerators, denominators, strict=True), images, image_count, when_empty)


def sums_of_terms(
    terms: Iterable[tuple[FloatArray, FloatArray]], images: NDArray[np.int64], image_count: int, when_empty: float
) -> ImageSums:
    """`sums_by_image` for metrics that come one by one, each as its numerators and denominators (N,)."""
    tops, bottoms = [], []
    for numerators, denominators in terms:
        tops.append(_integers(numerators, images, image_count))
        bottoms.append(_integers(denominators, images, image_count))
    (top, scale_top), (bottom, scale_bottom) = (
        (np.array([sums for sums, _ in part]).reshape(-1, image_count), np.array([scale for _, scale in part]))
        for part in (tops, bottoms)
    )
    return ImageSums(top, bottom, scale_top, scale_bottom, when_empty)


def _integers(terms: FloatArray, images: NDArray[np.int64], image_count: int) -> tuple[FloatArray, float]:
    """The sums of each image, and the factor by which the terms were scaled to integers."""
    # The largest possible sum of a resample: the image with the largest sum is drawn every time.
    largest = float(np.bincount(images, np.abs(terms), image_count).max(initial=0.0)) * image_count
    bits = EXACT_BITS - 1 - math.frexp(largest)[1] if math.isfinite(largest) else 0
    # ldexp is exact, so integers remain what they are.
    scale = math.ldexp(1.0, min(max(bits, 0), FINEST_BITS))
    sums = np.bincount(images, np.rint(terms * scale), image_count).astype(np.float64)
    return sums, scale


def draws(image_count: int, replicates: int = REPLICATES, seed: int = SEED) -> Iterator[FloatArray]:
    """How often each image is drawn in each replicate, as blocks of float64 (rows, I); the blocks have `replicates`
    rows in total.
    """
    if image_count * replicates <= KEPT_DRAWS:
        # All protocols use the same draws.
        return iter(_kept_draws(image_count, replicates, seed))
    return _drawn(image_count, replicates, seed)


@lru_cache(maxsize=1)
def _kept_draws(image_count: int, replicates: int, seed: int) -> tuple[FloatArray, ...]:
    return tuple(_drawn(image_count, replicates, seed))


def _drawn(image_count: int, replicates: int, seed: int) -> Iterator[FloatArray]:
    random = np.random.default_rng(seed)
    block = max(1, BLOCK_DRAWS // max(1, image_count))
    for first in range(0, replicates, block):
        rows = min(block, replicates - first)
        drawn = random.integers(0, image_count, size=(rows, image_count), dtype=np.int32)
        drawn += (np.arange(rows, dtype=np.int32) * image_count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * image_count).reshape(rows, image_count).astype(np.float64)


def replicates_of(sums: ImageSums, replicates: int = REPLICATES, seed: int = SEED) -> FloatArray:
    """Metrics (M, R) of bootstrap resamples of the images."""
    return np.concatenate([sums.replicates(weights) for weights in draws(sums.images, replicates, seed)], axis=1)


def intervals(
    sums: ImageSums,
    method: str = PERCENTILE,
    confidence: float = CONFIDENCE,
    replicates: int = REPLICATES,
    seed: int = SEED,
) -> tuple[FloatArray, FloatArray]:
    """Confidence intervals (low, high), each (M,), of the metrics of `sums`.

    Args:
        method: "percentile", or "bca" (bias-corrected and accelerated).

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, sections 13.3 and 14.3.
    """
    found = replicates_of(sums, replicates, seed)
    return limits(found, method, confidence, sums.values(), sums.without_each() if method == BCA else None)


def limits(
    replicates: FloatArray,
    method: str,
    confidence: float,
    values: FloatArray,
    without_each: FloatArray | None,
) -> tuple[FloatArray, FloatArray]:
    """Limits (M,) of intervals from replicates (M, R); BCa also needs the leave-one-image-out values (M, I)."""
    tail = (1 - confidence) / 2
    if method == PERCENTILE:
        low, high = np.percentile(replicates, [100 * tail, 100 * (1 - tail)], axis=1)
        return low, high
    if method != BCA or without_each is None:
        raise ValueError(f"the interval method must be {PERCENTILE!r} or {BCA!r}, got {method!r}")
    low, high = np.empty(len(replicates)), np.empty(len(replicates))
    for k, row in enumerate(replicates):
        shares = bca_shares(row, values[k], without_each[k], tail)
        low[k], high[k] = np.percentile(row, [100 * share for share in shares])
    return low, high


def bca_shares(replicates: FloatArray, value: float, without_each: FloatArray, tail: float) -> tuple[float, float]:
    """The quantile levels of the BCa interval: `tail` and 1 - tail, corrected for bias and skewness."""
    normal = NormalDist()
    # Half of the ties count as below, so that a metric that cannot vary has no bias.
    below = float((replicates < value).mean() + (replicates == value).mean() / 2)
    edge = 0.5 / len(replicates)
    bias = normal.inv_cdf(min(max(below, edge), 1 - edge))
    moved = without_each.mean() - without_each
    spread = float((moved**2).sum())
    skew = float((moved**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    out = []
    for z in (normal.inv_cdf(tail), normal.inv_cdf(1 - tail)):
        shifted = bias + z
        out.append(normal.cdf(bias + shifted / max(1 - skew * shifted, 1e-9)))
    # Rounded, since their last digits depend on the machine's exp and log; the interval must not.
    return round(out[0], SHARE_DECIMALS), round(out[1], SHARE_DECIMALS)
