"""gRefCOCO, Ref-ZOM, LVIS, SGinW and ReasonSeg in their true layouts: what they become, and what is refused."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import miniatures as mini
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import refer_release
from PIL import Image
from pycocotools import mask as coco_mask

from refbench import Mask, load_samples
from refbench.datasets.builders import lvis
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.builders.pickles import read_plain_pickle
from refbench.errors import DatasetError
from refbench.plugins.loading import load
from refbench.plugins.table import SGINW, TABLE
from refbench.storage.files import project_data
from refbench.storage.images import load_image
from refbench.storage.manifest import Manifest
from refbench.storage.progress import silent
from refbench.storage.samples import load_objects


def build(dataset: str, annotations: Path, images: Path | None = None, **options: Any) -> Manifest:
    return build_dataset(dataset, load("builders", dataset), Sources(annotations, images), silent, **options)


def rasterised(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """The union of polygons by pycocotools' own functions."""
    parts = coco_mask.frPyObjects([list(map(float, p)) for p in polygons], height, width)
    return np.asarray(coco_mask.decode(coco_mask.merge(parts)), bool)


def test_every_dataset_has_its_folder() -> None:
    for name in TABLE["builders"]:
        folder = project_data("datasets") / name
        assert {p.name for p in folder.iterdir()} >= {"card.md", "sources.toml", "expected.toml"}, name
        card = (folder / "card.md").read_text()
        assert card.startswith("# ")
        if name not in ("scenes", "scenes-hurried", "snapshots"):
            for word in ("Licence", "Known faults", "Reported by", f"refbench build {name}"):
                assert word in card, (name, word)


# gRefCOCO


def test_grefcoco_unions_and_nothing(tmp_path: Path, home: Path) -> None:
    annotations = mini.write_grefcoco(tmp_path, *mini.grefs())
    manifest = build("grefcoco", annotations, mini.write_images(tmp_path / "images"))
    assert {s: v.expressions for s, v in manifest.splits.items()} == {"val": 3, "testA": 1, "testB": 2}
    assert manifest.splits["val"].no_target == 2
    both, nothing, second = load_samples("grefcoco/val")
    union = rasterised([refer_release.SQUARE, mini.SECOND], 60, 80)
    assert np.array_equal(both.target.to_array(), union)
    assert (both.ann_ids, both.category, both.no_target) == (("11", "12"), "square", False)
    assert both.polygons == (tuple(refer_release.SQUARE), tuple(mini.SECOND))
    assert nothing.no_target
    assert (nothing.target.area, nothing.target.size, nothing.ann_ids) == (0, (60, 80), ())
    assert second.ref_id == nothing.ref_id
    assert load_image(nothing.image_path, 60, 80).size == (80, 60)
    assert [o.crowd for o in load_objects("grefcoco")] == [False, False, False, True]


def test_grefcoco_crowds_by_policy(tmp_path: Path, home: Path) -> None:
    annotations = mini.write_grefcoco(tmp_path, *mini.grefs())
    skipped = build("grefcoco", annotations)
    with_crowd, alone = load_samples("grefcoco/testB")
    assert with_crowd.ann_ids == ("11",)
    assert with_crowd.tags == ("crowd-left-out",)
    assert alone.ann_ids == ("14",)
    assert alone.tags == ("crowd-only",)
    assert alone.target.area == 8 * 18
    assert any("1 crowd annotations are left out" in note for note in skipped.notes)
    used = build("grefcoco", annotations, crowd="use")
    assert used.builder.options == {"crowd": "use"}
    assert used.fingerprint != skipped.fingerprint
    assert load_samples("grefcoco/testB")[0].target.area == with_crowd.target.area + 8 * 18
    with pytest.raises(DatasetError, match="crowd=maybe must be skip or use"):
        build("grefcoco", annotations, crowd="maybe")


def test_grefcoco_as_a_pickle_is_the_same(tmp_path: Path, home: Path) -> None:
    refs, instances = mini.grefs()
    as_json = build("grefcoco", mini.write_grefcoco(tmp_path / "a", refs, instances))
    as_pickle = build("grefcoco", mini.write_grefcoco(tmp_path / "b", refs, instances, "grefs(unc).p"))
    assert as_json.fingerprint == as_pickle.fingerprint


