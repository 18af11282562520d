"""Computes the figures of scored folders again, from their predictions and the local build of the dataset.

Whoever can write to a folder can write any figure into its summary.json. Therefore only figures that this computation
gives again are ranked.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refbench._version import __version__
from refbench.errors import PredictionError, RefbenchError, RunError
from refbench.records import Summary
from refbench.runs.folder import RUN_FILE, RunFolder
from refbench.scoring.counting import Counted, Drawing, count
from refbench.scoring.counts import SCORES_FILE, ScoreTable, read_scores
from refbench.scoring.protocols.base import Protocol, summarise
from refbench.scoring.results import SLACK_PERCENT, SUMMARY_FILE, StatedProtocol, SummaryFile, read_result, read_summary
from refbench.scoring.scorer import choose_protocols
from refbench.scoring.statistics.bootstrap import BCA, PERCENTILE
from refbench.storage.columns import as_texts
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import Progress, silent


class Status(enum.StrEnum):
    """What is known about the figures of a scored folder under one protocol."""

    VERIFIED = "verified"
    """They were computed again, from the predictions in the folder, and are the same."""
    ELSEWHERE = "scored elsewhere"
    """They cannot be computed again here, because predictions, dataset or protocol are missing."""
    REFUSED = "refused"
    """They are not what the predictions give, or the folder contradicts itself."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The status of the figures of a folder under one protocol, and the reason if they are not verified.

    `protocol` and `address` are "" if the folder cannot be read.
    """

    folder: Path
    address: str
    protocol: str
    status: Status
    reason: str = ""


def scored_folders(folders: Iterable[Path]) -> list[Path]:
    """The folders with scores at or below the given ones, sorted."""
    return sorted({path.parent for folder in folders for path in folder.rglob(SUMMARY_FILE)})


def verify_folders(folders: Iterable[Path], progress: Progress = silent) -> dict[Path, list[Verdict]]:
    """The verdicts on all scored folders at or below the given ones. No folder ends it, whatever it contains."""
    places = scored_folders(folders)
    found = {}
    for done, place in enumerate(places):
        found[place] = verify(place)
        progress("verifying", done + 1, len(places))
    return found


def verify(folder: Path) -> list[Verdict]:
    """Compute the figures of a scored folder again; one verdict per protocol of its summary.json.

    The folder is not changed.
    """
    try:
        content = read_summary(folder / SUMMARY_FILE)
        names = list(content.protocols) or [""]
        address = content.address
    except RefbenchError as error:
        return [Verdict(folder, "", "", Status.REFUSED, str(error))]

    def of_all(status: Status, reason: str) -> list[Verdict]:
        return [Verdict(folder, address, name, status, reason) for name in names]

    try:
        refused, elsewhere = _before_counting(folder, content)
        if refused or elsewhere:
            return of_all(Status.REFUSED if refused else Status.ELSEWHERE, refused or elsewhere)
        run = RunFolder(folder)
        run.check_complete()
        rules, unknown = _rules(content)
        drawings = [Drawing.of(rule) for rule in rules.values()]
        measures = {m.name: m for rule in rules.values() for m in rule.measures}
        counted = count(run, address, drawings, list(measures.values()))
        problem = _difference_in_counts(folder, content, counted)
    except (RefbenchError, OSError) as error:
        return of_all(Status.REFUSED, str(error))
    if problem:
        return of_all(Status.REFUSED, problem)
    verdicts = []
    for name in names:
        if name in unknown:
            verdicts.append(Verdict(folder, address, name, Status.ELSEWHERE, unknown[name]))
            continue
        entry = content.protocols.get(name)
        problem = "it states no figures" if entry is None else _difference(entry, rules[name], counted)
        verdicts.append(Verdict(folder, address, name, Status.REFUSED if problem else Status.VERIFIED, problem))
    return verdicts


def _before_counting(folder: Path, content: SummaryFile) -> tuple[str, str]:
    """Why the figures are refused, and why they cannot be computed here; both "" if they can."""
    # Raises an error if the parts of the folder contradict each other.
    read_result(folder)
    run = RunFolder(folder)
    if not run.is_there:
        return "", f"it has no {RUN_FILE}, so nothing says which model made the predictions"
    if run.info.address != content.address:
        return f"{RUN_FILE} is of {run.info.address}, {SUMMARY_FILE} of {content.address}", ""
    versions = [run.info.refbench_version, *(p.refbench_version for p in content.protocols.values())]
    later = next((v for v in versions if _number(v) > _number(__version__)), "")
    if later:
        return "", f"it was written by refbench {later}, and this is {__version__}; install that version"
    if not run.written:
        return "", "it has no predictions"
    try:
        here = split_fingerprint(content.address)
    except RefbenchError as error:
        return "", str(error)
    if here != content.fingerprint:
        return "", (
            f"it was made with another version of {content.address} (fingerprint {content.fingerprint[:12]}..., "
            f"local build: {here[:12]}...)"
        )
    return "", ""


def _number(version: str) -> tuple[int, ...]:
    """The release numbers of a version; a development version counts as its release."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part[:9]) for part in found[0].split(".")) if found else ()


