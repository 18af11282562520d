"""`refbench curate calibrate`: measures the decisions of a recipe on scenes whose true masks are known.

The source masks are those of `scenes-hurried`, the true masks those of `scenes`. On one split, the quality of masks is
fitted as a function of the agreement. On another split, the decisions of the recipe are measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize

from refbench._version import __version__
from refbench.curation.agreement import agree, boundary_iou
from refbench.curation.checks.base import NOTE
from refbench.curation.decisions import decide
from refbench.curation.findings import audit
from refbench.curation.folder import load_items
from refbench.curation.items import ImageItems
from refbench.curation.proposals import propose, read_proposals
from refbench.curation.recipe import (
    FIGURES,
    INTERCEPT,
    Calibration,
    MaskRules,
    Recipe,
    parse_recipe,
    text_of_recipe,
)
from refbench.curation.recipe_text import CALIBRATION, with_section, witnesses_only
from refbench.curation.tables import read_decisions, read_findings
from refbench.curation.verdicts import NOT_JUDGED, PROPOSALS
from refbench.datasets.builders.scenes import hurried_outlines
from refbench.datasets.builders.scenes_annotator import FAULTS, WRONG
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.records import Action, Decision, Finding, Proposal
from refbench.storage.files import atomic_file
from refbench.storage.progress import Progress, silent
from refbench.storage.samples import load_objects

SOURCE, TRUTH = "scenes-hurried", "scenes"
# Fewer masks a knot would follow single ones.
MASKS_A_KNOT = 40
# What a logistic regression pays for large weights, on figures of unit variance.
PENALTY = 0.5
FOLDS = 5
THRESHOLDS = (0.5, 0.8, 0.9, 0.93, 0.95, 0.97, 0.99)
MEASURED_FILE = "measured.md"
LIKE_ANOTHER = "mask-like-another"


@dataclass(frozen=True)
class Known:
    """A mask of `scenes-hurried` with its true mask. `faults` are the faults of its outline. `twin` is true if
    another, wrong mask is on the same object.
    """

    mask_id: str
    source: Mask
    truth: Mask
    faults: tuple[str, ...]
    twin: bool
    sample_ids: tuple[str, ...]
    image_id: str


def known_masks(images: Sequence[ImageItems], *, chains: bool = False) -> dict[str, Known]:
    """For each mask of a split of `scenes-hurried`: the true mask, and the errors that were put into the outline."""
    exact = {o.ann_id: o.mask for o in load_objects(TRUTH)}
    out = {}
    for image in images:
        split, _, number = image.image_id.rpartition("-")
        ids = [o.ann_id for o in image.objects]
        outlines = hurried_outlines(split, int(number), [exact[i].to_array() for i in ids], chains=chains)
        by_id = dict(zip(ids, outlines, strict=True))
        shared = {ids[o.drawn] for o in outlines if WRONG in o.faults}
        for target in image.masks:
            (ann_id,) = target.ann_ids
            out[target.mask_id] = Known(
                target.mask_id,
                target.mask,
                exact[ann_id],
                by_id[ann_id].faults,
                ann_id in shared,
                tuple(s.sample_id for s in target.samples),
                image.image_id,
            )
    return out


@dataclass(frozen=True)
class WitnessCase:
    """A mask whose decision depends only on its proposals, with the values of the agreement of the witnesses and the
    quality of the result.

    `best` and `source` are the boundary IoU of the best proposal and of the source mask with the true mask.
    """

    figures: Mapping[str, float]
    best: float
    source: float
    image: str


def _open_cases(
    known: Mapping[str, Known], decisions: Mapping[str, Decision], proposals: Mapping[str, Sequence[Proposal]]
) -> list[WitnessCase]:
    """The masks that neither a finding nor a twin leaves to a person. They include wrong masks without a finding."""
    open_ = [i for i, d in decisions.items() if d.stage == PROPOSALS and d.cause not in NOT_JUDGED]
    found = [(known[i], a) for i in open_ if (a := agree(known[i].source, proposals[i])) is not None]
    best = boundary_iou([a.best.mask for _, a in found], [k.truth for k, _ in found])
    source = boundary_iou([k.source for k, _ in found], [k.truth for k, _ in found])
    return [
        WitnessCase(a.figures(), float(b), float(s), k.image_id)
        for (k, a), b, s in zip(found, best, source, strict=True)
    ]


def fit(cases: Sequence[WitnessCase], rules: MaskRules, on: str) -> Calibration:
    """Fit a calibration on masks whose true masks are known.

    The expected boundary IoU is the increasing function of the agreement that fits best (isotonic regression). The
    probability of being better is a logistic regression. The thresholds are cross-validated with FOLDS fits: each fit
    leaves out a part of the images and is applied only to that part.

    Raises:
        DatasetError: there are too few masks for a fit.
    """
    if len(cases) < 2 * MASKS_A_KNOT:
        raise DatasetError(
            f"{on} has {len(cases)} masks whose decision depends only on their proposals, but a calibration "
            f"needs at least {2 * MASKS_A_KNOT}"
        )
    images = sorted({c.image for c in cases})
    fold = {image: k % FOLDS for k, image in enumerate(images)}
    judged = []
    for k in range(FOLDS):
        one = fit_once([c for c in cases if fold[c.image] != k], on)
        judged += [
            (c, one.expected(c.figures["agreement"]), one.probably_better(c.figures))
            for c in cases
            if fold[c.image] == k
        ]
    thresholds = tuple(_at_threshold(judged, rules, t) for t in THRESHOLDS)
    return dataclasses.replace(fit_once(cases, on), thresholds=thresholds)


def fit_once(cases: Sequence[WitnessCase], on: str) -> Calibration:
    """Fit a calibration without cross-validated thresholds.

    Raises:
        DatasetError: all masks have the same agreement.
    """
    agreement, boundary = _knots(cases)
    better = {name: round(weight, 4) for name, weight in _logistic(cases).items()}
    return Calibration(on, agreement, boundary, better)


def _knots(cases: Sequence[WitnessCase]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of a calibration: mean agreement and expected quality of groups of about MASKS_A_KNOT masks.

    Equal agreements count as one value in the fit. Groups with the same mean agreement become one knot.
    """
    agreement = np.array([c.figures["agreement"] for c in cases])
    quality = np.array([c.best for c in cases])
    values, place, counts = np.unique(agreement, return_inverse=True, return_counts=True)
    means = np.bincount(place, quality) / counts
    rising = np.asarray(isotonic_regression(means, weights=counts).x)[place]
    order = np.argsort(agreement, kind="stable")
    knots: dict[float, list[float]] = {}
    for part in np.array_split(order, max(2, len(cases) // MASKS_A_KNOT)):
        knots.setdefault(round(float(agreement[part].mean()), 3), []).append(float(rising[part].mean()))
    if len(knots) < 2:
        raise DatasetError(
            f"all masks have the same agreement, {values.mean():.3f}, so no calibration can be fitted; use a "
            "recipe with at least two witnesses, or other masks"
        )
    expected = np.maximum.accumulate([float(np.mean(found)) for found in knots.values()]).round(4)
    return tuple(knots), tuple(expected.tolist())


def _logistic(cases: Sequence[WitnessCase]) -> dict[str, float]:
    rows = np.array([[c.figures[name] for name in FIGURES] for c in cases])
    wins = np.array([c.best > c.source for c in cases], float)
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    scaled = np.column_stack([(rows - mean) / spread, np.ones(len(rows))])

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        total = scaled @ weights
        free = np.append(weights[:-1], 0)
        value = float((np.logaddexp(0, total) - wins * total).sum() + PENALTY * (free**2).sum())
        return value, scaled.T @ (1 / (1 + np.exp(-total)) - wins) + 2 * PENALTY * free

    weights = minimize(loss, np.zeros(scaled.shape[1]), jac=True, method="BFGS").x
    plain = weights[:-1] / spread
    return {**dict(zip(FIGURES, plain.tolist(), strict=True)), INTERCEPT: float(weights[-1] - plain @ mean)}


def _at_threshold(
    judged: Sequence[tuple[WitnessCase, float, float]], rules: MaskRules, better: float
) -> dict[str, float]:
    """The shares of masks that are accepted and changed with the given threshold `better`, and the quality of the
    result.

    `judged` contains masks with their expected boundary IoU and the probability that the best proposal is better.
    """
    accepted = [(c, p) for c, expected, p in judged if expected >= rules.accept]
    kept = [c for c, _ in accepted if c.figures["source_boundary_iou"] >= rules.keep]
    changed = [c for c, p in accepted if c.figures["source_boundary_iou"] < rules.keep and p >= better]
    final = [c.source for c in kept] + [c.best for c in changed]
    return {
        "better": better,
        "accepted": round(len(final) / len(judged), 4),
        "boundary_iou": round(float(np.mean(final)), 4) if final else 0.0,
        "changed": round(len(changed) / len(judged), 4),
        "changed_for_the_better": round(float(np.mean([c.best > c.source for c in changed])), 4) if changed else 0.0,
    }


@dataclass(frozen=True)
class Measured:
    """The results of a recipe on a split of `scenes-hurried`. Shares are between 0 and 1; boundary IoU is with the true
    masks.

    For each kind of error, `found` gives the number of outlines with this error, and the share of these that were
    found. `found_alone` gives the same for outlines with no other error. A false alarm is a finding on a careful
    outline. `twins_named` counts careful outlines that have a finding only because a wrong mask is on the same object;
    they do not count as false alarms.
    """

    split: str
    masks: int
    before: float
    before_without_careful: float
    accepted: float
    accepted_boundary_iou: float
    accepted_before: float
    changed: int
    changed_for_the_better: float
    wrong: int
    wrong_accepted: int
    found: Mapping[str, tuple[int, float]]
    found_alone: Mapping[str, tuple[int, float]]
    faulty: int
    faulty_found: float
    careful: int
    false_alarms: float
    twins_named: int


def measure(
    split: str, known: Mapping[str, Known], decisions: Mapping[str, Decision], findings: Sequence[Finding]
) -> Measured:
    """Compare decisions and findings with the truth."""
    ids = list(known)
    truths = [known[i].truth for i in ids]
    before = dict(zip(ids, boundary_iou([known[i].source for i in ids], truths), strict=True))
    finals = [decisions[i].mask or known[i].source for i in ids]
    after = dict(zip(ids, boundary_iou(finals, truths), strict=True))
    accepted = [i for i in ids if decisions[i].action in (Action.KEEP, Action.CHANGE)]
    changed = [i for i in ids if decisions[i].action == Action.CHANGE]
    wrong = [i for i in ids if WRONG in known[i].faults]
    of_mask: dict[str, set[str]] = {i: set() for i in ids}
    owner = {s: i for i in ids for s in known[i].sample_ids}
    for f in findings:
        if f.severity != NOTE and (i := owner.get(f.item_id, f.item_id)) in of_mask:
            of_mask[i].add(f.check)
    faulty = [i for i in ids if known[i].faults]
    careful = [i for i in ids if not known[i].faults]
    alarmed = [i for i in careful if of_mask[i] - ({LIKE_ANOTHER} if known[i].twin else set())]
    named = [i for i in careful if known[i].twin and of_mask[i] == {LIKE_ANOTHER}]

    def share(some: Sequence[str], test: Callable[[str], bool]) -> float:
        return float(np.mean([test(i) for i in some])) if some else 0.0

    def mean(values: Mapping[str, float], some: Sequence[str]) -> float:
        return float(np.mean([values[i] for i in some])) if some else 0.0

    def found(with_fault: Callable[[str, str], bool]) -> dict[str, tuple[int, float]]:
        groups = {fault: [i for i in ids if with_fault(i, fault)] for fault in FAULTS}
        return {fault: (len(g), share(g, lambda i: bool(of_mask[i]))) for fault, g in groups.items()}

    return Measured(
        split=split,
        masks=len(ids),
        before=mean(before, ids),
        before_without_careful=mean(before, faulty),
        accepted=len(accepted) / len(ids),
        accepted_boundary_iou=mean(after, accepted),
        accepted_before=mean(before, accepted),
        changed=len(changed),
        changed_for_the_better=share(changed, lambda i: after[i] > before[i]),
        wrong=len(wrong),
        wrong_accepted=sum(i in wrong for i in accepted),
        found=found(lambda i, fault: fault in known[i].faults),
        found_alone=found(lambda i, fault: known[i].faults == (fault,)),
        faulty=len(faulty),
        faulty_found=share(faulty, lambda i: bool(of_mask[i])),
        careful=len(careful),
        false_alarms=len(alarmed) / max(1, len(careful)),
        twins_named=len(named),
    )


def calibrate(
    recipe_path: Path, *, tune: str = "train", test: str = "test", work: Path, progress: Progress = silent
) -> tuple[Recipe, Measured]:
    """Calibrate the witnesses of a recipe on one split of `scenes-hurried`, and measure the recipe on another.

    The calibration is written to the recipe file, and `measured.md` next to it. The trusted refiner is not used here;
    see `known_sources.calibrate_trusted`. The two curation folders are written below `work`. Results that are already
    there are used again, so an interrupted call can be resumed.

    Raises:
        DatasetError: `scenes` or `scenes-hurried` is not built, or the recipe cannot be read.
    """
    given = text_of_recipe(recipe_path)
    fitted_on = f"{SOURCE}/{tune}"
    witnesses = parse_recipe(witnesses_only(given), str(recipe_path))
    known, decisions, _, proposals = _run(fitted_on, witnesses, work / f"tune-{witnesses.sha256[:12]}", progress)
    calibration = fit(_open_cases(known, decisions, proposals), witnesses.masks, fitted_on)
    section = dataclasses.asdict(calibration)
    text = with_section(given, CALIBRATION, section)
    fitted = parse_recipe(with_section(witnesses.text, CALIBRATION, section), str(recipe_path))
    known, decisions, findings, _ = _run(f"{SOURCE}/{test}", fitted, work / f"test-{fitted.sha256[:12]}", progress)
    measured = measure(f"{SOURCE}/{test}", known, decisions, findings)
    with atomic_file(recipe_path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_file(recipe_path.parent / MEASURED_FILE) as temporary:
        temporary.write_text(measured_page(fitted, measured), encoding="utf-8")
    return fitted, measured


def _run(
    address: str, recipe: Recipe, folder: Path, progress: Progress
) -> tuple[dict[str, Known], dict[str, Decision], list[Finding], dict[str, list[Proposal]]]:
    audit(address, recipe, out=folder, progress=progress)
    propose(folder, progress=progress)
    decide(folder, progress=progress)
    masks, _ = read_decisions(folder)
    return known_masks(load_items(address)), masks, read_findings(folder), read_proposals(folder)


def measured_page(recipe: Recipe, m: Measured) -> str:
    """The results of a recipe as Markdown."""
    return "\n".join(
        [
            f"# What the recipe {recipe.name} does where the truth is known",
            "",
            f"Written by `refbench curate calibrate` of refbench {__version__}: fitted on {recipe.calibration.on},",
            f"measured on {m.split}, whose scenes were not used for fitting. Refiners:",
            f"{', '.join(c.name for c in recipe.refiners)}.",
            "",
            *_figure_rows(m),
            "",
            "## Faults and what the audit finds of them",
            "",
            *_fault_rows(m),
            "",
            f"## What the threshold `better` does, on {recipe.calibration.on}",
            "",
            "Of masks that nothing but their proposals decides; each judged by a fit that has not seen its image.",
            "",
            *_threshold_rows(recipe.calibration),
            "",
        ]
    )


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _figure_rows(m: Measured) -> list[str]:
    return [
        "| figure | value |",
        "|---|---|",
        _row("masks", m.masks),
        _row("boundary IoU with the truth before, all masks", f"{m.before:.3f}"),
        _row("the same, without the careful outlines", f"{m.before_without_careful:.3f}"),
        _row("masks accepted without a person", f"{m.accepted:.1%}"),
        _row("boundary IoU of the accepted ones", f"{m.accepted_boundary_iou:.3f}"),
        _row("boundary IoU of the same masks before", f"{m.accepted_before:.3f}"),
        _row("masks replaced", m.changed),
        _row("replaced masks that are better than their source", f"{m.changed_for_the_better:.1%}"),
        _row("masks on another object", m.wrong),
        _row("of these accepted", m.wrong_accepted),
        _row("faulty outlines with a finding", f"{m.faulty_found:.1%} of {m.faulty}"),
        _row("careful outlines with a false finding", f"{m.false_alarms:.1%} of {m.careful}"),
        _row("careful outlines named because another mask lies on their object", m.twins_named),
    ]


def _fault_rows(m: Measured) -> list[str]:
    rows = [_row("fault", "outlines", "found", "without another fault", "found"), "|---|---|---|---|---|"]
    for fault, (outlines, share) in m.found.items():
        alone, share_alone = m.found_alone[fault]
        found = f"{share:.1%}" if outlines else ""
        rows.append(_row(fault, outlines, found, alone or "", f"{share_alone:.1%}" if alone else ""))
    return rows


def _threshold_rows(calibration: Calibration) -> list[str]:
    head = ("better", "accepted", "boundary IoU", "replaced", "replaced for the better")
    return [
        _row(*head),
        "|---|---|---|---|---|",
        *(
            _row(
                f"{t['better']:g}",
                f"{t['accepted']:.1%}",
                f"{t['boundary_iou']:.3f}",
                f"{t['changed']:.1%}",
                f"{t['changed_for_the_better']:.1%}",
            )
            for t in calibration.thresholds
        ),
    ]
