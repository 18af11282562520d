"""Identities that summaries satisfy for every model; a file that breaks one was damaged or edited.

They are checked when a summary is written and when it is read; the identities of the counts are in
`refbench.scoring.counts`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection

from refbench.errors import RunError
from refbench.records import Summary

# Float sums in another order may differ slightly.
SLACK_PERCENT = 1e-9
PRECISION_AT = re.compile(r"(.*@\D?)(\d+(?:\.\d+)?)|(precision_at_)(\d\.\d+)")


def check_summary(summary: Summary, where: str, signed: Collection[str] = ()) -> None:
    """Raise RunError unless values and intervals (value, low, high) are percentages and P@X does not increase with X.

    Metrics in `signed` are between -100 and 100. If a metric is undefined (0 / 0 in the original), its value, low and
    high are all NaN.
    """
    metrics = {m: (e.value, e.low, e.high) for m, e in summary.metrics.items()}
    for name, figures in metrics.items():
        if all(math.isnan(v) for v in figures):
            continue
        lowest = -100 if name in signed else 0
        if not all(lowest - SLACK_PERCENT <= v <= 100 + SLACK_PERCENT for v in figures):
            raise RunError(f"{where}: {name} is {figures}, but every metric must be a percentage; score the run again")
        if figures[1] > figures[2]:
            raise RunError(
                f"{where}: the lower end of the interval of {name}, {figures[1]}, is greater than the upper end, "
                f"{figures[2]}; score the run again"
            )
    series: dict[str, list[tuple[float, float]]] = {}
    for name, figures in metrics.items():
        match = PRECISION_AT.fullmatch(name)
        if match:
            stem, threshold = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
            series.setdefault(stem, []).append((float(threshold), figures[0]))
    for stem, points in series.items():
        values = [value for _, value in sorted(points)]
        for before, after in itertools.pairwise(values):
            if after > before + SLACK_PERCENT:
                raise RunError(
                    f"{where}: the values of {stem}X must not increase with X, but they increase from {before} to "
                    f"{after}; score the run again"
                )
