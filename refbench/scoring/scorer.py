"""Scores a run or a predictions file: computes metrics from the pixel counts of `refbench.scoring.counting`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from refbench.errors import PredictionError
from refbench.plugins.loading import available, load, load_attribute
from refbench.records import Summary
from refbench.scoring.counting import Counted, Drawing, count
from refbench.scoring.counts import SCORES_FILE, ScoreTable, write_scores
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.protocols.explain import Walk, hybrids, walk
from refbench.scoring.protocols.targets import OPENCV
from refbench.scoring.results import SummaryFile, stated, write_summary
from refbench.scoring.sources import open_source, score_under
from refbench.scoring.statistics.bootstrap import PERCENTILE
from refbench.storage.locks import PATIENCE_SECONDS, exclusive
from refbench.storage.manifest import parse_address
from refbench.storage.progress import Progress, silent

ALL = "all"


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """A scored split: the counts, a summary for each protocol, and the folder that contains both (None if they were not
    written).

    `left_out` maps each protocol that was omitted from "all" to the reason. `notes` lists irregularities in the
    predictions. `missing_rows`, bool (N,), marks the failed samples without any prediction; `missing` counts them.
    """

    address: str
    fingerprint: str
    scores: ScoreTable
    summaries: dict[str, Summary]
    folder: Path | None
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()
    missing_rows: Any = None

    def __repr__(self) -> str:
        figures = [
            f"{name} {(rule := load('protocols', name)).headline} {summary.metrics[rule.headline].value:.2f}"
            for name, summary in self.summaries.items()
        ]
        failed = int(self.scores.failed.sum())
        missing = f" ({self.missing:,} of them without a prediction)" if self.missing else ""
        about = f"{len(self.scores):,} expressions, {failed:,} failed{missing}"
        return f"Scored({self.address}, {about}; {', '.join(figures)})"

    def _repr_html_(self) -> str:
        cell: str = load_attribute("refbench.reports.cells:scored_cell")(self)
        return cell

    @property
    def missing(self) -> int:
        """The number of samples without any prediction."""
        return 0 if self.missing_rows is None else int(self.missing_rows.sum())


def score(
    source: Any,
    dataset: str | None = None,
    *,
    protocols: Sequence[str] | str = ("refbench",),
    out: Path | None = None,
    interval: str = PERCENTILE,
    progress: Progress = silent,
) -> Scored:
    """Score a run folder, or predictions against a split.

    Args:
        source: a folder of `refbench run`; a file or folder of predictions, that is a .jsonl file, COCO results as
            .json, an .npz file, or a folder of PNG files; or predictions in memory. These are a mapping of sample ids
            to masks, a DataFrame with the columns `sample_id` and `mask`, an iterable of `(sample_id, mask)` or
            `(sample_id, mask, score)`, or one mask for each sample in the order of the split. A mask is a `Mask`, a
            COCO run-length code, or a bool or 0/1 array or tensor (H, W).
        dataset: the split, for example "refcoco/val"; required unless the source is a run folder.
        protocols: one or more names from `refbench list protocols`; "all" means all protocols that can be applied.
        out: folder for scores.parquet and summary.json; by default the run folder, if `source` is one. Protocols that
            were scored earlier in this folder on the same predictions are kept in summary.json.
        interval: "percentile" or "bca".

    Raises:
        PredictionError: the predictions do not match the split; the message names the file and the entry, and states
            how to fix it.
        RunError: the run is not complete, or was made on another version of the dataset.
        DatasetError: the split is not built.

    Example:
        >>> from refbench import run, score
        >>> scored = score(run("everything", "snapshots/test").folder, protocols=["refbench", "cris"])
        >>> sorted(scored.summaries), scored.summaries["refbench"].samples
        (['cris', 'refbench'], 87)
    """
    address, answers = open_source(source, dataset)
    rules, left_out = choose_protocols([protocols] if isinstance(protocols, str) else protocols, address)
    counted, summaries = score_under(rules, answers, address, interval, progress)
    folder = Path(out) if out else Path(source) if counted.is_run else None
    if folder is not None:
        # Both files are of the same predictions, and what another command adds is kept.
        with exclusive(folder, patience=PATIENCE_SECONDS):
            write_scores(folder / SCORES_FILE, counted.scores)
            write_summary(folder, _summary_file(counted, summaries, interval))
    return Scored(
        address, counted.fingerprint, counted.scores, summaries, folder, left_out, counted.notes, counted.missing_rows
    )


def _summary_file(counted: Counted, summaries: Mapping[str, Summary], interval: str) -> SummaryFile:
    dataset, split = parse_address(counted.address)
    return SummaryFile(
        dataset=dataset,
        split=split,
        fingerprint=counted.fingerprint,
        samples=len(counted.scores),
        failures=int(counted.scores.failed.sum()),
        missing=counted.missing,
        sums=counted.scores.sums(),
        answers=counted.answers,
        protocols={name: stated(summary, interval) for name, summary in summaries.items()},
    )


def explain(
    source: Path | str, dataset: str | None, first: str, second: str, progress: Progress = silent
) -> tuple[str, Walk]:
    """The split, and the difference between two protocols, divided into steps that each change one choice.

    Args:
        source, dataset: as for `score`.
        first, second: a protocol (its headline metric is used), or `NAME:METRIC`.

    Raises:
        PredictionError: a protocol or metric does not exist or cannot be applied to the split. Also raises the errors
            of `score`.
    """
    address, answers = open_source(source, dataset)
    (name, metric), (other_name, other_metric) = (_protocol_and_metric(text) for text in (first, second))
    rule, other = (choose_protocols([n], address)[0][0] for n in (name, other_name))
    versions = [*(version for _, version in hybrids(rule, other)), other]
    measures = {m.name: m for version in (rule, other) for m in version.measures}
    drawings = [Drawing.of(v) for v in versions]
    counted = count(answers, address, drawings, list(measures.values()), progress)
    return address, walk(rule, other, counted.evidence, metric, other_metric)


def _protocol_and_metric(text: str) -> tuple[str, str | None]:
    name, colon, metric = text.partition(":")
    return name, metric if colon else None


def choose_protocols(names: Iterable[str], address: str) -> tuple[list[Protocol], dict[str, str]]:
    """The protocols with these names for a split, and the reason for each protocol that is omitted from "all".

    Raises:
        UnknownPlugin: a protocol does not exist.
        PredictionError: a protocol is for other datasets, or scores detections.
    """
    rules: dict[str, Protocol] = {}
    left_out: dict[str, str] = {}
    for name in names:
        for one in available("protocols") if name == ALL else (name,):
            rule = load("protocols", one)
            if name == ALL and isinstance(rule, Protocol) and rule.same_as:
                continue
            reason = _reason_against(rule, address)
            if not reason:
                rules.setdefault(rule.name, rule)
            elif name != ALL:
                raise PredictionError(f"{rule.name} {reason}")
            elif isinstance(rule, Protocol):
                left_out[rule.name] = reason
    return list(rules.values()), left_out


def applicable_protocols(names: Iterable[str], address: str) -> tuple[list[Protocol], dict[str, str]]:
    """As `choose_protocols`, but protocols that cannot be applied are left out, each with the reason."""
    rules: list[Protocol] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            rules += choose_protocols([name], address)[0]
        except PredictionError as error:
            left_out[name] = str(error)
    return rules, left_out


def _reason_against(rule: Any, address: str) -> str:
    dataset, split = parse_address(address)
    if not isinstance(rule, Protocol):
        return "scores detections against an annotation file: pass --ground-truth"
    if rule.datasets and dataset not in rule.datasets:
        return f"is a rule for {', '.join(rule.datasets)}, not for {dataset}"
    if rule.splits and not split.endswith(rule.splits):
        return f"is a rule for splits that end in {' or '.join(rule.splits)}, not for {split}"
    if rule.target == OPENCV and find_spec("cv2") is None:
        return "draws targets with OpenCV: pip install 'refbench[opencv]'"
    return ""