def test_grefcoco_of_real_photographs(test_data: Path, home: Path) -> None:
    photos = test_data / "photos"
    manifest = build("grefcoco", photos / "refer", photos / "images")
    expected: Counter[tuple[str, bool]] = Counter()
    for ref in json.loads((photos / "refer" / "grefcoco" / "grefs(unc).json").read_text()):
        expected[ref["split"], ref["no_target"]] += len(ref["sentences"])
    for split, found in manifest.splits.items():
        assert found.no_target == expected[split, True] > 0
        assert found.expressions == expected[split, True] + expected[split, False]
    zebras = load_samples("grefcoco/testA")[0]
    objects = {o.ann_id: o for o in load_objects("grefcoco")}
    parts = np.logical_or(*(objects[a].mask.to_array() for a in zebras.ann_ids))
    assert zebras.expression == "the two nearest zebras"
    assert np.array_equal(zebras.target.to_array(), parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("refs[0]['ann_id'] = 11", "needs integer ref_id and a list of integers ann_id"),
        ("refs[0]['ann_id'] = [11, 11]", "names an annotation twice"),
        ("refs[0]['ann_id'] = [11, 13]", "image_id 1, but annotation 13 is on image 2"),
        ("refs[0]['ann_id'] = [11, 99]", "annotation 99 is not in instances.json"),
        ("refs[0]['ann_id'] = [-1, 11]", "annotation -1 is not in"),
        ("refs[1]['no_target'] = False", "no_target is False, but ann_id lists 0"),
        ("refs[0]['no_target'] = True", "no_target is True, but ann_id lists 2"),
        ("refs[1]['image_id'] = 77", "image 77 is not in instances.json"),
        ("del refs[1]['image_id']", "it has no integer image_id"),
        ("refs[0]['split'] = 'test'", "'test' is no name of a split of grefcoco, which has train, val"),
        ("refs[0]['ref_id'] = 1", "this ref_id was given before"),
    ],
)
def test_grefcoco_broken_rows_are_named(tmp_path: Path, home: Path, change: str, message: str) -> None:
    refs, instances = mini.grefs()
    exec(change, {"refs": refs, "instances": instances})
    with pytest.raises(DatasetError, match=r"row \d"):
        build("grefcoco", mini.write_grefcoco(tmp_path, refs, instances))
    with pytest.raises(DatasetError, match=message):
        build("grefcoco", tmp_path)


def test_refs_of_refcoco_are_no_grefs(tmp_path: Path, home: Path) -> None:
    refs, instances = refer_release.content()
    with pytest.raises(DatasetError, match="a list of integers ann_id"):
        build("grefcoco", mini.write_grefcoco(tmp_path, refs, instances))


# Ref-ZOM


def test_refzom(tmp_path: Path, home: Path) -> None:
    annotations = mini.write_refzom(tmp_path, *mini.refzom())
    for folder, image_id in (("train2014", 1), ("val2014", 2)):
        (tmp_path / "coco" / folder).mkdir(parents=True)
        (tmp_path / "coco" / folder / mini.file_name(image_id, folder)).write_bytes(mini.picture(image_id))
    manifest = build("refzom", annotations, tmp_path / "coco")
    assert {s: (v.expressions, v.no_target) for s, v in manifest.splits.items()} == {
        "test": (3, 2),
        "train": (3, 0),
    }
    many, nothing, _ = load_samples("refzom/test")
    assert many.tags == ("source-many",)
    assert np.array_equal(many.target.to_array(), rasterised([refer_release.SQUARE, mini.SECOND], 60, 80))
    assert nothing.no_target
    one = load_samples("refzom/train")[0]
    assert one.ann_ids == ("13",)
    assert one.image_path.endswith("val2014/COCO_val2014_000000000002.jpg")
    # The union takes crowds: the loaders of Ref-ZOM do not look at iscrowd.
    assert load_samples("refzom/train")[1].ann_ids == ("11", "14")


def test_refzom_where_source_is_zero_nothing_is_meant(tmp_path: Path, home: Path) -> None:
    refs, instances = mini.refzom()
    refs[1]["ann_id"] = [11]
    build("refzom", mini.write_refzom(tmp_path, refs, instances, "refs(final).p"))
    assert load_samples("refzom/test")[1].no_target


def test_one_split_alone(tmp_path: Path, home: Path) -> None:
    refs, instances = mini.grefs()
    annotations = mini.write_grefcoco(tmp_path, refs, instances)
    images = mini.write_images(tmp_path / "images")
    # testA's image is not there, as train's are not in the hub's tables.
    (images / mini.file_name(2)).unlink()
    with pytest.raises(DatasetError, match=r"COCO_train2014_000000000002.jpg is not in"):
        build("grefcoco", annotations, images)
    only = Sources(annotations, images, splits=("val",))
    manifest = build_dataset("grefcoco", load("builders", "grefcoco"), only, silent)
    assert list(manifest.splits) == ["val"]
    assert "3 refs of other splits than val are left out" in manifest.notes
    assert {o.image_id for o in load_objects("grefcoco")} == {"1"}
    with pytest.raises(DatasetError, match="was not built because its file contains no refs"):
        build_dataset("grefcoco", load("builders", "grefcoco"), Sources(annotations, splits=("train",)), silent)


def test_rows_that_would_lose_something(tmp_path: Path, home: Path) -> None:
    for change, message in (
        ("refs[0]['sent_ids'] = [0, 1, 2]", "sent_ids names 3 sentences, 1 are there"),
        ("refs[0]['no_target'] = 'no'", "no_target is a str, but ann_id lists 2"),
        ("instances['annotations'][0]['iscrowd'] = '0'", "its `iscrowd` must be 0 or 1, got '0'"),
        ("instances['annotations'][0]['bbox'] = '1234'", r"its `bbox` must have four numbers \[left"),
    ):
        refs, instances = mini.grefs()
        exec(change, {"refs": refs, "instances": instances})
        with pytest.raises(DatasetError, match=message):
            build("grefcoco", mini.write_grefcoco(tmp_path, refs, instances))


