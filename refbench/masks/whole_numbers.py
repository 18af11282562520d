"""Random numbers and geometry in integers, so that a rendered dataset is the same on every machine.

Floating-point results differ between processors: sin, cos, arctan2 and hypot of numpy use different instructions,
compilers fuse multiplication and addition on some processors, and normally distributed random numbers use exp and log.
Here lengths are integers in units of 1/`PX` pixel, angles are steps of a table, and random numbers are the raw bits of
PCG64, which numpy guarantees not to change.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
IntArray = NDArray[np.int64]

# Lengths are counted in this many parts of a pixel.
PX = 256
# A turn has this many steps; cosines and sines are counted in this many parts of 1.
STEPS, ONE = 4096, 1 << 14


def cosine_and_sine(steps: int) -> tuple[int, int]:
    """Cosine and sine of an angle of `steps` steps, as integers: ONE stands for 1.

    Maths libraries differ only in digits that are removed by rounding, because no value is close to k + 0.5 (a test
    checks all values).
    """
    angle = 2 * math.pi * (steps % STEPS) / STEPS
    return round(ONE * math.cos(angle)), round(ONE * math.sin(angle))


def whole(parts: int) -> int:
    """Round a fixed-point number, in which ONE stands for 1, to an integer; halves go up."""
    return (2 * parts + ONE) // (2 * ONE)


def root(values: IntArray) -> IntArray:
    """The integer part of square roots of numbers from 0 to 2^50; IEEE 754 guarantees their correct rounding
    everywhere.
    """
    return np.sqrt(values.astype(np.float64)).astype(np.int64)


def length(x: IntArray, y: IntArray) -> IntArray:
    """The integer part of the length of vectors."""
    return root(x * x + y * y)


class Draws:
    """Random integers from a seed."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(list(seed)))

    def below(self, count: int) -> int:
        """A random integer from 0 to count - 1."""
        return (int(self._bits.random_raw()) * count) >> 64

    def between(self, low: int, high: int) -> int:
        """A random integer from low to high, both included."""
        return low + self.below(high - low + 1)

    def percent(self, chance: int) -> bool:
        """True with a probability of `chance` percent."""
        return self.below(100) < chance

    def pick(self, items: Sequence[T], weights: Sequence[int] | None = None) -> T:
        """One of the items, with a probability proportional to its weight."""
        if weights is None:
            return items[self.below(len(items))]
        reached = list(itertools.accumulate(weights))
        return items[bisect.bisect_right(reached, self.below(reached[-1]))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        out = list(items)
        for k in range(len(out) - 1, 0, -1):
            j = self.below(k + 1)
            out[k], out[j] = out[j], out[k]
        return out

    def normal(self, count: int, deviation: int) -> IntArray:
        """Normally distributed integers with mean 0 and standard deviation `deviation`, int64 (count,).

        They are computed from the number of ones among 64 bits, which is nearly normal with a standard deviation of 4.
        """
        ones = np.bitwise_count(np.atleast_1d(self._bits.random_raw(count))).astype(np.int64) - 32
        return (ones * deviation) >> 2

    def fork(self) -> Draws:
        """An independent generator: drawing any number of values from it does not affect this generator."""
        return Draws(self.below(1 << 63))


def simplified(points: IntArray, tolerance: int, unit: int) -> list[int]:
    """Indices of the kept points of a polyline; each removed point is within `tolerance` of the simplified line.

    This is the Douglas-Peucker algorithm with integers; if several points are equally distant, the first one is kept.

    Args:
        points: int64 (N, 2). The line is closed if the last point equals the first one.
        tolerance: the maximum distance, in units of 1/`unit` of the unit of the points.
    """
    kept = {0, len(points) - 1}
    pieces = [(0, len(points) - 1)]
    while pieces:
        first, last = pieces.pop()
        if last - first < 2:
            continue
        a, b = points[first], points[last]
        along, inner = b - a, points[first + 1 : last] - a
        squared = int(along @ along)
        dot = inner @ along
        cross = inner[:, 0] * along[1] - inner[:, 1] * along[0]
        beyond = points[first + 1 : last] - b
        # Squared distances to the piece, times its squared length; to its ends where the foot lies outside.
        below = max(squared, 1)
        distance = np.where(dot >= squared, (beyond * beyond).sum(axis=1) * below, cross * cross)
        distance = np.where(dot <= 0, (inner * inner).sum(axis=1) * below, distance)
        farthest = int(distance.argmax())
        if int(distance[farthest]) * unit * unit > tolerance * tolerance * below:
            middle = first + 1 + farthest
            kept.add(middle)
            pieces += [(first, middle), (middle, last)]
    return sorted(kept)
