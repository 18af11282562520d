"""What intervals and tests promise, tried on 3,000 simulated splits whose truth is known.

With 1,000 a share of 95 % would be known to 0.7 points, and the test would be one of the dice.
"""

from __future__ import annotations

import numpy as np
import pytest
from simulated_studies import simulate, truth

from refbench.scoring.statistics.bootstrap import BCA, PERCENTILE, limits, replicates_of
from refbench.scoring.statistics.paired import (
    as_pair,
    difference_intervals,
    difference_replicates,
    equivalence_p_values,
    permutation_p_values,
)

pytestmark = pytest.mark.slow  # statistics

STUDIES, REPLICATES = 3000, 1000
GAIN = 0.05
# A few of the studies are enough to see that it fails by far.
UNCLUSTERED = 200


def kept_promises() -> dict[str, np.ndarray]:
    """How often each promise was kept, for cumulative and mean IoU: one pass over all studies."""
    random = np.random.default_rng(20_260_101)
    expected = truth()
    kept: dict[str, list[np.ndarray]] = {}

    def note(name: str, holds: np.ndarray) -> None:
        kept.setdefault(name, []).append(holds)

    for seed in range(STUDIES):
        study = simulate(random)
        sums = study.sums()
        found = replicates_of(sums, REPLICATES, seed)
        for method in (PERCENTILE, BCA):
            low, high = limits(found, method, 0.95, sums.values(), sums.without_each())
            note(method, (low <= expected) & (expected <= high))
        if seed < UNCLUSTERED:
            alone = study.sums(clustered=False)
            low, high = limits(replicates_of(alone, REPLICATES, seed), PERCENTILE, 0.95, alone.values(), None)
            note("unclustered", (low <= expected) & (expected <= high))
        note("rejected", permutation_p_values(as_pair(sums, study.sums(1)), 999, seed) <= 0.05)
        better = simulate(random, gain=GAIN)
        pair = as_pair(better.sums(0), better.sums(1))
        differences = difference_replicates(pair, REPLICATES, seed)
        note("called equivalent", equivalence_p_values(differences, GAIN) < 0.05)
        for method in (PERCENTILE, BCA):
            low, high = difference_intervals(pair, differences, method)
            note(f"difference, {method}", (low <= GAIN) & (high >= GAIN))
    return {name: np.mean(rows, axis=0) for name, rows in kept.items()}


def test_promises_are_kept() -> None:
    shares = kept_promises()
    for name in (PERCENTILE, BCA, f"difference, {PERCENTILE}", f"difference, {BCA}"):
        assert ((shares[name] >= 0.93) & (shares[name] <= 0.97)).all(), (name, shares[name])
    # Expressions of one image are right and wrong together: taken as independent, they promise far too much.
    assert (shares["unclustered"] < 0.88).all(), shares["unclustered"]
    # A true null is rejected as often as stated.
    assert ((shares["rejected"] >= 0.04) & (shares["rejected"] <= 0.06)).all(), shares["rejected"]
    # A difference as large as the margin is called equivalent no oftener than stated, up to three standard errors.
    assert (shares["called equivalent"] <= 0.05 + 3 * (0.05 * 0.95 / STUDIES) ** 0.5).all(), shares["called equivalent"]
