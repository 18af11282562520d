"""From a split and its published cleaned version to the ledger between them; two ledgers compared."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from curation.miniature_split import square
from PIL import Image
from pixel_reference import boundary_band

from refbench import load_samples
from refbench.curation.folder import load_items
from refbench.curation.ledger import Ledger, read_ledger, rows_of, write_ledger
from refbench.curation.ledger_differences import compare_ledgers
from refbench.curation.publication import export_curated
from refbench.curation.published import from_published
from refbench.curation.revision import apply
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError
from refbench.plugins.loading import load
from refbench.records import Action, Decision
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import silent

Cli = Callable[..., subprocess.CompletedProcess[str]]
HEIGHT, WIDTH = 48, 64
WORDS = ("left one", "the red thing", "Left one", "big square", "left one")


def build_source(folder: Path, images: int, masks_an_image: int = 3) -> None:
    """Build `refcoco/val`: squares with one to three expressions each, some of which occur twice."""
    release, pictures = folder / "refer" / "refcoco", folder / "images"
    release.mkdir(parents=True)
    pictures.mkdir()
    random = np.random.default_rng(11)
    rows, annotations, refs = [], [], []
    for k in range(1, images + 1):
        name = f"COCO_train2014_{k:012d}.jpg"
        pixels = np.full((HEIGHT, WIDTH, 3), random.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / name)
        rows.append({"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for n in range(masks_an_image):
            ann_id = 1000 * k + n
            x, y, side = (float(v) for v in random.integers((0, 0, 8), (WIDTH - 20, HEIGHT - 20, 20)))
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {
                    "id": ann_id, "image_id": k, "category_id": 1 + n, "iscrowd": 0, "segmentation": [corners],
                    "bbox": [x, y, side, side],
                }
            )  # fmt: skip
            texts = [WORDS[(ann_id + i) % len(WORDS)] for i in range(1 + ann_id % 3)]
            sentences = [
                {"sent_id": 10 * ann_id + i, "sent": t, "raw": t, "tokens": t.split()} for i, t in enumerate(texts)
            ]
            refs.append({"ref_id": ann_id, "ann_id": ann_id, "image_id": k, "split": "val", "sentences": sentences})
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "zebra"}]
    (release / "instances.json").write_text(
        json.dumps({"images": rows, "annotations": annotations, "categories": categories})
    )
    (release / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    build_dataset("refcoco", load("builders", "refcoco"), Sources(folder / "refer", pictures), silent)


def cleaned_by_hand(path: Path, masks: int, recipe: str = "by hand") -> Ledger:
    """A ledger that keeps or changes so many masks, and drops the others and every seventh expression."""
    images = load_items("refcoco/val")
    decisions, expressions = {}, {}
    for k, target in enumerate(t for image in images for t in image.masks):
        action = Action.DROP if k >= masks else Action.KEEP if k % 3 else Action.CHANGE
        new = square(int(target.box_xywh[1]) // 2, int(target.box_xywh[0]) // 2, 12, HEIGHT, WIDTH)
        decisions[target.mask_id] = Decision(target.mask_id, action, "t", "t", new if action == Action.CHANGE else None)
    for k, sample in enumerate(s for image in images for s in image.samples):
        # Of each mask, the first expression stays.
        dropped = k % 7 == 0 and not sample.sent_id.endswith("0")
        expressions[sample.sample_id] = Decision(sample.sample_id, Action.DROP if dropped else Action.KEEP, "t", "t")
    rows = rows_of(images, decisions, expressions, {})
    ledger = Ledger("refcoco/val", split_fingerprint("refcoco/val"), recipe, "0" * 64, tuple(rows))
    write_ledger(path, ledger)
    return ledger


def export(name: str, ledger: Path, out: Path) -> bytes:
    """The Parquet file of the cleaned split, as it is published."""
    apply("refcoco/val", ledger, name)
    export_curated(f"{name}/val", out)
    (data,) = (out / "data").iterdir()
    return data.read_bytes()


@pytest.mark.slow
def test_a_published_split_of_2080_masks_comes_back_byte_for_byte(home: Path, tmp_path: Path, refbench: Cli) -> None:
    build_source(tmp_path / "source", 1190)
    hidden = cleaned_by_hand(tmp_path / "hidden.parquet", 2080)
    published = export("hidden", tmp_path / "hidden.parquet", tmp_path / "published")
    build_dataset("refcoco-m", load("builders", "refcoco-m"), Sources(tmp_path / "published"), silent)
    assert len({t.mask_id for i in load_items("refcoco-m/val") for t in i.masks}) == 2080

    out = tmp_path / "found.parquet"
    done = refbench("curate", "from-published", "refcoco/val", "refcoco-m/val", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert export("again", out, tmp_path / "again") == published
    # The ledger says what was done.
    found, wanted = read_ledger(out).by_id(), hidden.by_id()
    actions = {i: row.action for i, row in found.items() if row.item == "mask"}
    assert actions == {i: row.action for i, row in wanted.items() if row.item == "mask"}
    assert told["masks"]["dropped"] == 3570 - 2080
    assert sum(told["masks"].values()) == 3570
    assert {i: row.mask for i, row in found.items()} == {i: row.mask for i, row in wanted.items()}
    kept = Counter(r.action for r in found.values() if r.item == "expression")
    assert kept == Counter(r.action for r in wanted.values() if r.item == "expression")
    changed = next(r for r in found.values() if r.action == "changed")
    assert f"IoU {changed.scores['source_iou']:.3f}" in changed.reason

    compared = compare_ledgers(tmp_path / "hidden.parquet", out)
    assert set(compared.masks_by_action) == {("kept", "kept"), ("changed", "changed"), ("dropped", "dropped")}
    assert compared.mean_boundary_iou == 1.0


def test_the_schema_sample(home: Path, test_data: Path, tmp_path: Path) -> None:
    photos = test_data / "photos"
    build_dataset("refcoco-m", load("builders", "refcoco-m"), Sources(photos / "refcoco-m-schema"), silent)
    # The sample has the objects of all splits.
    release = tmp_path / "refer" / "refcoco"
    shutil.copytree(photos / "refer" / "refcoco", release)
    refs = pickle.loads((release / "refs(unc).p").read_bytes())
    (release / "refs(unc).p").write_bytes(pickle.dumps([ref | {"split": "val"} for ref in refs], protocol=0))
    build_dataset("refcoco", load("builders", "refcoco"), Sources(tmp_path / "refer", photos / "images"), silent)
    ledger = from_published("refcoco/val", "refcoco-m/val").ledger
    write_ledger(home / "ledger.parquet", ledger)
    apply("refcoco/val", home / "ledger.parquet", "again")

    def said(address: str) -> list[tuple[str, str, object]]:
        return sorted((s.image_id, s.expression, s.target.to_rle()["counts"]) for s in load_samples(address))

    assert said("again/val") == said("refcoco-m/val")


def publish(folder: Path, masks: int, change: Callable[[list[dict[str, Any]]], None]) -> Ledger:
    """Build `refcoco-m` from a cleaned version of `refcoco/val`, whose published rows are changed before.

    Returns the ledger that made the cleaned version.
    """
    hidden = cleaned_by_hand(folder / "hidden.parquet", masks)
    export("hidden", folder / "hidden.parquet", folder / "published")
    (data,) = (folder / "published" / "data").iterdir()
    table = pq.read_table(data)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(table.from_pylist(rows, table.schema), data)
    build_dataset("refcoco-m", load("builders", "refcoco-m"), Sources(folder / "published"), silent)
    return hidden


def test_ids_that_mean_something_else_and_changed_wording(home: Path, tmp_path: Path) -> None:
    """The published ids may be anything: expressions tell which mask is meant."""
    build_source(tmp_path / "source", 6)

    def change(rows: list[dict[str, Any]]) -> None:
        for number, item in enumerate(item for row in rows for item in row["samples"]):
            item["id"] = number + 1
            item["sentences"] = [f" {s.upper()}" for s in item["sentences"]]

    hidden = publish(tmp_path, 10, change).by_id()
    found = from_published("refcoco/val", "refcoco-m/val")
    masks = {row.item_id: (row.action, row.mask) for row in found.ledger.rows if row.item == "mask"}
    assert masks == {i: (row.action, row.mask) for i, row in hidden.items() if row.item == "mask"}
    assert found.expressions["kept"] == 0
    assert found.expressions["reworded"] > 0
    assert sum(found.masks.values()) - found.masks["dropped"] == 10
    reworded = next(r for r in found.ledger.rows if r.item == "expression" and r.action == "kept")
    assert "in refcoco-m/val" in reworded.reason


def test_what_the_source_lacks_is_named(home: Path, tmp_path: Path, refbench: Cli) -> None:
    build_source(tmp_path / "source", 4)

    def change(rows: list[dict[str, Any]]) -> None:
        rows[0]["samples"][0]["sentences"].append("a new sentence")
        rows[1]["samples"][0]["sentences"] = ["another object"]
        rows[2]["image_id"] = 99
        for item in rows[2]["samples"]:
            item["image_id"] = 99

    publish(tmp_path, 9, change)
    with pytest.raises(
        DatasetError,
        match="refcoco-m/val contains 3 entries that are not in refcoco/val",
    ) as caught:
        from_published("refcoco/val", "refcoco-m/val")
    for words in ("'a new sentence'", "the mask refcoco-m/val/2000", "the image 99"):
        assert words in str(caught.value)
    refused = refbench("curate", "from-published", "refcoco/val", "refcoco-m/val", "--out", tmp_path / "l.parquet")
    assert (refused.returncode, (tmp_path / "l.parquet").exists()) == (3, False)


def test_two_recipes_are_compared_mask_by_mask(home: Path, tmp_path: Path, refbench: Cli) -> None:
    build_source(tmp_path / "source", 5)
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    cleaned_by_hand(one, 12)
    cleaned_by_hand(two, 6)
    found = compare_ledgers(one, two)
    assert found.masks_by_action[("kept", "dropped")] == 4
    assert found.masks_by_action[("changed", "dropped")] == 2
    assert sum(found.masks_by_action.values()) == 15
    done = refbench("curate", "compare-recipes", one, two, "--json", "--csv", tmp_path / "m.csv")
    told = json.loads(done.stdout)
    assert {"first": "kept", "second": "dropped", "items": 4} in told["masks"]
    assert told["mean_boundary_iou"] == 1.0
    table = pd.read_csv(tmp_path / "m.csv")
    assert (len(table), int(table["boundary_iou"].notna().sum())) == (15, 6)
    # Where one keeps what the other changes, the boundary IoU is that of the two results.
    three = tmp_path / "three.parquet"
    other = read_ledger(one)
    keep = next(r for r in other.rows if r.action == "kept" and r.item == "mask")
    drawn = square(int(keep.source_sha256[:1], 16), 3, 30, HEIGHT, WIDTH)
    rows = tuple(dataclasses.replace(r, action="changed", mask=drawn) if r is keep else r for r in other.rows)
    write_ledger(three, dataclasses.replace(other, rows=rows))
    differing = compare_ledgers(one, three)
    (mask,) = (m for m in differing.masks if m.first != m.second)
    source = next(t.mask for i in load_items("refcoco/val") for t in i.masks if t.mask_id == keep.item_id)
    bands = [boundary_band(m.to_array()) for m in (source, drawn)]
    expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    assert mask.boundary_iou == pytest.approx(expected)
    changed = sum(n for actions, n in differing.masks_by_action.items() if "changed" in actions)
    assert differing.mean_boundary_iou == pytest.approx((expected + changed - 1) / changed)
    assert "A and B decide alike on 9 of 15 masks" in refbench("curate", "compare-recipes", one, two).stderr
    with pytest.raises(DatasetError, match="does not exist"):
        compare_ledgers(one, tmp_path / "nowhere.parquet")
    # The source is built anew with other content.
    build_source(tmp_path / "other", 4)
    with pytest.raises(DatasetError, match="was built again after"):
        compare_ledgers(one, two)
    cleaned_by_hand(tmp_path / "new.parquet", 3)
    with pytest.raises(DatasetError, match="compare two ledgers for the same build of one split"):
        compare_ledgers(one, tmp_path / "new.parquet")
