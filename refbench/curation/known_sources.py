"""Calibrates a recipe with a trusted refiner on coarse masks whose true masks are known, source by source.

A known source is a built split of coarse masks, and a JSON file with the true masks: annotation id -> `{"size": [h, w],
"counts": "...", "wrong": bool}`. `counts` is compressed COCO run-length code. `wrong` is true if the coarse mask is on
another object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from refbench._version import __version__
from refbench.curation.agreement import boundary_iou
from refbench.curation.calibration import WitnessCase, fit_once
from refbench.curation.findings import audit
from refbench.curation.folder import claim, load_items
from refbench.curation.items import ImageItems
from refbench.curation.proposals import propose, read_proposals, refiner_weights
from refbench.curation.recipe import (
    WITNESS,
    Calibration,
    MaskRules,
    Recipe,
    RefinerChoice,
    TrustedCalibration,
    parse_recipe,
    refiners_sha256,
    text_of_recipe,
)
from refbench.curation.recipe_text import (
    CALIBRATION,
    TRUSTED_SECTION,
    refiners_only,
    with_section,
    without_measured,
    without_section,
)
from refbench.curation.trusted import judge
from refbench.curation.verdicts import Evidence, decide_masks, gather, held_by_findings
from refbench.errors import DatasetError, MaskError, RunError
from refbench.masks.mask import Mask
from refbench.records import Action, Finding
from refbench.storage.files import atomic_file, read_json
from refbench.storage.images import image_sha256
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import Progress, silent
from refbench.storage.weights import short_name

# Of a calibration curve: fewer masks a knot would follow single ones.
MASKS_A_KNOT = 6
FEWEST_MASKS = 2 * MASKS_A_KNOT
# The witnesses' probability of being better has a weight for each of seven values.
FEWEST_WITNESS_MASKS = 60
KNOWN_FILE = "known.md"
PARTS = 10
OTHER_SOURCES, OTHER_PARTS = "the other sources", "its other parts and the other sources"
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True, slots=True)
class Case:
    """A mask of a known source. `before` is the boundary IoU of the source mask with the true mask, and `after` is the
    boundary IoU of the trusted proposal with the true mask.

    `image` is the sha256 of its image, because two sources may use one id for different images, or two ids for the same
    image. `score` and `source_boundary_iou` are those of `curation.trusted.Trust`; `score` is -1 if there is no
    proposal. A mask is `held` if a finding leaves it to a person: no calibration is fitted to such masks.
    """

    source: str
    image: str
    mask_id: str
    score: float
    source_boundary_iou: float
    before: float
    after: float
    wrong: bool
    held: bool = False


@dataclass(frozen=True, slots=True)
class Fits:
    """The two calibrations of a recipe, as fitted on known masks."""

    trusted: TrustedCalibration
    witnesses: Calibration


def truth_of(path: Path, images: Sequence[ImageItems]) -> dict[str, tuple[Mask, bool]]:
    """The true mask for each mask with one annotation, and whether the coarse mask is on another object.

    Raises:
        DatasetError: the file is not in the format described above, or contains none of the masks.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must contain a JSON object that maps each annotation id to {{size, counts, wrong}}")
    out = {}
    for target in (t for image in images for t in image.masks):
        entry = content.get(target.ann_ids[0]) if len(target.ann_ids) == 1 else None
        if entry is None:
            continue
        where = f"{path}, {target.ann_ids[0]}"
        try:
            found = Mask.from_rle({"size": entry["size"], "counts": entry["counts"]})
            wrong = entry.get("wrong", False)
        except (AttributeError, KeyError, TypeError, MaskError) as error:
            raise DatasetError(f"{where}: no mask ({error})") from None
        if found.size != target.mask.size:
            raise DatasetError(
                f"{where}: the mask must have the same size as its image, {target.mask.size}, got {found.size}"
            )
        if not isinstance(wrong, bool):
            raise DatasetError(f"{where}: wrong must be true or false, got {wrong!r}")
        out[target.mask_id] = found, wrong
    if not out:
        raise DatasetError(f"{path} contains no mask of this split; its keys must be annotation ids")
    return out