def _rules(content: SummaryFile) -> tuple[dict[str, Protocol], dict[str, str]]:
    """The protocols of a summary that can be applied here, and why the others cannot."""
    rules: dict[str, Protocol] = {}
    unknown: dict[str, str] = {}
    for name in content.protocols:
        try:
            ((rule, *_), _) = choose_protocols([name], content.address)
        except (RefbenchError, ValueError) as error:
            unknown[name] = str(error)
            continue
        # An alias is another name for a rule; a summary contains names of rules only.
        if rule.name == name:
            rules[name] = rule
        else:
            unknown[name] = f"there is no protocol {name!r}"
    return rules, unknown


def _difference_in_counts(folder: Path, content: SummaryFile, counted: Counted) -> str:
    """How the counts in a folder differ from those of its predictions; "" if they do not."""
    scores = counted.scores
    pairs: list[tuple[str, object, object]] = [
        ("samples", content.samples, len(scores)),
        ("failures", content.failures, int(scores.failed.sum())),
        ("missing", content.missing, counted.missing),
        *((f"sums.{n}", content.sums.get(n, total), total) for n, total in scores.sums().items()),
        # Files of versions before 0.1 have no digest.
        ("answers", content.answers or counted.answers, counted.answers),
    ]
    for name, said, now in pairs:
        if said != now:
            return f"{name} in {SUMMARY_FILE} is {said}, but {now} from the predictions"
    path = folder / SCORES_FILE
    other = _first_other_row(read_scores(path), scores) if path.is_file() else None
    return f"the counts of {other} in {SCORES_FILE} are not those of its prediction" if other else ""


def _first_other_row(stated: ScoreTable, now: ScoreTable) -> str | None:
    """The first sample whose row differs; the order of the rows does not matter."""
    ids = as_texts(now.sample_id)
    rows = ids.rows_in(as_texts(stated.sample_id))
    if (rows < 0).any():
        return ids[int(np.argmax(rows < 0))]
    ordered = stated.take(rows)
    images = as_texts(ordered.image_id)
    if not images.equals(as_texts(now.image_id)):
        return next(i for i, one, other in zip(ids, images, now.image_id, strict=True) if one != other)
    columns = [f.name for f in dataclasses.fields(ScoreTable) if f.name not in ("sample_id", "image_id")]
    for name in columns:
        different = getattr(ordered, name) != getattr(now, name)
        if different.any():
            return ids[int(np.argmax(different))]
    return None


def _difference(entry: StatedProtocol, rule: Protocol, counted: Counted) -> str:
    """How the figures of a protocol differ from those of the predictions; "" if they do not."""
    known = entry.interval in (PERCENTILE, BCA)
    try:
        now: Summary = summarise(rule, counted.evidence(rule), entry.interval if known else PERCENTILE)
    except (PredictionError, RunError) as error:
        return str(error)
    if entry.samples != now.samples:
        return f"{rule.name} counts {now.samples} samples, stated are {entry.samples}"
    stated = entry.summary(rule.name, 0).metrics
    if set(stated) != set(now.metrics):
        return f"the metrics of {rule.name} are {', '.join(now.metrics)}, stated are {', '.join(stated) or 'none'}"
    for name, estimate in now.metrics.items():
        # Summaries of an older refbench do not state the kind of their intervals.
        fields = ("value", "low", "high") if known else ("value",)
        for field in fields:
            said, expected = getattr(stated[name], field), getattr(estimate, field)
            if not (_same(said, expected)):
                return f"{name} ({field}) is {said}, but {expected} from the predictions"
    return ""


def _same(said: float, expected: float) -> bool:
    return (math.isnan(said) and math.isnan(expected)) or abs(said - expected) <= SLACK_PERCENT


def by_protocol(verdicts: Iterable[Verdict]) -> Mapping[str, Verdict]:
    """The verdicts of one folder by protocol."""
    return {v.protocol: v for v in verdicts}
