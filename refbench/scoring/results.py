"""A scored folder: writes and reads summary.json, and checks it against run.json and scores.parquet."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refbench._version import __version__
from refbench.errors import RefbenchError, RunError
from refbench.plugins.loading import load
from refbench.records import Count, Estimate, RunInfo, Summary
from refbench.runs.folder import RunFolder
from refbench.scoring.counts import SCORES_FILE, ScoreTable, read_scores
from refbench.scoring.protocols.audit import check_summary
from refbench.scoring.protocols.base import Evidence, Protocol, sums_of, value_of
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.statistics.bootstrap import BCA, PERCENTILE, intervals
from refbench.storage.columns import as_texts
from refbench.storage.files import check_is_file, checked_record, read_json, write_json
from refbench.storage.manifest import parse_address

SUMMARY_FILE = "summary.json"
# Tolerance between a figure and the same figure computed with another numpy.
SLACK_PERCENT = 1e-6


@dataclass(frozen=True, slots=True)
class StatedFigure:
    """A metric in summary.json, in percent; null if the protocol leaves it undefined (0 / 0)."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class StatedProtocol:
    """The entry of one protocol in summary.json. `samples` is the number of samples that the protocol counts."""

    metrics: dict[str, StatedFigure]
    samples: Count
    interval: str = ""
    refbench_version: str = ""
    caveats: list[str] = field(default_factory=list)

    def summary(self, name: str, failures: int) -> Summary:
        """The entry as a Summary, with NaN instead of null."""
        metrics = {
            metric: Estimate(*(math.nan if v is None else v for v in (f.value, f.low, f.high)))
            for metric, f in self.metrics.items()
        }
        return Summary(name, metrics, self.samples, failures, tuple(self.caveats))


@dataclass(frozen=True, slots=True)
class SummaryFile:
    """The content of summary.json: a split, and the results of all applied protocols for one set of predictions.

    `failures` is the number of samples without a usable prediction, and `missing` is the number of samples without any
    prediction, which are included in `failures`. `sums` are the totals of the counts in scores.parquet. `answers` is a
    digest of the predictions; protocols that are scored later on the same predictions are added.
    """

    dataset: str
    split: str
    fingerprint: str
    samples: Count
    failures: Count
    protocols: dict[str, StatedProtocol]
    missing: Count = 0
    sums: dict[str, int] = field(default_factory=dict)
    answers: str = ""

    @property
    def address(self) -> str:
        """The split, for example "refcoco/testA"."""
        return f"{self.dataset}/{self.split}"


@dataclass(frozen=True, slots=True)
class Result:
    """The content of a scored folder. `summaries` is empty if summary.json does not exist; `scores` is None if
    scores.parquet does not exist.
    """

    folder: Path
    run: RunInfo | None
    address: str
    fingerprint: str
    samples: int
    failures: int
    missing: int
    summaries: Mapping[str, Summary]
    scores: ScoreTable | None


