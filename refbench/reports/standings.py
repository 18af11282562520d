"""Standings: the published results of a split and your own, side by side under the same protocol.

A figure is only compared with figures of the same protocol. Published figures whose protocol is not known stand apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from refbench.errors import DatasetError, RunError
from refbench.plugins.loading import load
from refbench.records import Estimate, Summary
from refbench.reports.names import system_name
from refbench.reports.published import UNKNOWN, metric_of, published_on, published_results, rules_on
from refbench.runs.folder import RunFolder
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.protocols.systems import SYSTEMS
from refbench.scoring.results import Result
from refbench.scoring.scorer import applicable_protocols
from refbench.scoring.sources import has_predictions, is_scored, name_of, open_source, result_of, score_under
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """The figures of one system in one source, in percent, as printed.

    `metrics` has the names of the protocol. If the protocol or the metric is not known, it has the names as printed.
    """

    system: str
    variant: str
    metrics: Mapping[str, float]
    evidence: str
    source: str
    note: str


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """The figures of one run or predictions file, in percent with 95 % intervals.

    `failures` is the number of samples without a usable prediction; `missing` of them have no prediction at all.
    """

    name: str
    source: Path
    metrics: Mapping[str, Estimate]
    samples: int
    failures: int
    missing: int


@dataclass(frozen=True, slots=True)
class Standing:
    """The results of a split under one protocol, best first.

    `headline` is the metric by which the rows are sorted. `metrics` are the metrics of the published rows, the headline
    first; if there are none, those of the protocol. `used_by` are the systems that print their figures by this
    protocol. If `protocol` is "unknown", the rows are not comparable with each other.
    """

    protocol: str
    used_by: tuple[str, ...]
    headline: str
    metrics: tuple[str, ...]
    published: list[PublishedRow]
    measured: list[MeasuredRow]

    def sentences(self) -> list[str]:
        """One sentence for each measured row: its headline metric beside the best published one."""
        shown = [row for row in self.published if self.headline in row.metrics]
        if not shown:
            return []
        best = max(shown, key=lambda row: row.metrics[self.headline])
        out = []
        for row in self.measured:
            mine = row.metrics[self.headline]
            owner = f"the rule of {self.used_by[0]}" if self.used_by else "this rule"
            variant = f" ({best.variant})" if best.variant else ""
            out.append(
                f"{row.name}, by {owner}: {mine.value:.2f} [{mine.low:.2f}, {mine.high:.2f}]; "
                f"{best.system}{variant} printed {best.metrics[self.headline]:g}"
            )
        return out


def standings_of(
    address: str,
    sources: Sequence[Path] = (),
    protocol: str | None = None,
    progress: Progress = silent,
    log: Callable[[str], None] = lambda _: None,
) -> list[Standing]:
    """The published results of a split by protocol, with the results of your own runs or predictions.

    Each source is scored under all protocols for which the split has published results. Nothing is written.

    Args:
        address: the split, for example "refcoco/val".
        sources: run folders, scored folders, or files or folders of predictions.
        protocol: only this protocol.
        log: called with a sentence for each figure that cannot be computed, with the reason.

    Raises:
        DatasetError: there is no published result for the split, and no source is given.
        PredictionError: a source cannot be scored on the split.
        RunError: a source cannot be scored on the split.

    Example:
        >>> found = standings_of("refcoco/testA", protocol="lavt-480")
        >>> found[0].headline, max(row.metrics["overall IoU"] for row in found[0].published)
        ('overall IoU', 75.82)
    """
    here = published_on(address)
    if here.empty and not sources:
        known = published_results().groupby("dataset")["split"].unique()
        dataset = address.partition("/")[0]
        splits = ", ".join(sorted(known[dataset])) if dataset in known else ""
        raise DatasetError(
            f"there are no published results of {address}; "
            + (
                f"there are some of {dataset} on: {splits}"
                if splits
                else f"choose from {', '.join(sorted(known.index))}"
            )
        )
    if protocol is not None and protocol != UNKNOWN:
        protocol = str(load("protocols", protocol).name)
    wanted = [protocol] if protocol else [*dict.fromkeys([*here["protocol"], REFBENCH.name])]
    rules = rules_on(address) if protocol is None else _rules_of(protocol)
    measured: dict[str, list[MeasuredRow]] = {name: [] for name in rules}
    for done, source in enumerate(sources):
        rows_of_source, left_out = _measured(Path(source), address, list(rules), progress)
        for name, row in rows_of_source.items():
            measured[name].append(row)
        for name, reason in left_out.items():
            log(f"{source} has no figures under {name}: {reason}")
        progress("sources", done + 1, len(sources))
    out = []
    for name in wanted:
        rows = here[here["protocol"] == name]
        mine = measured.get(name, [])
        if not rows.empty or mine:
            out.append(_standing(name, rules.get(name), rows, mine))
    # What is measured by our own protocol and what cannot be compared come last.
    return sorted(out, key=lambda s: (s.protocol == UNKNOWN, s.protocol == REFBENCH.name, s.protocol))


def _rules_of(name: str) -> dict[str, Protocol]:
    rule = None if name == UNKNOWN else load("protocols", name)
    return {rule.name: rule} if isinstance(rule, Protocol) else {}


def published_standings(figures: pd.DataFrame) -> list[Standing]:
    """Published results of one split by protocol; those whose protocol is not known come last.

    Args:
        figures: rows of `read_published`, all of one split.
    """
    out = []
    for name in sorted(figures["protocol"].unique(), key=lambda n: (n == UNKNOWN, n)):
        rows = figures[figures["protocol"] == name]
        out.append(_standing(name, _rules_of(name).get(name), rows, []))
    return out


def _measured(
    source: Path, address: str, names: Sequence[str], progress: Progress
) -> tuple[dict[str, MeasuredRow], dict[str, str]]:
    """The figures of a source under each protocol that can be applied to it, and why the others are left out."""
    if is_scored(source) and not has_predictions(source):
        result = result_of(source, address)
        if result.fingerprint and result.fingerprint != split_fingerprint(address):
            raise RunError(f"{source} contains scores on another version of {address} than the local build")
        row = {n: _row(source, result, result.summaries[n]) for n in names if n in result.summaries}
        why = "it contains scores under other protocols, and no predictions"
        return row, {n: why for n in names if n not in row}
    _, answers = open_source(source, address)
    if isinstance(answers, RunFolder) and answers.info.limit is not None:
        why = f"it is a run on the first {answers.info.limit} samples only"
        return {}, dict.fromkeys(names, why)
    rules, left_out = applicable_protocols(names, address)
    counted, summaries = score_under(rules, answers, address, progress=progress)
    name = system_name(answers.info) if isinstance(answers, RunFolder) else name_of(source)
    failures = int(counted.scores.failed.sum())
    rows = {
        rule: MeasuredRow(name, source, summary.metrics, summary.samples, failures, counted.missing)
        for rule, summary in summaries.items()
    }
    return rows, left_out


def _row(source: Path, result: Result, summary: Summary) -> MeasuredRow:
    return MeasuredRow(name_of(source), source, summary.metrics, summary.samples, result.failures, result.missing)


def _standing(name: str, rule: Protocol | None, rows: pd.DataFrame, measured: list[MeasuredRow]) -> Standing:
    published = []
    for (system, variant, evidence, source), group in rows.groupby(
        ["system", "variant", "evidence", "source"], sort=False
    ):
        metrics: dict[str, float] = {}
        for row in group.to_dict("records"):
            metrics[_metric(rule, row)] = float(row["value"])
        notes = "; ".join(dict.fromkeys(n for n in group["note"] if n))
        published.append(PublishedRow(str(system), str(variant), metrics, str(evidence), str(source), notes))
    printed = dict.fromkeys(m for row in published for m in row.metrics)
    if rule is not None:
        ordered = [m for m in rule.metrics if m in printed or not printed]
        headline = rule.headline if rule.headline in ordered else ordered[0] if ordered else rule.headline
        metrics_shown = list(dict.fromkeys([headline, *ordered, *printed]))
    else:
        metrics_shown = list(printed)
        headline = metrics_shown[0] if metrics_shown else ""

    def place(row: PublishedRow | MeasuredRow) -> tuple[float, str]:
        found: Any = row.metrics.get(headline)
        value = found.value if isinstance(found, Estimate) else found
        known = value is not None and not math.isnan(value)
        return (-value if known else math.inf), row.system if isinstance(row, PublishedRow) else row.name

    return Standing(
        name,
        SYSTEMS.get(name, ()),
        headline,
        tuple(metrics_shown),
        sorted(published, key=place),
        sorted(measured, key=place),
    )


def _metric(rule: Protocol | None, row: Mapping[Any, Any]) -> str:
    """The name under which a published figure stands."""
    name = None if rule is None else metric_of(rule, row["metric_id"])
    return name or str(row["metric_as_printed"])


def leaderboard_frame(address: str, sources: Sequence[Path] = (), protocol: str | None = None) -> pd.DataFrame:
    """The standings of a split as a DataFrame, with one row for each figure.

    Args:
        address: as for `standings_of`.
        sources: as for `standings_of`.
        protocol: as for `standings_of`.

    Returns:
        A DataFrame with the columns `protocol`, `system`, `variant`, `origin` ("published" or "measured"), `metric`,
        `value`, `low`, `high` (percent; the interval only of measured figures), `evidence` and `source`.

    Example:
        >>> frame = leaderboard_frame("refcoco/testA", protocol="lavt-480")
        >>> float(frame.loc[frame["metric"] == "overall IoU", "value"].max())
        75.82
    """
    rows = []
    for standing in standings_of(address, sources, protocol):
        for p in standing.published:
            about = {"protocol": standing.protocol, "system": p.system, "variant": p.variant, "origin": "published"}
            rows += [
                about | {"metric": m, "value": v, "evidence": p.evidence, "source": p.source}
                for m, v in p.metrics.items()
            ]
        for mine in standing.measured:
            about = {"protocol": standing.protocol, "system": mine.name, "variant": "", "origin": "measured"}
            rows += [
                about | {"metric": m, **dataclasses.asdict(e), "evidence": "", "source": str(mine.source)}
                for m, e in mine.metrics.items()
            ]
    columns = [
        "protocol", "system", "variant", "origin", "metric", "value", "low", "high", "evidence", "source",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
