"""From findings and agreement to what becomes of a mask or an expression: pure functions of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pycocotools import mask as coco_mask

from refbench.curation.agreement import Agreement
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.language import flag
from refbench.curation.recipe import MaskRules, Recipe
from refbench.records import Action, Cause, Decision, Finding, Sample

# Stages, in the order in which they have their say.
AUDIT, PROPOSALS, LANGUAGE = "audit", "proposals", "language"
TOXIC = "expression-toxic"
# For these a mask waits, whatever the agreement of its proposals is worth.
NOT_JUDGED = (Cause.NO_PROPOSAL, Cause.SAME_OBJECT, Cause.TOO_FEW_REFINERS)


def decide_masks(
    image: ImageItems,
    found: Mapping[str, Sequence[Finding]],
    agreements: Mapping[str, Agreement | None],
    recipe: Recipe,
) -> list[Decision]:
    """What the recipe makes of the masks of one image; `found` are findings by item id, `agreements` by mask id."""
    twins = _twins(image, agreements, recipe.masks.same_object)
    return [_mask(t, _findings(image, t, found), agreements.get(t.mask_id), twins, recipe) for t in image.masks]


def decide_expression(sample: Sample, found: Iterable[Finding], recipe: Recipe) -> Decision:
    """What the recipe makes of an expression, its mask aside; `found` are findings on it and on its image."""
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
    return Decision(sample.sample_id, Action.KEEP, LANGUAGE, "no rule objects", cause=Cause.NO_OBJECTION)


def _findings(image: ImageItems, target: TargetMask, found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """All that concerns a mask: findings on it, on its image, and on the expressions that mean it."""
    ids = [target.mask_id, image.image_id, *(s.sample_id for s in target.samples)]
    return [f for i in ids for f in found.get(i, ())]


def _mask(
    target: TargetMask, found: Sequence[Finding], agreement: Agreement | None, twins: Mapping[str, str], recipe: Recipe
) -> Decision:
    scores = _scores(agreement, recipe)
    for action, checks in ((Action.DROP, recipe.audit.drop), (Action.REVIEW, recipe.audit.review)):
        for finding in found:
            if finding.check in checks and (action == Action.REVIEW or finding.subject != "expression"):
                reason = f"{finding.check}: {finding.message}"
                return Decision(target.mask_id, action, AUDIT, reason, scores=scores, cause=Cause.FINDING)
    action, cause, reason = _judged(target.mask_id, agreement, scores, twins, recipe.masks)
    best = agreement.best if agreement is not None and action == Action.CHANGE else None
    return Decision(
        target.mask_id, action, PROPOSALS, reason,
        mask=best.mask if best else None, refiner=best.refiner if best else "", scores=scores, cause=cause,
    )  # fmt: skip


def _judged(
    mask_id: str,
    agreement: Agreement | None,
    scores: Mapping[str, float],
    twins: Mapping[str, str],
    rules: MaskRules,
) -> tuple[Action, Cause, str]:
    """What the proposals for a mask make of it, why, and the same in words."""
    if agreement is None:
        return Action.REVIEW, Cause.NO_PROPOSAL, "no refiner made a proposal"
    if mask_id in twins:
        return Action.REVIEW, Cause.SAME_OBJECT, f"one object for two masks: {twins[mask_id]}"
    if agreement.refiners < rules.refiners:
        return Action.REVIEW, Cause.TOO_FEW_REFINERS, f"too few refiners made a proposal: {agreement.refiners}"
    expected, better = scores["expected_boundary_iou"], scores["probably_better"]
    if expected < min(rules.drop, rules.accept):
        return Action.DROP, Cause.DISAGREED, f"the proposals do not agree ({expected:.3f} expected)"
    if expected < rules.accept:
        return Action.REVIEW, Cause.AGREED_TOO_LITTLE, f"the proposals agree too little ({expected:.3f} expected)"
    confirmed = agreement.source_boundary_iou
    if confirmed >= rules.keep:
        return Action.KEEP, Cause.SOURCE_CONFIRMED, f"the proposals confirm it ({confirmed:.3f})"
    if better < rules.better:
        return Action.REVIEW, Cause.NOT_BETTER, f"the best proposal may not be better ({better:.3f} sure)"
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


def _twins(image: ImageItems, agreements: Mapping[str, Agreement | None], least_iou: float) -> dict[str, str]:
    """Masks of single objects whose best proposals are one and the same object: two sources were drawn around it."""
    found = [(t.mask_id, a.best.mask) for t in image.masks if len(t.ann_ids) == 1 and (a := agreements.get(t.mask_id))]
    if len(found) < 2:
        return {}
    codes = [mask.to_rle() for _, mask in found]
    ious = coco_mask.iou(codes, codes, [0] * len(codes))
    out = {}
    for i, (mask_id, _) in enumerate(found):
        others = [(float(ious[i, j]), found[j][0]) for j in range(len(found)) if j != i]
        best, other = max(others)
        if best >= least_iou:
            out[mask_id] = other
    return out
