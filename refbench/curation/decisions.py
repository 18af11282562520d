"""Applies the recipe to decide which items are kept, changed, dropped or reviewed, and writes the ledger."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refbench.curation.checks.base import LEAKS
from refbench.curation.edits import EDITS_FILE, edited_items, edited_rows, edits_of
from refbench.curation.folder import Curation, check_names, load_items, open_curation
from refbench.curation.items import ImageItems
from refbench.curation.ledger import EXPRESSION, LEDGER_FILE, MASK, Ledger, Row, rows_of, write_ledger
from refbench.curation.proposals import check_proposals, read_proposals, refiner_weights
from refbench.curation.recipe import Recipe
from refbench.curation.review.answers import REVIEW_FILE, Reviews, settle
from refbench.curation.tables import (
    audited_checks,
    read_decisions,
    read_findings,
    write_decisions,
)
from refbench.curation.verdicts import decide_expression, decide_masks, gather
from refbench.errors import RunError
from refbench.records import Action, Decision, Finding
from refbench.storage.locks import PATIENCE_SECONDS, exclusive
from refbench.storage.progress import Progress, silent
from refbench.storage.weights import short_name


@dataclass(frozen=True, slots=True)
class Decided:
    """The decisions of the recipe and of people, and the ledger that was written."""

    folder: Path
    masks: Mapping[str, int]
    expressions: Mapping[str, int]
    waiting: int
    reviewed: int
    ledger: Path
    edits: int = 0


def decide(folder: Path, *, progress: Progress = silent) -> Decided:
    """Write decisions.parquet and ledger.parquet from findings, proposals, reviews and edits.

    The same input gives the same files. Items that wait for a person are written to the ledger according to the setting
    `undecided` of the recipe. Every call reads the answers of reviewers again, including new ones.

    Raises:
        RunError: the folder is not a curation folder, proposals are missing, or another process is writing to the
            folder for a long time.
    """
    curation = open_curation(folder)
    with exclusive(folder, patience=PATIENCE_SECONDS):
        return _decide(curation, progress)


def _decide(curation: Curation, progress: Progress) -> Decided:
    folder = curation.folder
    recipe = curation.recipe
    check_names(recipe)
    images = load_items(curation.address)
    missing = sorted({*recipe.holding, *recipe.audit.drop} - set(audited_checks(folder)) - {LEAKS})
    if missing:
        raise RunError(
            f"the audit of {folder} did not run {', '.join(missing)}, which the recipe requires; run `refbench "
            f"curate audit {curation.address} --out {folder}` to completion"
        )
    check_proposals(curation, images)
    _check_weights(folder, recipe)
    findings: dict[str, list[Finding]] = {}
    for finding in read_findings(folder):
        findings.setdefault(finding.item_id, []).append(finding)
    proposals = read_proposals(folder)
    masks: dict[str, Decision] = {}
    expressions: dict[str, Decision] = {}
    for number, image in enumerate(images):
        evidence = {t.mask_id: gather(t.mask, proposals.get(t.mask_id, ()), recipe) for t in image.masks}
        masks |= {d.item_id: d for d in decide_masks(image, findings, evidence, recipe)}
        for sample in image.samples:
            found = [*findings.get(sample.sample_id, ()), *findings.get(sample.image_id, ())]
            expressions[sample.sample_id] = decide_expression(sample, found, recipe)
        progress("decide", number + 1, len(images))
    write_decisions(folder, masks, expressions)
    return _write_ledger(curation, images, masks, expressions)


def _check_weights(folder: Path, recipe: Recipe) -> None:
    """Raise RunError if the proposals were made with other weights than those the recipe was calibrated for."""
    fitted = recipe.trusted.weights_sha256
    used = refiner_weights(folder, recipe.trusted.refiner) or ""
    if fitted and used != fitted:
        raise RunError(
            f"the proposals of {recipe.trusted.refiner} in {folder} were made with the weights "
            f"{short_name(used)}, but the recipe was calibrated for {short_name(fitted)}; set the weights in "
            "the options of the refiner in the recipe, then run `refbench curate calibrate --known`"
        )


def settle_ledger(folder: Path) -> Decided:
    """Write the ledger again, including the answers that were given in the meantime; the decisions of the recipe do not
    change.
    """
    curation = open_curation(folder)
    with exclusive(folder, patience=PATIENCE_SECONDS):
        masks, expressions = read_decisions(folder)
        return _write_ledger(curation, load_items(curation.address), masks, expressions)


def _write_ledger(
    curation: Curation,
    images: Sequence[ImageItems],
    masks: Mapping[str, Decision],
    expressions: Mapping[str, Decision],
) -> Decided:
    folder, recipe = curation.folder, curation.recipe
    review_path = folder / REVIEW_FILE
    answers = Reviews(review_path, new=False).standing() if review_path.is_file() else {}
    settled = {i: d for i, a in answers.items() if (d := settle(a, recipe.reviewers)) is not None}
    unknown = sorted(set(answers) - set(masks) - set(expressions))
    if unknown:
        raise RunError(f"{review_path} contains an answer about {unknown[0]}, which is not in {curation.address}")

    edits = edits_of(folder)
    edited = edited_items(images, curation.address, edits, str(folder / EDITS_FILE))

    def final(decision: Decision, undecided: Action) -> Decision:
        if decision.item_id in edited.masks:
            return edited.masks[decision.item_id]
        if decision.item_id in settled:
            return settled[decision.item_id]
        if decision.action != Action.REVIEW:
            return decision
        return dataclasses.replace(decision, action=undecided, reason=f"nobody has reviewed it: {decision.reason}")

    final_masks = {i: final(d, recipe.masks.undecided) for i, d in masks.items()}
    final_expressions = {i: final(d, recipe.language.undecided) for i, d in expressions.items()}
    for d in final_masks.values():
        if d.action == Action.CHANGE and d.mask is None:
            raise RunError(f"{folder}: the decision to change {d.item_id} contains no mask")
    rows = edited_rows(rows_of(images, final_masks, final_expressions, _weights(folder, recipe)), edited)
    path = folder / LEDGER_FILE
    write_ledger(path, Ledger(curation.address, curation.fingerprint, recipe.name, recipe.sha256, tuple(rows)))
    done = {*settled, *edited.masks}
    waiting = [i for i, d in (*masks.items(), *expressions.items()) if d.action == Action.REVIEW and i not in done]
    counts = (_counts(rows, MASK), _counts(rows, EXPRESSION))
    return Decided(folder, *counts, len(waiting), len(settled), path, len(edits))


def _counts(rows: Sequence[Row], item: str) -> dict[str, int]:
    return dict(sorted(Counter(f"{r.action} ({r.stage})" for r in rows if r.item == item).items()))


def _weights(folder: Path, recipe: Recipe) -> dict[str, str]:
    return {c.name: w for c in recipe.refiners if (w := refiner_weights(folder, c.name)) is not None}
