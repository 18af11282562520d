"""From findings and agreement to what becomes of a mask or an expression: pure functions of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pycocotools import mask as coco_mask

from refbench.curation.agreement import Agreement
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.language import DROP as CERTAIN
from refbench.curation.language import flag
from refbench.curation.recipe import DROP, KEEP, REVIEW, Recipe
from refbench.records import Decision, Finding, Sample

CHANGE = "change"
# Stages, in the order in which they have their say.
AUDIT, PROPOSALS, LANGUAGE, REVIEWED, MASK = "audit", "proposals", "language", "review", "mask"
TOXIC = "expression-toxic"
# Reasons for which a mask waits whatever its agreement is worth.
NO_PROPOSAL, TWINS, TOO_FEW = "no refiner made a proposal", "one object for two masks", "too few refiners"


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
        action = recipe.language.certain if verdict.action == CERTAIN else recipe.language.doubtful
        if action != KEEP:
            return Decision(sample.sample_id, action, LANGUAGE, f"{verdict.rule}: {verdict.word}")
    for finding in found:
        if finding.subject != "mask" and finding.check in recipe.audit.drop:
            return Decision(sample.sample_id, DROP, AUDIT, f"{finding.check}: {finding.message}")
        if finding.check == TOXIC and recipe.language.toxic != KEEP:
            return Decision(sample.sample_id, recipe.language.toxic, LANGUAGE, f"{TOXIC}: {finding.message}")
    return Decision(sample.sample_id, KEEP, LANGUAGE, "no rule objects")


def _findings(image: ImageItems, target: TargetMask, found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """All that concerns a mask: findings on it, on its image, and on the expressions that mean it."""
    ids = [target.mask_id, image.image_id, *(s.sample_id for s in target.samples)]
    return [f for i in ids for f in found.get(i, ())]


def _mask(
    target: TargetMask, found: Sequence[Finding], agreement: Agreement | None, twins: Mapping[str, str], recipe: Recipe
) -> Decision:
    rules = recipe.masks
    scores = _scores(agreement, recipe)

    def decision(action: str, stage: str, reason: str) -> Decision:
        changed = agreement is not None and action == CHANGE
        return Decision(
            target.mask_id, action, stage, reason,
            mask=agreement.best.mask if changed and agreement else None,
            refiner=agreement.best.refiner if changed and agreement else "",
            scores=scores,
        )  # fmt: skip

    for finding in found:
        if finding.check in recipe.audit.drop and finding.subject != "expression":
            return decision(DROP, AUDIT, f"{finding.check}: {finding.message}")
    for finding in found:
        if finding.check in recipe.audit.review:
            return decision(REVIEW, AUDIT, f"{finding.check}: {finding.message}")
    if agreement is None:
        return decision(REVIEW, PROPOSALS, "no refiner made a proposal")
    if target.mask_id in twins:
        return decision(REVIEW, PROPOSALS, f"one object for two masks: {twins[target.mask_id]}")
    if agreement.refiners < rules.refiners:
        return decision(REVIEW, PROPOSALS, f"too few refiners made a proposal: {agreement.refiners}")
    expected = scores["expected_boundary_iou"]
    if expected >= rules.accept:
        if agreement.source_boundary_iou >= rules.keep:
            return decision(KEEP, PROPOSALS, f"the proposals confirm it ({agreement.source_boundary_iou:.3f})")
        better = scores["probably_better"]
        if better >= rules.better:
            return decision(CHANGE, PROPOSALS, f"the proposals agree ({expected:.3f} expected, {better:.3f} sure)")
        return decision(REVIEW, PROPOSALS, f"the best proposal may not be better ({better:.3f} sure)")
    if expected < rules.drop:
        return decision(DROP, PROPOSALS, f"the proposals do not agree ({expected:.3f} expected)")
    return decision(REVIEW, PROPOSALS, f"the proposals agree too little ({expected:.3f} expected)")


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