def test_every_ref_of_a_broken_annotation_is_named(tmp_path: Path, home: Path) -> None:
    refs, instances = refer_release.content()
    refs[1]["ann_id"] = refs[0]["ann_id"]
    instances["annotations"][0]["segmentation"] = []
    with pytest.raises(DatasetError, match=r"(?s)row 0 \(ref_id 1\): annotation 11.*row 1 \(ref_id 2\): annotation 11"):
        build("refcoco", refer_release.write(tmp_path, refs, instances))


def test_an_image_in_two_splits_is_told(tmp_path: Path, home: Path) -> None:
    refs, instances = refer_release.content()
    refs[1]["split"] = "testB"
    manifest = build("refcoco", refer_release.write(tmp_path, refs, instances))
    assert "1 images are in more than one split: these splits leak into each other" in manifest.notes


def test_the_folder_of_another_dataset(test_data: Path, home: Path) -> None:
    with pytest.raises(DatasetError, match="folder of another dataset; refcoco is read from a"):
        build("refcoco", test_data / "photos" / "refer" / "refcoco+")


# LVIS


def test_lvis_two_views(tmp_path: Path, home: Path) -> None:
    path = mini.write_lvis(tmp_path, mini.lvis())
    manifest = build("lvis", path, tmp_path)
    assert {s: v.expressions for s, v in manifest.splits.items()} == {"val-instance": 4, "val-category": 2}
    assert manifest.objects == 5
    assert "1 annotations cover no pixel" in " ".join(manifest.notes)
    assert "1 (image, class) pairs are not exhaustively annotated" in " ".join(manifest.notes)
    cup, other, bow, incomplete = load_samples("lvis/val-instance")
    assert (cup.expression, cup.ann_ids, cup.tags) == ("cup", ("1",), ("frequency-f",))
    assert np.array_equal(other.target.to_array(), rasterised([mini.SECOND], 60, 80))
    assert (bow.expression, bow.raw_expression) == ("bow (decorative ribbons)", "bow_(decorative_ribbons)")
    assert incomplete.tags == ("frequency-f", "not-exhaustive")
    assert incomplete.image_path.endswith("train2017/000000000002.jpg")
    cups, bows = load_samples("lvis/val-category")
    assert (cups.ann_ids, cups.sample_id) == (("1", "2"), "lvis/val-category/1-1/0")
    assert np.array_equal(cups.target.to_array(), rasterised([refer_release.SQUARE, mini.SECOND], 60, 80))
    # Overlapping parts of one object: their union, each pixel once.
    assert np.array_equal(bows.target.to_array(), rasterised([list(p) for p in bows.polygons], 60, 80))


def test_lvis_negatives_and_incomplete_pairs_on_demand(tmp_path: Path, home: Path) -> None:
    path = mini.write_lvis(tmp_path, mini.lvis())
    build("lvis", path, negatives=True, not_exhaustive="keep")
    samples = load_samples("lvis/val-category")
    assert [(s.expression, s.no_target) for s in samples] == [
        ("cup", False),
        ("bow (decorative ribbons)", False),
        ("acorn", True),
        ("cup", False),
        ("bow (decorative ribbons)", True),
    ]
    assert samples[2].tags == ("frequency-r", "negative")
    assert samples[3].tags == ("frequency-f", "not-exhaustive")


def test_lvis_real_annotations(test_data: Path, home: Path) -> None:
    source = test_data / "lvis" / "lvis_val_100.json"
    content = json.loads(source.read_text())
    manifest = build("lvis", source, negatives=True)
    incomplete = {(i["id"], c) for i in content["images"] for c in i["not_exhaustive_category_ids"]}
    pairs = {(a["image_id"], a["category_id"]) for a in content["annotations"]} - incomplete
    negatives = sum(len(set(i["neg_category_ids"])) for i in content["images"])
    assert manifest.splits["val-instance"].expressions == len(content["annotations"]) == 977
    assert manifest.splits["val-category"].expressions == len(pairs) + negatives
    assert manifest.splits["val-category"].no_target == negatives == 942
    assert manifest.annotation_ids == "lvis-v0.5"
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    by_id = {str(a["id"]): a for a in content["annotations"]}
    for sample in load_samples("lvis/val-instance")[::25]:
        row = by_id[sample.ann_ids[0]]
        assert np.array_equal(sample.target.to_array(), rasterised(row["segmentation"], *sizes[row["image_id"]]))


