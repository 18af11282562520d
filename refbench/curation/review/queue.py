"""The queue of items that need review, most doubtful first, and the progress of the review."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refbench.curation.ledger import EXPRESSION, MASK
from refbench.curation.review.answers import Answer, disagreements, settle
from refbench.records import Action, Decision

WAITING, SETTLED, DISAGREED = "waiting", "settled", "disagreed"


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of the queue. `doubt` is between 0 and 1; `reviewers` are those who have answered."""

    item: str
    item_id: str
    reason: str
    doubt: float
    state: str
    reviewers: tuple[str, ...]


def queue_of(
    masks: Mapping[str, Decision],
    expressions: Mapping[str, Decision],
    standing: Mapping[str, Sequence[Answer]],
    needed: int,
    *,
    everything: bool = False,
) -> list[Entry]:
    """The items that a recipe leaves to people. Items on which reviewers disagree come first; the other items are
    sorted by doubt, highest first.

    Settled items keep their position. With `everything`, items that the recipe has decided are included.
    """
    torn = set(disagreements(standing))
    out = []
    for item, decisions in ((MASK, masks), (EXPRESSION, expressions)):
        for item_id, decision in decisions.items():
            answers = standing.get(item_id, ())
            if decision.action != Action.REVIEW and not answers and not everything:
                continue
            settled = settle(answers, needed) is not None
            state = SETTLED if settled else DISAGREED if item_id in torn else WAITING
            names = tuple(a.reviewer for a in answers)
            out.append(Entry(item, item_id, decision.reason, doubt_of(decision), state, names))
    return sorted(out, key=lambda e: (e.state != DISAGREED, -e.doubt, e.item_id))


def doubt_of(decision: Decision) -> float:
    """How unsure the recipe is, between 0 and 1; it is highest for items that the audit leaves to people and for items
    without any proposal.
    """
    scores = decision.scores
    if decision.action != Action.REVIEW:
        return 0.0
    if not scores or decision.stage == "audit":
        return 1.0
    confirmed = max(scores.get("probably_better", 0.0), scores.get("source_boundary_iou", 0.0))
    return round(1.0 - scores.get("expected_boundary_iou", 0.0) * confirmed, 4)
