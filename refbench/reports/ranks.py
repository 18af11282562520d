"""How sure a rank is: the ranks of several runs over bootstrap resamples of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Evidence, sums_of
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.statistics.bootstrap import replicates_of
from refbench.storage.columns import as_texts

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Rank:
    """The rank of a run among others, 1 for the best.

    In 95 % of the resamples, the rank is from `best` to `worst`. `at_least` is the share of the resamples in which the
    run has its rank or a better one, between 0 and 1.
    """

    rank: int
    best: int
    worst: int
    at_least: float


def rank_runs(tables: Sequence[ScoreTable], metric: str) -> list[Rank]:
    """The ranks of runs by a metric of the protocol `refbench`; equal values share a rank.

    Args:
        tables: the scores of the runs on the same samples.

    Raises:
        ValueError: the tables have different samples.
    """
    if not tables:
        return []
    ids = as_texts(tables[0].sample_id)
    others = (as_texts(table.sample_id) for table in tables[1:])
    if any(len(other) != len(ids) or (other.rows_in(ids) < 0).any() for other in others):
        raise ValueError("the runs have different samples, so they cannot be ranked")
    sums = [sums_of(REFBENCH, Evidence(table), [metric]) for table in tables]
    values = np.array([float(s.values()[0]) for s in sums])
    # The same resamples for all runs, so that what is common to them cancels out.
    resampled = np.array([replicates_of(s)[0] for s in sums])
    ranks = 1 + (resampled[None, :, :] > resampled[:, None, :]).sum(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(ranks, [tail, 100 - tail], axis=1, method="inverted_cdf")
    out = []
    for k, value in enumerate(values):
        rank = 1 + int((values > value).sum())
        out.append(Rank(rank, int(low[k]), int(high[k]), float((ranks[k] <= rank).mean())))
    return out