def test_lvis_in_processes(test_data: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are read by several processes, some images at a time: the same dataset, and the same messages."""
    source = test_data / "lvis" / "lvis_val_100.json"
    content = json.loads(source.read_text())
    for k in (3, 500, 900):
        content["annotations"][k]["segmentation"] = [[1, 1, 2, 2]]
    broken = tmp_path / "lvis_v0.5_val.json"
    broken.write_text(json.dumps(content))
    built, refused = [], []
    for least in (10**9, 0):
        monkeypatch.setattr(lvis, "MANY_ANNOTATIONS", least)
        monkeypatch.setattr(lvis, "IMAGES_AT_ONCE", 7)
        manifest = build("lvis", source, negatives=True)
        tables = [p.read_bytes() for p in sorted((home / "datasets" / "lvis").glob("*.parquet"))]
        built.append((manifest.splits, manifest.fingerprint, manifest.notes, tables))
        with pytest.raises(DatasetError) as error:
            build("lvis", broken)
        refused.append(str(error.value))
    assert built[0] == built[1]
    assert refused[0] == refused[1]
    assert [f"annotations[{k}]" in refused[0] for k in (3, 500, 900)] == [True] * 3


SCRIPT = """
import sys
from refbench.datasets.builders import lvis
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.storage.progress import silent
from pathlib import Path

print("once")
lvis.MANY_ANNOTATIONS, lvis.IMAGES_AT_ONCE = 0, 1
print(build_dataset("lvis", lvis.build, Sources(Path(sys.argv[1])), silent).fingerprint)
"""


def test_lvis_in_processes_of_a_plain_script(tmp_path: Path, home: Path) -> None:
    """The processes do not run the script again, so that it needs no `if __name__ == "__main__":`."""
    source = mini.write_lvis(tmp_path, mini.lvis())
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    wanted = build("lvis", source).fingerprint
    found = subprocess.run(
        [sys.executable, str(script), str(source)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert found.stdout.split() == ["once", wanted]


def test_lvis_one_view(tmp_path: Path, home: Path) -> None:
    source = mini.write_lvis(tmp_path, mini.lvis())
    whole = build("lvis", source)
    one = build_dataset("lvis", lvis.build, Sources(source, splits=("val-category",)), silent)
    assert one.splits == {"val-category": whole.splits["val-category"]}
    asked = {s.image_id for s in load_samples("lvis/val-category")}
    assert {o.image_id for o in load_objects("lvis")} == asked
    assert 0 < one.objects < whole.objects
    with pytest.raises(DatasetError, match="no split 'test'; their splits are val-instance, val-category"):
        build_dataset("lvis", lvis.build, Sources(source, splits=("test",)), silent)


def test_lvis_numbers_that_only_json_reads(tmp_path: Path, home: Path) -> None:
    path = mini.write_lvis(tmp_path, mini.lvis())
    text = path.read_text()
    first = json.dumps(mini.lvis()["annotations"][0]["segmentation"][0][0])
    for number in ("1e999", "NaN", "1" * 5000):
        path.write_text(text.replace(f'"segmentation": [[{first}', f'"segmentation": [[{number}', 1))
        assert number in path.read_text()
        with pytest.raises(DatasetError, match=r"annotations\[0\] \(id 1\)"):
            build("lvis", path)
    path.write_bytes(text.encode().replace(b'"segmentation": [[', b'"segmentation": ["\xff\xfe", [', 1))
    with pytest.raises(DatasetError, match=r"annotations\[0\] \(id 1\)|not UTF-8"):
        build("lvis", path)


def test_lvis_real_photographs(test_data: Path, tmp_path: Path, home: Path) -> None:
    content = json.loads((test_data / "lvis" / "lvis_val_100.json").read_text())
    there = {int(p.stem) for p in (test_data / "lvis" / "images" / "val2017").glob("*.jpg")}
    content["images"] = [i for i in content["images"] if i["id"] in there]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in there]
    path = tmp_path / "lvis_v0.5_val.json"
    path.write_text(json.dumps(content))
    manifest = build("lvis", path, test_data / "lvis" / "images")
    assert manifest.splits["val-instance"].images == len(there) == 10
    for sample in {s.image_id: s for s in load_samples("lvis/val-instance")}.values():
        load_image(sample.image_path, sample.height, sample.width)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("content['annotations'][0]['category_id'] = 9", r"annotations\[0\] \(id 1\): category 9 is not in the file"),
        ("content['annotations'][0]['image_id'] = 9", r"annotations\[0\] \(id 1\): image 9 is not in the file"),
        ("content['images'][0]['neg_category_ids'] = [1]", "category 1 is annotated and in neg_category_ids"),
        ("content['images'][0]['neg_category_ids'] = 'x'", "neg_category_ids is not a list of categories"),
        ("del content['images'][0]['neg_category_ids']", "is this a COCO file instead of an LVIS one"),
        ("content['annotations'][1]['id'] = 1", r"annotations\[1\]: id 1 is given twice"),
        ("content['annotations'][0]['segmentation'] = [[1, 1, 2, 2]]", "polygon 0 must be a flat"),
        ("content['annotations'][0]['segmentation'] = [[1, 1, 2, 2, 3]]", "polygon 0 must be a flat"),
        ("content['annotations'] = []", "contains no annotations"),
        ("content['images'][0]['height'] = 'x'", "height must be an integer"),
    ],
)
def test_lvis_broken_rows_are_named(tmp_path: Path, home: Path, change: str, message: str) -> None:
    content = mini.lvis()
    exec(change, {"content": content})
    with pytest.raises(DatasetError, match=message):
        build("lvis", mini.write_lvis(tmp_path, content))


def test_lvis_by_its_name(tmp_path: Path, home: Path) -> None:
    mini.write_lvis(tmp_path, mini.lvis())
    assert "val-instance" in build("lvis", tmp_path).splits
    mini.write_lvis(tmp_path, mini.lvis(), "lvis_v1_train.json")
    with pytest.raises(
        DatasetError, match=r"one LVIS file, found: lvis_v1_train\.json, lvis_v1_val\.json; pass one file with"
    ):
        build("lvis", tmp_path)
    assert "train-instance" in build("lvis", tmp_path / "lvis_v1_train.json").splits
    (tmp_path / "lvis_v1_val.json").rename(tmp_path / "mine.json")
    with pytest.raises(DatasetError, match=r"does not have the name of an LVIS file \(such as lvis_v1_val\.json\)"):
        build("lvis", tmp_path / "mine.json")


# SGinW


def test_all_sets_of_sginw_are_known() -> None:
    assert len(SGINW) == len(set(SGINW)) == 25
    assert {"Nutterfly-Squireel", "HouseHold-Items", "Airplane-Parts"} <= set(SGINW)


@pytest.mark.parametrize("name", SGINW)
def test_sginw_every_set_builds(tmp_path: Path, home: Path, name: str) -> None:
    manifest = build(f"sginw-{name}", mini.write_sginw(tmp_path, mini.sginw(), name))
    assert manifest.splits["valid"].expressions == 4


def test_sginw_asks_every_class_of_every_image(tmp_path: Path, home: Path) -> None:
    root = mini.write_sginw(tmp_path, mini.sginw(), splits=("train", "valid", "train_10shot"))
    manifest = build("sginw-Fruits", root)
    assert list(manifest.splits) == ["valid", "train", "train_10shot"]
    samples = load_samples("sginw-Fruits/valid")
    assert [(s.image_id, s.expression, s.no_target) for s in samples] == [
        ("valid-0", "apple", False),
        ("valid-0", "pear", True),
        ("valid-1", "apple", True),
        ("valid-1", "pear", False),
    ]
    assert samples[0].ann_ids == ("valid-0", "valid-1")
    assert samples[0].target.area == 20 * 20 + 8 * 18
    assert samples[1].tags == ("absent",)
    assert Path(samples[0].image_path).is_file()
    assert Counter(o.category for o in load_objects("sginw-Fruits")) == {"apple": 6, "pear": 3}
    # The folder of the set itself, and one file.
    assert build("sginw-Fruits", root / "Fruits").fingerprint == manifest.fingerprint
    one = build("sginw-Fruits", root / "Fruits" / "valid" / "_annotations_min1cat.coco.json")
    assert list(one.splits) == ["valid"]


def test_sginw_of_another_set_is_refused(tmp_path: Path, home: Path) -> None:
    root = mini.write_sginw(tmp_path, mini.sginw())
    with pytest.raises(DatasetError, match="contains no Cows/valid/"):
        build("sginw-Cows", root)
    with pytest.raises(DatasetError, match="contains no Cows/valid/"):
        build("sginw-Cows", root / "Fruits")
    content = mini.sginw()
    content["annotations"][0]["category_id"] = 99
    with pytest.raises(DatasetError, match=r"annotations\[0\] \(id 0\): image 0 or category 99 is not in the file"):
        build("sginw-Fruits", mini.write_sginw(tmp_path, content))


# ReasonSeg


def painted() -> np.ndarray:
    """The miniature's target, painted by hand: largest first, ignored pixels out."""
    target = np.zeros((60, 80), bool)
    target[10:50, 10:50] = True
    target[20:40, 20:40] = False
    target[25:30, 25:30] = True
    return target


def test_reasonseg(tmp_path: Path, home: Path) -> None:
    manifest = build("reasonseg", mini.write_reasonseg(tmp_path, mini.reasonseg()))
    assert list(manifest.splits) == ["val", "test"]
    first, second = load_samples("reasonseg/val")
    assert np.array_equal(first.target.to_array(), painted())
    assert first.tags == ("sentence", "ignore-region")
    assert (first.sample_id, second.sent_id) == ("reasonseg/val/umbrella_val/0", "1")
    assert second.expression.endswith("in the rain?")
    ignored = [o for o in load_objects("reasonseg") if o.crowd]
    assert [o.category for o in ignored] == ["ignore", "ignore"]
    assert first.polygons == ((25, 25, 30, 25, 30, 30, 25, 30), (10, 10, 50, 10, 50, 50, 10, 50))


def test_reasonseg_in_the_windows_code_page(tmp_path: Path, home: Path) -> None:
    content = {**mini.reasonseg(), "text": ["the caf\u00e9\u2019s cup "], "is_sentence": False}
    build("reasonseg", mini.write_reasonseg(tmp_path, content, "cp1252") / "ReasonSeg")
    sample = load_samples("reasonseg/val")[0]
    assert sample.expression == "the caf\u00e9\u2019s cup"
    assert sample.tags == ("phrase", "ignore-region")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("del content['shapes']", r"val/umbrella_val.json: needs a list 'shapes'"),
        ("content['text'] = []", "needs a list 'shapes' and a list 'text' with at least one expression"),
        ("content['shapes'][0]['points'] = [[1, 1], [2, 2]]", r"shapes\[0\] has 2 points"),
        ("content['shapes'][0]['points'] = [[1], [2], [3]]", r"shapes\[0\]: points must be a"),
        ("content['shapes'][0]['points'] = [[1, float('nan')], [2, 2], [3, 3]]", "not a finite number"),
        ("del content['shapes'][0]['label']", r"shapes\[0\] needs a label"),
    ],
)
def test_reasonseg_broken_files_are_named(tmp_path: Path, home: Path, change: str, message: str) -> None:
    content = mini.reasonseg()
    exec(change, {"content": content})
    with pytest.raises(DatasetError, match=message):
        build("reasonseg", mini.write_reasonseg(tmp_path, content))


