"""Agreement restated on pixels, the rules of a recipe one by one, and recipes that are none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from curation.miniature_split import HEIGHT, WIDTH, image, sample, square
from pixel_reference import boundary_band

from refbench.curation.agreement import MISFIT_WEIGHT, agree, boundary_ious, ious, votes
from refbench.curation.recipe import Recipe, parse_recipe, read_recipe
from refbench.curation.verdicts import Evidence, decide_expression, decide_masks
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.records import Cause, Decision, Finding, Proposal

RECIPE = """
[audit]
review = ["mask-like-another"]
drop = ["image-broken", "expression-fragment"]
[masks]
accept = 0.8
keep = 0.9
better = 0.9
drop = 0.3
[calibration]
agreement = [0.0, 1.0]
boundary_iou = [0.0, 1.0]
better = { source_boundary_iou = -20.0, intercept = 14.0 }
"""


def recipe(text: str = RECIPE) -> Recipe:
    return parse_recipe(text, "recipe")


def proposal(mask: Mask, refiner: str, variant: int = 0, misfit: float = 0.5, error: str = "") -> Proposal:
    return Proposal("toy/val/a", refiner, variant, mask, 0.9, misfit, 1.0, error)


def pixel_boundary_iou(a: Mask, b: Mask) -> float:
    bands = [boundary_band(m.to_array()) for m in (a, b)]
    return float((bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum())


def test_agreement_is_what_it_says() -> None:
    masks = [square(10, 10, 20), square(11, 10, 20), square(10, 12, 22), square(14, 10, 20)]
    proposals = [proposal(masks[0], "x"), proposal(masks[1], "y", misfit=0.3), proposal(masks[2], "z"),
                 proposal(masks[3], "x", variant=1), proposal(Mask.empty(HEIGHT, WIDTH), "w", error="no")]  # fmt: skip
    source = square(9, 9, 24)
    found = agree(source, proposals)
    assert found is not None
    means = [
        np.mean([pixel_boundary_iou(masks[k], masks[v]) for v in range(3) if "xyz"[v] != r])
        for k, r in enumerate("xyzx")
    ]
    misfits = [0.5, 0.3, 0.5, 0.5]
    best = int(np.argmax([m - MISFIT_WEIGHT * f for m, f in zip(means, misfits, strict=True)]))
    assert found.best is proposals[best]
    assert found.agreement == pytest.approx(means[best], abs=1e-6)
    assert found.stability == pytest.approx(pixel_boundary_iou(masks[0], masks[3]), abs=1e-6)
    assert found.source_boundary_iou == pytest.approx(pixel_boundary_iou(masks[best], source), abs=1e-6)
    assert found.edge_gain_px == pytest.approx(1.0 - misfits[best])
    assert boundary_ious(masks[:2])[0, 1] == pytest.approx(pixel_boundary_iou(*masks[:2]))
    assert votes(proposals)[12, 20] == 0.75
    nothing = Mask.empty(HEIGHT, WIDTH)
    assert [v.tolist() for v in ious([nothing, nothing], [nothing, source])] == [[1, 0], [1, 0]]
    assert agree(source, proposals[-1:]) is None
    with pytest.raises(ValueError, match="all proposals failed"):
        votes(proposals[-1:])
    # A refiner that is alone agrees with nobody, however often it was asked.
    for alone in (proposals[:1], [proposals[0], proposals[3]]):
        lone = agree(source, alone)
        assert lone is not None
        assert (lone.refiners, lone.agreement) == (1, 0)


def decided(
    source: Mask, proposals: list[Proposal], findings: list[Finding] | None = None, text: str = RECIPE
) -> Decision:
    items = image([sample("a", 0, "the square", source)])
    by_id: dict[str, list[Finding]] = {}
    for f in findings or []:
        by_id.setdefault(f.item_id, []).append(f)
    (found,) = decide_masks(items, by_id, {"toy/val/a": Evidence(agree(source, proposals))}, recipe(text))
    return found


def test_the_rules_of_a_recipe() -> None:
    good = [proposal(square(10, 10, 20), r) for r in "xyz"]
    assert (decided(square(10, 10, 20), good).action, decided(square(7, 7, 27), good).action) == ("keep", "change")
    changed = decided(square(7, 7, 27), good)
    assert changed.mask == square(10, 10, 20)
    assert changed.refiner == "x"
    # Neither confirmed nor surely better.
    assert decided(square(10, 10, 21), good).action == "review"
    torn = [proposal(square(10, 10, 20), "x"), proposal(square(11, 10, 20), "y"), proposal(square(10, 11, 20), "z")]
    assert decided(square(7, 7, 27), torn).action == "review"
    scattered = [proposal(square(5, 5 + 22 * k, 20), r) for k, r in enumerate("xyz")]
    assert decided(square(7, 7, 27), scattered).action == "drop"
    assert decided(square(7, 7, 27), []).reason == "no refiner made a proposal"
    assert decided(square(10, 10, 20), good[:1]).reason == "too few refiners made a proposal: 1"
    # Without a calibration nobody knows what agreement is worth.
    assert decided(square(10, 10, 20), good, text="[masks]\naccept = 0.1").cause == Cause.NOT_CALIBRATED


def test_findings_come_before_proposals() -> None:
    good = [proposal(square(10, 10, 20), r) for r in "xyz"]

    def finding(check: str, item_id: str, subject: str) -> Finding:
        return Finding(check, "warning", subject, item_id, "1", "told")

    source = square(10, 10, 20)
    for found, action in (
        (finding("mask-like-another", "toy/val/a", "mask"), "review"),
        (finding("image-broken", "1", "image"), "drop"),
        (finding("mask-tiny", "toy/val/a", "mask"), "keep"),
        # One that drops an expression says nothing of the mask.
        (finding("expression-fragment", "toy/val/a/0", "expression"), "keep"),
    ):
        assert decided(source, good, [found]).action == action
    fragment = finding("expression-fragment", "toy/val/a/0", "expression")
    assert decide_expression(sample("a", 0, "r", source), [fragment], recipe()).action == "drop"
    assert decide_expression(sample("a", 0, "r", source), [], recipe()).action == "keep"
    # An image that cannot be read takes its expressions without a target with it.
    broken = finding("image-broken", "1", "image")
    assert decide_expression(sample("n", 0, "not there", None), [broken], recipe()).action == "drop"
    toxic = finding("expression-toxic", "toy/val/a/0", "expression")
    assert decide_expression(sample("a", 0, "x", source), [toxic], recipe()).action == "review"


def test_two_masks_whose_proposals_are_one_object_wait() -> None:
    items = image([sample("a", 0, "one", square(8, 8, 24)), sample("b", 0, "two", square(20, 20, 24))])
    agreements = {
        f"toy/val/{k}": Evidence(agree(square(8, 8, 24), [proposal(square(10, 10, 20), r) for r in "xyz"]))
        for k in "ab"
    }
    found = decide_masks(items, {}, agreements, recipe())
    assert [(d.action, "one object for two masks" in d.reason) for d in found] == [("review", True)] * 2


def test_words_decide_about_expressions() -> None:
    mask = square(10, 10, 20)
    for text, action in (("wanker", "drop"), ("zebra ass", "review"), ("zebra", "keep")):
        assert decide_expression(sample("a", 0, text, mask), [], recipe()).action == action
    lax = dataclasses.replace(
        recipe(), language=dataclasses.replace(recipe().language, certain="review", doubtful="keep")
    )
    assert decide_expression(sample("a", 0, "wanker", mask), [], lax).action == "review"
    assert decide_expression(sample("a", 0, "zebra ass", mask), [], lax).action == "keep"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", ": unknown key 'nonsense'; the allowed keys are"),
        ("[masks]\naccpet = 1", ": unknown key 'accpet'; the allowed keys are"),
        ("[", "is not valid TOML"),
        ("[masks]\naccept = 'high'", "accept must be a number"), ("[masks]\naccept = nan", "accept must be a number"),
        ("[masks]\nundecided = 'burn'", r": masks\.undecided must be one of"), ("reviewers = 0", "at least 1"),
        ("reviewers = true", "of type int"), ("[[refiners]]\nvariants = 2", "lacks name"),
        ("[[refiners]]\nname = 'sam'\n[[refiners]]\nname = 'sam'", "twice"),
        ("[[refiners]]\nname = 'sam'\nvariants = 9", "must be between 1 and 7"),
        ("refiners = 3", r"write each refiner as a table \[\[refiners\]\]"),
        ("masks = 3", "must be a table"),
        ("[calibration]\nagreement = [0, 1]\nboundary_iou = [1, 0]", r"\[calibration\]"),
        ("[calibration]\nagreement = [0, 0.5, 0.4]\nboundary_iou=[0,0,1]", r"\[calibration\]"),
        ("[calibration]\nbetter = { luck = 1 }", r"\[calibration\], better: unknown name 'luck'; choose from"),
        ("[audit]\nreview = 'all'", "of type list"),
        ("[checks]\nmask-tiny = 3", "of type dict"), ("[masks]\naccept = 7", "must be between 0 and 1"),
        ("[language]\nundecided = 'review'", r": language\.undecided must be one of"),
    ],
)  # fmt: skip
def test_recipes_that_are_none(text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        recipe(text)


def test_the_recipe_that_comes_with_refbench(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "datasets" / "refcoco-m"
    without = read_recipe(folder / "without-weights" / "recipe.toml")
    assert without.calibration.on == "scenes-hurried/train"
    assert len(without.refiners) == 5
    assert without.trusted_refiner is None
    learned = read_recipe(folder / "recipe.toml")
    assert learned.trusted_refiner is not None
    assert learned.trusted_refiner.name == learned.trusted.refiner == "isnet"
    with pytest.raises(DatasetError, match="cannot be read"):
        read_recipe(tmp_path / "recipe.toml")