def stated(summary: Summary, interval: str) -> StatedProtocol:
    """A summary in the form of summary.json."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return StatedProtocol(
        metrics={n: StatedFigure(number(e.value), number(e.low), number(e.high)) for n, e in summary.metrics.items()},
        samples=summary.samples,
        interval=interval,
        refbench_version=__version__,
        caveats=[*_caveats(summary.protocol), *summary.notes],
    )


def write_summary(folder: Path, now: SummaryFile) -> SummaryFile:
    """Write summary.json to a folder; protocols that were scored there earlier on the same predictions are kept.

    The file does not depend on the order of the calls or of the protocols.
    """
    path = folder / SUMMARY_FILE
    try:
        before = read_summary(path) if path.is_file() else None
    except RunError:
        # Scoring again replaces a damaged file.
        before = None
    kept = before.protocols if before is not None and _same_answers(before, now) else {}
    protocols = {**kept, **now.protocols}
    ordered = sorted(protocols, key=lambda name: (name != REFBENCH.name, name))
    whole = dataclasses.replace(now, protocols={name: protocols[name] for name in ordered})
    write_json(path, dataclasses.asdict(whole))
    return whole


def _same_answers(before: SummaryFile, now: SummaryFile) -> bool:
    same = ("dataset", "split", "fingerprint", "samples", "failures", "sums")
    if any(getattr(before, name) != getattr(now, name) for name in same):
        return False
    # Files of versions before 0.1 hold no digest: equal sums are enough.
    return before.answers in ("", now.answers)


def read_summary(path: Path) -> SummaryFile:
    """The content of summary.json, written by this version or by a version before 0.1.

    Raises:
        RunError: the file does not exist, or has neither the current form nor the form before version 0.1; the message
            names the field.
    """
    again = f"run `refbench score {path.parent}` again"
    content = read_json(path, RunError)
    if isinstance(content, dict) and "protocol" in content:
        content = _from_before_0_1(content)
    return checked_record(content, path, SummaryFile, RunError, again)


def _from_before_0_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the form before version 0.1, where the first protocol was at the top level. If there were several
    protocols, all of them were also under `protocols`.
    """
    entries = content.get("protocols") or {content["protocol"]: content}
    dataset, _, split = str(content.get("dataset")).partition("/")
    names = ("metrics", "samples", "interval", "refbench_version")

    def in_new_form(name: str, entry: Any) -> Any:
        # Content in neither form is passed on; the schema rejects it.
        if not isinstance(entry, dict) or not isinstance(entry.get("notes", []), list):
            return entry
        caveats = [*_caveats(name), *entry.get("notes", [])]
        return {**{n: entry[n] for n in names if n in entry}, "caveats": caveats}

    return {
        **{name: content[name] for name in ("fingerprint", "samples", "failures", "sums") if name in content},
        "dataset": dataset,
        "split": split,
        "protocols": {name: in_new_form(name, entry) for name, entry in entries.items()}
        if isinstance(entries, dict)
        else entries,
    }


def _caveats(protocol: str) -> tuple[str, ...]:
    try:
        return tuple(load("protocols", protocol).caveats)
    except RefbenchError:
        # Of a package that is not installed here.
        return ()


def read_result(place: Path, *, with_scores: bool = True) -> Result:
    """Read a scored folder, or a single scores.parquet, and check that its parts agree.

    Raises:
        RunError: there are no scores, a file is damaged, the counts or the metrics break an identity, the sums in
            summary.json differ from those of the rows in scores.parquet, or summary.json has another fingerprint than
            the run.
        DatasetError: scores.parquet is not a Parquet file.
    """
    if place.is_file() and place.suffix == ".json":
        raise RunError(f"{place} contains no counts; pass the run folder or its {SCORES_FILE}")
    folder = place if place.is_dir() else place.parent
    scores_path = place if place.is_file() else folder / SCORES_FILE
    path = folder / SUMMARY_FILE
    if not place.exists() or not (scores_path.is_file() or path.is_file()):
        raise RunError(
            f"{place} has no scores: it contains neither {SCORES_FILE} nor {SUMMARY_FILE}; run `refbench score`"
        )
    if os.path.lexists(path):
        # A pipe is not waited for, and is not taken for a missing file either.
        check_is_file(path, RunError)
    scores = read_scores(scores_path) if with_scores and scores_path.is_file() else None
    beside = place.is_dir() or place.name == SCORES_FILE
    run = RunFolder(folder)
    info = run.info if beside and run.is_there else None
    if not (beside and path.is_file()):
        count = 0 if scores is None else len(scores)
        failures = 0 if scores is None else int(scores.failed.sum())
        return Result(folder, info, _address_in(scores), "", count, failures, 0, {}, scores)
    content = read_summary(path)
    summaries = {name: entry.summary(name, content.failures) for name, entry in content.protocols.items()}
    _check_alone(path, content, summaries)
    if info is not None:
        _check_against_run(path, content, info)
    if scores is not None:
        _check_against_rows(path, content, scores)
    return Result(
        folder,
        info,
        content.address,
        content.fingerprint,
        content.samples,
        content.failures,
        content.missing,
        summaries,
        scores,
    )


def _broken(path: Path, contradiction: str) -> RunError:
    return RunError(f"{path} contradicts itself or its run: {contradiction}; run `refbench score {path.parent}` again")


