"""Audit, propose, decide as one: what they write, that they resume, what they refuse, and the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from decimal import ROUND_HALF_DOWN, Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import SMALL_IMAGES, SMALL_RECIPE

from refbench.cli.curate import VERBS, curate
from refbench.curation.calibration import known_masks, measure
from refbench.curation.decisions import decide, settle_ledger
from refbench.curation.findings import audit
from refbench.curation.folder import default_folder, load_items
from refbench.curation.ledger import read_ledger
from refbench.curation.proposals import propose, read_proposals
from refbench.curation.recipe import parse_recipe, read_recipe
from refbench.curation.review.answers import REVIEW_FILE, Answer, Reviews
from refbench.curation.tables import DECISIONS_FILE, read_decisions, read_findings, write_decisions
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError, RunError
from refbench.plugins.loading import load
from refbench.records import Action, Decision
from refbench.storage.progress import silent

PROJECT = Path(__file__).parents[2]
WITHOUT_WEIGHTS = PROJECT / "datasets" / "refcoco-m" / "without-weights"
SMALL = parse_recipe(SMALL_RECIPE, "small")
Cli = Callable[..., subprocess.CompletedProcess[str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_the_steps_agree_with_each_other(curation: Path) -> None:
    images = load_items("scenes-hurried/val")
    proposals = read_proposals(curation)
    asked = {t.mask_id for i in images[:SMALL_IMAGES] for t in i.masks}
    assert set(proposals) == asked
    assert {len(found) for found in proposals.values()} == {4}
    masks, expressions = read_decisions(curation)
    assert set(masks) == {t.mask_id for i in images for t in i.masks}
    assert set(expressions) == {s.sample_id for i in images for s in i.samples}
    rows = read_ledger(curation).by_id()
    assert set(rows) == set(masks) | set(expressions)
    for mask_id, decision in masks.items():
        assert rows[mask_id].action == {"keep": "kept", "change": "changed"}.get(decision.action, "dropped")
        assert (decision.mask in [p.mask for p in proposals.get(mask_id, ())]) == (decision.action == "change")
    held_back = {f.item_id for f in read_findings(curation) if f.check == "mask-like-another"}
    assert held_back
    assert all(masks[i].action == "review" for i in held_back)
    assert {d.action for d in masks.values()} >= {"keep", "change", "review"}


@pytest.mark.slow
def test_again_and_resumed_give_the_same_files(hurried: Path, curation: Path, tmp_path: Path) -> None:
    before = contents(curation)
    decide(curation)
    assert contents(curation) == before
    # A folder made again, with two processes, after an interruption that left half of it.
    other = tmp_path / "other"
    audit("scenes-hurried/val", SMALL, out=other, workers=2)
    propose(other, limit=SMALL_IMAGES, refiners=["grabcut"], workers=2)
    (other / "proposals" / "grabcut" / "part-00000.parquet").unlink()
    (other / "proposals" / "grabcut" / ".part-00000.parquet.x.tmp").write_text("half")
    done = propose(other, limit=SMALL_IMAGES, workers=2)
    # Of grabcut's two shards the first one, of 48 masks, was gone.
    assert done.resumed == sum(len(i.masks) for i in load_items("scenes-hurried/val")[:SMALL_IMAGES]) - 48
    decide(other)
    assert contents(other) == before


def test_what_people_say_comes_before_the_recipe(curation: Path) -> None:
    masks, expressions = read_decisions(curation)
    kept = next(i for i, d in masks.items() if d.action == "keep")
    words = next(i for i in expressions if i.startswith(kept + "/"))
    waiting = next(i for i, d in masks.items() if d.action == "review")
    reviews = Reviews(curation / REVIEW_FILE)
    for item, item_id, action in (("mask", kept, "drop"), ("expression", words, "drop"), ("mask", waiting, "keep")):
        reviews.add(Answer(item_id, item, item_id, "anna", action, "2026-01-01T00:00:00+00:00", note="seen"))
    decided = settle_ledger(curation)
    assert decided.reviewed == 3
    rows = read_ledger(curation).by_id()
    assert [(rows[i].action, rows[i].stage, rows[i].reviewer) for i in (kept, words, waiting)] == [
        ("dropped", "review", "anna"), ("dropped", "review", "anna"), ("kept", "review", "anna"),
    ]  # fmt: skip
    first = contents(curation)["ledger.parquet"]
    decide(curation)
    assert contents(curation)["ledger.parquet"] == first
    reviews.add(Answer("x", "mask", "scenes-hurried/val/nowhere", "anna", "keep", ""))
    with pytest.raises(RunError, match="which is not in"):
        decide(curation)


def test_folders_that_are_not_this_one(hurried: Path, curation: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a curation folder"):
        propose(tmp_path / "nothing")
    with pytest.raises(RunError, match="belongs to another curation"):
        audit("scenes-hurried/val", dataclasses.replace(SMALL, text=SMALL.text + "#"), out=curation)
    with pytest.raises(RunError, match="belongs to another curation"):
        audit("scenes/val", SMALL, out=curation)
    with pytest.raises(DatasetError, match="has no refiner 'sam'"):
        propose(curation, refiners=["sam"])
    with pytest.raises(RunError, match="another setup of the refiner grabcut"):
        propose(curation, limit=3, refiners=["grabcut"])
    with pytest.raises(DatasetError, match="no option 'luck'"):
        propose(curation, refiners=["grabcut"], limit=SMALL_IMAGES, options={"grabcut": {"luck": "1"}})
    info = json.loads((curation / "curation.json").read_text())
    (curation / "curation.json").write_text(json.dumps({**info, "fingerprint": "0" * 64}))
    with pytest.raises(RunError, match="another build of scenes-hurried/val"):
        decide(curation)
    (curation / "curation.json").write_text(json.dumps(info))
    # Half of the proposals agree with each other too easily; without findings nothing protects anybody.
    (curation / "proposals" / "watershed" / "part-00001.parquet").unlink()
    with pytest.raises(RunError, match="1 of the 2 shards of watershed are missing in"):
        decide(curation)
    shutil.rmtree(curation / "proposals" / "watershed")
    with pytest.raises(RunError, match="contains no proposals of watershed;"):
        decide(curation)
    (curation / "findings.parquet").unlink()
    with pytest.raises(RunError, match=r"did not run .*, which the recipe requires;"):
        decide(curation)


@pytest.mark.slow
def test_an_audit_by_some_checks_keeps_what_others_found(hurried: Path, curation: Path) -> None:
    before = (curation / "findings.parquet").read_bytes()
    audit("scenes-hurried/val", SMALL, out=curation, checks=["mask-tiny"], workers=1)
    audit("scenes-hurried/val", SMALL, out=curation, with_images=False, workers=1)
    assert {f.check for f in read_findings(curation)} >= {"mask-like-another", "mask-off-edges"}
    decide(curation)
    audit("scenes-hurried/val", SMALL, out=curation, workers=1)
    assert (curation / "findings.parquet").read_bytes() == before


@pytest.mark.parametrize(
    "text", ['[audit]\nreview = ["mask-lik-another"]', '[audit]\ndrop = ["x"]', "[checks.mask-tini]"]
)
def test_a_recipe_that_relies_on_nothing(hurried: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match="requires the unknown check"):
        audit("scenes-hurried/val", parse_recipe(text, "recipe"), out=tmp_path / "c")


def test_options_of_the_command_line_are_what_a_refiner_takes(hurried: Path, tmp_path: Path) -> None:
    audit("scenes-hurried/val", SMALL, out=tmp_path, checks=["mask-empty"], workers=1)
    done = propose(tmp_path, limit=2, refiners=["grabcut"], options={"grabcut": {"rounds": "3"}}, workers=1)
    assert not done.failures
    with pytest.raises(DatasetError, match="must be of type"):
        propose(tmp_path, limit=2, refiners=["grabcut"], options={"grabcut": {"rounds": "many"}}, workers=1)


@pytest.mark.slow
def test_images_that_are_gone_half_way(hurried_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(hurried_home / "datasets", home / "datasets")
    monkeypatch.setenv("REFBENCH_HOME", str(home))
    images = load_items("scenes-hurried/val")
    folder = default_folder("scenes-hurried/val")
    Path(images[2].image_path).unlink()
    Path(images[3].image_path).write_bytes(b"no picture")
    found = audit("scenes-hurried/val", SMALL, workers=1)
    assert [f.item_id for f in found.findings if f.check == "image-broken"] == [images[k].image_id for k in (2, 3)]
    done = propose(folder, limit=6, workers=1)
    broken = {t.mask_id for k in (2, 3) for t in images[k].masks}
    assert done.failures["watershed"] == len(broken)
    assert "does not exist" in done.first_errors["watershed"]
    decide(folder)
    masks, _ = read_decisions(folder)
    assert {i for i, d in masks.items() if d.reason.startswith("image-broken")} == broken
    assert {masks[i].action for i in broken} == {"drop"}


def test_a_split_without_images(test_data: Path, home: Path) -> None:
    build_dataset("refcoco", load("builders", "refcoco"), Sources(test_data / "photos" / "refer"), silent)
    recipe = read_recipe(PROJECT / "datasets" / "refcoco-m" / "recipe.toml")
    found = audit("refcoco/val", recipe)
    assert "mask-off-edges" in found.left_out
    assert {f.check for f in found.findings} == {"mask-at-border", "mask-slivers"}
    with pytest.raises(DatasetError, match="built without images"):
        propose(default_folder("refcoco/val"))


def test_shared_images_are_findings(photos: Path) -> None:
    recipe = read_recipe(PROJECT / "datasets" / "refcoco-m" / "recipe.toml")
    found = audit("refcoco/val", recipe, checks=["mask-empty"], against=["refcoco+/val"])
    leaks = [f for f in found.findings if f.check == "image-leaks"]
    assert len(leaks) == found.images
    with pytest.raises(Exception, match="did you mean mask-empty"):
        audit("refcoco/val", recipe, checks=["mask-emty"])


@pytest.mark.slow
def test_what_the_recipe_does_where_the_truth_is_known(hurried: Path, tmp_path: Path) -> None:
    """The recipe without weights on scenes that it was not fitted on; measured.md has the figures on the test split."""
    recipe = read_recipe(WITHOUT_WEIGHTS / "recipe.toml")
    audit("scenes-hurried/val", recipe, out=tmp_path / "c")
    propose(tmp_path / "c")
    decide(tmp_path / "c")
    masks, _ = read_decisions(tmp_path / "c")
    known = known_masks(load_items("scenes-hurried/val"))
    found = measure("scenes-hurried/val", known, masks, read_findings(tmp_path / "c"))
    assert found.masks == 204
    assert 0.5 < found.before < 0.7
    assert found.accepted >= 0.5
    assert found.accepted_boundary_iou >= 0.9
    assert found.changed >= 40
    assert found.changed_for_the_better >= 0.95
    assert found.wrong >= 10
    assert found.wrong_accepted == 0
    assert found.faulty_found >= 0.85
    assert found.false_alarms <= 0.05


def test_the_measured_pages_are_of_these_recipes() -> None:
    recipe, page = read_recipe(WITHOUT_WEIGHTS / "recipe.toml"), (WITHOUT_WEIGHTS / "measured.md").read_text()
    for row in recipe.calibration.thresholds:
        assert f"| {row['better']:g} | {row['accepted']:.1%} | {row['boundary_iou']:.3f} |" in page
    assert f"fitted on {recipe.calibration.on}" in page
    learned, page = (
        read_recipe(WITHOUT_WEIGHTS.parent / "recipe.toml"),
        (WITHOUT_WEIGHTS.parent / "known.md").read_text(),
    )
    assert f"weights {learned.trusted.weights_sha256[:12]}" in page
    assert all(f"## {source}:" in page for source in learned.trusted.on)
    # The guide tells the same.
    guide = " ".join((PROJECT / "docs/guides/curation.md").read_text().split())
    whole = page.split("## The whole recipe")[1].split("\n## ")[0]
    for source, fitted_on, told in (
        ("davis-2016-frames", "the other sources", "On {masks} frames"),
        ("rendered-scenes", "its other parts", "On {masks} masks of rendered scenes"),
    ):
        row = next(r for r in whole.splitlines() if source in r and f"| {fitted_on}" in r)
        cells = [c.strip() for c in row.split("|")]
        masks, (accepted, share), replaced, before, after, better = cells[3], cells[4].split(), *cells[5:9]
        assert (accepted == replaced, better) == (True, "100.0%")
        assert told.format(masks=masks) in guide
        assert f"replaces {replaced} masks ({share.strip('(%)')} %)" in guide
        assert f"rises from {_two(before)} to {_two(after)}" in guide


def _two(value: str) -> str:
    """Two decimals, halves down: the guide promises no more than was measured."""
    return str(Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_DOWN))


@pytest.mark.slow
def test_the_command_line(hurried: Path, refbench: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(SMALL_RECIPE)
    folder = tmp_path / "c"
    found = refbench("curate", "audit", "scenes-hurried/val", "--out", folder, "--recipe", recipe, "--json")
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["masks"] == 204
    assert told["checks"]["mask-like-another"] == sum(f["check"] == "mask-like-another" for f in told["findings"])
    assert pq.read_table(folder / "findings.parquet").num_rows == len(told["findings"])
    assert "| mask-like-another | warning |" in (folder / "audit.md").read_text()
    gate = ("curate", "audit", "scenes-hurried/val", "--out", folder, "--recipe", recipe, "--fail-on")
    assert [refbench(*gate, s).returncode for s in ("error", "warning", "never")] == [0, 1, 0]
    assert refbench("curate", "decide", folder).returncode == 3
    done = refbench("curate", "propose", folder, "--limit", "3", "--json", "--workers", "1")
    assert json.loads(done.stdout)["failures"].get("grabcut", 0) <= 2, done.stderr
    decided = refbench("curate", "decide", folder, "--json")
    told = json.loads(decided.stdout)
    assert sum(told["masks"].values()) == 204
    item = next(i for i in read_ledger(folder).by_id())
    why = refbench("curate", "why", item, folder, "--json", "--picture", tmp_path / "why.png")
    told = json.loads(why.stdout)
    assert told["item_id"] == item
    # The recipe's verdict stays after a person has answered, with its thresholds and how far the proposals agree.
    before = told["recipe"]
    assert before["thresholds"]["accept"] == read_recipe(recipe).masks.accept
    names = ["source", *(f"{p['refiner']} {p['variant']}" for p in told["proposals"] if not p["error"])]
    assert list(told["agreement"]) == names
    assert [told["agreement"][n][k] for k, n in enumerate(names)] == [1.0] * len(names)
    assert before["best"] in ([], *([n] for n in names))
    Reviews(folder / REVIEW_FILE).add(Answer("k", "mask", item, "anna", "drop", "2026-01-01T00:00:00+00:00", seconds=3))
    refbench("curate", "decide", folder)
    told = json.loads(refbench("curate", "why", item, folder, "--json").stdout)
    assert (told["action"], told["reviewer"], told["recipe"]) == ("dropped", "anna", before)
    people = json.loads(refbench("curate", "reviewers", folder, "--json").stdout)
    assert people["reviewers"] == [{"reviewer": "anna", "items": 1, "actions": {"drop": 1}, "median_seconds": 3.0}]
    assert people["agreements"] == []
    assert (tmp_path / "why.png").stat().st_size > 1000
    assert refbench("curate", "why", "nothing", folder).returncode == 3
    for arguments in ((), ("propose", folder, "-o", "nonsense"), ("decide",), ("review", folder, "--export", "cvat")):
        assert refbench("curate", *arguments).returncode == 2
    for verb in VERBS:
        help_text = CliRunner().invoke(curate, [verb, "--help"])
        assert help_text.exit_code == 0
        assert "Example:" in help_text.output
    for kind in ("checks", "refiners"):
        listed = json.loads(refbench("list", kind, "--json").stdout)[kind]
        assert all(one["summary"] for one in listed)


@pytest.mark.parametrize(
    ("column", "value"),
    [("item", "maskk"), ("action", "erase"), ("scores", "{"), ("scores", "[1]"), ("cause", "x"), ("reason", None)],
)
def test_damaged_decisions_name_the_file(column: str, value: str | None, tmp_path: Path) -> None:
    write_decisions(tmp_path, {"m": Decision("m", Action.KEEP, "audit", "fine")}, {})
    path = tmp_path / DECISIONS_FILE
    assert len(read_decisions(tmp_path)[0]) == 1
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array([value], pa.string())), path)
    with pytest.raises(RunError, match=r"decisions\.parquet is damaged"):
        read_decisions(tmp_path)
