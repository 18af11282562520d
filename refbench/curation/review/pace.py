"""How long reviewers take, and how far they agree."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from refbench.curation.review.answers import Answer, opinions, same_name


@dataclass(frozen=True, slots=True)
class Pace:
    """The answers of one reviewer. `median_seconds` is None if no answer has a time."""

    reviewer: str
    items: int
    actions: Mapping[str, int]
    median_seconds: float | None


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two reviewers, with the number of items that both answered and the share of these items on which they agree (0 to
    1). 1.

    `kappa` is Cohen's kappa over the actions (keep, change, drop), between -1 and 1; None if both always chose the same
    action, so that chance alone explains their agreement.

    Source: Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20, 1960.
    """

    first: str
    second: str
    items: int
    agreed: float
    kappa: float | None


def pace_of(answers: Sequence[Answer]) -> list[Pace]:
    """The pace of each reviewer, in the order of names; each item counts once, with its last answer."""
    by_name: dict[str, dict[str, Answer]] = {}
    for answer in answers:
        by_name.setdefault(same_name(answer.reviewer), {})[answer.item_id] = answer
    out = []
    for name in sorted(by_name):
        last = list(by_name[name].values())
        times = [a.seconds for a in last if a.seconds is not None]
        actions = dict(sorted(Counter(a.action for a in last).items()))
        out.append(Pace(last[-1].reviewer, len(last), actions, round(median(times), 1) if times else None))
    return out


def agreements(standing: Mapping[str, Sequence[Answer]]) -> list[PairAgreement]:
    """Every pair of reviewers who answered an item in common; masks that are nearly equal are one opinion."""
    seen: dict[tuple[str, str], list[tuple[str, str, bool]]] = {}
    for answers in standing.values():
        labels = opinions(answers)
        rows = sorted(zip((same_name(a.reviewer) for a in answers), (a.action for a in answers), labels, strict=True))
        for (one, first, a), (two, second, b) in itertools.combinations(rows, 2):
            seen.setdefault((one, two), []).append((first, second, a == b))
    return [
        PairAgreement(one, two, len(rows), sum(same for *_, same in rows) / len(rows), _kappa(rows))
        for (one, two), rows in sorted(seen.items())
    ]


def _kappa(rows: Sequence[tuple[str, str, bool]]) -> float | None:
    n = len(rows)
    first, second = Counter(a for a, _, _ in rows), Counter(b for _, b, _ in rows)
    expected = sum(first[action] * second[action] for action in first) / n**2
    if expected == 1:
        return None
    observed = sum(a == b for a, b, _ in rows) / n
    return (observed - expected) / (1 - expected)