# What all share


def test_photographs_in_a_zip_are_not_unpacked(tmp_path: Path, home: Path) -> None:
    annotations = mini.write_grefcoco(tmp_path, *mini.grefs())
    with zipfile.ZipFile(tmp_path / "train2014.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train2014/", "")
        for image_id in mini.SIZES:
            archive.writestr(f"train2014/{mini.file_name(image_id)}", mini.picture(image_id))
    whole = build("grefcoco", annotations, tmp_path / "train2014.zip")
    sample = load_samples("grefcoco/val")[0]
    assert sample.image_path == str(tmp_path / "train2014.zip" / "train2014" / mini.file_name(1))
    folder = mini.write_images(tmp_path / "plain")
    expected = np.asarray(load_image(folder / mini.file_name(1), 60, 80))
    assert np.array_equal(np.asarray(load_image(sample.image_path, 60, 80)), expected)
    # The folder that holds the zip does as well.
    assert build("grefcoco", annotations, tmp_path).fingerprint == whole.fingerprint


@pytest.mark.parametrize("bad", ["../up/", "/", "train2014/../../"])
def test_a_zip_that_climbs_out_is_not_followed(tmp_path: Path, home: Path, bad: str) -> None:
    annotations = mini.write_grefcoco(tmp_path, *mini.grefs())
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for image_id in mini.SIZES:
            archive.writestr(f"{bad}{mini.file_name(image_id)}", mini.picture(image_id))
    with pytest.raises(DatasetError, match=r"the image COCO_train2014_000000000001.jpg is not in"):
        build("grefcoco", annotations, tmp_path / "evil.zip")


