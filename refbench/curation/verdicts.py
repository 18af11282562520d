"""Decides each mask and expression from findings and proposals, by the rules of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pycocotools import mask as coco_mask

from refbench.curation.agreement import Agreement, agree
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.language import flag
from refbench.curation.recipe import CONFIRMED, Recipe
from refbench.curation.trusted import DEEP_WEIGHT, WITNESS_WEIGHT, Trust, judge, trust
from refbench.masks.mask import Mask
from refbench.records import Action, Cause, Decision, Finding, Proposal, Sample

# Stages, in the order in which they have their say.
AUDIT, PROPOSALS, LANGUAGE = "audit", "proposals", "language"
TOXIC = "expression-toxic"
# Findings that say no more than that two masks are on one object.
SETTLED_BY_MODELS = ("mask-like-another",)
# Causes that send a mask to a reviewer, whatever the agreement of its proposals.
NOT_JUDGED = (Cause.NO_PROPOSAL, Cause.SAME_OBJECT, Cause.TOO_FEW_REFINERS)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence about one mask: from the witnesses together, and from the trusted refiner if the recipe has one."""

    agreement: Agreement | None
    trust: Trust | None = None


def gather(source: Mask, proposals: Sequence[Proposal], recipe: Recipe) -> Evidence:
    """The evidence from the proposals for a mask, by the roles of the refiners."""
    chosen = recipe.trusted_refiner
    if chosen is None:
        return Evidence(agree(source, proposals))
    witnesses = [p for p in proposals if p.refiner != chosen.name]
    return Evidence(agree(source, witnesses), trust(source, proposals, chosen.name))


def decide_masks(
    image: ImageItems,
    found: Mapping[str, Sequence[Finding]],
    evidence: Mapping[str, Evidence],
    recipe: Recipe,
) -> list[Decision]:
    """The decisions about the masks of one image; `found` maps item ids to findings, and `evidence` maps mask ids to
    evidence.
    """
    nothing = Evidence(None)
    verdicts = {t.mask_id: _verdict(evidence.get(t.mask_id, nothing), recipe) for t in image.masks}
    for mask_id, other in _twins(image, verdicts, recipe.masks.same_object).items():
        if _is_confirmed(found.get(mask_id, ())):
            continue
        reason = f"one object for two masks: {other}"
        verdicts[mask_id] = replace(verdicts[mask_id], action=Action.REVIEW, cause=Cause.SAME_OBJECT, reason=reason)
    return [_mask(t, _findings(image, t, found), verdicts[t.mask_id], recipe) for t in image.masks]


def decide_expression(sample: Sample, found: Iterable[Finding], recipe: Recipe) -> Decision:
    """The decision about an expression, regardless of its mask; `found` contains the findings on the expression and on
    its image.
    """
    for verdict in flag(sample.expression):
        action = recipe.language.certain if verdict.action == Action.DROP else recipe.language.doubtful
        if action != Action.KEEP:
            reason = f"{verdict.rule}: {verdict.word}"
            return Decision(sample.sample_id, action, LANGUAGE, reason, cause=Cause.WORD)
    for finding in found:
        reason = f"{finding.check}: {finding.message}"
        if finding.subject != "mask" and finding.check in recipe.audit.drop:
            return Decision(sample.sample_id, Action.DROP, AUDIT, reason, cause=Cause.FINDING)
        if finding.check == TOXIC and recipe.language.toxic != Action.KEEP:
            return Decision(sample.sample_id, recipe.language.toxic, LANGUAGE, reason, cause=Cause.CLASSIFIER)
    return Decision(sample.sample_id, Action.KEEP, LANGUAGE, "no rule applies", cause=Cause.NO_OBJECTION)


