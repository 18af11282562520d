"""Calibrates the score of the trusted refiner on coarse masks whose true masks are known, source by source.

A known source is a built split of coarse masks, and a JSON file with the true masks: annotation id -> `{"size": [h, w],
"counts": "...", "wrong": bool}`. `counts` is compressed COCO run-length code. `wrong` is true if the coarse mask is on
another object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from refbench._version import __version__
from refbench.curation.agreement import boundary_iou
from refbench.curation.folder import claim, load_items
from refbench.curation.items import ImageItems
from refbench.curation.proposals import propose, read_proposals, refiner_weights
from refbench.curation.recipe import (
    WITNESS,
    MaskRules,
    Recipe,
    RefinerChoice,
    TrustedCalibration,
    parse_recipe,
    refiners_sha256,
    text_of_recipe,
)
from refbench.curation.recipe_text import TRUSTED_SECTION, refiners_only, with_section, without_measured
from refbench.curation.trusted import judge, trust
from refbench.errors import DatasetError, MaskError, RunError
from refbench.masks.mask import Mask
from refbench.records import Action
from refbench.storage.files import atomic_file, read_json
from refbench.storage.images import image_sha256
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import Progress, silent
from refbench.storage.weights import short_name

# Of a calibration curve: fewer masks a knot would follow single ones.
MASKS_A_KNOT = 6
FEWEST_MASKS = 2 * MASKS_A_KNOT
KNOWN_FILE = "known.md"
PARTS = 10
OTHER_SOURCES, OTHER_PARTS = "the other sources", "the other parts of it"
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True, slots=True)
class Case:
    """A mask of a known source, with the boundary IoU of the source mask and of the trusted proposal with the true
    mask.

    `image` is the sha256 of its image, because two sources may use one id for different images, or two ids for the same
    image. `score` and `source_boundary_iou` are those of `curation.trusted.Trust`; `score` is -1 if there is no
    proposal.
    """

    source: str
    image: str
    mask_id: str
    score: float
    source_boundary_iou: float
    before: float
    after: float
    wrong: bool


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
            raise DatasetError(f"{where}: its size is {found.size}, but the image has {target.mask.size}")
        if not isinstance(wrong, bool):
            raise DatasetError(f"{where}: wrong must be true or false, got {wrong!r}")
        out[target.mask_id] = found, wrong
    if not out:
        raise DatasetError(f"{path} contains no mask of this split; its keys must be annotation ids")
    return out


def known_cases(
    recipe: Recipe, address: str, truth: Path, work: Path, *, device: str = "cpu", progress: Progress = silent
) -> list[Case]:
    """Let the refiners propose masks for a known source; proposals that are already in `work` are used again.

    Raises:
        DatasetError: the split is not built, or the file with the true masks cannot be read.
        RunError: the trusted refiner made no proposal.
    """
    chosen = _trusted(recipe)
    images = load_items(address)
    known = truth_of(truth, images)
    folder = claim(_work_folder(recipe, address, work), address, recipe)
    made = propose(folder, device=device, progress=progress)
    proposals = read_proposals(folder)
    cases = []
    for image in images:
        picture = image_sha256(image.image_path) or image.image_id
        for target in image.masks:
            if target.mask_id not in known:
                continue
            true, wrong = known[target.mask_id]
            found = trust(target.mask, proposals.get(target.mask_id, ()), chosen.name)
            best = found.proposal.mask if found else target.mask
            after, before = boundary_iou([best, target.mask], [true, true]).tolist()
            score, likeness = (found.score, found.source_boundary_iou) if found else (-1.0, 0.0)
            cases.append(Case(address, picture, target.mask_id, score, likeness, before, after, wrong))
    if all(case.score < 0 for case in cases):
        why = made.first_errors.get(chosen.name, "its variants have no majority")
        raise RunError(f"{chosen.name} made no proposal for {address}: {why}")
    return cases


def fit_trusted(cases: Sequence[Case], recipe: Recipe, weights_sha256: str) -> TrustedCalibration:
    """Fit the expected boundary IoU and the share of better proposals, both increasing with the score (isotonic).

    Raises:
        DatasetError: there are too few masks, or too few different scores.
    """
    refiner = _trusted(recipe).name
    used = [c for c in cases if c.score >= 0]
    scores, place, counts = np.unique([round(c.score, 3) for c in used], return_inverse=True, return_counts=True)
    if len(used) < FEWEST_MASKS or len(scores) < 2:
        raise DatasetError(
            f"{refiner} has proposals for {len(used)} masks with known truth, with {len(scores)} different "
            f"scores; a calibration needs {FEWEST_MASKS} masks, so pass more with --known"
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
    """What the rule accepts of a source; no calibration has seen the images that it is applied to.

    The first row uses a calibration from the other sources. For the second row, the images of the source are divided
    into PARTS parts, in their order, so that neighbouring images, which may show the same scene, stay together. For
    each part, the calibration is from the other parts. A row is omitted if there are too few masks for its calibration.
    """
    own = [c for c in cases if c.source == source]
    images = list(dict.fromkeys(c.image for c in own))
    groups = [set(images[k * len(images) // PARTS : (k + 1) * len(images) // PARTS]) for k in range(PARTS)]
    seen = set(images)
    others = [c for c in cases if c.source != source and c.image not in seen]
    parts = [([c for c in own if c.image not in g], [c for c in own if c.image in g]) for g in groups if g]
    rows = []
    for fitted_on, pairs in ((OTHER_SOURCES, [(others, own)]), (OTHER_PARTS, parts)):
        try:
            fits = [(fit_trusted(fitted, recipe, weights_sha256), asked) for fitted, asked in pairs]
        except DatasetError:
            continue
        rows.append(accept([(case, fit) for fit, asked in fits for case in asked], recipe.masks, fitted_on))
    return rows


def accept(cases: Sequence[tuple[Case, TrustedCalibration]], rules: MaskRules, fitted_on: str = "") -> Accepted:
    """Apply the rule of the trusted refiner to known masks, each with its calibration."""
    actions = [(case, judge(case.score, case.source_boundary_iou, fit, rules)[0]) for case, fit in cases]
    kept = [case for case, action in actions if action == Action.KEEP]
    replaced = [case for case, action in actions if action == Action.CHANGE]
    return Accepted(
        source=cases[0][0].source,
        fitted_on=fitted_on,
        masks=len(cases),
        kept=len(kept),
        replaced=len(replaced),
        before=_mean([c.before for c in (*kept, *replaced)]),
        after=_mean([c.before for c in kept] + [c.after for c in replaced]),
        better=_mean([c.after > c.before for c in replaced]),
        wrong=sum(case.wrong for case, _ in cases),
        wrong_accepted=sum(case.wrong for case in (*kept, *replaced)),
    )


@dataclass(frozen=True, slots=True)
class BestRanked:
    """The masks of a source with the highest scores: mean boundary IoU with the true masks, and how many are better."""

    share: float
    before: float
    after: float
    better: float
    wrong: int


def curve(cases: Sequence[Case]) -> list[BestRanked]:
    """The best-ranked SHARES of a source, as if all their proposals were accepted."""
    ranked = sorted(cases, key=lambda c: -c.score)
    rows = []
    for share in SHARES:
        some = ranked[: max(1, round(share * len(ranked)))]
        before, after = (float(np.mean([getattr(c, name) for c in some])) for name in ("before", "after"))
        better = float(np.mean([c.after > c.before for c in some]))
        rows.append(BestRanked(share, before, after, better, sum(c.wrong for c in some)))
    return rows


def known_page(recipe: Recipe, by_source: Mapping[str, Sequence[Case]], accepted: Sequence[Accepted]) -> str:
    """The quality of the trusted refiner, source by source, as Markdown."""
    chosen = _trusted(recipe)
    lines = [
        f"# What {chosen.name} does where the truth is known",
        "",
        f"Written by `refbench curate calibrate --known` of refbench {__version__}. {chosen.variants} prompts a mask;",
        f"weights {short_name(recipe.trusted.weights_sha256)}.",
        "",
        "## What its rule accepts",
        "",
        "Findings of the audit and the witnesses' own verdicts are left out. Each mask is judged by a fit that has not",
        "seen its image.",
        "",
        "| source | fitted on | masks | accepted | replaced | boundary IoU before | after | replaced masks that are "
        "better | outlines on another object accepted |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for a in accepted:
        wrong = f"{a.wrong_accepted} of {a.wrong}" if a.wrong else "none in it"
        better = "-" if a.better is None else f"{a.better:.1%}"
        lines.append(
            f"| {a.source} | {a.fitted_on} | {a.masks} | {a.kept + a.replaced} ({a.share:.0%}) | {a.replaced} | "
            f"{_figure(a.before)} | {_figure(a.after)} | {better} | {wrong} |"
        )
    lines.append("")
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


def calibrate_trusted(
    recipe_path: Path,
    sources: Sequence[tuple[str, Path]],
    *,
    work: Path,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Accepted]:
    """Calibrate the score of the trusted refiner on known sources; returns what its rule accepts, see `judged`.

    Writes the section [trusted] of the recipe, and `known.md` next to it. Proposals are written below `work`. Existing
    ones are used again, so thresholds can be changed without new proposals.

    Args:
        sources: addresses of built splits, each once, with the JSON file of their true masks.

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
    recipe = parse_recipe(without_measured(text), where)
    chosen = _trusted(recipe)
    # Thresholds do not change proposals: existing proposals stay useful when a recipe changes.
    asked = parse_recipe(refiners_only(text), where)
    by_source = {}
    for address, truth in sources:
        name = f"{address} ({truth.resolve().parent.name})"
        found = known_cases(asked, address, truth, work, device=device, progress=progress)
        by_source[name] = [dataclasses.replace(case, source=name) for case in found]
    weights = refiner_weights(_work_folder(asked, addresses[0], work), chosen.name) or ""
    cases = [case for found in by_source.values() for case in found]
    fitted = fit_trusted(cases, recipe, weights)
    accepted = [row for name in by_source for row in judged(cases, name, recipe, weights)]
    text = with_section(text, TRUSTED_SECTION, dataclasses.asdict(fitted))
    page = known_page(parse_recipe(text, where), by_source, accepted)
    with atomic_file(recipe_path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_file(recipe_path.parent / KNOWN_FILE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return accepted


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
