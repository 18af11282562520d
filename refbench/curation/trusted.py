"""The trusted refiner: whether its masks for several prompts agree, and whether they contradict the source mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refbench.curation.agreement import boundary_ious
from refbench.curation.recipe import MaskRules, TrustedCalibration
from refbench.curation.surroundings import signed_distance, window_of
from refbench.masks.mask import Mask
from refbench.records import Action, Cause, Proposal

# Beyond this share of the square root of its area, source and proposal differ by more than a hurried outline.
DEEP_SHARE = 0.04
# Weights of the score: a deep difference of a tenth of the source's area takes 0.15 off it, and the witnesses together
# weigh half as much as the source.
DEEP_WEIGHT, WITNESS_WEIGHT = 1.5, 0.5
# Pixels around source and proposal that distances look at.
MARGIN_PX = 4


@dataclass(frozen=True, slots=True)
class Trust:
    """The result of the trusted refiner for one mask.

    `proposal` is the majority vote of its variants. `stability` is their mean boundary IoU with each other.
    `source_boundary_iou` and `source_iou` compare the proposal with the source. `witnesses` is the mean boundary IoU of
    the proposals of the other refiners with this proposal, where a failed proposal counts as 0; it is None if the
    recipe has no witnesses. These values and `score` are between 0 and 1. `deep_difference` is the area in which
    proposal and source differ far from the outline of the source, relative to the area of the source; it can be above
    1. `score` ranks masks: the higher the score, the better the proposal is expected to be.
    """

    proposal: Proposal
    variants: int
    stability: float
    source_boundary_iou: float
    source_iou: float
    deep_difference: float
    witnesses: float | None

    @property
    def score(self) -> float:
        """Weighted mean of stability and of the agreement with source and witnesses, minus the deep differences.

        It is rounded like the knots of a calibration, so that the lowest measured score is never below its own knot.
        """
        parts, weight = self.stability + self.source_boundary_iou, 2.0
        if self.witnesses is not None:
            parts, weight = parts + WITNESS_WEIGHT * self.witnesses, weight + WITNESS_WEIGHT
        return round(max(0.0, parts / weight - DEEP_WEIGHT * self.deep_difference), 3)

    def figures(self) -> dict[str, float]:
        """The values by name, for the decision; the ledger has columns for some of them."""
        return {
            "score": self.score,
            "stability": self.stability,
            "source_boundary_iou": self.source_boundary_iou,
            "source_iou": self.source_iou,
            "deep_difference": self.deep_difference,
            **({} if self.witnesses is None else {"agreement": self.witnesses}),
        }


def judge(
    score: float, source_boundary_iou: float, calibration: TrustedCalibration, rules: MaskRules
) -> tuple[Action, Cause]:
    """The decision for a mask whose trusted proposal has this score and this boundary IoU with the source."""
    if not calibration.score:
        return Action.REVIEW, Cause.NOT_CALIBRATED
    expected = calibration.expected(score)
    if expected < rules.accept:
        # Below all scores that were measured nothing is known, so nothing is given up either.
        hopeless = score >= calibration.score[0] and expected < min(rules.drop, rules.accept)
        return (Action.DROP if hopeless else Action.REVIEW), Cause.AGREED_TOO_LITTLE
    if source_boundary_iou >= rules.keep:
        return Action.KEEP, Cause.SOURCE_CONFIRMED
    if calibration.probably_better(score) < rules.better:
        return Action.REVIEW, Cause.NOT_BETTER
    return Action.CHANGE, Cause.AGREED


def trust(source: Mask, proposals: Sequence[Proposal], refiner: str) -> Trust | None:
    """The result of the trusted `refiner`; None unless at least two of its variants made a proposal."""
    own = [p for p in proposals if p.refiner == refiner and not p.error]
    if len(own) < 2:
        return None
    pixels = np.stack([p.mask.to_array() for p in own])
    majority = Mask.from_array(2 * pixels.sum(axis=0) > len(own))
    if majority.area == 0:
        return None
    witnesses = [p for p in proposals if p.refiner != refiner and p.variant == 0]
    others = [p.mask for p in witnesses if not p.error]
    boundary = boundary_ious([majority, source, *(p.mask for p in own), *others])
    variants = boundary[2 : 2 + len(own), 2 : 2 + len(own)]
    pairs = variants[np.triu_indices(len(own), 1)]
    with_others = boundary[0, 2 + len(own) :]
    intersection = int((majority.to_array() & source.to_array()).sum())
    return Trust(
        proposal=Proposal(own[0].mask_id, refiner, 0, majority, own[0].confidence),
        variants=len(own),
        stability=round(float(pairs.mean()), 6),
        source_boundary_iou=round(float(boundary[0, 1]), 6),
        source_iou=round(intersection / (majority.area + source.area - intersection), 6),
        deep_difference=round(_deep_difference(source, majority), 6),
        # A witness that failed supports nothing.
        witnesses=round(float(with_others.sum()) / len(witnesses), 6) if witnesses else None,
    )


def _deep_difference(source: Mask, proposal: Mask) -> float:
    """Area of the difference farther than DEEP_SHARE from the outline of the source, relative to the area of the
    source.
    """
    first, second = source.to_array(), proposal.to_array()
    window = window_of(first | second, MARGIN_PX)
    distance = signed_distance(first[window])
    deep = np.abs(distance) > DEEP_SHARE * np.sqrt(source.area)
    return float(np.count_nonzero((first ^ second)[window] & deep) / source.area)