def _findings(image: ImageItems, target: TargetMask, found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """All findings that concern a mask: those on the mask, on its image, and on its expressions."""
    ids = [target.mask_id, image.image_id, *(s.sample_id for s in target.samples)]
    return [f for i in ids for f in found.get(i, ())]


def held_by_findings(
    image: ImageItems, target: TargetMask, found: Mapping[str, Sequence[Finding]], recipe: Recipe
) -> bool:
    """Whether a finding decides about a mask or leaves it to a person, regardless of the proposals for the mask."""
    return any(f.check in (*recipe.audit.drop, *recipe.holding) for f in _holding(_findings(image, target, found)))


def _is_confirmed(found: Sequence[Finding]) -> bool:
    return any(f.check == CONFIRMED for f in found)


def _holding(found: Sequence[Finding]) -> list[Finding]:
    """The findings, except those that models have settled. Models settle which of two masks on the same object an
    expression means.
    """
    settled = SETTLED_BY_MODELS if _is_confirmed(found) else ()
    return [f for f in found if f.check not in settled]


def _mask(target: TargetMask, found: Sequence[Finding], verdict: _Verdict, recipe: Recipe) -> Decision:
    scores = verdict.scores
    for action, checks in ((Action.DROP, recipe.audit.drop), (Action.REVIEW, recipe.holding)):
        for finding in _holding(found):
            if finding.check in checks and (action == Action.REVIEW or finding.subject != "expression"):
                reason = f"{finding.check}: {finding.message}"
                return Decision(target.mask_id, action, AUDIT, reason, scores=scores, cause=Cause.FINDING)
    best = verdict.best if verdict.action == Action.CHANGE else None
    return Decision(
        target.mask_id, verdict.action, PROPOSALS, verdict.reason,
        mask=best.mask if best else None, refiner=best.refiner if best else "", scores=scores, cause=verdict.cause,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The verdict on a mask from its proposals: action, cause, reason as text, proposal, and values."""

    action: Action
    cause: Cause
    reason: str
    best: Proposal | None
    scores: dict[str, float]


def _verdict(evidence: Evidence, recipe: Recipe) -> _Verdict:
    """The verdict of the trusted refiner or of the witnesses. If only one of the two is sure, its verdict is returned.
    If both are sure, the verdict with the higher expected boundary IoU is returned.
    """
    witnesses = _by_witnesses(evidence.agreement, recipe)
    if evidence.trust is None:
        return witnesses
    trusted = _by_trusted(evidence.trust, recipe)
    sure = [v for v in (trusted, witnesses) if v.action in (Action.KEEP, Action.CHANGE)]
    return max(sure, key=lambda v: v.scores["expected_boundary_iou"], default=trusted)


def _by_trusted(trust: Trust, recipe: Recipe) -> _Verdict:
    rules, calibration, name = recipe.masks, recipe.trusted, trust.proposal.refiner
    expected, better = calibration.expected(trust.score), calibration.probably_better(trust.score)
    action, cause = judge(trust.score, trust.source_boundary_iou, calibration, rules)
    reasons = {
        Cause.NOT_CALIBRATED: f"the score of {name} is not calibrated: run `refbench curate calibrate --known`",
        Cause.AGREED_TOO_LITTLE: (
            f"{name} is not sure: {_weakest(trust)} ({expected:.3f} expected, {rules.accept:g} needed)"
        ),
        Cause.SOURCE_CONFIRMED: f"{name} confirms the source ({trust.source_boundary_iou:.3f})",
        Cause.NOT_BETTER: f"the proposal of {name} may not be better ({better:.3f} sure, {rules.better:g} needed)",
        Cause.AGREED: f"{name} is sure ({expected:.3f} expected, {better:.3f} sure)",
    }
    figures = {"expected_boundary_iou": round(expected, 6), "probably_better": round(better, 6), **trust.figures()}
    return _Verdict(action, cause, reasons[cause], trust.proposal, figures)


def _by_witnesses(agreement: Agreement | None, recipe: Recipe) -> _Verdict:
    scores = _scores(agreement, recipe)
    action, cause, reason = _judged(agreement, scores, recipe)
    return _Verdict(action, cause, reason, agreement.best if agreement else None, scores)


def _weakest(trust: Trust) -> str:
    """The part that lowers the score most, as text."""
    costs = {
        f"its answers to {trust.variants} prompts differ (boundary IoU {trust.stability:.2f})": 1 - trust.stability,
        f"it differs from the source (boundary IoU {trust.source_boundary_iou:.2f})": 1 - trust.source_boundary_iou,
        f"it differs from the source far from the outline ({trust.deep_difference:.1%} of its area)": (
            2 * DEEP_WEIGHT * trust.deep_difference
        ),
    }
    if trust.witnesses is not None:
        costs[f"the witnesses differ from it (boundary IoU {trust.witnesses:.2f})"] = WITNESS_WEIGHT * (
            1 - trust.witnesses
        )
    return max(costs, key=lambda reason: costs[reason])


def _judged(agreement: Agreement | None, scores: Mapping[str, float], recipe: Recipe) -> tuple[Action, Cause, str]:
    """The verdict of the witnesses on a mask: the action, its cause, and the cause as text."""
    rules = recipe.masks
    if agreement is None:
        return Action.REVIEW, Cause.NO_PROPOSAL, "no refiner made a proposal"
    if agreement.refiners < rules.refiners:
        return Action.REVIEW, Cause.TOO_FEW_REFINERS, f"too few refiners made a proposal: {agreement.refiners}"
    if not recipe.calibration.is_fitted:
        reason = "the agreement of the refiners is not calibrated: run `refbench curate calibrate`"
        return Action.REVIEW, Cause.NOT_CALIBRATED, reason
    expected, better = scores["expected_boundary_iou"], scores["probably_better"]
    needed = f"({expected:.3f} expected, {rules.accept:g} needed)"
    if expected < min(rules.drop, rules.accept):
        return Action.DROP, Cause.DISAGREED, f"the proposals do not agree {needed}"
    if expected < rules.accept:
        return Action.REVIEW, Cause.AGREED_TOO_LITTLE, f"the proposals agree too little {needed}"
    confirmed = agreement.source_boundary_iou
    if confirmed >= rules.keep:
        return Action.KEEP, Cause.SOURCE_CONFIRMED, f"the proposals confirm it ({confirmed:.3f})"
    if better < rules.better:
        reason = f"the best proposal may not be better ({better:.3f} sure, {rules.better:g} needed)"
        return Action.REVIEW, Cause.NOT_BETTER, reason
    return Action.CHANGE, Cause.AGREED, f"the proposals agree ({expected:.3f} expected, {better:.3f} sure)"


def _scores(agreement: Agreement | None, recipe: Recipe) -> dict[str, float]:
    if agreement is None:
        return {}
    figures = agreement.figures()
    return {
        "expected_boundary_iou": round(recipe.calibration.expected(agreement.agreement), 6),
        "probably_better": round(recipe.calibration.probably_better(figures), 6),
        "source_iou": agreement.source_iou,
        **figures,
    }


def _twins(image: ImageItems, verdicts: Mapping[str, _Verdict], least_iou: float) -> dict[str, str]:
    """Masks of different objects whose proposals cover the same object: maps the id of a mask to the id of the other
    mask. One of the two
    is wrong.

    Compares the proposals that would replace the masks, regardless of the refiner.
    """
    single = [t.mask_id for t in image.masks if len(t.ann_ids) == 1]
    found = [(i, best.mask) for i in single if (best := verdicts[i].best) is not None]
    if len(found) < 2:
        return {}
    codes = [mask.to_rle() for _, mask in found]
    ious = coco_mask.iou(codes, codes, [0] * len(codes))
    out = {}
    for i, (mask_id, _) in enumerate(found):
        others = [(float(ious[i, j]), found[j][0]) for j in range(len(found)) if j != i]
        most, other = max(others)
        if most >= least_iou:
            out[mask_id] = other
    return out