def test_a_zip_behind_a_link(tmp_path: Path, home: Path) -> None:
    annotations = mini.write_grefcoco(tmp_path, *mini.grefs())
    with zipfile.ZipFile(tmp_path / "0123456789abcdef", "w") as archive:
        for image_id in mini.SIZES:
            archive.writestr(mini.file_name(image_id), mini.picture(image_id))
    (tmp_path / "train2014.zip").symlink_to(tmp_path / "0123456789abcdef")
    build("grefcoco", annotations, tmp_path / "train2014.zip")
    sample = load_samples("grefcoco/val")[0]
    load_image(sample.image_path, 60, 80)
    with pytest.raises(DatasetError, match=r"its name does not end in .zip"):
        build("grefcoco", annotations, tmp_path / "0123456789abcdef")


def test_broken_zips(tmp_path: Path, home: Path) -> None:
    annotations = mini.write_grefcoco(tmp_path, *mini.grefs())
    path = tmp_path / "images.zip"
    path.write_bytes(b"PK and no more")
    with pytest.raises(DatasetError, match="is neither a folder nor a complete zip file"):
        build("grefcoco", annotations, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(mini.file_name(1), b"<html>404</html>")
        archive.writestr(mini.file_name(2), mini.picture(2))
    with pytest.raises(DatasetError, match="is not an image in the format JPEG"):
        build("grefcoco", annotations, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(mini.file_name(1), mini.picture(2))
        archive.writestr(mini.file_name(2), mini.picture(2))
    with pytest.raises(
        DatasetError, match=r"has the size \(50, 40\) \(height, width\), but the annotations state \(60, 80\)"
    ):
        build("grefcoco", annotations, path)


def test_a_truncated_photograph_in_a_zip(tmp_path: Path, home: Path) -> None:
    annotations = mini.write_grefcoco(tmp_path, *mini.grefs())
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for image_id in mini.SIZES:
            archive.writestr(mini.file_name(image_id), mini.picture(image_id)[:900])
    build("grefcoco", annotations, tmp_path / "images.zip")
    sample = load_samples("grefcoco/val")[0]
    with pytest.raises(DatasetError, match="cannot be decoded"):
        load_image(sample.image_path, 60, 80)
    (tmp_path / "images.zip").unlink()
    with pytest.raises(DatasetError, match="does not exist"):
        load_image(sample.image_path, 60, 80)


@pytest.mark.parametrize("damage", ["bom", "windows", "gzip", "cut", "empty", "utf16"])
def test_text_files_that_were_mishandled(tmp_path: Path, home: Path, damage: str) -> None:
    refs, instances = mini.grefs()
    whole = build("grefcoco", mini.write_grefcoco(tmp_path / "good", refs, instances))
    annotations = mini.write_grefcoco(tmp_path / "bad", refs, instances)
    path = annotations / "grefcoco" / "instances.json"
    content = json.dumps(instances, indent=1).encode()
    path.write_bytes(
        {
            "bom": b"\xef\xbb\xbf" + content,
            "windows": content.replace(b"\n", b"\r\n"),
            "gzip": gzip.compress(content),
            "cut": content[: len(content) // 2],
            "empty": b"",
            "utf16": content.decode().encode("utf-16"),
        }[damage]
    )
    if damage in ("bom", "windows"):
        assert build("grefcoco", annotations).fingerprint == whole.fingerprint
        return
    message = {"gzip": "compressed with gzip", "utf16": "not UTF-8"}.get(damage, "not valid JSON")
    with pytest.raises(DatasetError, match=message):
        build("grefcoco", annotations)


@pytest.mark.parametrize("damage", ["windows", "gzip", "cut"])
def test_pickles_that_were_mishandled(tmp_path: Path, home: Path, damage: str) -> None:
    annotations = mini.write_refzom(tmp_path, *mini.refzom())
    path = annotations / "refzom" / "Ref_ZOM.p"
    content = path.read_bytes()
    path.write_bytes(
        {
            "windows": content.replace(b"\n", b"\r\n"),
            "gzip": gzip.compress(content),
            "cut": content[: len(content) // 2],
        }[damage]
    )
    message = {
        "windows": "has Windows line endings",
        "gzip": "compressed with gzip",
        "cut": r"is not a complete pickle of plain data \(",
    }[damage]
    with pytest.raises(DatasetError, match=message):
        build("refzom", annotations)


@pytest.mark.parametrize("form", ["list", "string", "bytes"])
def test_codes_in_every_form(tmp_path: Path, home: Path, form: str) -> None:
    refs, instances = mini.refzom()
    code = coco_mask.frPyObjects(mini.crowd()["segmentation"], 60, 80)
    counts = {
        "list": mini.crowd()["segmentation"]["counts"],
        "string": code["counts"].decode(),
        "bytes": code["counts"],
    }
    instances["annotations"][-1]["segmentation"]["counts"] = counts["list" if form == "bytes" else form]
    annotations = mini.write_refzom(tmp_path, refs, instances)
    if form == "bytes":
        # JSON has no bytes: the Parquet tables and Python callers have.
        assert Mask.from_rle({"size": [60, 80], "counts": counts["bytes"]}).area == 8 * 18
        return
    build("refzom", annotations)
    assert load_samples("refzom/train")[-1].target.area == 8 * 18


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 1, 2, 2], "polygon 0 must be a flat"),
        ([1, 1, 2, 2, 3], "polygon 0 must be a flat"),
        ([1, 1, 9, 1, 9, 9, 1], "polygon 0 must be a flat"),
        ([1, 1, 200, 1, 200, 9], "but the image has"),
        ([], "polygon 0 must be a flat"),
    ],
)
def test_bad_polygons_of_a_target(tmp_path: Path, home: Path, polygon: list[float], message: str) -> None:
    refs, instances = mini.grefs()
    instances["annotations"][0]["segmentation"] = [polygon]
    with pytest.raises(DatasetError, match=message):
        build("grefcoco", mini.write_grefcoco(tmp_path, refs, instances))


