"""Compares two versions of a split mask by mask, and how they rank runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refbench.curation.agreement import ious
from refbench.curation.items import mask_id_of
from refbench.errors import DatasetError, RunError
from refbench.masks.counting import count_codes
from refbench.masks.mask import Mask
from refbench.masks.pairs import PairCounts
from refbench.records import Estimate, RunInfo, Sample
from refbench.runs.folder import RunFolder
from refbench.scoring.counting import count
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Evidence, summarise, sums_of
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.statistics.bootstrap import replicates_of
from refbench.scoring.statistics.rank_correlation import kendall_tau
from refbench.storage.samples import load_samples

# How far a mask has moved: the least IoU of each kind of change.
KINDS = ((0.9, "border"), (0.5, "shape"), (0.0, "another object"))
SAME = "same"
HEADLINES = ("cumulative_iou", "mean_iou", "mean_boundary_iou")


@dataclass(frozen=True, slots=True)
class MaskChange:
    """A mask in two versions; `kind` is "same", one of KINDS, "dropped" or "added".

    If only one version has the mask, its IoUs are NaN.
    """

    item: str
    image_id: str
    kind: str
    iou: float
    boundary_iou: float
    first: Mask | None
    second: Mask | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """Metrics of a run in percent: on the whole first version, on the remaining samples with their old masks, and on
    the remaining samples with their new masks.
    """

    name: str
    first: Mapping[str, Estimate]
    left: Mapping[str, Estimate]
    second: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences between two versions of a split. `expressions` contains the numbers of kept, dropped, added and
    reworded expressions.

    `stability` is Kendall's tau-b between the rankings of the runs by the old and by the new masks, for each metric,
    with its 95 % interval over resamples of the images: 1 if the order stays, -1 if it is reversed. Empty for fewer
    than two runs.
    """

    first: str
    second: str
    masks: tuple[MaskChange, ...]
    expressions: Mapping[str, int]
    runs: tuple[Ranked, ...] = field(default=())
    stability: Mapping[str, Estimate] = field(default_factory=dict)

    def kinds(self) -> dict[str, int]:
        """The number of masks for each kind of change."""
        found = Counter(m.kind for m in self.masks)
        return {k: found.get(k, 0) for k in (SAME, *(name for _, name in KINDS), "dropped", "added")}

    def ranking(self, which: str, metric: str) -> list[str]:
        """Names of the runs, best first, by a metric on `first`, `left` or `second`."""
        return [r.name for r in sorted(self.runs, key=lambda r: -getattr(r, which)[metric].value)]


def diff(first: str, second: str, runs: Sequence[Path] = ()) -> Diff:
    """Compare two versions of a split mask by mask. Runs that were made on the first version are also scored on the
    second version.

    Items are the same if they have the same annotation ids and expression numbers; the name of the dataset is ignored.
    Each run is also scored on an intermediate step: the masks of the first version, but only the remaining expressions.
    This separates the effect of selecting expressions from the effect of the new masks.

    Raises:
        DatasetError: a split is not built, or the two have no expression in common.
        RunError: a run is not on the first version.
    """
    before, after = load_samples(first), load_samples(second)
    old, new = ({_key(s.sample_id): s for s in samples} for samples in (before, after))
    if not old.keys() & new.keys():
        raise DatasetError(
            f"{first} and {second} have no expression in common, so they are not two versions of one split"
        )
    both = [k for k in old if k in new]
    expressions = {
        "kept": len(both),
        "dropped": len(old) - len(both),
        "added": len(new.keys() - old.keys()),
        "reworded": sum(old[k].expression != new[k].expression for k in both),
    }
    tables = [_rescored(path, first, new) for path in runs]
    ranked = tuple(Ranked(name, *map(_headlines, found)) for name, *found in tables)
    names = Counter(r.name for r in ranked)
    ranked = tuple(
        r if names[r.name] == 1 else dataclasses.replace(r, name=f"{r.name} ({path})")
        for r, path in zip(ranked, runs, strict=True)
    )
    ids = [table.sample_ids() for _, _, table, _ in tables]
    if any(other != ids[0] for other in ids):
        raise RunError(
            "the runs have different samples, so their rankings cannot be compared; pass runs on the whole split"
        )
    stability = rank_stability([(old, new) for _, _, old, new in tables]) if len(tables) > 1 else {}
    return Diff(first, second, tuple(_mask_changes(before, after)), expressions, ranked, stability)


