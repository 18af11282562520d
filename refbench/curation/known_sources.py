"""Calibrate the trusted refiner's score on coarse masks whose true masks are known, source by source.

A known source is a built split of coarse masks and a JSON file with the truth: annotation id -> `{"size": [h, w],
"counts": "...", "wrong": bool}`, `counts` compressed COCO run-length code, `wrong` for an outline on another object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression

from refbench._version import __version__
from refbench.curation.agreement import boundary_iou
from refbench.curation.findings import audit
from refbench.curation.folder import load_items
from refbench.curation.items import TargetMask
from refbench.curation.proposals import propose, read_proposals
from refbench.curation.recipe import (
    WITNESS,
    MaskRules,
    Recipe,
    RefinerChoice,
    TrustedCalibration,
    parse_recipe,
    read_recipe,
)
from refbench.curation.recipe_text import TRUSTED_SECTION, refiners_only, with_section
from refbench.curation.trusted import trust
from refbench.errors import DatasetError, MaskError, RunError
from refbench.masks.mask import Mask
from refbench.storage.files import atomic_file, read_json
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import Progress, silent

# Of a calibration curve: fewer masks a knot would follow single ones.
MASKS_A_KNOT = 6
KNOWN_FILE = "known.md"
PARTS = 10
OTHER_SOURCES, OTHER_PARTS = "the other sources", "the other parts of it"
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True, slots=True)
class Case:
    """A mask of a known source. `score` is -1 where the refiner made no proposal; boundary IoU with the truth."""

    source: str
    mask_id: str
    score: float
    proposal: float
    before: float
    source_boundary_iou: float
    wrong: bool


def truth_of(path: Path, masks: Sequence[TargetMask]) -> dict[str, tuple[Mask, bool]]:
    """The true mask of each mask of one annotation, and whether its outline lies on another object.

    Raises:
        DatasetError: the file is not as described above, or has none of the masks.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is not a JSON object: annotation id -> {{size, counts, wrong}}")
    out = {}
    for target in masks:
        entry = content.get(target.ann_ids[0]) if len(target.ann_ids) == 1 else None
        if entry is None:
            continue
        try:
            found = Mask.from_rle({"size": entry["size"], "counts": entry["counts"]})
        except (KeyError, TypeError, MaskError) as error:
            raise DatasetError(f"{path}, {target.ann_ids[0]}: no mask ({error})") from None
        if found.size != target.mask.size:
            raise DatasetError(f"{path}, {target.ann_ids[0]}: its size is {found.size}, the image {target.mask.size}")
        out[target.mask_id] = found, bool(entry.get("wrong", False))
    if not out:
        raise DatasetError(f"{path} has the truth of no mask of the split; its keys are annotation ids")
    return out


def known_cases(
    recipe: Recipe, address: str, truth: Path, work: Path, *, device: str = "cpu", progress: Progress = silent
) -> list[Case]:
    """Have the trusted refiner redraw every mask of a known source; what is in `work` already is used again."""
    chosen = _trusted(recipe)
    folder = _work_folder(recipe, address, work)
    audit(address, recipe, out=folder, with_images=False, progress=progress)
    propose(folder, device=device, progress=progress)
    proposals = read_proposals(folder)
    masks = [t for image in load_items(address) for t in image.masks]
    known = truth_of(truth, masks)
    cases = []
    for target in masks:
        if target.mask_id not in known:
            continue
        true, wrong = known[target.mask_id]
        found = trust(target.mask, proposals.get(target.mask_id, ()), chosen.name)
        best = found.proposal.mask if found else target.mask
        after, before = boundary_iou([best, target.mask], [true, true]).tolist()
        if found is None:
            cases.append(Case(address, target.mask_id, -1.0, after, before, 0.0, wrong))
        else:
            cases.append(Case(address, target.mask_id, found.score, after, before, found.source_boundary_iou, wrong))
    return cases