def masks_of_truth(address: str, path: Path) -> dict[str, Mask]:
    """The true mask of each sample of a split, by sample id; see `truth_of`."""
    images = load_items(address)
    known = truth_of(path, images)
    return {
        sample.sample_id: known[target.mask_id][0]
        for image in images
        for target in image.masks
        if target.mask_id in known
        for sample in target.samples
    }


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image of a known source, with its masks, the findings of the audit, the evidence from the proposals, and the
    true masks.

    `image` is the sha256 of the image. `found` maps item ids to findings, and `evidence` maps mask ids to evidence.
    `truth` maps mask ids to the true mask and whether the coarse mask is on another object. `held` are the ids of masks
    that a finding leaves to a person.
    """

    source: str
    image: str
    items: ImageItems
    found: Mapping[str, Sequence[Finding]]
    evidence: Mapping[str, Evidence]
    truth: Mapping[str, tuple[Mask, bool]]
    held: frozenset[str] = frozenset()


def known_images(
    recipe: Recipe,
    asked: Recipe,
    address: str,
    truth: Path,
    work: Path,
    *,
    name: str = "",
    device: str = "cpu",
    progress: Progress = silent,
) -> list[KnownImage]:
    """Audit a known source and let the refiners propose masks for it; proposals in `work` are used again.

    Args:
        recipe: the recipe, whose checks are used.
        asked: a recipe with the same refiners and nothing else, because proposals do not depend on thresholds.
        name: the name of the source; by default its address.

    Raises:
        DatasetError: the split is not built, or the file with the true masks cannot be read.
        RunError: the trusted refiner made no proposal.
    """
    chosen = _trusted(recipe)
    images = load_items(address)
    known = truth_of(truth, images)
    found: dict[str, list[Finding]] = {}
    if checks := tuple(dict.fromkeys((*recipe.audit.review, *recipe.audit.drop))):
        audited = audit(address, recipe, out=_work_folder(recipe, address, work), checks=checks, progress=progress)
        for finding in audited.findings:
            found.setdefault(finding.item_id, []).append(finding)
    folder = claim(_work_folder(asked, address, work), address, asked)
    made = propose(folder, device=device, progress=progress)
    proposals = read_proposals(folder)
    out = []
    for image in images:
        true = {t.mask_id: known[t.mask_id] for t in image.masks if t.mask_id in known}
        if not true:
            continue
        evidence = {t.mask_id: gather(t.mask, proposals.get(t.mask_id, ()), recipe) for t in image.masks}
        picture = image_sha256(image.image_path) or image.image_id
        held = frozenset(t.mask_id for t in image.masks if held_by_findings(image, t, found, recipe))
        out.append(KnownImage(name or address, picture, image, found, evidence, true, held))
    if all(image.evidence[mask_id].trust is None for image in out for mask_id in image.truth):
        why = made.first_errors.get(chosen.name, "its variants have no majority")
        raise RunError(f"{chosen.name} made no proposal for {address}: {why}")
    return out


def cases_of(images: Sequence[KnownImage]) -> list[Case]:
    """Calibration cases for the trusted refiner, made from the masks of known images."""
    cases = []
    for image in images:
        for target in image.items.masks:
            if target.mask_id not in image.truth:
                continue
            true, wrong = image.truth[target.mask_id]
            found = image.evidence[target.mask_id].trust
            best = found.proposal.mask if found else target.mask
            after, before = boundary_iou([best, target.mask], [true, true]).tolist()
            score, likeness = (found.score, found.source_boundary_iou) if found else (-1.0, 0.0)
            cases.append(
                Case(
                    image.source, image.image, target.mask_id, score, likeness, before, after, wrong,
                    target.mask_id in image.held,
                )
            )  # fmt: skip
    return cases


def witness_cases(images: Sequence[KnownImage]) -> list[tuple[str, WitnessCase]]:
    """Calibration cases for the witnesses, made from the masks of known images; each case has the name of its source.
    Masks
    that are `held` are left out.
    """
    out = []
    for image in images:
        for target in image.items.masks:
            agreement = image.evidence[target.mask_id].agreement
            if target.mask_id not in image.truth or target.mask_id in image.held or agreement is None:
                continue
            true, _ = image.truth[target.mask_id]
            best, source = boundary_iou([agreement.best.mask, target.mask], [true, true]).tolist()
            out.append((image.source, WitnessCase(agreement.figures(), best, source, image.image)))
    return out


def fit_trusted(cases: Sequence[Case], recipe: Recipe, weights_sha256: str) -> TrustedCalibration:
    """Fit the expected boundary IoU and the share of better proposals, both increasing with the score (isotonic).

    Raises:
        DatasetError: there are too few masks, or too few different scores.
    """
    refiner = _trusted(recipe).name
    used = [c for c in cases if c.score >= 0 and not c.held]
    scores, place, counts = np.unique([round(c.score, 3) for c in used], return_inverse=True, return_counts=True)
    if len(used) < FEWEST_MASKS or len(scores) < 2:
        raise DatasetError(
            f"{refiner} has proposals for {len(used)} masks with known truth ({len(scores)} different scores); "
            f"a calibration needs {FEWEST_MASKS} masks, so pass more masks with --known"
        )

    def rising(values: Sequence[float]) -> NDArray[np.float64]:
        # Equal scores are one value.
        means = np.bincount(place, values) / counts
        return np.asarray(isotonic_regression(means, weights=counts).x)

    quality = rising([c.after for c in used])
    better = rising([float(c.after > c.before) for c in used])
    # The values at the knots themselves: a mean over masks of different quality would promise too much to the worst.
    at = np.searchsorted(np.cumsum(counts), np.linspace(1, len(used), len(used) // MASKS_A_KNOT + 1))
    knots = sorted({0, len(scores) - 1, *np.minimum(at, len(scores) - 1).tolist()})
    return TrustedCalibration(
        on=tuple(dict.fromkeys(c.source for c in cases)),
        refiner=refiner,
        witnesses=tuple(c.name for c in recipe.refiners if c.role == WITNESS),
        weights_sha256=weights_sha256,
        refiners_sha256=refiners_sha256(recipe.refiners),
        score=tuple(float(scores[k]) for k in knots),
        boundary_iou=tuple(round(float(quality[k]), 4) for k in knots),
        better=tuple(round(float(better[k]), 4) for k in knots),
    )


@dataclass(frozen=True, slots=True)
class Accepted:
    """How many masks of a source the rule of the trusted refiner accepts, with a calibration from `fitted_on`.

    `before` and `after` are the mean boundary IoU of the accepted masks with the true masks. `better` is the share of
    replaced masks that are better than their source masks. Values are None if there is no such mask.
    """

    source: str
    fitted_on: str
    masks: int
    kept: int
    replaced: int
    before: float | None
    after: float | None
    better: float | None
    wrong: int
    wrong_accepted: int

    @property
    def share(self) -> float:
        """Share of the masks that are accepted, between 0 and 1."""
        return (self.kept + self.replaced) / self.masks


def judged(cases: Sequence[Case], source: str, recipe: Recipe, weights_sha256: str) -> list[Accepted]:
    """How many masks of a source the rule of the trusted refiner accepts; `fits_without` explains the two rows."""
    own = [c for c in cases if c.source == source]
    return [
        accept([(case, fits[case.image].trusted) for case in own], recipe.masks, fitted_on)
        for fitted_on, fits in fits_without(cases, (), source, recipe, weights_sha256).items()
    ]


def judged_by_recipe(
    images: Sequence[KnownImage], cases: Sequence[Case], source: str, recipe: Recipe, weights_sha256: str
) -> list[Accepted]:
    """How many masks of a source the whole recipe accepts, using the audit, the trusted refiner and the witnesses
    together.

    See `fits_without` for the two rows.
    """
    own = [i for i in images if i.source == source]
    return [
        accept_by_recipe([(image, fits[image.image]) for image in own], recipe, fitted_on)
        for fitted_on, fits in fits_without(cases, witness_cases(images), source, recipe, weights_sha256).items()
    ]


def fits_without(
    cases: Sequence[Case],
    witnesses: Sequence[tuple[str, WitnessCase]],
    source: str,
    recipe: Recipe,
    weights_sha256: str,
) -> dict[str, dict[str, Fits]]:
    """Calibrations for the images of a source, as a mapping fitted on -> image -> calibration. No calibration was
    fitted on the image that it is for.

    The first calibration is fitted on the other sources. For the second, the images of the source are divided into
    PARTS parts, in their order, so that neighbouring images, which may show the same scene, stay together. For each
    part, the calibration is fitted on the other parts and the other sources. A calibration is missing if there are too
    few masks to fit it.
    """
    own = [c for c in cases if c.source == source]
    images = list(dict.fromkeys(c.image for c in own))
    groups = [set(images[k * len(images) // PARTS : (k + 1) * len(images) // PARTS]) for k in range(PARTS)]
    seen = set(images)
    out: dict[str, dict[str, Fits]] = {}
    for fitted_on, parts in ((OTHER_SOURCES, [seen]), (OTHER_PARTS, [g for g in groups if g])):
        try:
            fits = []
            for part in parts:
                unseen = seen if fitted_on == OTHER_SOURCES else part
                fits.append((fit_both(cases, witnesses, unseen, recipe, weights_sha256), part))
        except DatasetError:
            continue
        out[fitted_on] = {image: fit for fit, part in fits for image in part}
    return out


def fit_both(
    cases: Sequence[Case],
    witnesses: Sequence[tuple[str, WitnessCase]],
    unseen: Collection[str],
    recipe: Recipe,
    weights_sha256: str,
) -> Fits:
    """Fit the trusted refiner and the witnesses on all known masks except those on the images `unseen`.

    If the witnesses cannot be fitted, because there are too few masks or all have the same agreement, their calibration
    is that of the recipe.

    Raises:
        DatasetError: there are too few masks for the trusted refiner.
    """
    trusted = fit_trusted([c for c in cases if c.image not in unseen], recipe, weights_sha256)
    seen = [(source, case) for source, case in witnesses if case.image not in unseen]
    if len(seen) < FEWEST_WITNESS_MASKS:
        return Fits(trusted, recipe.calibration)
    sources = tuple(dict.fromkeys(source for source, _ in seen))
    try:
        fitted = fit_once([c for _, c in seen], ", ".join(sources))
    except DatasetError:
        return Fits(trusted, recipe.calibration)
    return Fits(trusted, dataclasses.replace(fitted, sources=sources))


def accept(cases: Sequence[tuple[Case, TrustedCalibration]], rules: MaskRules, fitted_on: str = "") -> Accepted:
    """Apply the rule of the trusted refiner to masks whose quality is known; each mask has its own calibration."""
    actions = [(case, judge(case.score, case.source_boundary_iou, fit, rules)[0]) for case, fit in cases]
    kept = [(c.before, c.before, c.wrong) for c, action in actions if action == Action.KEEP]
    replaced = [(c.before, c.after, c.wrong) for c, action in actions if action == Action.CHANGE]
    return _accepted(cases[0][0].source, fitted_on, kept, replaced, [c.wrong for c, _ in cases])


def accept_by_recipe(images: Sequence[tuple[KnownImage, Fits]], recipe: Recipe, fitted_on: str = "") -> Accepted:
    """Apply a whole recipe to known images, each with its own calibrations."""
    kept: list[_Row] = []
    replaced: list[_Row] = []
    wrong: list[bool] = []
    for image, fit in images:
        calibrated = dataclasses.replace(recipe, trusted=fit.trusted, calibration=fit.witnesses)
        decisions = decide_masks(image.items, image.found, image.evidence, calibrated)
        sources = {t.mask_id: t.mask for t in image.items.masks}
        for decision in decisions:
            if decision.item_id not in image.truth:
                continue
            true, on_another = image.truth[decision.item_id]
            wrong.append(on_another)
            if decision.action not in (Action.KEEP, Action.CHANGE):
                continue
            new = decision.mask or sources[decision.item_id]
            after, before = boundary_iou([new, sources[decision.item_id]], [true, true]).tolist()
            (replaced if decision.action == Action.CHANGE else kept).append((before, after, on_another))
    return _accepted(images[0][0].source, fitted_on, kept, replaced, wrong)


_Row = tuple[float, float, bool]


def _accepted(
    source: str, fitted_on: str, kept: Sequence[_Row], replaced: Sequence[_Row], wrong: Sequence[bool]
) -> Accepted:
    """A summary of accepted masks, given as (before, after, whether on another object)."""
    both = [*kept, *replaced]
    return Accepted(
        source=source,
        fitted_on=fitted_on,
        masks=len(wrong),
        kept=len(kept),
        replaced=len(replaced),
        before=_mean([before for before, _, _ in both]),
        after=_mean([after for _, after, _ in both]),
        better=_mean([after > before for before, after, _ in replaced]),
        wrong=sum(wrong),
        wrong_accepted=sum(on_another for _, _, on_another in both),
    )


@dataclass(frozen=True, slots=True)
class BestRanked:
    """The masks of a source with the highest scores: their mean boundary IoU with the true masks, and the share of
    proposals that are better than the source mask.
    """

    share: float
    before: float
    after: float
    better: float
    wrong: int


def curve(cases: Sequence[Case]) -> list[BestRanked]:
    """The results for the best-ranked masks of a source, for each share in SHARES, as if all their proposals were
    accepted.
    """
    ranked = sorted(cases, key=lambda c: -c.score)
    rows = []
    for share in SHARES:
        some = ranked[: max(1, round(share * len(ranked)))]
        before, after = (float(np.mean([getattr(c, name) for c in some])) for name in ("before", "after"))
        better = float(np.mean([c.after > c.before for c in some]))
        rows.append(BestRanked(share, before, after, better, sum(c.wrong for c in some)))
    return rows


def known_page(
    recipe: Recipe,
    by_source: Mapping[str, Sequence[Case]],
    by_recipe: Sequence[Accepted],
    by_trusted: Sequence[Accepted],
) -> str:
    """The quality of a recipe and of its trusted refiner, source by source, as Markdown."""
    chosen = _trusted(recipe)
    witnesses = "" if recipe.calibration.is_fitted else " The witnesses are not calibrated, so they accept nothing."
    lines = [
        f"# What the recipe {recipe.name} does on masks whose true masks are known",
        "",
        f"Written by `refbench curate calibrate --known` of refbench {__version__}. The trusted refiner is",
        f"{chosen.name}, with {chosen.variants} prompts per mask and the weights "
        f"{short_name(recipe.trusted.weights_sha256)}. No calibration",
        "has seen the images that it is applied to.",
        "",
        "## The whole recipe",
        "",
        f"The audit, the trusted refiner and the witnesses together.{witnesses}",
        "",
        *_table(by_recipe),
        "",
        f"## {chosen.name} alone",
        "",
        "Without findings and without the proposals of the witnesses.",
        "",
        *_table(by_trusted),
        "",
    ]
    for source, cases in by_source.items():
        lines += [
            f"## {source}: {len(cases)} masks of {len({c.image for c in cases})} images, ranked by score",
            "",
            "| best-ranked | boundary IoU before | after | better | on another object |",
            "|--:|--:|--:|--:|--:|",
            *(f"| {r.share:.0%} | {r.before:.3f} | {r.after:.3f} | {r.better:.0%} | {r.wrong} |" for r in curve(cases)),
            "",
        ]
    return "\n".join(lines)


def _table(accepted: Sequence[Accepted]) -> list[str]:
    lines = [
        "| source | calibrated on | masks | accepted | replaced | boundary IoU before | after | replaced masks that "
        "are better | masks on another object accepted |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for a in accepted:
        wrong = f"{a.wrong_accepted} of {a.wrong}" if a.wrong else "none in it"
        better = "-" if a.better is None else f"{a.better:.1%}"
        lines.append(
            f"| {a.source} | {a.fitted_on} | {a.masks} | {a.kept + a.replaced} ({a.share:.0%}) | {a.replaced} | "
            f"{_figure(a.before)} | {_figure(a.after)} | {better} | {wrong} |"
        )
    return lines


def calibrate_trusted(
    recipe_path: Path,
    sources: Sequence[tuple[str, Path]],
    *,
    work: Path,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Accepted]:
    """Calibrate a recipe with a trusted refiner on known sources; returns what the whole recipe accepts.

    Writes the sections [trusted] and, with enough masks, [calibration] of the recipe, and `known.md` next to it.
    Proposals are written below `work`. Existing ones are used again, so thresholds can be changed without new
    proposals.

    Args:
        sources: the address of each built split with the JSON file of its true masks; each address must occur only
            once.

    Raises:
        DatasetError: a source is given twice or not built, its true masks cannot be read, there are too few masks, or
            the recipe cannot be read.
        RunError: the recipe has no trusted refiner, or it made no proposals.
    """
    addresses = [address for address, _ in sources]
    for address in addresses:
        if addresses.count(address) > 1:
            raise DatasetError(f"{address} is given twice; pass --known once for each split")
    text, where = text_of_recipe(recipe_path), str(recipe_path)
    # What was measured before may be of other refiners; it is replaced.
    if parse_recipe(without_section(text, TRUSTED_SECTION), where).calibration.sources:
        # It may have seen the images that are asked about now.
        text = without_section(text, CALIBRATION)
    recipe = parse_recipe(without_section(text, TRUSTED_SECTION), where)
    chosen = _trusted(recipe)
    bare, asked = parse_recipe(without_measured(text), where), parse_recipe(refiners_only(text), where)
    images: list[KnownImage] = []
    for address, truth in sources:
        name = f"{address} ({truth.resolve().parent.name})"
        images += known_images(bare, asked, address, truth, work, name=name, device=device, progress=progress)
    by_source: dict[str, list[Case]] = {}
    for case in (cases := cases_of(images)):
        by_source.setdefault(case.source, []).append(case)
    weights = refiner_weights(_work_folder(asked, addresses[0], work), chosen.name) or ""
    fitted = fit_both(cases, witness_cases(images), (), recipe, weights)
    by_recipe = [row for name in by_source for row in judged_by_recipe(images, cases, name, recipe, weights)]
    by_trusted = [row for name in by_source for row in judged(cases, name, recipe, weights)]
    text = with_section(text, TRUSTED_SECTION, dataclasses.asdict(fitted.trusted))
    if fitted.witnesses is not recipe.calibration:
        text = with_section(text, CALIBRATION, dataclasses.asdict(fitted.witnesses))
    page = known_page(parse_recipe(text, where), by_source, by_recipe, by_trusted)
    with atomic_file(recipe_path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_file(recipe_path.parent / KNOWN_FILE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return by_recipe


def _work_folder(recipe: Recipe, address: str, work: Path) -> Path:
    return work / f"{address.replace('/', '-')}-{split_fingerprint(address)[:8]}-{recipe.sha256[:12]}"


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _trusted(recipe: Recipe) -> RefinerChoice:
    if recipe.trusted_refiner is None:
        raise RunError(
            f'the recipe {recipe.name} has no trusted refiner; set role = "trusted" in one of its [[refiners]]'
        )
    return recipe.trusted_refiner