def test_files_of_another_split_author(tmp_path: Path, home: Path) -> None:
    refs, instances = refer_release.content()
    annotations = refer_release.write(tmp_path, refs, instances)
    umd = annotations / "refcocog"
    (annotations / "refcoco").rename(umd)
    (umd / "refs(unc).p").rename(umd / "refs(umd).p")
    with pytest.raises(DatasetError, match=r"'testA' is no name of a split of refcocog-umd.*another dataset or split"):
        build("refcocog-umd", annotations)
    with pytest.raises(DatasetError, match=r"file of this dataset \(refs\(google\)\.p\); a dataset that is"):
        build("refcocog-google", umd / "refs(umd).p")


# The hub's tables


def test_tables_of_the_hub_give_the_split_of_the_files(tmp_path: Path, home: Path) -> None:
    refs, instances = refer_release.content()
    # The tables name no classes: their numbers are COCO's.
    instances["categories"] = [{"id": 7, "name": "train"}]
    annotations = refer_release.write(tmp_path, refs, instances)
    files = build("refcoco", annotations, tmp_path / "images")
    tables = build("refcoco", mini.write_tables(tmp_path / "hub", refs, instances, tmp_path / "images"))
    assert tables.splits == files.splits
    assert "no others" in " ".join(tables.notes)
    sample = load_samples("refcoco/val")[0]
    assert sample.image_path.startswith(str(home))
    load_image(sample.image_path, sample.height, sample.width)


