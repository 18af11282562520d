"""The history of one mask or expression, from the files of a curation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from refbench.curation.agreement import boundary_ious
from refbench.curation.folder import CURATION_FILE, load_items, open_curation
from refbench.curation.items import ImageItems, TargetMask, mask_id_of
from refbench.curation.ledger import MASK, Row, read_ledger
from refbench.curation.proposals import read_proposals
from refbench.curation.recipe import MaskRules, Recipe
from refbench.curation.review.answers import REVIEW_FILE, Answer, Reviews
from refbench.curation.tables import DECISIONS_FILE, read_decisions, read_findings
from refbench.curation.verdicts import gather
from refbench.errors import DatasetError
from refbench.records import Decision, Finding, Proposal
from refbench.reports.overlays import PREDICTION_RGB, TARGET_RGB, Layer, box_around, overlay, picture_of

WHY_PX = 420


@dataclass(frozen=True, slots=True)
class Story:
    """Everything known about one mask or expression: its ledger row, findings, proposals and answers.

    `decision` is what the recipe decided, even if a person decided otherwise later; `rules` are its thresholds. `best`
    names the proposals that would replace the mask: the proposal of the trusted refiner and the best proposal of the
    witnesses. `agreement` contains the boundary IoU of every pair of masks among the source and the proposals, float
    (N, N); `agreement_names` names its rows and columns. All of these are empty if only a ledger is known.
    """

    row: Row
    findings: tuple[Finding, ...]
    proposals: tuple[Proposal, ...]
    answers: tuple[Answer, ...]
    image: ImageItems | None
    target: TargetMask | None
    expression: str
    decision: Decision | None = None
    rules: MaskRules | None = None
    best: tuple[str, ...] = ()
    agreement_names: tuple[str, ...] = ()
    agreement: tuple[tuple[float, ...], ...] = ()


def why(item_id: str, place: Path) -> Story:
    """The history of one item, from a curation folder, a ledger, or a dataset that was made from one.

    Raises:
        DatasetError: the item does not exist; the message suggests similar ones.
    """
    folder = place if place.is_dir() else place.parent
    ledger = read_ledger(place)
    rows = ledger.by_id()
    if item_id not in rows:
        like = [i for i in rows if item_id.split("/")[-1] in i.split("/")][:3]
        hint = f"; did you mean {', '.join(like)}?" if like else ""
        raise DatasetError(f"{place} contains nothing about {item_id!r}{hint}")
    row = rows[item_id]
    whole = (folder / CURATION_FILE).is_file()
    recipe = open_curation(folder).recipe if whole else None
    findings = tuple(f for f in read_findings(folder) if f.item_id == item_id) if whole else ()
    try:
        images = load_items(ledger.address)
    except DatasetError:
        images = []  # the source is not built here: its row is still known
    image = next((i for i in images if i.image_id == row.image_id), None)
    target, expression = _item(image, row)
    proposals = tuple(read_proposals(folder).get(target.mask_id, ())) if whole and target is not None else ()
    review = folder / REVIEW_FILE
    answers = tuple(Reviews(review, new=False).standing().get(item_id, ())) if review.is_file() else ()
    story = Story(row, findings, proposals, answers, image, target, expression)
    return story if recipe is None else _with_recipe(story, folder, recipe)


def _with_recipe(story: Story, folder: Path, recipe: Recipe) -> Story:
    """The story, extended by the decision of the recipe, its thresholds, and the agreement of the proposals."""
    decided = {}
    if (folder / DECISIONS_FILE).is_file():
        masks, expressions = read_decisions(folder)
        decided = {**masks, **expressions}
    story = replace(story, decision=decided.get(story.row.item_id))
    if story.target is None or story.row.item != MASK:
        return story
    source, made = story.target.mask, [p for p in story.proposals if not p.error]
    evidence = gather(source, story.proposals, recipe)
    best = []
    if evidence.trust is not None:
        best.append(f"{evidence.trust.proposal.refiner} (majority of {evidence.trust.variants})")
    if evidence.agreement is not None:
        best.append(_name(evidence.agreement.best))
    return replace(
        story,
        rules=recipe.masks,
        best=tuple(best),
        agreement_names=("source", *(_name(p) for p in made)),
        agreement=tuple(
            tuple(float(v) for v in row) for row in boundary_ious([source, *(p.mask for p in made)]).round(3)
        ),
    )


def _name(proposal: Proposal) -> str:
    return f"{proposal.refiner} {proposal.variant}"


def _item(image: ImageItems | None, row: Row) -> tuple[TargetMask | None, str]:
    if image is None:
        return None, ""
    if row.item == MASK:
        return next((t for t in image.masks if t.mask_id == row.item_id), None), ""
    sample = next((s for s in image.samples if s.sample_id == row.item_id), None)
    if sample is None:
        return None, ""
    target = next((t for t in image.masks if t.mask_id == mask_id_of(sample)), None) if not sample.no_target else None
    return target, sample.expression


def story_picture(story: Story) -> Image.Image | None:
    """The old mask (green) and, next to it, the new one (pink) with the old outline; None without a mask."""
    if story.image is None or story.target is None:
        return None
    source = story.target.mask
    new = story.row.mask or source
    picture = picture_of(story.image.image_path, story.image.height, story.image.width)
    box = box_around(source.union(new or source))
    before = overlay(picture, [Layer(source, TARGET_RGB, filled=True)], WHY_PX, box)
    after = overlay(
        picture, [Layer(new or source, PREDICTION_RGB, filled=True), Layer(source, TARGET_RGB)], WHY_PX, box
    )
    sheet = Image.new("RGB", (before.width + after.width + 8, before.height), "white")
    sheet.paste(before, (0, 0))
    sheet.paste(after, (before.width + 8, 0))
    return sheet
