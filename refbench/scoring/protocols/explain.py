"""Explains the difference between two protocols, one choice at a time.

Every step replaces one choice by that of the other protocol and shows how the metric changes; the changes add up to the
whole difference. The order of the steps is a convention: if two choices have an effect only together, the effect is
attributed to the later one. Choices about how the original makes its masks cannot be reproduced from stored masks; they
are listed separately.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from decimal import Decimal

from refbench.errors import PredictionError
from refbench.scoring.protocols.base import MASK, Evidence, Metric, Precision, Protocol, everyone, value_of

# In the order in which a scorer applies them; the last one, the metric, is not a field of a protocol.
REPLAYED = ("units", "target", "canvas", "sample_iou", "both_empty")
# Fields of a protocol that are part of a choice.
GOES_WITH = {"target": ("leaves_out_ignored",), "both_empty": ("when_empty",)}
NOT_REPLAYED = ("text", "binarisation", "resampling")
# Figures are rounded to this before they are subtracted, so that differences add up to the last digit shown.
DECIMALS = Decimal("0.000001")


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One replaced choice: the metric after it, and its difference from the metric before it, both in percent."""

    choice: str
    before: str
    after: str
    value: Decimal
    difference: Decimal


@dataclasses.dataclass(frozen=True, slots=True)
class Walk:
    """The steps from one metric to another; `start` plus all differences is `end`, exactly."""

    first: str
    first_metric: str
    start: Decimal
    steps: tuple[Step, ...]
    second: str
    second_metric: str
    end: Decimal
    # Choices that differ and that no stored mask can replay: (choice, the first's words, the second's).
    not_replayed: tuple[tuple[str, str, str], ...]


def chosen_metric(rule: Protocol, metric: str | None) -> str:
    """The name of a metric of a protocol; its headline if None.

    Raises:
        PredictionError: the protocol has no such metric.
    """
    name = rule.headline if metric is None else metric
    if name not in rule.metrics:
        raise PredictionError(f"{rule.name} has no metric {name!r}; its metrics are {', '.join(rule.metrics)}")
    return name


def hybrids(first: Protocol, second: Protocol) -> list[tuple[str, Protocol]]:
    """Protocols between the first and the second.

    Returns pairs of a name and a protocol: first "" and the first protocol, then, for each choice that differs, the
    name of the choice and the protocol in which this choice and all earlier ones are replaced.
    """
    current = first
    out = [("", first)]
    for choice in REPLAYED:
        fields = (choice, *GOES_WITH.get(choice, ()))
        # A difference in `when_empty` alone is not a step; it is included in the step of the metric.
        if any(getattr(first, f) != getattr(second, f) for f in fields if f != "when_empty"):
            current = dataclasses.replace(current, **{f: getattr(second, f) for f in fields})
            out.append((choice, current))
    return out


def walk(
    first: Protocol,
    second: Protocol,
    evidence: Callable[[Protocol], Evidence],
    first_metric: str | None = None,
    second_metric: str | None = None,
) -> Walk:
    """Explain, step by step, the difference between a metric of the first protocol and a metric of the second; by
    default, their headline metrics.

    `evidence` gives the counts for the target and canvas of a protocol, with the measures of both protocols.

    Raises:
        PredictionError: a protocol has no such metric.
    """
    name, other_name = chosen_metric(first, first_metric), chosen_metric(second, second_metric)
    metric, other = first.metrics[name], second.metrics[other_name]
    versions = hybrids(first, second)
    start = before = _rounded(value_of(first, metric, evidence(first)))
    steps = []
    for choice, version in versions[1:]:
        value = _rounded(value_of(version, metric, evidence(version)))
        if value == before and getattr(first, choice) == getattr(second, choice):
            # The choice itself is equal; only `leaves_out_ignored` differs, which changes nothing on this split.
            continue
        steps.append(Step(choice, _words(first, choice), _words(second, choice), value, value - before))
        before = value
    if metric != other or first.when_empty != second.when_empty:
        value = _rounded(value_of(second, other, evidence(second)))
        kind = "precision" if isinstance(metric, Precision) and isinstance(other, Precision) else "aggregation"
        if metric != other or value != before:
            steps.append(Step(kind, metric_words(metric), metric_words(other), value, value - before))
        before = value
    differing = tuple(
        (choice, getattr(first, choice), getattr(second, choice))
        for choice in NOT_REPLAYED
        if getattr(first, choice) != getattr(second, choice)
    )
    return Walk(first.name, name, start, tuple(steps), second.name, other_name, before, differing)


def metric_words(metric: Metric) -> str:
    """A metric as text: its formula and, if not the defaults, the samples it includes and the counts it compares."""
    over = "" if metric.over is everyone else f", over {metric.over.__doc__}"
    return metric.words + over + ("" if metric.counts == MASK else f", of {metric.counts}")


def _words(rule: Protocol, choice: str) -> str:
    return str(getattr(rule.choices, choice))


def _rounded(value: float) -> Decimal:
    if math.isnan(value):
        raise PredictionError(
            "one of the two metrics is undefined here, because its protocol divides 0 by 0 if the prediction "
            "is empty and there is no target; use a split in which every expression has a target"
        )
    return Decimal(value).quantize(DECIMALS)