def _check_alone(path: Path, content: SummaryFile, summaries: Mapping[str, Summary]) -> None:
    """Check that the parts of summary.json agree with each other."""
    parse_address(content.address)
    if not content.missing <= content.failures <= content.samples:
        raise _broken(path, "it must be missing <= failures <= samples")
    for name, summary in summaries.items():
        check_summary(summary, f"{path}, protocol {name}", _signed(name))
        if summary.samples > content.samples:
            raise _broken(path, f"{summary.samples} samples by {name}, {content.samples} in all")
        if name != REFBENCH.name:
            continue
        if summary.samples != content.samples:
            raise _broken(path, f"{name} counts {summary.samples} samples of {content.samples}")
        if any(math.isnan(v) for e in summary.metrics.values() for v in dataclasses.astuple(e)):
            raise _broken(path, f"a metric of {name} has no value")
        if set(summary.metrics) not in (set(), set(REFBENCH.metrics)):
            raise _broken(path, f"its metrics are not those of {name}")


def _check_against_run(path: Path, content: SummaryFile, info: RunInfo) -> None:
    if info.fingerprint != content.fingerprint:
        raise _broken(
            path,
            f"its fingerprint {content.fingerprint[:12]}... is not that of the run, {info.fingerprint[:12]}...",
        )
    if info.samples != content.samples:
        raise _broken(path, f"{content.samples} samples, {info.samples} in the run")


def _check_against_rows(path: Path, content: SummaryFile, scores: ScoreTable) -> None:
    """Check the sums, the failures and the metrics of the protocol `refbench` against the rows of scores.parquet."""
    for name, total in scores.sums().items():
        # Files of versions before 0.1 may have no sums.
        if content.sums.get(name, total) != total:
            raise _broken(path, f"sums.{name} is {content.sums[name]}, but the rows of {SCORES_FILE} add up to {total}")
    failures = int(scores.failed.sum())
    if content.failures != failures:
        raise _broken(path, f"{content.failures} failures, {failures} in the rows")
    address = _address_in(scores)
    if address and content.address != address:
        raise _broken(path, f"it is of {content.address}, the rows are of {address}")
    if content.samples != len(scores):
        raise _broken(path, f"{content.samples} samples, {len(scores)} rows")
    entry = content.protocols.get(REFBENCH.name)
    if entry is not None and entry.metrics:
        _check_refbench(path, entry, Evidence(scores))


def _check_refbench(path: Path, entry: StatedProtocol, evidence: Evidence) -> None:
    """Check that the stored values and intervals of the protocol `refbench` are those computed from the rows."""
    # Summaries of an older refbench do not state the kind of their intervals.
    kind = entry.interval
    limits = intervals(sums_of(REFBENCH, evidence), kind) if kind in (PERCENTILE, BCA) else None
    summary = entry.summary(REFBENCH.name, 0)
    for k, (name, metric) in enumerate(REFBENCH.metrics.items()):
        expected = [value_of(REFBENCH, metric, evidence)]
        if limits is not None:
            expected += [100 * float(limit[k]) for limit in limits]
        for said, now in zip(dataclasses.astuple(summary.metrics[name]), expected, strict=False):
            if not abs(now - said) <= SLACK_PERCENT:
                raise _broken(path, f"{name} is {said}, but {now} from the rows")


def _signed(name: str) -> tuple[str, ...]:
    try:
        rule = load("protocols", name)
    except RefbenchError:
        # The protocol belongs to a package that is not installed, so its signed metrics are unknown.
        return ()
    return rule.signed if isinstance(rule, Protocol) else ()


def _address_in(scores: ScoreTable | None) -> str:
    """The split that all sample ids share (`<dataset>/<split>/...`); "" if there are no ids or they belong to several
    splits.
    """
    if scores is None or not len(scores):
        return ""
    first = _split_in(scores.sample_id[0])
    if as_texts(scores.sample_id).all_start_with(f"{first}/"):
        return first
    found = set(map(_split_in, scores.sample_id))
    return found.pop() if len(found) == 1 else ""


def _split_in(sample_id: str) -> str:
    return "/".join(sample_id.split("/")[:2])
