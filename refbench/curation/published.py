"""Finds the ledger that turns a coarse split into a published cleaned one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from refbench.curation.agreement import ious
from refbench.curation.differences import KINDS, SAME, kind_of_change
from refbench.curation.folder import load_items
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.ledger import DROPPED, KEPT, Ledger, rows_of
from refbench.errors import DatasetError, summarise_problems
from refbench.masks.mask import Mask
from refbench.records import Action, Cause, Decision, Sample
from refbench.storage.manifest import split_fingerprint

STAGE = "published"
REWORDED = "reworded"


@dataclass(frozen=True, slots=True)
class FromPublished:
    """A ledger with a summary, which counts the masks by kind of change and the expressions by outcome.

    `masks` contains the number of masks of each kind: the kinds of `curation.differences.KINDS`, "same" and "dropped".
    `expressions` counts "kept", "reworded" and "dropped". A reworded expression is kept with the text of the source;
    the published text differs only in letter case or spaces.
    """

    ledger: Ledger
    masks: Mapping[str, int]
    expressions: Mapping[str, int]


def from_published(source: str, cleaned: str) -> FromPublished:
    """Find out what a published cleaned split keeps, changes and drops of its source.

    Images are matched by their id. On an image, a mask of the cleaned split is matched to the mask of the source with
    which it shares the most expressions. Ties are decided by the annotation id, then by the smaller number of dropped
    expressions, then by the IoU.

    Args:
        source: address of the coarse split, for example "refcoco/val".
        cleaned: address of the cleaned split, for example "refcoco-m/val".

    Raises:
        DatasetError: a split is not built, or the cleaned split has images, masks or expressions that the source lacks.
    """
    wanted = {image.image_id: image for image in load_items(cleaned)}
    images = load_items(source)
    found = _Decisions(cleaned)
    for image in images:
        found.add(image, wanted.pop(image.image_id, None))
    found.problems += [f"the image {image_id}" for image_id in wanted]
    if found.problems:
        raise DatasetError(
            f"{cleaned} contains {len(found.problems)} entries that are not in {source}:\n"
            f"{summarise_problems(found.problems)}\n"
            f"Pass the split that {cleaned} was made from."
        )
    rows = rows_of(images, found.masks, found.expressions, {})
    ledger = Ledger(
        source, split_fingerprint(source), f"published as {cleaned}", split_fingerprint(cleaned), tuple(rows)
    )
    kinds = (SAME, *(name for _, name in KINDS), DROPPED)
    return FromPublished(
        ledger,
        {kind: found.kinds[kind] for kind in kinds},
        {wording: found.wordings[wording] for wording in (KEPT, REWORDED, DROPPED)},
    )


@dataclass(slots=True)
class _Decisions:
    cleaned: str
    masks: dict[str, Decision] = field(default_factory=dict)
    expressions: dict[str, Decision] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    wordings: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, image: ImageItems, wanted: ImageItems | None) -> None:
        """Decide about the items of one image; `wanted` is the same image in the cleaned split, or None if it was
        dropped there.
        """
        if wanted is not None and (wanted.height, wanted.width) != (image.height, image.width):
            self.problems.append(f"the image {image.image_id} of {wanted.height} x {wanted.width}")
            wanted = None
        pairs = _pairs(image.masks, wanted.masks if wanted else ())
        taken = {id(other) for other in pairs.values()}
        for cleaned in wanted.masks if wanted else ():
            if id(cleaned) not in taken:
                self.problems.append(f"the mask {cleaned.mask_id}")
            elif cleaned.mask.area == 0:
                self.problems.append(f"the mask {cleaned.mask_id}, which is empty")
        for target in image.masks:
            other = pairs.get(target.mask_id)
            self._mask(target, other)
            self._expressions(target.samples, other.samples if other else ())
        self._expressions(
            [s for s in image.samples if s.no_target], [s for s in wanted.samples if s.no_target] if wanted else []
        )

    def _mask(self, target: TargetMask, other: TargetMask | None) -> None:
        if other is None:
            self.kinds[DROPPED] += 1
            self.masks[target.mask_id] = self._decision(target.mask_id, Action.DROP, f"not in {self.cleaned}")
            return
        iou, boundary = _ious(target.mask, other.mask)
        kind = kind_of_change(target.mask, other.mask, iou)
        self.kinds[kind] += 1
        decision = self._decision(target.mask_id, Action.KEEP, f"the same in {self.cleaned}")
        if kind != SAME:
            reason = f"another mask in {self.cleaned}: {kind}, IoU {iou:.3f}, boundary IoU {boundary:.3f}"
            decision = self._decision(target.mask_id, Action.CHANGE, reason, other.mask)
        scores = {"source_iou": iou, "source_boundary_iou": boundary}
        self.masks[target.mask_id] = replace(decision, scores=scores)

    def _expressions(self, samples: Sequence[Sample], wanted: Sequence[Sample]) -> None:
        """Match each expression of the cleaned mask to one of the source, preferably to one with the same text."""
        left = list(wanted)
        kept: dict[str, Sample] = {}
        for same in (lambda text: text, _plain):
            for sample in samples:
                match = next((w for w in left if same(w.expression) == same(sample.expression)), None)
                if sample.sample_id not in kept and match is not None:
                    kept[sample.sample_id] = match
                    left.remove(match)
        for sample in samples:
            match = kept.get(sample.sample_id)
            if match is None:
                action, wording, reason = Action.DROP, DROPPED, f"not in {self.cleaned}"
            elif match.expression != sample.expression:
                action, wording, reason = Action.KEEP, REWORDED, f"{match.expression!r} in {self.cleaned}"
            else:
                action, wording, reason = Action.KEEP, KEPT, f"the same in {self.cleaned}"
            self.wordings[wording] += 1
            self.expressions[sample.sample_id] = self._decision(sample.sample_id, action, reason)
        self.problems += [f"the expression {w.sample_id} ({w.expression!r})" for w in left]

    def _decision(self, item_id: str, action: Action, reason: str, mask: Mask | None = None) -> Decision:
        return Decision(item_id, action, STAGE, reason, mask, cause=Cause.PUBLISHED)


def _pairs(masks: Sequence[TargetMask], others: Sequence[TargetMask]) -> dict[str, TargetMask]:
    """The matching cleaned mask of each mask, by mask id. Each cleaned mask matches at most one mask."""
    ranked = []
    texts = [Counter(_plain(s.expression) for s in target.samples) for target in (*masks, *others)]
    for k, target in enumerate(masks):
        for n, other in enumerate(others):
            if shared := (texts[k] & texts[len(masks) + n]).total():
                same_id = sorted(target.ann_ids) == sorted(other.ann_ids)
                dropped = texts[k].total() - shared
                ranked.append((-shared, not same_id, dropped, -_ious(target.mask, other.mask)[0], k, n))
    out: dict[str, TargetMask] = {}
    taken: set[int] = set()
    for *_, k, n in sorted(ranked):
        if masks[k].mask_id not in out and n not in taken:
            out[masks[k].mask_id] = others[n]
            taken.add(n)
    return out


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _ious(mask: Mask, other: Mask) -> tuple[float, float]:
    iou, boundary = ious([mask], [other])
    return round(float(iou[0]), 6), round(float(boundary[0]), 6)
