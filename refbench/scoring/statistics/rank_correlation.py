"""Kendall's rank correlation, for many pairs of rankings at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def kendall_tau(first: FloatArray, second: FloatArray) -> FloatArray:
    """Kendall's tau-b between values of the same N systems, along the last axis.

    Args:
        first, second: values (..., N).

    Returns:
        Values (...) between -1 and 1; NaN if all values of one side are equal, or if there are fewer than two systems.

    Source: Kendall, The treatment of ties in ranking problems, Biometrika 33, 1945.

    Example:
        >>> import numpy as np
        >>> float(kendall_tau(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0])))
        0.6666666666666666
    """
    a, b = np.triu_indices(first.shape[-1], k=1)
    one, two = np.sign(first[..., a] - first[..., b]), np.sign(second[..., a] - second[..., b])
    concordant = (one * two).sum(axis=-1)
    untied = np.abs(one).sum(axis=-1) * np.abs(two).sum(axis=-1)
    tau: FloatArray = np.where(untied > 0, concordant / np.sqrt(np.where(untied > 0, untied, 1)), np.nan)
    return tau
