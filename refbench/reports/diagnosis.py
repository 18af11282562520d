"""What errors a run makes: kinds of errors, slices, and the smallest difference that can be detected on its split."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_attribute
from refbench.records import Estimate
from refbench.reports.comparison import Comparison, SliceDifference, compare_slices
from refbench.reports.error_kinds import ERRORS, KINDS, ErrorTable, attribute, cumulative_losses, mean_losses
from refbench.reports.slices import Facts, Slice, slices_of
from refbench.scoring.counting import count
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Evidence, sums_of, value_of
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.sources import open_source
from refbench.scoring.statistics.bootstrap import image_codes, intervals
from refbench.scoring.statistics.paired import standard_errors
from refbench.scoring.statistics.power import smallest_detectable, standard_error_against
from refbench.storage.columns import TextColumn, as_texts
from refbench.storage.files import write_table
from refbench.storage.manifest import of_one_build, parse_address, split_fingerprint
from refbench.storage.progress import Progress, silent
from refbench.storage.samples import SplitFile, object_table

ERRORS_FILE = "errors.parquet"
# Masks and lists of so many samples are in memory at a time.
BLOCK_ROWS = 20_000
SHOWN_METRICS = ("cumulative_iou", "mean_iou")
# Assumed correlations between the image scores of two systems: two systems of one family, and two systems that have
# only the images in common.
CORRELATIONS = (0.9, 0.5)


@dataclass(frozen=True, slots=True)
class Loss:
    """One kind of error: the number of samples of this kind, and the percentage points that it costs."""

    kind: str
    samples: int
    cumulative_iou: float
    mean_iou: float


@dataclass(frozen=True, slots=True)
class SliceScore:
    """A slice with its metrics (percent, 95 % intervals), and the points of mean IoU that each kind of error costs
    in it.
    """

    dimension: str
    label: str
    samples: int
    images: int
    metrics: dict[str, Estimate]
    losses: dict[str, float]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The errors of a run, and what they cost.

    `detectable[metric][correlation]` is the smallest true difference to another system that a comparison is likely to
    find; `correlation` is that of the scores of the two systems.
    """

    address: str
    fingerprint: str
    scores: ScoreTable
    errors: ErrorTable
    metrics: dict[str, float]
    losses: list[Loss]
    slices: list[SliceScore]
    detectable: dict[str, dict[float, float]]
    folder: Path | None

    def __repr__(self) -> str:
        worst = sorted(self.losses, key=lambda loss: -loss.mean_iou)[:3]
        costs = ", ".join(f"{loss.kind} {loss.mean_iou:.2f}" for loss in worst)
        figures = ", ".join(f"{name} {value:.2f}" for name, value in self.metrics.items())
        return f"Diagnosis({self.address}, {figures}; most mean IoU is lost by {costs})"

    def _repr_html_(self) -> str:
        cell: str = load_attribute("refbench.reports.cells:diagnosis_cell")(self)
        return cell


def diagnose(
    source: Any,
    dataset: str | None = None,
    *,
    out: Path | None = None,
    write: bool = True,
    progress: Progress = silent,
) -> Diagnosis:
    """Assign every wrong pixel of a run or a predictions file to a kind of error, and score its slices.

    Args:
        source: as for `score`.
        dataset: as for `score`.
        out: folder for errors.parquet, which has one row per sample; by default `source`, if it is a run folder.
        write: if False, errors.parquet is not written.

    Raises:
        PredictionError: as for `score`.
        RunError: as for `score`.

    Example:
        >>> from refbench import diagnose, run
        >>> found = diagnose(run("everything", "snapshots/test").folder)
        >>> max(found.losses, key=lambda loss: loss.mean_iou).kind
        'spill'
    """
    address, answers = open_source(source, dataset)
    counted = count(answers, address, [], [ERRORS], progress)
    scores = counted.scores
    errors = attribute(scores, counted.measured)
    everything = np.ones(len(scores), bool)
    by_sum, by_mean = cumulative_losses(errors, scores, everything), mean_losses(errors, scores, everything)
    losses = [
        Loss(kind, int((errors.kind == k).sum()), float(by_sum[k]), float(by_mean[k])) for k, kind in enumerate(KINDS)
    ]
    slices = []
    found = slices_of(facts_of(address, scores))
    for done, part in enumerate(found):
        slices.append(_scored(part, scores, errors))
        progress("slices", done + 1, len(found))
    folder = None if not write else Path(out) if out else Path(source) if counted.is_run else None
    if folder is not None:
        write_table(folder / ERRORS_FILE, errors_to_table(errors, scores))
    evidence = Evidence(scores)
    return Diagnosis(
        address,
        counted.fingerprint,
        scores,
        errors,
        {m: value_of(REFBENCH, REFBENCH.metrics[m], evidence) for m in SHOWN_METRICS},
        losses,
        slices,
        _detectable(evidence),
        folder,
    )


def errors_to_table(errors: ErrorTable, scores: ScoreTable) -> pa.Table:
    """One row per sample: its kind of error, and its wrong pixels by kind."""
    pixels = {f"{kind}_px": errors.pixels[:, k] for k, kind in enumerate(KINDS)}
    return pa.table({"sample_id": as_texts(scores.sample_id).column, "kind": errors.names(), **pixels})


