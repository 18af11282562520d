"""Leaderboards and comparisons as LaTeX tables for booktabs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from refbench.errors import PredictionError, RefbenchError
from refbench.plugins.loading import load
from refbench.reports.comparison import Comparison
from refbench.reports.leaderboard import SHORT_NAMES
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.scorer import Scored

# How an interval is printed.
BRACKETS, PLUS_MINUS, NONE = "brackets", "plus-minus", "none"
INTERVALS = (BRACKETS, PLUS_MINUS, NONE)
_NEEDED = ("protocol", "system", "metric", "value")
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip
_MARKS = "abcdefghijklmnopqrstuvwxyz"


def to_latex(
    what: pd.DataFrame | Comparison | Scored,
    *,
    metrics: Sequence[str] = (),
    interval: str = BRACKETS,
    digits: int = 1,
    caption: str = "",
    label: str = "",
) -> str:
    """A LaTeX table of a leaderboard or a comparison. It needs `\\usepackage{booktabs}`.

    Systems are ranked only within one protocol: the best value of each column is bold, the second underlined. A
    footnote states the rule of each protocol.

    Args:
        what: the DataFrame of `leaderboard_frame`, `runs_frame` or `protocols_frame`, or the result of `compare` or
            `score`.
        metrics: the columns, in this order; by default all metrics of the table.
        interval: of measured values: "brackets" for [low, high], "plus-minus" for half its width, or "none".
        digits: decimals.
        caption: of the table; without a caption, the result is only the tabular with its notes.
        label: of the table, if it has a caption.

    Raises:
        PredictionError: a metric or a kind of interval does not exist, or the DataFrame has other columns.

    Example:
        >>> from refbench import leaderboard_frame, to_latex
        >>> table = to_latex(leaderboard_frame("refcoco/testA", protocol="lavt-480"), metrics=["overall IoU"])
        >>> next(line for line in table.splitlines() if "LAVT" in line)
        'LAVT (Swin-B + BERT) & 75.8 \\\\\\\\'
    """
    if interval not in INTERVALS:
        raise PredictionError(f"the interval must be one of {', '.join(INTERVALS)}, got {interval!r}")
    if isinstance(what, Scored):
        what = _frame_of(what)
    if isinstance(what, Comparison):
        lines = _comparison(what, metrics, interval, digits)
    elif isinstance(what, pd.DataFrame):
        lines = _leaderboard(what, metrics, interval, digits)
    else:
        raise PredictionError(f"a table is made of a DataFrame, a Comparison or a Scored, got {type(what).__name__}")
    if not caption:
        return "\n".join(lines) + "\n"
    named = [rf"\label{{{label}}}"] if label else []
    around = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}", *named, *lines, r"\end{table}"]
    return "\n".join(around) + "\n"


def _frame_of(scored: Scored) -> pd.DataFrame:
    """The figures of one scored source, in the form of `leaderboard_frame`."""
    rows = [
        {"protocol": name, "system": "This work", "metric": metric, "value": e.value, "low": e.low, "high": e.high}
        for name, summary in scored.summaries.items()
        for metric, e in summary.metrics.items()
    ]
    return pd.DataFrame(rows)


def escaped(text: str) -> str:
    """A text with the special characters of LaTeX escaped."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _leaderboard(frame: pd.DataFrame, metrics: Sequence[str], interval: str, digits: int) -> list[str]:
    frame = frame if "system" in frame else frame.assign(system=frame.get("protocol", ""))
    missing = [name for name in _NEEDED if name not in frame]
    if missing:
        raise PredictionError(
            f"the table has no column {missing[0]!r}; pass that of leaderboard_frame, runs_frame or protocols_frame"
        )
    if {"dataset", "split"} <= set(frame) and len(frame[["dataset", "split"]].drop_duplicates()) > 1:
        raise PredictionError("the table has figures of several splits, which cannot be ranked; choose the rows of one")
    shown = list(metrics) or list(dict.fromkeys(frame["metric"]))
    _check_metrics(shown, frame["metric"])
    protocols = [
        p for p in dict.fromkeys(frame["protocol"]) if frame["metric"][frame["protocol"] == p].isin(shown).any()
    ]
    lines = [rf"\begin{{tabular}}{{l{'c' * len(shown)}}}", r"\toprule"]
    lines += [" & ".join(["System", *(escaped(SHORT_NAMES.get(m, m)) for m in shown)]) + r" \\"]
    for mark, protocol in zip(_marks(len(protocols)), protocols, strict=True):
        lines += [r"\midrule"]
        if len(protocols) > 1:
            title = escaped(protocol) if protocol != "unknown" else "rule not known"
            lines += [rf"\multicolumn{{{len(shown) + 1}}}{{l}}{{\textit{{{title}}}$^{{{mark}}}$}} \\"]
        lines += _rows(frame[frame["protocol"] == protocol], shown, interval, digits)
    notes = []
    for mark, protocol in zip(_marks(len(protocols)), protocols, strict=True):
        sign = rf"$^{{{mark}}}$ " if len(protocols) > 1 else ""
        notes.append(sign + escaped(_rule(protocol)))
    return [*lines, r"\bottomrule", r"\end{tabular}", *_notes(notes)]