def rank_stability(pairs: Sequence[tuple[ScoreTable, ScoreTable]]) -> dict[str, Estimate]:
    """Kendall's tau-b between two rankings of runs, for each of HEADLINES, with its 95 % interval.

    Args:
        pairs: for each run, its counts by the old and by the new masks, on the same samples.

    Returns:
        By metric; NaN where a ranking has only ties.
    """
    out = {}
    for name in HEADLINES:
        sums = [[sums_of(REFBENCH, Evidence(table), [name]) for table in side] for side in zip(*pairs, strict=True)]
        old, new = (np.array([float(s.values()[0]) for s in side]) for side in sums)
        # The same resamples of the images for all runs and both versions.
        drawn = [np.stack([replicates_of(s)[0] for s in side], axis=-1) for side in sums]
        taus = kendall_tau(drawn[0], drawn[1])
        low, high = np.nanpercentile(taus, [2.5, 97.5]) if not np.isnan(taus).all() else (np.nan, np.nan)
        out[name] = Estimate(float(kendall_tau(old, new)), float(low), float(high))
    return out


def _key(item_id: str) -> str:
    """An id without its dataset and split."""
    return item_id.split("/", 2)[-1]


def _mask_changes(before: Sequence[Sample], after: Sequence[Sample]) -> list[MaskChange]:
    old, new = ({_key(mask_id_of(s)): s for s in samples if not s.no_target} for samples in (before, after))
    both = [k for k in old if k in new]
    for k in both:
        if old[k].target.size != new[k].target.size:
            raise DatasetError(f"{k} has different sizes in the two versions, so the images are different")
    found = ious([old[k].target for k in both], [new[k].target for k in both])
    out = {}
    for k, iou, boundary in zip(both, *(values.tolist() for values in found), strict=True):
        kind = kind_of_change(old[k].target, new[k].target, iou)
        out[k] = MaskChange(k, old[k].image_id, kind, iou, boundary, old[k].target, new[k].target)
    changes = []
    for k, sample in old.items():
        nan = float("nan")
        changes.append(out.get(k) or MaskChange(k, sample.image_id, "dropped", nan, nan, sample.target, None))
    for k, sample in new.items():
        if k not in old:
            changes.append(MaskChange(k, sample.image_id, "added", float("nan"), float("nan"), None, sample.target))
    return changes


def kind_of_change(first: Mask, second: Mask, iou: float) -> str:
    """SAME if the masks are equal, otherwise the one of KINDS that matches their IoU."""
    return SAME if first == second else next(name for least, name in KINDS if iou >= least)


def _rescored(folder: Path, first: str, new: Mapping[str, Sample]) -> tuple[str, ScoreTable, ScoreTable, ScoreTable]:
    """The name of a run and its counts: on the first version, on the samples that are left, and by the new masks."""
    run = RunFolder(folder)
    if run.info.address != first:
        raise RunError(f"{folder} is a run on {run.info.address}, but --run takes runs on {first}")
    run.check_complete()
    counted = count(run, first, [], [])
    whole = counted.scores
    ids = whole.sample_ids()
    rows = np.array([k for k, sample_id in enumerate(ids) if _key(sample_id) in new], np.int64)
    if not len(rows):
        raise RunError(f"{folder} has no prediction for the expressions that both versions contain")
    left = whole.take(rows)
    masks = {p.sample_id: p.mask for p in run.predictions()}
    chosen = [ids[k] for k in rows.tolist()]
    targets = [new[_key(i)].target for i in chosen]
    counts = count_codes(
        [masks[i].counts for i in chosen], [t.counts for t in targets],
        np.array([t.height for t in targets]), np.array([t.width for t in targets]),
    )  # fmt: skip
    columns: dict[str, Any] = dict(PairCounts.of(counts).by_name())
    second = dataclasses.replace(left, **columns)
    return _run_name(run.info), whole, left, second


def _run_name(info: RunInfo) -> str:
    options = ",".join(f"{k}={v}" for k, v in sorted(info.adapter_options.items()))
    return f"{info.adapter} {options}".strip()


def _headlines(scores: ScoreTable) -> dict[str, Estimate]:
    metrics = summarise(REFBENCH, Evidence(scores)).metrics
    return {name: metrics[name] for name in HEADLINES}


def changes_table(found: Diff) -> pd.DataFrame:
    """One row per mask: item, image_id, kind, iou, boundary_iou."""
    rows = [(m.item, m.image_id, m.kind, m.iou, m.boundary_iou) for m in found.masks]
    return pd.DataFrame(rows, columns=["item", "image_id", "kind", "iou", "boundary_iou"])
