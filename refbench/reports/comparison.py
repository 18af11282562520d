"""Compares two runs on the same samples: their differences, and whether these are significant."""

from __future__ import annotations

import dataclasses
import heapq
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.errors import RunError
from refbench.plugins.loading import load_attribute
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Evidence, sums_of, value_of
from refbench.scoring.protocols.exact import REFBENCH, sample_iou
from refbench.scoring.results import Result
from refbench.scoring.sources import result_of
from refbench.scoring.statistics.bootstrap import image_codes
from refbench.scoring.statistics.paired import (
    as_pair,
    difference_intervals,
    difference_replicates,
    difference_standard_errors,
    equivalence_p_values,
    permutation_p_values,
)
from refbench.scoring.statistics.power import holm, smallest_detectable
from refbench.storage.columns import as_texts
from refbench.storage.progress import Progress, silent

CHANGED_SHOWN = 25
DEFAULT_MARGIN = 0.5


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of two runs in percent: `difference` is second minus first, `low`..`high` is its 95 % interval.

    `p_value` tests the hypothesis that the runs are exchangeable, and `p_equivalent` the hypothesis that they differ by
    the margin or more. `detectable` is the smallest true difference that a comparison of two such runs is likely to
    find.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    p_equivalent: float
    detectable: float


@dataclass(frozen=True, slots=True)
class SliceDifference:
    """Mean IoU of a slice in both runs; `p_adjusted` is corrected for the number of slices."""

    dimension: str
    label: str
    samples: int
    mean_iou: Difference
    p_adjusted: float