def _notes(notes: Sequence[str]) -> list[str]:
    """Footnotes below a tabular, as wide as the text."""
    return [r"\par\smallskip", r"{\footnotesize\raggedright", *(rf"{note}\par" for note in notes), "}"]


def _rows(part: pd.DataFrame, shown: Sequence[str], interval: str, digits: int) -> list[str]:
    systems: dict[tuple[str, ...], dict[str, Mapping[Any, Any]]] = {}
    for row in part.to_dict("records"):
        if row["metric"] in shown:
            key = tuple(str(row.get(name, "") or "") for name in ("system", "variant", "folder", "origin"))
            systems.setdefault(key, {})[row["metric"]] = row
    best = {metric: _two_best([cells[metric]["value"] for cells in systems.values() if metric in cells], digits)
            for metric in shown}  # fmt: skip
    first = shown[0]
    order = sorted(systems, key=lambda key: -_number(systems[key].get(first, {}).get("value")))
    out = []
    for key in order:
        system, variant, _, origin = key
        name = escaped(system) + (f" ({escaped(variant)})" if variant not in ("", "-") else "")
        name += " (ours)" if origin == "measured" else ""
        cells = [_cell(systems[key].get(metric), best[metric], interval, digits) for metric in shown]
        out.append(" & ".join([name, *cells]) + r" \\")
    return out


def _cell(row: Mapping[Any, Any] | None, best: Sequence[str], interval: str, digits: int) -> str:
    if row is None or math.isnan(float(row["value"])):
        return "--"
    text = f"{row['value']:.{digits}f}"
    marked = text
    if best and text == best[0]:
        marked = rf"\textbf{{{text}}}"
    elif len(best) > 1 and text == best[1]:
        marked = rf"\underline{{{text}}}"
    return marked + _interval(row.get("low"), row.get("high"), interval, digits)


def _interval(low: Any, high: Any, interval: str, digits: int) -> str:
    if interval == NONE or low is None or high is None or pd.isna(low) or pd.isna(high):
        return ""
    if interval == PLUS_MINUS:
        return rf" {{\scriptsize $\pm$ {(high - low) / 2:.{digits}f}}}"
    return rf" {{\scriptsize [{low:.{digits}f}, {high:.{digits}f}]}}"


def _two_best(values: Sequence[float], digits: int) -> list[str]:
    """The two highest printed values of a column; nothing is marked in a column of one value."""
    printed = {f"{v:.{digits}f}": v for v in values if not math.isnan(v)}
    real = [v for v in values if not math.isnan(v)]
    return sorted(printed, key=lambda text: -printed[text])[:2] if len(real) > 1 else []


def _comparison(found: Comparison, metrics: Sequence[str], interval: str, digits: int) -> list[str]:
    shown = list(metrics) or [d.metric for d in found.metrics]
    by_name = {d.metric: d for d in found.metrics}
    _check_metrics(shown, by_name)
    first, second = (escaped(r.folder.name) for r in (found.first, found.second))
    lines = [r"\begin{tabular}{lcccc}", r"\toprule"]
    lines += [rf"Metric & {first} & {second} & Difference & $p$ \\", r"\midrule"]
    for name in shown:
        d = by_name[name]
        values = [f"{v:.{digits}f}" for v in (d.first, d.second)]
        best = max(range(2), key=lambda k: (d.first, d.second)[k])
        if values[0] != values[1]:
            values[best] = rf"\textbf{{{values[best]}}}"
        difference = f"${d.difference:+.{digits}f}$" + _interval(d.low, d.high, interval, digits)
        chance = r"$<$ 0.001" if d.p_value < 0.001 else f"{d.p_value:.3f}"
        lines += [" & ".join([escaped(SHORT_NAMES.get(name, name)), *values, difference, chance]) + r" \\"]
    text = f"{found.address}: {found.samples} expressions, {found.images} images; 95 % intervals, resampled by image"
    return [*lines, r"\bottomrule", r"\end{tabular}", *_notes([escaped(text)])]


def _check_metrics(shown: Sequence[str], known: Any) -> None:
    names = set(known)
    for metric in shown:
        if metric not in names:
            raise PredictionError(f"there is no metric {metric!r}; choose from {', '.join(sorted(names))}")


def _marks(count: int) -> list[str]:
    return [_MARKS[k] if k < len(_MARKS) else str(k + 1) for k in range(count)]


def _number(value: Any) -> float:
    return -math.inf if value is None or math.isnan(float(value)) else float(value)


def _rule(protocol: str) -> str:
    """What a footnote says of a protocol."""
    if protocol == "unknown":
        return "As printed; the rule is not known, so the values are not comparable with each other."
    try:
        rule = load("protocols", protocol)
    except RefbenchError:
        return f"Protocol {protocol}."
    return f"Protocol {protocol}: {rule.summary}." if isinstance(rule, Protocol) else f"Protocol {protocol}."