def test_tables_of_real_photographs(test_data: Path, tmp_path: Path, home: Path) -> None:
    for dataset, folder, name, prefix in (
        ("refcoco", "refcoco", "refs(unc).p", "refcoco_unc_"),
        ("refcoco+", "refcoco+", "refs(unc).p", "refcoco_plus_unc_"),
        ("refcocog-umd", "refcocog", "refs(umd).p", "refcocog_umd_"),
    ):
        place = test_data / "photos" / "refer" / folder
        refs, instances = read_plain_pickle(place / name), json.loads((place / "instances.json").read_text())
        images = test_data / "photos" / "images"
        files = build(dataset, test_data / "photos" / "refer", images)
        hub = mini.write_tables(tmp_path / dataset, refs, instances, images, prefix)
        assert build(dataset, hub).splits == files.splits


def test_photographs_from_the_tables(tmp_path: Path, home: Path) -> None:
    refs, instances = refer_release.content()
    refer_release.write(tmp_path, refs, instances)
    hub = mini.write_tables(tmp_path / "hub", refs, instances, tmp_path / "images")
    build("grefcoco", mini.write_grefcoco(tmp_path, *mini.grefs()), hub)
    sample = load_samples("grefcoco/val")[0]
    assert sample.image_path.endswith(f"images/{mini.file_name(1)}")
    load_image(sample.image_path, 60, 80)


def test_tables_that_cannot_be_a_ground_truth(tmp_path: Path, home: Path) -> None:
    with pytest.raises(DatasetError, match=r"lmms-lab/RefCOCO\* tables.*8,811 = 3,811 UNC \+ 5,000 Google"):
        build("refcoco", mini.write_lmms_table(tmp_path / "lmms"))
    refs, instances = refer_release.content()
    refer_release.write(tmp_path, refs, instances)
    hub = mini.write_tables(tmp_path / "hub", refs, instances, tmp_path / "images")
    with pytest.raises(DatasetError, match=r"name of the form refcoco_plus_unc_<split>-\*\.parquet; the tables are"):
        build("refcoco+", hub)
    with pytest.raises(DatasetError, match="remove --images"):
        build("refcoco", hub, tmp_path / "images")
    with pytest.raises(DatasetError, match="is not a split of moondream/refcoco-m"):
        build("refcoco-m", hub)
    renamed = tmp_path / "validation-00000-of-00001.parquet"
    renamed.write_bytes(next((hub / "data").glob("*_val-*")).read_bytes())
    with pytest.raises(DatasetError, match="lacks the columns file_name, image_id, samples"):
        build("refcoco-m", renamed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("row['ref_list'][0]['ref_info']['split'] = 'testA'", r"row 0, ref_list\[0\]: its split is 'testA'"),
        ("row['ref_list'][0]['ann_info']['id'] = 99", r"annotation 11 is not in"),
        ("row['image_info']['file_name'] = '../x.jpg'", "must be a file"),
        ("row['image']['bytes'] = b'x'", "row 0: the bytes of .* are not a readable"),
        ("row['image'] = None", r"row 0: the image .* is missing"),
        ("row['image_info'] = None", "row 0:.*image_info has no integer id"),
        ("row['image_info']['height'] = 61", r"image 1: its bytes are \(60, 80\)"),
        ("row['ref_list'][0]['ref_info'] = None", r"row 0, ref_list\[0\]: needs ann_info"),
    ],
)
def test_broken_rows_of_a_table_are_named(tmp_path: Path, home: Path, change: str, message: str) -> None:
    refs, instances = refer_release.content()
    refer_release.write(tmp_path, refs, instances)
    rows = deepcopy(mini.table_rows(refs, instances, "val", tmp_path / "images"))
    exec(change, {"row": rows[0]})
    path = tmp_path / "refcoco_unc_val-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, mini.TABLE_SCHEMA), path)
    with pytest.raises(DatasetError, match=message):
        build("refcoco", path)


def test_a_picture_of_another_size_is_told(tmp_path: Path, home: Path) -> None:
    images = mini.write_images(tmp_path / "images")
    Image.new("RGB", (81, 60)).save(images / mini.file_name(1))
    with pytest.raises(
        DatasetError, match=r"has the size \(60, 81\) \(height, width\), but the annotations state \(60, 80\)"
    ):
        build("grefcoco", mini.write_grefcoco(tmp_path, *mini.grefs()), images)
