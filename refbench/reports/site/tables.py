"""The tables of the site: published and measured results of every split, each under its own protocol."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from refbench.errors import RefbenchError
from refbench.plugins.loading import load
from refbench.records import Estimate
from refbench.reports.leaderboard import SHORT_NAMES
from refbench.reports.published import UNKNOWN
from refbench.reports.ranks import Rank, rank_runs
from refbench.reports.recomputation import Status, Verdict
from refbench.reports.site.runs import SiteRun
from refbench.reports.standings import PublishedRow, published_standings
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.protocols.systems import SYSTEMS
from refbench.storage.secrets import published as public

PUBLISHED, LIMITED = "published", "limited"
VENUE_YEAR = re.compile(r"\b(?:CVPR|ICCV|ECCV|NeurIPS|ICLR|ICML|AAAI|ACM MM|WACV|TPAMI|IJCV)\s*(20\d\d)\b")
ARXIV_YEAR = re.compile(r"\barXiv[: ]+(\d\d)(?:0[1-9]|1[0-2])\.\d{4,5}\b")
SIZE = re.compile(r"\b(\d+(?:\.\d+)?)\s?B\b")


def year_of(text: str) -> int | None:
    """The year that the source of a figure names: of its venue, otherwise of its arXiv number; None if it names none.

    Example:
        >>> year_of("LAVT (CVPR 2022); repo yz93/LAVT-RIS"), year_of("CRIS, arXiv 2111.15174"), year_of("a page")
        (2022, 2021, None)
    """
    if found := VENUE_YEAR.search(text):
        return int(found[1])
    found = ARXIV_YEAR.search(text)
    return 2000 + int(found[1]) if found else None


def size_of(text: str) -> float | None:
    """The number of parameters in billions that a variant names, such as "InternVL2.5 (8B)"; None if it names none."""
    found = SIZE.search(text)
    return float(found[1]) if found else None


def all_tables(published: pd.DataFrame, runs: Sequence[SiteRun], also: Iterable[str] = ()) -> list[dict[str, Any]]:
    """One entry for each split, with its tables: `{address, tables: [{protocol, rows, ...}]}`, sorted by address.

    `also` are splits that get an entry without results, too.
    """
    places = {(d, s) for d, s in zip(published["dataset"], published["split"], strict=True)}
    addresses = {f"{d}/{s}" if s else d for d, s in places} | {run.address for run in runs} | {*also}
    out = []
    for address in sorted(addresses):
        dataset, _, split = address.partition("/")
        here = published[(published["dataset"] == dataset) & (published["split"] == split)]
        tables = _tables(here, [run for run in runs if run.address == address])
        out.append({"address": address, "tables": tables})
    return out


def _tables(published: pd.DataFrame, runs: Sequence[SiteRun]) -> list[dict[str, Any]]:
    """The tables of a split: one for each protocol, and for each version of the dataset if there are several."""
    versions = list(dict.fromkeys(run.result.fingerprint for run in runs))
    # Published figures stand beside the runs on the build that is here.
    main = next((run.result.fingerprint for run in runs if run.diagnosis is not None), versions[0] if versions else "")
    tables = []
    names = {*published["protocol"], *(name for run in runs for name in run.result.summaries)}
    for name in sorted(names, key=lambda n: (n == UNKNOWN, n != REFBENCH.name, n)):
        for version in versions or [""]:
            mine = [r for r in runs if r.result.fingerprint == version and name in r.result.summaries]
            quoted = published[published["protocol"] == name] if version == main else published.iloc[:0]
            if not mine and quoted.empty:
                continue
            tables.append(_table(name, version if len(versions) > 1 else "", quoted, mine))
    return tables


def _table(name: str, version: str, published: pd.DataFrame, runs: Sequence[SiteRun]) -> dict[str, Any]:
    rule = _rule(name)
    rows = [
        *_measured_rows(name, runs),
        *(_published_row(row) for s in published_standings(published) for row in s.published),
    ]
    known = dict.fromkeys(m for row in rows for m in row["metrics"])
    ordered = [m for m in rule.metrics if m in known] if rule else []
    if name == REFBENCH.name:
        ordered = [m for m in SHORT_NAMES if m in known]
    metrics = [*ordered, *(m for m in known if m not in ordered)]
    headline = rule.headline if rule and rule.headline in metrics else metrics[0] if metrics else ""
    metrics = [m for m in dict.fromkeys([headline, *metrics]) if m]
    rows.sort(key=lambda row: _place(row, headline))
    return {
        "protocol": name,
        "version": version[:12],
        "usedBy": list(SYSTEMS.get(name, ())),
        "summary": rule.summary if rule else "",
        "headline": headline,
        "metrics": metrics,
        "labels": [SHORT_NAMES.get(m, m) if name == REFBENCH.name else m for m in metrics],
        "comparable": name != UNKNOWN,
        "rows": rows,
    }


def _rule(name: str) -> Protocol | None:
    try:
        rule = load("protocols", name)
    except RefbenchError:
        return None
    return rule if isinstance(rule, Protocol) else None


def _place(row: Mapping[str, Any], headline: str) -> tuple[bool, float, str]:
    """Verified and published rows by their value, then those that cannot be checked."""
    found = row["metrics"].get(headline)
    value = found[0] if found and found[0] is not None else -math.inf
    return row["origin"] not in (PUBLISHED, Status.VERIFIED), -value, row["system"]


def _measured_rows(name: str, runs: Sequence[SiteRun]) -> list[dict[str, Any]]:
    ranks = _ranks(runs) if name == REFBENCH.name else {}
    groups = groups_of(ranks)
    rows = []
    for run in runs:
        summary = run.result.summaries[name]
        verdict = run.verdicts.get(name)
        rank = ranks.get(run.slug)
        rows.append(
            {
                "system": run.name,
                "variant": "",
                "origin": LIMITED if run.is_limited else str(verdict.status if verdict else Status.VERIFIED),
                "reason": _why(run, verdict),
                "metrics": {m: _numbers(e) for m, e in summary.metrics.items()},
                "rank": [rank.rank, rank.best, rank.worst, round(rank.at_least, 3)] if rank else None,
                "group": groups.get(run.slug),
                "samples": summary.samples,
                "failures": summary.failures,
                "missing": run.result.missing,
                "evidence": "",
                "source": "",
                "note": "",
                "year": None,
                "size": None,
                "run": run.slug,
            }
        )
    return rows


def _why(run: SiteRun, verdict: Verdict | None) -> str:
    """Why a row has no rank; "" if it has one."""
    if run.result.run is not None and run.result.run.limit is not None:
        return f"only the first {run.result.run.limit} samples"
    return public(verdict.reason) if verdict else ""


def _ranks(runs: Sequence[SiteRun]) -> dict[str, Rank]:
    """The ranks of the verified runs by cumulative IoU; empty if they have different samples."""
    verified = [
        run for run in runs if not run.is_limited and all(v.status is Status.VERIFIED for v in run.verdicts.values())
    ]
    ranked = [(run, scores) for run in verified if (scores := run.scores) is not None and len(scores)]
    try:
        found = rank_runs([scores for _, scores in ranked], REFBENCH.headline)
    except ValueError:
        return {}
    return {run.slug: rank for (run, _), rank in zip(ranked, found, strict=True)}


def groups_of(ranks: Mapping[str, Rank]) -> dict[str, int]:
    """Groups of runs that the data cannot tell apart, 1 for the best: a group ends where the intervals of the ranks do
    not overlap.

    Example:
        >>> found = {"a": Rank(1, 1, 2, 0.9), "b": Rank(2, 1, 2, 0.9), "c": Rank(3, 3, 3, 1.0)}
        >>> groups_of(found)
        {'a': 1, 'b': 1, 'c': 2}
    """
    out: dict[str, int] = {}
    group, worst = 0, 0
    for name, rank in sorted(ranks.items(), key=lambda item: (item[1].best, item[1].worst)):
        if rank.best > worst:
            group += 1
        worst = max(worst, rank.worst)
        out[name] = group
    return out


def _published_row(row: PublishedRow) -> dict[str, Any]:
    return {
        "system": row.system,
        "variant": row.variant,
        "origin": PUBLISHED,
        "reason": "",
        "metrics": {metric: [value, None, None] for metric, value in row.metrics.items()},
        "rank": None,
        "group": None,
        "samples": None,
        "failures": None,
        "missing": None,
        "evidence": row.evidence,
        "source": row.source,
        "note": row.note,
        "year": year_of(row.source),
        "size": size_of(row.variant),
        "run": "",
    }


def _numbers(estimate: Estimate) -> list[float | None]:
    return [None if math.isnan(v) else round(v, 4) for v in (estimate.value, estimate.low, estimate.high)]