def _scored(part: Slice, scores: ScoreTable, errors: ErrorTable) -> SliceScore:
    here = scores.take(np.flatnonzero(part.rows))
    evidence = Evidence(here)
    low, high = intervals(sums_of(REFBENCH, evidence, SHOWN_METRICS))
    metrics = {
        name: Estimate(value_of(REFBENCH, REFBENCH.metrics[name], evidence), 100 * float(low[k]), 100 * float(high[k]))
        for k, name in enumerate(SHOWN_METRICS)
    }
    losses = dict(zip(KINDS, mean_losses(errors, scores, part.rows).tolist(), strict=True))
    return SliceScore(part.dimension, part.label, len(here), image_codes(here.image_id)[1], metrics, losses)


def _detectable(evidence: Evidence) -> dict[str, dict[float, float]]:
    if not len(evidence.scores):
        return {}
    found = standard_errors(sums_of(REFBENCH, evidence, SHOWN_METRICS))
    return {
        name: {c: 100 * smallest_detectable(standard_error_against(float(se), c)) for c in CORRELATIONS}
        for name, se in zip(SHOWN_METRICS, found, strict=True)
    }


def slice_differences(found: Comparison) -> list[SliceDifference]:
    """Mean IoU of two compared runs in each slice of their split.

    Raises:
        DatasetError: the split is not built, or is built in another version.
    """
    first, second = found.first.scores, found.second.scores
    if first is None or second is None:
        return []
    if found.first.fingerprint not in ("", split_fingerprint(found.address)):
        raise DatasetError(f"the local build of {found.address} is not the version that the runs used")
    rows = {(part.dimension, part.label): part.rows for part in slices_of(facts_of(found.address, first))}
    return compare_slices(first, second, rows, found.margin)


def facts_of(address: str, scores: ScoreTable) -> Facts:
    """What the dataset states about each sample of a table, in the order of the table; see `facts_of_samples`."""
    return facts_of_samples(address, scores.sample_id, scores.target_area)


def facts_of_samples(address: str, ids: Sequence[str], target_area: NDArray[np.int64]) -> Facts:
    """What the dataset states about samples, in the given order; `target_area` (N,) is in pixels.

    Raises:
        DatasetError: the split is not built, or does not have these samples.
    """
    dataset, split = parse_address(address)
    return of_one_build(dataset, lambda: _facts(address, split, as_texts(ids), target_area))


def _facts(address: str, split: str, ids: TextColumn, target_area: NDArray[np.int64]) -> Facts:
    file = SplitFile(address)
    rows = ids.rows_in(TextColumn(file.table(["sample_id"])["sample_id"]))
    if (rows < 0).any():
        raise DatasetError(
            f"the local build of {address} has no sample {ids[int(np.argmax(rows < 0))]!r}; build the version that "
            "the run used"
        )
    blocks = [rows[k : k + BLOCK_ROWS] for k in range(0, len(rows), BLOCK_ROWS)]
    images, categories, expressions = (
        TextColumn(file.rows(name, rows)) for name in ("image_id", "category", "expression")
    )
    return Facts(
        expressions,
        categories,
        split,
        _tagged(file, blocks),
        target_area,
        np.concatenate([np.zeros(0, bool), *(_at_border(file, block) for block in blocks)]),
        _look_alikes(address, images, categories, (a for block in blocks for a in _values(file, "ann_ids", block))),
    )


def _values(file: SplitFile, name: str, rows: NDArray[np.int64]) -> list[Any]:
    values: list[Any] = file.rows(name, rows).to_pylist()
    return values


def _tagged(file: SplitFile, blocks: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.bool_]]:
    """Which of these rows, in their order, have each tag."""
    samples = sum(map(len, blocks))
    tagged: dict[str, NDArray[np.bool_]] = {}
    first = 0
    for block in blocks:
        for row, tags in enumerate(_values(file, "tags", block), first):
            for tag in tags:
                tagged.setdefault(tag, np.zeros(samples, bool))[row] = True
        first += len(block)
    return tagged


def _at_border(file: SplitFile, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the targets of these rows reach the edge of their image, bool (N,)."""
    targets = list(zip(*(_values(file, name, rows) for name in ("target_counts", "height", "width")), strict=True))
    touching = _touch_border(set(targets))
    return np.array([target in touching for target in targets], bool)


def _touch_border(targets: Collection[tuple[str, int, int]]) -> set[tuple[str, int, int]]:
    """Those of the masks (code, height, width) that reach the edge of their image."""
    if not targets:
        return set()
    codes, heights, widths = zip(*targets, strict=True)
    masks = Mask.from_codes([code.encode("ascii") for code in codes], heights, widths)
    left, top, width, height = coco_mask.toBbox([mask.to_rle() for mask in masks]).T
    ends = (top + height == np.array(heights)) | (left + width == np.array(widths))
    touching = (width > 0) & ((left == 0) | (top == 0) | ends)
    return {target for target, touches in zip(targets, touching.tolist(), strict=True) if touches}


def _look_alikes(
    address: str, images: Iterable[str], categories: Iterable[str], ann_ids: Iterable[list[str]]
) -> NDArray[np.int64] | None:
    table = object_table(parse_address(address)[0], ["image_id", "category", "ann_id"])
    if not len(table):
        return None
    by_place: dict[tuple[str, str], set[str]] = {}
    for image, category, ann_id in zip(*(TextColumn(table[name]) for name in table.column_names), strict=True):
        by_place.setdefault((image, category), set()).add(ann_id)
    places = zip(images, categories, ann_ids, strict=True)
    return np.fromiter((len(by_place.get((i, c), set()).difference(a)) for i, c, a in places), np.int64)
