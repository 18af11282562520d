"""Identities that counts and summaries satisfy whatever a model predicts; a file that breaks one was damaged or edited.

They are checked when a table or summary is written and when it is read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from refbench.errors import RunError
from refbench.protocols.base import ScoreTable

# Sums of a float series in another order may end a hair above or below.
SLACK_PERCENT = 1e-9
PRECISION_AT = re.compile(r"(.*@\D?)(\d+(?:\.\d+)?)|(precision_at_)(\d\.\d+)")


def check_scores(scores: ScoreTable, where: str) -> None:
    """Raise RunError with the first identity that a row of counts breaks, and the row."""
    s = scores
    identities: Sequence[tuple[str, np.ndarray]] = (
        ("no count is negative", np.minimum.reduce([s.intersection, s.boundary_intersection, s.prediction_area]) >= 0),
        ("union = prediction_area + target_area - intersection",
         s.union == s.prediction_area + s.target_area - s.intersection),
        ("intersection <= prediction_area and target_area",
         s.intersection <= np.minimum(s.prediction_area, s.target_area)),
        ("the boundary bands lie inside the masks: boundary_intersection <= intersection",
         s.boundary_intersection <= s.intersection),
        ("the boundary bands lie inside the masks: boundary_union <= union", s.boundary_union <= s.union),
        ("a mask that is not empty has a boundary", (s.boundary_union > 0) == (s.union > 0)),
        ("an expression without target has an empty target", ~s.no_target | (s.target_area == 0)),
        ("a failed sample has an empty prediction", ~s.failed | (s.prediction_area == 0)),
        ("a failed sample predicts nothing, not even no_target", ~s.failed | ~s.predicted_no_target),
    )  # fmt: skip
    for identity, holds in identities:
        if not holds.all():
            row = int(np.argmin(holds))
            raise RunError(
                f"{where}, row {row} ({s.sample_id[row]}) breaks an identity: {identity}. The file was damaged or "
                "edited; run `refbench score` again"
            )


def check_metrics(metrics: Mapping[str, tuple[float, float, float]], where: str) -> None:
    """Raise RunError unless values and intervals (value, low, high) are percentages and P@X falls with X."""
    for name, figures in metrics.items():
        if not all(-SLACK_PERCENT <= v <= 100 + SLACK_PERCENT for v in figures):
            raise RunError(f"{where}: {name} is {figures}, but every figure is a percentage; score the run again")
        if figures[1] > figures[2]:
            raise RunError(f"{where}: the interval of {name} is {figures[1:]}, upside down; score the run again")
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
                raise RunError(f"{where} breaks an identity: {stem}X rises from {before} to {after} as X grows")
