"""Edits: merged, split, added, replaced masks and crowds, from the file of a person to the next version."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation.miniature_split import square
from curation.test_published import HEIGHT, WIDTH, build_source
from pycocotools import mask as coco_mask

from refbench import Mask, Sample, load_samples
from refbench.curation.annotation_sets import replacements
from refbench.curation.decisions import decide, settle_ledger
from refbench.curation.edits import EDITS_FILE, Add, Crowd, Merge, read_edits, write_edits
from refbench.curation.findings import audit
from refbench.curation.folder import default_folder, load_items
from refbench.curation.history import story_picture, why
from refbench.curation.ledger import LEDGER_FILE, Row, read_ledger, write_ledger
from refbench.curation.ledger_application import apply_ledger
from refbench.curation.ledger_differences import compare_ledgers
from refbench.curation.recipe import parse_recipe
from refbench.curation.review.app import ReviewData
from refbench.curation.revision import apply
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError
from refbench.plugins.loading import load
from refbench.storage.manifest import dataset_folder, split_fingerprint
from refbench.storage.progress import silent
from refbench.storage.samples import load_objects

Cli = Callable[..., subprocess.CompletedProcess[str]]
SOURCE = "refcoco/val"
# Every mask is kept although nobody has looked at it, so all changes come from edits.
KEEP_ALL = parse_recipe('name = "keep"\n[masks]\nundecided = "keep"\n', "keep")


def rle(mask: Mask) -> dict[str, Any]:
    return {"size": [mask.height, mask.width], "counts": mask.counts.decode("ascii")}


def part(top: int, left: int, side: int) -> Mask:
    return square(top, left, side, HEIGHT, WIDTH)


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    """A decided curation of three images with three masks each; annotations 1000, 1001, ... 3002."""
    build_source(tmp_path / "source", 3)
    place = default_folder(SOURCE)
    audit(SOURCE, KEEP_ALL, out=place)
    decide(place)
    return place


def store(folder: Path, edits: list[dict[str, Any]], reviewer: str = "anna") -> dict[str, Row]:
    """Store edits as a person does, write the ledger, and return its rows."""
    file = folder.parent / "edits.jsonl"
    file.write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    write_edits(folder, read_edits(file), reviewer)
    settle_ledger(folder)
    return read_ledger(folder).by_id()


def samples_of(address: str, ann_id: str) -> list[Sample]:
    return [s for s in load_samples(address) if s.ann_ids == (ann_id,)]


def next_version(folder: Path) -> str:
    apply(SOURCE, folder / LEDGER_FILE, "cleaned", replace=True)
    return "cleaned/val"


def test_merged_masks_become_one_with_all_expressions(folder: Path) -> None:
    before = {t.mask_id: t for i in load_items(SOURCE) for t in i.masks}
    ids = [f"{SOURCE}/1000", f"{SOURCE}/1001"]
    rows = store(folder, [{"edit": "merge", "masks": ids, "reason": "one bus"}])
    union = Mask.from_array(before[ids[0]].mask.to_array() | before[ids[1]].mask.to_array())
    assert (rows[ids[0]].action, rows[ids[0]].mask, rows[ids[0]].reviewer) == ("changed", union, "anna")
    assert (rows[ids[1]].action, rows[ids[1]].into, rows[ids[1]].mask) == ("merged", ids[0], None)
    assert "one bus" in rows[ids[1]].reason
    address = next_version(folder)
    merged = samples_of(address, "1000")
    assert {s.expression for s in merged} == {s.expression for i in ids for s in before[i].samples}
    assert {s.target for s in merged} == {union}
    assert {s.category for s in merged} == {before[ids[0]].category}
    assert not samples_of(address, "1001")
    objects = {o.ann_id: o for o in load_objects("cleaned")}
    assert "1001" not in objects
    assert objects["1000"].mask == union
    assert objects["1002"].mask == before[f"{SOURCE}/1002"].mask


def test_a_split_mask_gives_its_expressions_to_its_parts(folder: Path) -> None:
    mask_id = f"{SOURCE}/2000"
    samples = samples_of(SOURCE, "2000")
    first, second = part(2, 2, 6), part(20, 20, 6)
    moved = samples[-1].sample_id
    rows = store(
        folder, [{"edit": "split", "mask": mask_id, "parts": [rle(first), rle(second)], "expressions": {moved: 2}}]
    )
    assert (rows[mask_id].action, rows[mask_id].mask) == ("split", first)
    assert (rows[f"{mask_id}-2"].action, rows[f"{mask_id}-2"].mask) == ("added", second)
    assert (rows[moved].action, rows[moved].into) == ("moved", f"{mask_id}-2")
    address = next_version(folder)
    assert [s.target for s in samples_of(address, "2000")] == [first] * (len(samples) - 1)
    (other,) = samples_of(address, "2000-2")
    assert (other.target, other.expression, other.category) == (second, samples[-1].expression, samples[-1].category)
    # The sentences of one ref have one target, so it has a ref of its own.
    assert other.ref_id not in {s.ref_id for s in load_samples(address) if s.ann_ids == ("2000",)}
    assert other.sample_id == f"{address}/{other.ref_id}/{other.sent_id}"
    assert {o.ann_id: o.mask for o in load_objects("cleaned")}["2000-2"] == second


def test_an_added_object_has_its_expressions(folder: Path) -> None:
    mask = part(30, 40, 9)
    image = load_samples(SOURCE)[0].image_id
    store(
        folder,
        [
            {"edit": "add", "image": image, "mask": rle(mask), "category": "dog", "expressions": ["the dog", "a dog"]},
            {"edit": "add", "image": image, "mask": rle(part(0, 0, 3)), "category": "cat"},
        ],
    )
    address = next_version(folder)
    samples = samples_of(address, "added-1")
    assert [(s.expression, s.category, s.target, s.box_xywh) for s in samples] == [
        ("the dog", "dog", mask, mask.box_xywh), ("a dog", "dog", mask, mask.box_xywh),
    ]  # fmt: skip
    assert [s.sample_id for s in samples] == [f"{address}/added-1/0", f"{address}/added-1/1"]
    assert {s.image_id for s in samples} == {image}
    assert len(load_samples(address)) == len(load_samples(SOURCE)) + 2
    assert {o.ann_id: o.category for o in load_objects("cleaned")}["added-2"] == "cat"


def test_a_crowd_stays_annotated_without_its_expressions(folder: Path) -> None:
    mask_id = f"{SOURCE}/3001"
    rows = store(folder, [{"edit": "crowd", "mask": mask_id}])
    assert rows[mask_id].action == "crowd"
    gone = [s.sample_id for s in samples_of(SOURCE, "3001")]
    expected = ("dropped", "its mask is marked as a crowd", "anna")
    assert {(rows[i].action, rows[i].reason, rows[i].reviewer) for i in gone} == {expected}
    address = next_version(folder)
    assert not samples_of(address, "3001")
    assert {o.ann_id: o.crowd for o in load_objects("cleaned")}["3001"]


def build_other_annotations(tmp_path: Path) -> dict[str, Mask]:
    """Build `refcoco+` on the same images: objects that are close to, far from and equal to those of refcoco."""
    masks = {t.mask_id.split("/")[-1]: t for i in load_items(SOURCE) for t in i.masks}
    wide = masks["1000"].mask.to_array()
    wide[:, np.flatnonzero(wide.any(0))[0]] = False
    new = {"1000": Mask.from_array(wide), "1001": masks["1001"].mask, "2000": part(0, 0, 2)}
    source = tmp_path / "source"
    release = source / "refer" / "refcoco"
    instances = json.loads((release / "instances.json").read_text())
    for annotation in instances["annotations"]:
        annotation["segmentation"] = rle(new.get(str(annotation["id"]), masks[str(annotation["id"])].mask))
    other = tmp_path / "other" / "refer" / "refcoco+"
    other.mkdir(parents=True)
    (other / "instances.json").write_text(json.dumps(instances))
    for file in release.glob("refs*"):
        (other / file.name).write_bytes(file.read_bytes())
    build_dataset("refcoco+", load("builders", "refcoco"), Sources(other.parent, source / "images"), silent)
    return new


def test_masks_of_another_annotation_set_replace_those_they_match(folder: Path, tmp_path: Path, refbench: Cli) -> None:
    new = build_other_annotations(tmp_path)
    edits, table = replacements(folder, "refcoco+", 0.8)
    assert [(e.mask, e.by) for e in edits] == [(f"{SOURCE}/1000", "refcoco+/1000")]
    found = table.set_index("item_id")
    assert found.loc[f"{SOURCE}/1001", "by"] == "refcoco+/1001"
    assert found.loc[f"{SOURCE}/2000", "by"] == ""
    out = tmp_path / "proposed.jsonl"
    result = refbench("curate", "replacements", str(folder), "refcoco+", "--out", str(out))
    assert result.returncode == 0, result.stderr
    result = refbench("curate", "edit", str(folder), str(out), "--reviewer", "ben", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["edits"] == {"replace": 1}
    row = read_ledger(folder).by_id()[f"{SOURCE}/1000"]
    assert (row.action, row.mask, row.refiner, row.reviewer) == ("replaced", new["1000"], "refcoco+/1000", "ben")
    assert {s.target for s in samples_of(next_version(folder), "1000")} == {new["1000"]}


def test_a_replacement_that_changed_is_caught(folder: Path, tmp_path: Path) -> None:
    build_other_annotations(tmp_path)
    write_edits(folder, replacements(folder, "refcoco+", 0.8)[0])
    stored = (folder / EDITS_FILE).read_text()
    (folder / EDITS_FILE).write_text(stored.replace("refcoco+/1000", "refcoco+/1001", 1).replace("IoU", "iou"))
    with pytest.raises(DatasetError, match="has changed since the edit was stored"):
        settle_ledger(folder)


def test_the_same_edits_give_the_same_bytes(folder: Path) -> None:
    edits = [
        {"edit": "merge", "masks": [f"{SOURCE}/1000", f"{SOURCE}/1001"]},
        {"edit": "add", "image": "2", "mask": rle(part(3, 3, 3)), "category": "dog", "expressions": ["dog"]},
        {"edit": "crowd", "mask": f"{SOURCE}/3001"},
    ]
    store(folder, edits)
    files = {name: (folder / name).read_bytes() for name in (EDITS_FILE, LEDGER_FILE)}
    again = folder.parent / "again.parquet"
    write_ledger(again, read_ledger(folder))
    assert again.read_bytes() == files[LEDGER_FILE]
    address = next_version(folder)
    fingerprint = split_fingerprint(address)
    store(folder, edits, "somebody else")
    decide(folder)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert split_fingerprint(next_version(folder)) == fingerprint
    # Without edits, the ledger is that of the recipe alone.
    store(folder, [])
    assert {row.stage for row in read_ledger(folder).rows} == {"proposals", "language"}
    assert not read_ledger(folder).edited


def test_texts_and_codes_of_any_kind_are_stored(folder: Path) -> None:
    code = coco_mask.encode(np.asfortranarray(part(3, 3, 3).to_array(), dtype=np.uint8))
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}
    edits = [
        Add(image="1", mask=code, category="dog", reason="pasted\u2028from a page\u0085"),
        Add(image="1", mask=runs, category="dog"),
    ]
    write_edits(folder, edits)
    write_edits(folder, edits)
    settle_ledger(folder)
    rows = read_ledger(folder).by_id()
    assert rows[f"{SOURCE}/added-1"].mask == part(3, 3, 3)
    assert rows[f"{SOURCE}/added-1"].reason == "pasted\u2028from a page\u0085"


def test_a_curated_split_is_curated_again(folder: Path) -> None:
    mask_id = f"{SOURCE}/2000"
    parts = [rle(part(2, 2, 6)), rle(part(20, 20, 6))]
    add = {"edit": "add", "image": "2", "mask": rle(part(3, 3, 3)), "category": "dog", "expressions": ["dog"]}
    store(folder, [{"edit": "split", "mask": mask_id, "parts": parts}, add])
    address = next_version(folder)
    again = folder.parent / "again"
    audit(address, KEEP_ALL, out=again)
    decide(again)
    rows = store(again, [{"edit": "split", "mask": f"{address}/2000", "parts": parts}, add])
    assert rows[f"{address}/2000-3"].action == "added"
    assert rows[f"{address}/added-2"].action == "added"
    apply(address, again / LEDGER_FILE, "cleaned-again")
    assert len(load_samples("cleaned-again/val")) == len(load_samples(address)) + 1


def test_storing_a_replacement_again_accepts_the_present_mask(folder: Path, tmp_path: Path) -> None:
    build_other_annotations(tmp_path)
    proposed = replacements(folder, "refcoco+", 0.8)[0]
    write_edits(folder, proposed)
    file = folder / EDITS_FILE
    stored = file.read_text()
    file.write_text(re.sub('"mask_sha256":"[0-9a-f]{64}"', f'"mask_sha256":"{"0" * 64}"', stored))
    write_edits(folder, proposed)
    assert file.read_text() == stored


def test_proposed_replacements_overwrite_nothing(folder: Path, tmp_path: Path, refbench: Cli) -> None:
    build_other_annotations(tmp_path)
    out = tmp_path / "mine.jsonl"
    out.write_text("kept")
    done = refbench("curate", "replacements", folder, "refcoco+", "--out", out)
    assert done.returncode == 2
    assert "already exists" in done.stderr
    assert out.read_text() == "kept"
    done = refbench("curate", "replacements", folder, "refcoco+", "--out", folder / EDITS_FILE, "--replace")
    assert "holds the edits of the curation" in done.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_id": "2"}, "is on the image 1, not on 2"),
        ({"item_id": f"{SOURCE}/1002", "action": "added"}, "is already in the source, so it cannot be added"),
    ],
)
def test_rows_about_another_image_are_refused(folder: Path, change: dict[str, str], expected: str) -> None:
    ledger = read_ledger(folder)
    target = ledger.by_id()[f"{SOURCE}/1000"]
    forged = dataclasses.replace(target, mask=part(0, 0, 2) if "action" in change else None, **change)
    rows = tuple({row.item_id: row for row in (*ledger.rows, forged)}.values())
    samples = load_samples(SOURCE)
    with pytest.raises(DatasetError) as caught:
        apply_ledger(samples, load_objects("refcoco"), dataclasses.replace(ledger, rows=rows), "cleaned", "it")
    assert expected in str(caught.value)


def test_an_added_object_does_not_take_the_place_of_another(folder: Path) -> None:
    ledger = read_ledger(folder)
    objects = [*load_objects("refcoco"), dataclasses.replace(load_objects("refcoco")[0], ann_id="77")]
    new = Row("mask", f"{SOURCE}/77", "1", "added", "edit", "", "", mask=part(0, 0, 2), category="dog")
    forged = dataclasses.replace(ledger, rows=(*ledger.rows, new))
    with pytest.raises(DatasetError, match="the source has an object or a ref 77 already"):
        apply_ledger(load_samples(SOURCE), objects, forged, "cleaned", "it")


def test_all_edits_that_do_not_fit_are_named(folder: Path) -> None:
    wrong = [
        ({"edit": "crowd", "mask": "refcoco/val/9"}, "edit 1 (crowd): refcoco/val has no mask 'refcoco/val/9'"),
        ({"edit": "merge", "masks": [f"{SOURCE}/1000"]}, "edit 2 (merge): name at least two masks, and each only once"),
        ({"edit": "merge", "masks": [f"{SOURCE}/1000"] * 2}, "edit 3 (merge): name at least two masks"),
        ({"edit": "merge", "masks": [f"{SOURCE}/1000", f"{SOURCE}/2000"]}, "edit 4 (merge): the masks"),
        ({"edit": "split", "mask": f"{SOURCE}/1000", "parts": [rle(part(0, 0, 2))]}, "edit 5 (split): a split has"),
        (
            {"edit": "split", "mask": f"{SOURCE}/1000", "parts": [rle(part(0, 0, 2))] * 2, "expressions": {"x": 1}},
            "edit 6 (split): x is not an expression of",
        ),
        (
            {"edit": "add", "image": "77", "mask": rle(part(0, 0, 2)), "category": "dog"},
            "edit 7 (add): refcoco/val has no image '77'",
        ),
        (
            {"edit": "add", "image": "1", "mask": rle(square(0, 0, 2, 9, 9)), "category": "dog"},
            "edit 8 (add): the mask is (9, 9), the image (48, 64)",
        ),
        ({"edit": "replace", "mask": f"{SOURCE}/1000", "by": "lvis/1"}, "edit 9 (replace): "),
    ]
    with pytest.raises(DatasetError) as caught:
        store(folder, [edit for edit, _ in wrong])
    message = str(caught.value)
    for _, expected in wrong:
        assert expected in message
    assert not (folder / EDITS_FILE).exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2"),
        ("[]", "line 2: Expected `object`"),
        ('{"edit": "erase", "mask": "a"}', "line 2: Invalid value 'erase'"),
        ('{"edit": "crowd", "mask": "a", "colour": 1}', "unknown field `colour`"),
        ('{"edit": "crowd"}', "missing required field `mask`"),
    ],
)
def test_lines_that_are_no_edits_are_named(tmp_path: Path, line: str, expected: str) -> None:
    file = tmp_path / "edits.jsonl"
    file.write_text(f'{{"edit": "crowd", "mask": "a"}}\n{line}\n')
    with pytest.raises(DatasetError) as caught:
        read_edits(file)
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_mask_is_in_one_edit_only(folder: Path) -> None:
    ids = (f"{SOURCE}/1000", f"{SOURCE}/1001")
    with pytest.raises(DatasetError, match=r"edit 2 \(crowd\): refcoco/val/1001 is in an earlier edit too"):
        write_edits(folder, [Merge(masks=ids), Crowd(mask=ids[1])])


def test_edited_masks_are_not_asked_again(folder: Path) -> None:
    before = {entry["item_id"] for entry in ReviewData(folder, False).queue()}
    mask_id = f"{SOURCE}/1000"
    assert mask_id in before
    store(folder, [{"edit": "merge", "masks": [mask_id, f"{SOURCE}/1001"]}])
    assert {entry["item_id"] for entry in ReviewData(folder, False).queue()} == before - {mask_id, f"{SOURCE}/1001"}


def test_the_history_of_a_merged_mask_names_the_edit(folder: Path) -> None:
    ids = [f"{SOURCE}/1000", f"{SOURCE}/1001"]
    store(folder, [{"edit": "merge", "masks": ids, "reason": "one bus"}])
    story = why(ids[1], folder)
    assert (story.row.into, story.row.reviewer) == (ids[0], "anna")
    assert story_picture(story) is not None


def test_ledgers_with_and_without_edits_are_compared(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.parquet"
    plain.write_bytes((folder / LEDGER_FILE).read_bytes())
    store(
        folder,
        [
            {"edit": "merge", "masks": [f"{SOURCE}/1000", f"{SOURCE}/1001"]},
            {"edit": "add", "image": "2", "mask": rle(part(3, 3, 3)), "category": "dog"},
        ],
    )
    found = compare_ledgers(plain, folder)
    assert found.masks_by_action[("kept", "changed")] == 1
    assert found.masks_by_action[("kept", "merged")] == 1
    assert len(found.masks) == 9
    assert 0 < found.mean_boundary_iou < 1


def test_a_ledger_whose_links_lead_nowhere_is_refused(folder: Path, tmp_path: Path) -> None:
    store(folder, [{"edit": "merge", "masks": [f"{SOURCE}/1000", f"{SOURCE}/1001"]}])
    ledger = read_ledger(folder)
    for into in (f"{SOURCE}/9", f"{SOURCE}/1001", f"{SOURCE}/2000"):
        rows = [
            Row(**{**{n: getattr(r, n) for n in Row.__slots__}, "into": into}) if r.action == "merged" else r
            for r in ledger.rows
        ]
        path = tmp_path / "ledger.parquet"
        write_ledger(path, type(ledger)(SOURCE, ledger.fingerprint, ledger.recipe, ledger.recipe_sha256, tuple(rows)))
        with pytest.raises(DatasetError, match="which is not a remaining mask of its image"):
            read_ledger(path)
    assert not dataset_folder("cleaned").exists()