def fit_trusted(cases: Sequence[Case], recipe: Recipe, weights_sha256: str) -> TrustedCalibration:
    """Knots of the expected boundary IoU and of the share of better proposals, both rising with the score (isotonic).

    Raises:
        DatasetError: there are too few masks to tell anything.
    """
    refiner = _trusted(recipe).name
    used = sorted((c for c in cases if c.score >= 0), key=lambda c: c.score)
    if len(used) < 2 * MASKS_A_KNOT:
        raise DatasetError(f"{len(used)} masks have a proposal of {refiner}; at least {2 * MASKS_A_KNOT} are needed")
    score = np.array([c.score for c in used])
    quality = isotonic_regression([c.proposal for c in used]).x
    better = isotonic_regression([float(c.proposal > c.before) for c in used]).x
    knots: dict[float, tuple[float, float]] = {}
    # Values at the knots, not means over intervals: a mean would be too high for the worst masks of its interval.
    for k in np.linspace(0, len(used) - 1, len(used) // MASKS_A_KNOT + 1).round().astype(int).tolist():
        knots.setdefault(round(float(score[k]), 3), (float(quality[k]), float(better[k])))
    return TrustedCalibration(
        on=tuple(dict.fromkeys(c.source for c in cases)),
        refiner=refiner,
        witnesses=tuple(c.name for c in recipe.refiners if c.role == WITNESS),
        weights_sha256=weights_sha256,
        score=tuple(knots),
        boundary_iou=tuple(round(q, 4) for q, _ in knots.values()),
        better=tuple(round(b, 4) for _, b in knots.values()),
    )


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a calibration accepts of a source; shares in 0..1, boundary IoU of the accepted masks with the truth.

    `fitted_on`: the other sources, or the other parts of the same one.
    """

    source: str
    fitted_on: str
    masks: int
    accepted: float
    before: float
    after: float
    better: float
    wrong: int
    wrong_accepted: int


def judged(cases: Sequence[Case], source: str, recipe: Recipe, weights_sha256: str) -> list[Accepted]:
    """What the recipe accepts of a source. No fit judges masks that it was fitted on.

    The first row, if there are other sources, is by a fit on them. For the last row, the masks of the source are cut
    into PARTS in their order, and each part is judged by a fit on all other parts. So neighbouring masks, which may
    show the same scene, stay in one part.
    """
    own = [c for c in cases if c.source == source]
    others = [c for c in cases if c.source != source]
    out = []
    if others:
        found = fit_trusted(others, recipe, weights_sha256)
        out.append(accept([(c, found) for c in own], recipe.masks, OTHER_SOURCES))
    parts = [own[k * len(own) // PARTS : (k + 1) * len(own) // PARTS] for k in range(PARTS)]
    pairs = []
    for part in parts:
        inside = {c.mask_id for c in part}
        found = fit_trusted([c for c in own if c.mask_id not in inside], recipe, weights_sha256)
        pairs += [(c, found) for c in part]
    return [*out, accept(pairs, recipe.masks, OTHER_PARTS)]


def accept(cases: Sequence[tuple[Case, TrustedCalibration]], rules: MaskRules, fitted_on: str = "") -> Accepted:
    """Apply the rule of `curation.verdicts` to known masks, each with its calibration.

    `better` is of the masks that are replaced.
    """
    kept, changed = [], []
    for case, calibration in cases:
        if case.score < 0 or calibration.expected(case.score) < rules.accept:
            continue
        if case.source_boundary_iou >= rules.keep:
            kept.append(case)
        elif calibration.probably_better(case.score) >= rules.better:
            changed.append(case)
    final = [c.before for c in kept] + [c.proposal for c in changed]
    taken = [*kept, *changed]
    return Accepted(
        source=cases[0][0].source,
        fitted_on=fitted_on,
        masks=len(cases),
        accepted=len(taken) / len(cases),
        before=float(np.mean([c.before for c in taken])) if taken else 0.0,
        after=float(np.mean(final)) if final else 0.0,
        better=float(np.mean([c.proposal > c.before for c in changed])) if changed else 0.0,
        wrong=sum(c.wrong for c, _ in cases),
        wrong_accepted=sum(c.wrong for c in taken),
    )


def curve(cases: Sequence[Case]) -> list[tuple[float, float, float, float, int]]:
    """Of the best-ranked share of a source: `(share, before, after, share that is better, wrong ones)`."""
    ranked = sorted(cases, key=lambda c: -c.score)
    rows = []
    for share in SHARES:
        some = ranked[: max(1, round(share * len(ranked)))]
        rows.append(
            (
                share,
                float(np.mean([c.before for c in some])),
                float(np.mean([c.proposal for c in some])),
                float(np.mean([c.proposal > c.before for c in some])),
                sum(c.wrong for c in some),
            )
        )
    return rows


def known_page(recipe: Recipe, by_source: Mapping[str, Sequence[Case]], left_out: Sequence[Accepted]) -> str:
    """What the trusted refiner is worth, source by source, as Markdown; `left_out` says what is accepted."""
    chosen = _trusted(recipe)
    lines = [
        f"# What {chosen.name} does where the truth is known",
        "",
        f"Written by `refbench curate calibrate --known` of refbench {__version__}. {chosen.variants} prompts a mask;",
        f"weights {recipe.trusted.weights_sha256[:12]}.",
        "",
    ]
    lines += [
        "## What the recipe accepts",
        "",
        "| source | fitted on | masks | accepted | boundary IoU before | after | replaced masks that are better | "
        "outlines on another object accepted |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {a.source} | {a.fitted_on} | {a.masks} | {a.accepted:.0%} | {a.before:.3f} | {a.after:.3f} | "
            f"{a.better:.1%} | {a.wrong_accepted} of {a.wrong} |"
            for a in left_out
        ),
        "",
    ]
    for source, cases in by_source.items():
        lines += [
            f"## {source}: {len(cases)} masks, ranked by score",
            "",
            "| best-ranked | boundary IoU before | after | better | on another object |",
            "|--:|--:|--:|--:|--:|",
        ]
        lines += [f"| {s:.0%} | {b:.3f} | {a:.3f} | {g:.0%} | {w} |" for s, b, a, g, w in curve(cases)]
        lines.append("")
    return "\n".join(lines)


def _trusted(recipe: Recipe) -> RefinerChoice:
    if recipe.trusted_refiner is None:
        raise RunError(f'the recipe {recipe.name} trusts no refiner: give one the role "trusted"')
    return recipe.trusted_refiner


def calibrate_trusted(
    recipe_path: Path,
    sources: Sequence[tuple[str, Path]],
    *,
    work: Path,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Accepted]:
    """Calibrate the trusted refiner's score on known sources; judge each source by a fit that leaves it out.

    Writes the section [trusted] of the recipe, and `known.md` beside it. `work` takes the curations; what is there
    already is used again.

    Args:
        sources: addresses of built splits, each with the JSON file of its truth.

    Raises:
        DatasetError: a source is not built, its truth cannot be read, or the recipe cannot.
        RunError: the recipe trusts no refiner.
    """
    recipe = read_recipe(recipe_path)
    chosen = _trusted(recipe)
    # Thresholds do not change proposals: those that are there stay useful when a recipe changes.
    asked = parse_recipe(refiners_only(recipe.text), str(recipe_path))
    by_source: dict[str, list[Case]] = {}
    weights = ""
    for address, truth in sources:
        by_source[f"{address} ({truth.parent.name})"] = known_cases(
            asked, address, truth, work, device=device, progress=progress
        )
        weights = weights_of(_work_folder(asked, address, work), chosen.name)
    cases = [dataclasses.replace(c, source=name) for name, found in by_source.items() for c in found]
    fitted = fit_trusted(cases, recipe, weights)
    left_out = [accepted for name in by_source for accepted in judged(cases, name, recipe, weights)]
    text = with_section(recipe.text, TRUSTED_SECTION, dataclasses.asdict(fitted))
    with atomic_file(recipe_path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_file(recipe_path.parent / KNOWN_FILE) as temporary:
        temporary.write_text(known_page(parse_recipe(text, str(recipe_path)), by_source, left_out), encoding="utf-8")
    return left_out


def weights_of(folder: Path, refiner: str) -> str:
    """sha256 of the weights by which a refiner has made the proposals in a folder of a curation."""
    content = read_json(folder / "proposals" / refiner / "refiner.json", RunError)
    return str(content.get("weights_sha256", "")) if isinstance(content, dict) else ""


def _work_folder(recipe: Recipe, address: str, work: Path) -> Path:
    return work / f"{address.replace('/', '-')}-{split_fingerprint(address)[:8]}-{recipe.sha256[:12]}"