@dataclass(frozen=True, slots=True)
class Changed:
    """A sample on which one run has a higher IoU than the other; IoU in percent."""

    sample_id: str
    first_iou: float
    second_iou: float
    difference: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results on the same samples, and what differs between them."""

    first: Result
    second: Result
    address: str
    samples: int
    images: int
    margin: float
    metrics: list[Difference]
    changed: list[Changed]

    def __repr__(self) -> str:
        names = " and ".join(r.folder.name for r in (self.first, self.second))
        figures = ", ".join(f"{d.metric} {d.difference:+.2f} (p {d.p_value:.3f})" for d in self.metrics[:2])
        return f"Comparison({names} on {self.address}: {figures})"

    def _repr_html_(self) -> str:
        cell: str = load_attribute("refbench.reports.cells:comparison_cell")(self)
        return cell


def read_pair(
    first: Any, second: Any, dataset: str | None = None, progress: Progress = silent
) -> tuple[Result, Result]:
    """The results of two sources of one split, with the rows of the second in the order of the first.

    Args:
        first: a run folder, a scored folder, scores.parquet, a file of predictions, or predictions in memory.
        second: likewise.
        dataset: the split of the predictions; not needed for folders that state it.

    Raises:
        RunError: one is damaged, or they have different datasets, versions or samples.
        PredictionError: predictions do not match the split, or their split is not given.
    """
    a, b = result_of(first, dataset, progress), result_of(second, dataset, progress)
    first, second = (_place(given, word) for given, word in ((first, "the first"), (second, "the second")))
    for place, result in ((first, a), (second, b)):
        if result.scores is None:
            raise RunError(f"{place} has no scores.parquet, which a comparison needs; run `refbench score {place}`")
    check_same_dataset(a, b)
    missing, extra = sample_differences(a, b)
    if missing or extra:
        raise RunError(
            f"the samples differ: {second} lacks {len(missing)} samples of {first} and has {len(extra)} "
            f"additional samples, for example {(missing or extra)[0]}; score both on the same samples"
        )
    return a, aligned(a, b)


def _place(given: Any, word: str) -> str:
    """How messages name a source."""
    return str(given) if isinstance(given, (str, os.PathLike)) else word


def check_same_dataset(first: Result, second: Result) -> None:
    """Raise RunError unless both are on the same split and, if their files state it, on the same version."""
    if first.address and second.address and first.address != second.address:
        raise RunError(
            f"{first.folder} is a run on {first.address}, but {second.folder} is a run on {second.address}, so "
            "they cannot be compared"
        )
    if first.fingerprint and second.fingerprint and first.fingerprint != second.fingerprint:
        raise RunError(
            f"{first.folder} and {second.folder} were scored on different versions of {first.address} "
            f"(fingerprints {first.fingerprint[:12]}... and {second.fingerprint[:12]}...); score both on the "
            "same version"
        )


def sample_differences(first: Result, second: Result) -> tuple[list[str], list[str]]:
    """The ids of the samples that are only in the first run, and of those that are only in the second."""
    ours, theirs = (as_texts(r.scores.sample_id if r.scores else []) for r in (first, second))
    only_ours, only_theirs = (a.take(np.flatnonzero(a.rows_in(b) < 0)) for a, b in ((ours, theirs), (theirs, ours)))
    return list(only_ours), list(only_theirs)


def aligned(first: Result, second: Result) -> Result:
    """The second result with only the samples of the first, in the order of the first.

    Raises:
        RunError: a sample has different targets in the two results, so the versions of the dataset differ.
    """
    if first.scores is None or second.scores is None:
        raise RunError(
            f"scores.parquet is missing in {first.folder} or {second.folder}; run `refbench score` on that folder"
        )
    rows = as_texts(first.scores.sample_id).rows_in(as_texts(second.scores.sample_id))
    taken = second.scores.take(rows)
    same = (taken.target_area == first.scores.target_area) & (taken.no_target == first.scores.no_target)
    if not same.all():
        row = int(np.argmin(same))
        raise RunError(
            f"the target of {taken.sample_id[row]} has {first.scores.target_area[row]} pixels in {first.folder} "
            f"but {taken.target_area[row]} pixels in {second.folder}, so the two runs were scored on different "
            "versions of the dataset; score both runs on the same version"
        )
    if not as_texts(taken.image_id).equals(as_texts(first.scores.image_id)):
        pairs = zip(taken.sample_id, taken.image_id, first.scores.image_id, strict=True)
        sample, there, here = next(p for p in pairs if p[1] != p[2])
        raise RunError(
            f"the sample {sample} belongs to the image {here} in {first.folder}, but to the image {there} in "
            f"{second.folder}. The dataset versions differ, or a table was edited; score both runs on the same "
            "version"
        )
    changes = {**{f: getattr(second, f) for f in Result.__slots__}, "scores": taken}
    return Result(**changes)


def differences(
    first: ScoreTable, second: ScoreTable, metrics: Sequence[str], margin: float = DEFAULT_MARGIN
) -> list[Difference]:
    """Compare metrics of the protocol `refbench` between two tables that have the same samples in the same order;
    `margin` is in percent.
    """
    evidence = Evidence(first), Evidence(second)
    pair = as_pair(*(sums_of(REFBENCH, e, metrics) for e in evidence))
    found = difference_replicates(pair)
    low, high = difference_intervals(pair, found)
    p_values, equivalent = permutation_p_values(pair), equivalence_p_values(found, margin / 100)
    errors = difference_standard_errors(pair)
    out = []
    for k, name in enumerate(metrics):
        before, after = (value_of(REFBENCH, REFBENCH.metrics[name], e) for e in evidence)
        out.append(
            Difference(
                name,
                before,
                after,
                after - before,
                100 * float(low[k]),
                100 * float(high[k]),
                float(p_values[k]),
                float(equivalent[k]),
                100 * smallest_detectable(float(errors[k])),
            )
        )
    return out


def compare(
    first: Any,
    second: Any,
    margin: float = DEFAULT_MARGIN,
    *,
    dataset: str | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare two sources on the same samples, under the protocol `refbench`.

    Args:
        first: see `read_pair`.
        second: see `read_pair`.
        dataset: see `read_pair`.
        margin: in percentage points; the equivalence test treats smaller differences as irrelevant.

    Raises:
        RunError: see `read_pair`.
        PredictionError: see `read_pair`.

    Example:
        >>> from refbench import compare, run
        >>> runs = [run(name, "snapshots/test").folder for name in ("nothing", "everything")]
        >>> found = compare(*runs)
        >>> found.metrics[1].metric, round(found.metrics[1].difference, 2)
        ('mean_iou', 0.76)
    """
    a, b = read_pair(first, second, dataset, progress)
    if a.folder.name == b.folder.name == "predictions":
        a, b = (dataclasses.replace(r, folder=Path(name)) for r, name in ((a, "first"), (b, "second")))
    if a.scores is None or b.scores is None or not len(a.scores):
        raise RunError(f"{a.folder} contains no samples, so there is nothing to compare")
    found = differences(a.scores, b.scores, list(REFBENCH.metrics), margin)
    _, images = image_codes(a.scores.image_id)
    return Comparison(a, b, a.address, len(a.scores), images, margin, found, most_changed(a.scores, b.scores))


def most_changed(first: ScoreTable, second: ScoreTable, shown: int = CHANGED_SHOWN) -> list[Changed]:
    """The samples whose IoU changed most, the largest change first; ties are in the order of their ids."""
    before, after = 100 * sample_iou(first), 100 * sample_iou(second)
    size = np.abs(after - before)
    rows = np.flatnonzero(size)
    if len(rows) > shown:
        rows = rows[size[rows] >= np.partition(size[rows], -shown)[-shown]]
    changes = (
        Changed(first.sample_id[k], float(before[k]), float(after[k]), float(after[k] - before[k]))
        for k in rows.tolist()
    )
    return heapq.nsmallest(shown, changes, key=lambda c: (-abs(c.difference), c.sample_id))


def compare_slices(
    first: ScoreTable, second: ScoreTable, slices: Mapping[tuple[str, str], NDArray[np.bool_]], margin: float
) -> list[SliceDifference]:
    """Mean IoU of both runs in each slice; `slices` maps (dimension, label) to rows. P-values are corrected by the
    method of Holm.
    """
    found = []
    for (dimension, label), rows in slices.items():
        chosen = np.flatnonzero(rows)
        (difference,) = differences(first.take(chosen), second.take(chosen), ["mean_iou"], margin)
        found.append((dimension, label, len(chosen), difference))
    adjusted = holm([d.p_value for *_, d in found])
    return [SliceDifference(*row, p) for row, p in zip(found, adjusted, strict=True)]
