"""Runs of models as witnesses of the words: what they confirm, what they contradict, and what that settles."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from curation.bright_objects import build_bright

from refbench.curation.checks.validators import ConfirmedByModels, ContradictedByModels
from refbench.curation.decisions import decide
from refbench.curation.findings import audit
from refbench.curation.folder import load_items
from refbench.curation.known_sources import truth_of
from refbench.curation.proposals import propose
from refbench.curation.recipe import CONFIRMED, CONTRADICTED, parse_recipe
from refbench.curation.tables import read_decisions
from refbench.curation.verdicts import decide_masks, held_by_findings
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.records import Action, Finding
from refbench.runs.runner import run

REFINERS = '[[refiners]]\nname = "watershed"\n'


def answered(folder: Path, answers: dict[str, Mask]) -> Path:
    """A run over refcoco/val whose predictions are these, by sample id."""
    lines = [
        json.dumps({"sample_id": i, "size": list(m.size), "counts": m.counts.decode("ascii")})
        for i, m in answers.items()
    ]
    folder.mkdir()
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")
    options = {"file": str(folder / "answers.jsonl")}
    return run("predictions", "refcoco/val", options=options, out=folder / "run", max_failures=99).folder


def test_models_find_masks_on_a_wrong_object(home: Path, tmp_path: Path) -> None:
    truth = truth_of(build_bright(tmp_path / "a", "refcoco", 9, wrong=3), load_items("refcoco/val"))
    targets = [t for image in load_items("refcoco/val") for t in image.masks]
    right = answered(tmp_path / "right", {t.samples[0].sample_id: truth[t.mask_id][0] for t in targets})
    empty = answered(tmp_path / "empty", {t.samples[0].sample_id: Mask.empty(*t.mask.size) for t in targets[1:]})
    text = REFINERS + f'[[validators]]\nrun = "{right}"\n[[validators]]\nrun = "{empty}"\n'
    recipe = parse_recipe(text, "r")
    folder = tmp_path / "curation"
    done = audit("refcoco/val", recipe, out=folder, with_images=False, workers=1)
    assert {CONFIRMED, CONTRADICTED} <= set(done.checks)
    contradicted = {f.item_id: f for f in done.findings if f.check == CONTRADICTED}
    assert sorted(contradicted) == sorted(i for i, (_, wrong) in truth.items() if wrong)
    assert {f.item_id for f in done.findings if f.check == CONFIRMED} == set(truth) - set(contradicted)
    assert all("1 of 1 answers are elsewhere (predictions" in f.message for f in contradicted.values())
    propose(folder, workers=1)
    decide(folder)
    masks, _ = read_decisions(folder)
    for item_id in contradicted:
        assert masks[item_id].action == Action.REVIEW
        assert masks[item_id].reason.startswith(CONTRADICTED)
    # Without validators the two checks have nothing to say, and are not missed.
    plain = audit("refcoco/val", parse_recipe(REFINERS, "r"), out=tmp_path / "plain", with_images=False, workers=1)
    assert not {CONFIRMED, CONTRADICTED} & set(plain.checks)


def test_a_confirmed_mask_is_not_held_by_its_twin(home: Path, tmp_path: Path) -> None:
    build_bright(tmp_path / "a", "refcoco", 2)
    image = load_items("refcoco/val")[0]
    (target,) = image.masks
    recipe = parse_recipe(REFINERS + '[audit]\nreview = ["mask-like-another", "mask-unlike-box"]\n', "r")

    def finding(check: str) -> Finding:
        return Finding(check, "warning", "mask", target.mask_id, image.image_id, "seen", 1.0)

    for checks, held in (
        (["mask-like-another"], True), (["mask-like-another", CONFIRMED], False), ([CONFIRMED], False),
        (["mask-unlike-box", CONFIRMED], True),
    ):  # fmt: skip
        found = {target.mask_id: [finding(c) for c in checks]}
        assert held_by_findings(image, target, found, recipe) is held
        (decision,) = decide_masks(image, found, {}, recipe)
        assert (decision.stage == "audit") is held


def test_a_coarse_outline_of_a_thin_object_is_still_the_one_that_is_meant(home: Path, tmp_path: Path) -> None:
    build_bright(tmp_path / "a", "refcoco", 2)
    images = load_items("refcoco/val")
    target = images[0].masks[0]
    rows = target.mask.to_array()
    rows[int(target.box_xywh[1]) + 14 :] = False
    answer = Mask.from_array(rows)
    folder = answered(tmp_path / "thin", {target.samples[0].sample_id: answer})
    assert answer.area / target.mask.area < ContradictedByModels().deny
    (found,) = ConfirmedByModels(runs=(str(folder),)).find_in_split(images)
    assert found.item_id == target.mask_id
    # Another object there fits the answer better.
    other = dataclasses.replace(images[0].objects[0], ann_id="other", mask=answer)
    crowded = [dataclasses.replace(images[0], objects=(*images[0].objects, other)), *images[1:]]
    assert not list(ConfirmedByModels(runs=(str(folder),)).find_in_split(crowded))
    (found,) = ContradictedByModels(runs=(str(folder),)).find_in_split(crowded)
    assert found.item_id == target.mask_id


def test_validators_that_are_none(home: Path, tmp_path: Path) -> None:
    build_bright(tmp_path / "a", "refcoco", 2)
    build_bright(tmp_path / "b", "refcoco+", 2)
    images = load_items("refcoco/val")
    elsewhere = run("nothing", "refcoco+/val", out=tmp_path / "run").folder
    with pytest.raises(DatasetError, match=r"is a run on refcoco\+/val, not on refcoco/val"):
        list(ConfirmedByModels(runs=(str(elsewhere),)).find_in_split(images))
    with pytest.raises(DatasetError, match="needs runs"):
        list(ConfirmedByModels().find_in_split(images))
    for text, message in (
        ("validators = 3", "as a table"), ("[[validators]]\n", "run = FOLDER"), ("[[validators]]\nrun = 3", "type str"),
        ('[[validators]]\nmodel = "x"', "unknown key 'model'"),
    ):  # fmt: skip
        with pytest.raises(DatasetError, match=message):
            parse_recipe(text, "r")
