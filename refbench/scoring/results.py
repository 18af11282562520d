"""A scored folder read back: its run.json, summary.json and scores.parquet, as far as they are there, audited."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbench._version import __version__
from refbench.errors import RefbenchError, RunError
from refbench.plugins.loading import load
from refbench.records import Summary
from refbench.runs.runner import read_run
from refbench.scoring.counts import SCORES_FILE, ScoreTable, read_scores
from refbench.scoring.protocols.audit import Figures, check_metrics
from refbench.scoring.protocols.base import Evidence, Protocol, sums_of, value_of
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.statistics.bootstrap import BCA, PERCENTILE, intervals
from refbench.storage.files import read_json

SUMMARY_FILE = "summary.json"
# What a figure may be away from the same one, computed with another numpy.
SLACK_PERCENT = 1e-6


@dataclass(frozen=True, slots=True)
class Result:
    """What a scored folder says. `metrics` and `scores` are None where their file is not there."""

    folder: Path
    info: Mapping[str, Any]
    protocol: str
    address: str
    fingerprint: str
    samples: int
    failures: int
    metrics: Mapping[str, Figures] | None
    scores: ScoreTable | None


def summary_json(
    summaries: Mapping[str, Summary], scores: ScoreTable, address: str, fingerprint: str, interval: str
) -> dict[str, Any]:
    """The content of summary.json: the first summary, and below it all of them if there are several.

    `sums` are the totals of the counts in scores.parquet.
    """
    entries = {name: _entry(summary, address, fingerprint, interval) for name, summary in summaries.items()}
    content = {**next(iter(entries.values())), "sums": scores.sums()}
    return {**content, "protocols": entries} if len(entries) > 1 else content


def _entry(summary: Summary, address: str, fingerprint: str, interval: str) -> dict[str, Any]:
    figures = {name: dataclasses.asdict(estimate) for name, estimate in summary.metrics.items()}
    entry = {
        "protocol": summary.protocol,
        "dataset": address,
        "fingerprint": fingerprint,
        "refbench_version": __version__,
        "samples": summary.samples,
        "failures": summary.failures,
        "interval": interval,
        # JSON has no NaN: null stands for a metric that the original leaves without a value.
        "metrics": {n: {k: None if math.isnan(v) else v for k, v in f.items()} for n, f in figures.items()},
    }
    return {**entry, "notes": list(summary.notes)} if summary.notes else entry


def read_result(place: Path, *, with_scores: bool = True) -> Result:
    """Read a scored folder, or a lone scores.parquet, and check what must agree.

    Raises:
        RunError: nothing is there, a file is damaged, or an identity is broken: of the counts, of the metrics, between
            the sums of summary.json and the rows of scores.parquet, or between its fingerprint and the run's.
        DatasetError: scores.parquet is no Parquet file.
    """
    if place.is_file() and place.suffix == ".json":
        raise RunError(f"{place} holds no counts; pass the run folder, or its {SCORES_FILE}")
    folder = place if place.is_dir() else place.parent
    scores_path = place if place.is_file() else folder / SCORES_FILE
    if not place.exists() or not (scores_path.is_file() or (folder / SUMMARY_FILE).is_file()):
        raise RunError(
            f"{place} is not scored: it holds neither {SCORES_FILE} nor {SUMMARY_FILE}; run `refbench score`"
        )
    scores = read_scores(scores_path) if with_scores and scores_path.is_file() else None
    beside = place.is_dir() or place.name == SCORES_FILE
    info = read_run(folder) if beside and (folder / "run.json").is_file() else {}
    path = folder / SUMMARY_FILE
    if not (beside and path.is_file()):
        count = 0 if scores is None else len(scores)
        failures = 0 if scores is None else int(scores.failed.sum())
        return Result(folder, info, "", _address_in(scores), "", count, failures, None, scores)
    content = read_json(path, RunError)
    try:
        result = _checked(folder, path, content, info, scores)
    except KeyError as error:
        raise RunError(f"{path} or its run.json lacks {error}; run `refbench score {folder}` again") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(f"{path} is not as refbench writes it ({error}); run `refbench score {folder}` again") from None
    return result


def _checked(
    folder: Path, path: Path, content: Mapping[str, Any], info: Mapping[str, Any], scores: ScoreTable | None
) -> Result:
    again = f"run `refbench score {folder}` again"
    fingerprint, address = str(content["fingerprint"]), str(content["dataset"])
    samples = int(content["samples"])
    for entry in [content, *content.get("protocols", {}).values()]:
        check_metrics(_figures(entry), f"{path}, protocol {entry['protocol']}", _signed(entry["protocol"]))
        for name in ("fingerprint", "dataset", "failures"):
            if entry[name] != content[name]:
                raise RunError(f"{path} breaks an identity: its parts have two values of {name}; {again}")
        if not int(entry["samples"]) >= 0 or not int(entry["failures"]) >= 0:
            raise RunError(f"{path} breaks an identity: samples and failures are counts; {again}")
        if entry["protocol"] == REFBENCH.name and any(math.isnan(v) for f in _figures(entry).values() for v in f):
            raise RunError(f"{path} breaks an identity: no metric of {REFBENCH.name} is without a value; {again}")
        if entry["protocol"] == REFBENCH.name and set(entry["metrics"]) not in (set(), set(REFBENCH.metrics)):
            raise RunError(f"{path} breaks an identity: its metrics are not those of {REFBENCH.name}; {again}")
    if info and info["fingerprint"] != fingerprint:
        raise RunError(
            f"{path} breaks an identity: its fingerprint {fingerprint[:12]}... is not that of the run, "
            f"{str(info['fingerprint'])[:12]}...; {again}"
        )
    if info and content["protocol"] == REFBENCH.name and int(info.get("samples", samples)) != samples:
        raise RunError(f"{path} breaks an identity: {samples} samples, {info['samples']} in the run; {again}")
    if scores is not None:
        _check_against_rows(path, content, scores)
    return Result(
        folder,
        info,
        str(content["protocol"]),
        address,
        fingerprint,
        samples,
        int(content["failures"]),
        _figures(content),
        scores,
    )


def _check_against_rows(path: Path, content: Mapping[str, Any], scores: ScoreTable) -> None:
    """Sums and failures must be those of the rows, and so must what our own protocol makes of them."""
    again = f"run `refbench score {path.parent}` again"
    for name, total in scores.sums().items():
        # Summaries of an older refbench have no sums.
        said = content.get("sums", {}).get(name, total)
        if said != total:
            raise RunError(
                f"{path} breaks an identity: sums.{name} is {said}, but the rows of {SCORES_FILE} add up to {total}; "
                f"{again}"
            )
    failures = int(scores.failed.sum())
    if content["failures"] != failures:
        raise RunError(f"{path} breaks an identity: {content['failures']} failures, {failures} in the rows; {again}")
    address = _address_in(scores)
    if address and content["dataset"] != address:
        raise RunError(f"{path} breaks an identity: its dataset is {content['dataset']}, the rows are of {address}")
    for entry in (content, *content.get("protocols", {}).values()):
        if int(entry["samples"]) > len(scores) or (
            entry["protocol"] == REFBENCH.name and int(entry["samples"]) != len(scores)
        ):
            raise RunError(f"{path} breaks an identity: {entry['samples']} samples, {len(scores)} rows; {again}")
        if entry["protocol"] == REFBENCH.name and entry["metrics"]:
            _check_refbench(path, entry, Evidence(scores), again)


def _check_refbench(path: Path, entry: Mapping[str, Any], evidence: Evidence, again: str) -> None:
    """What our own protocol says, values and intervals, is what it makes of the rows."""
    # Summaries of an older refbench do not tell the kind of their intervals.
    kind = entry.get("interval")
    limits = intervals(sums_of(REFBENCH, evidence), kind) if kind in (PERCENTILE, BCA) else None
    for k, (name, metric) in enumerate(REFBENCH.metrics.items()):
        expected = [value_of(REFBENCH, metric, evidence)]
        if limits is not None:
            expected += [100 * float(limit[k]) for limit in limits]
        for said, now in zip(_figures(entry)[name], expected, strict=False):
            if not abs(now - said) <= SLACK_PERCENT:
                raise RunError(f"{path} breaks an identity: {name} is {said}, the rows make it {now}; {again}")


def _figures(entry: Mapping[str, Any]) -> dict[str, Figures]:
    def number(value: float | None) -> float:
        return math.nan if value is None else float(value)

    return {k: (number(v["value"]), number(v["low"]), number(v["high"])) for k, v in entry["metrics"].items()}


def _signed(name: str) -> tuple[str, ...]:
    try:
        rule = load("protocols", name)
    except RefbenchError:
        # Of a package that is not installed here: nothing is known of it.
        return ()
    return rule.signed if isinstance(rule, Protocol) else ()


def _address_in(scores: ScoreTable | None) -> str:
    """The split that all sample ids name, `<dataset>/<split>/...`; "" if they name none or several."""
    found = {"/".join(s.split("/")[:2]) for s in scores.sample_ids()} if scores is not None else set()
    return found.pop() if len(found) == 1 else ""
