"""Power of a split: the smallest difference that it can detect, and p-values corrected for multiple tests."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

SIGNIFICANCE = 0.05
POWER = 0.8


def smallest_detectable(standard_error: float, significance: float = SIGNIFICANCE, power: float = POWER) -> float:
    """The true difference that a two-sided test finds with this power, in the unit of the standard error.

    Source: Cohen, Statistical Power Analysis, 1988, chapter 2, for a normal estimate.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - significance / 2) + normal.inv_cdf(power)) * standard_error


def standard_error_against(standard_error: float, correlation: float) -> float:
    """Standard error of the difference between a system and another one with the same standard error.

    `correlation` is the correlation of the scores of the two systems over the images.
    """
    return standard_error * float((2 * max(1 - correlation, 0.0)) ** 0.5)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by the method of Holm.

    The probability of at least one false positive among all tests stays below the significance level. Source: Holm, A
    simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted
