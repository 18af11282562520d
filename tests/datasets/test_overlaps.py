"""`refbench overlap`: leakage between splits, and against a list of training images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures as mini
import pytest

from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.builders.pickles import read_plain_pickle
from refbench.datasets.overlaps import overlap
from refbench.errors import DatasetError
from refbench.plugins.loading import load
from refbench.storage.progress import silent

Call = Callable[..., subprocess.CompletedProcess[str]]


def build(dataset: str, annotations: Path | None = None, **options: Any) -> None:
    build_dataset(dataset, load("builders", dataset), Sources(annotations), silent, **options)


@pytest.mark.slow
def test_refcoco_val_and_refcocog_val_share_62_images(test_data: Path, home: Path, refbench: Call) -> None:
    refer = test_data / "whole-splits" / "refer"
    build("refcoco", refer)
    build("refcocog-umd", refer)
    found = overlap("refcoco/val", "refcocog-umd/val")
    refs = [read_plain_pickle(refer / f) for f in ("refcoco/refs(unc).p", "refcocog/refs(umd).p")]
    images = [{r["image_id"] for r in rows} for rows in refs]
    objects = [{r["ann_id"] for r in rows} for rows in refs]
    assert found.images == len(images[0] & images[1]) == 62
    assert found.objects == len(objects[0] & objects[1])
    shared = images[0] & images[1]
    assert found.expressions == sum(len(r["sentences"]) for r in refs[0] if r["image_id"] in shared)
    assert (found.images_a, found.images_b) == (1500, 1300)
    done = refbench("overlap", "refcoco/val", "refcocog-umd/val", "--json")
    assert json.loads(done.stdout)["images"] == 62
    assert "images\t62\t4.1 %\t4.8 %" in refbench("overlap", "refcoco", "refcocog-umd").stdout


def test_a_list_of_training_images(test_data: Path, home: Path, tmp_path: Path) -> None:
    build("refcoco", test_data / "photos" / "refer")
    names = sorted(p.name for p in (test_data / "photos" / "images" / "train2014").iterdir())
    by_name, by_id, as_json = tmp_path / "names.txt", tmp_path / "ids.txt", tmp_path / "train.json"
    by_name.write_text("\n".join(f"train2014/{n}" for n in names) + "\n\n")
    by_id.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(str(int(n[-16:-4])) for n in names).encode())
    as_json.write_text(json.dumps({"images": [{"id": int(n[-16:-4])} for n in names]}))
    found = [overlap("refcoco", str(p)) for p in (by_name, by_id, as_json)]
    assert [f.images for f in found] == [6, 6, 6]
    assert all(f.objects is None and f.expressions == 47 for f in found)
    by_name.write_text("not an image\n")
    with pytest.raises(DatasetError, match="entry 1: 'not an image' is neither an image id nor a COCO file name"):
        overlap("refcoco", str(by_name))
    by_name.write_text("")
    with pytest.raises(DatasetError, match="lists no images"):
        overlap("refcoco", str(by_name))
    by_name.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="not UTF-8 text"):
        overlap("refcoco", str(by_name))


def test_file_names_of_refs_and_rows_that_are_numbered_anew(test_data: Path, home: Path, tmp_path: Path) -> None:
    release = test_data / "photos" / "refer"
    build("refcoco", release)
    refs = read_plain_pickle(release / "refcoco" / "refs(unc).p")
    listed = tmp_path / "train.txt"
    # As REFER's refs name them: the image, then the object.
    listed.write_text("\n".join(f"COCO_train2014_{r['image_id']:012d}_{k}.jpg" for k, r in enumerate(refs)))
    assert overlap("refcoco", str(listed)).images == 6
    rows = [{"id": k, "file_name": f"COCO_train2014_{r['image_id']:012d}.jpg"} for k, r in enumerate(refs)]
    (tmp_path / "pseudo.json").write_text(json.dumps({"images": rows}))
    assert overlap("refcoco", str(tmp_path / "pseudo.json")).images == 6
    with pytest.raises(DatasetError, match="pass the split first and the image list second"):
        overlap(str(listed), "refcoco")
    with pytest.raises(DatasetError, match=r"the image list nolist\.txt does not exist"):
        overlap("refcoco", "nolist.txt")


def test_objects_of_other_annotators_by_their_masks(tmp_path: Path, home: Path) -> None:
    build("grefcoco", mini.write_grefcoco(tmp_path, *mini.grefs()))
    build("lvis", mini.write_lvis(tmp_path / "lvis", mini.lvis()))
    found = overlap("grefcoco", "lvis/val-instance")
    # Both squares and the triangle are the same shapes in both; the bow is in LVIS alone.
    assert (found.images, found.objects, found.objects_by) == (2, 3, "mask IoU >= 0.5")


def test_numbers_that_mean_different_images(tmp_path: Path, home: Path) -> None:
    build("sginw-Fruits", mini.write_sginw(tmp_path, mini.sginw()))
    build("grefcoco", mini.write_grefcoco(tmp_path, *mini.grefs()))
    with pytest.raises(DatasetError, match="image ids from different numbering schemes cannot be compared"):
        overlap("grefcoco", "sginw-Fruits")
    with pytest.raises(DatasetError, match=r"has not been built \("):
        overlap("grefcoco", "refcoco")
    assert overlap("grefcoco/val", "grefcoco/testA").images == 0
    assert overlap("grefcoco/val", "grefcoco/testB").images == 1
