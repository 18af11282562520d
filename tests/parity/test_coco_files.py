"""Inputs that people's public reports describe, and their neighbours: the right figure, or words that name the row."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from detection_files import box_polygon
from pycocotools import mask as coco_mask

from refbench.errors import DatasetError, PredictionError
from refbench.scoring.protocols.average_precision import (
    BOUNDARY_AP,
    COCO_AP,
    LVIS_AP,
    DetectionProtocol,
    score_detections,
)
from refbench.scoring.protocols.coco_files import read_annotations
from refbench.scoring.protocols.sginw import evaluate_sginw

Content = dict[str, Any]
Rows = list[dict[str, Any]]
SIZE = 60
EVERY = [COCO_AP, BOUNDARY_AP, LVIS_AP]


def truth_file() -> Content:
    """Two instances of two classes in one image, as COCO and LVIS write them."""
    image = {"id": 1, "height": SIZE, "width": SIZE, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    boxes = {1: (5, 5, 20, 20), 2: (30, 30, 20, 20)}
    return {
        "images": [image],
        "categories": [{"id": c, "name": f"c{c}", "frequency": "f"} for c in boxes],
        "annotations": [
            {
                "id": c, "image_id": 1, "category_id": c, "segmentation": [box_polygon(*box)], "area": 400,
                "bbox": list(box), "iscrowd": 0,
            }
            for c, box in boxes.items()
        ],
    }  # fmt: skip


def perfect(truth: Content) -> Rows:
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": a["segmentation"], "score": 0.9}
        for a in truth["annotations"]
    ]


def score(folder: Path, truth: Content, rows: Any, rule: DetectionProtocol = COCO_AP) -> dict[str, float]:
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(rows))
    return score_detections([read_annotations(folder / "truth.json")], folder / "results.json", [rule])[
        rule.name
    ].metrics


IDS: dict[str, Callable[[int], Any]] = {
    "from 0": lambda k: k, "negative": lambda k: -k, "text": lambda k: f"a-{k}", "digits": str,
    "huge": lambda k: 2**70 + k, "floats": lambda k: float(k), "as large as Python writes": lambda k: 10**4000 + k,
}  # fmt: skip


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("part", ["images", "categories", "annotations"])
@pytest.mark.parametrize("rule", EVERY, ids=lambda r: r.name)
def test_ids_of_any_kind_are_ids(tmp_path: Path, rule: DetectionProtocol, part: str, kind: str) -> None:
    truth = truth_file()
    field = {"images": "image_id", "categories": "category_id", "annotations": ""}[part]
    new = {row["id"]: IDS[kind](k) for k, row in enumerate(truth[part])}
    for row in truth[part]:
        row["id"] = new[row["id"]]
    for row in truth["annotations"] if field else []:
        row[field] = new[row[field]]
    assert score(tmp_path, truth, perfect(truth), rule)["AP"] == pytest.approx(100)


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: r.name)
def test_annotations_need_no_ids(tmp_path: Path, rule: DetectionProtocol) -> None:
    truth = truth_file()
    del truth["annotations"][1]["id"]
    assert score(tmp_path, truth, perfect(truth), rule)["AP"] == pytest.approx(100)


def test_sets_may_count_from_0(tmp_path: Path) -> None:
    truth = truth_file()
    for k, row in enumerate(truth["annotations"]):
        row["id"] = k
    place = tmp_path / "truth" / "Cows" / "valid"
    place.mkdir(parents=True)
    (place / "_annotations_min1cat.coco.json").write_text(json.dumps(truth))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "seginw_Cows_val.json").write_text(json.dumps(perfect(truth)))
    assert evaluate_sginw(tmp_path / "truth", tmp_path / "results")[0].metrics["Cows"] == pytest.approx(100)


REFUSED: list[tuple[str, str]] = [
    # Two of a name, in each part.
    ("t['annotations'][1]['id'] = 1", r"annotations\[1\] \(id 1\): its id 1 is also the id of annotations\[0\]"),
    ("t['annotations'][1]['id'] = 1.0", r"annotations\[1\] \(id 1.0\): its id 1 is also the id of annotations\[0\]"),
    ("t['images'].append(dict(t['images'][0]))", r"images\[1\] \(id 1\): its id 1 is also the id of images\[0\]"),
    ("t['categories'][1]['id'] = 1", r"categories\[1\] \(id 1\): its id 1 is also the id of categories\[0\]"),
    # Ids that are none.
    ("t['annotations'][0]['id'] = None",
    r"annotations\[0\] \(id null\): its `id` must be an integer or a string, got null"),
    ("t['annotations'][0]['id'] = True", "its `id` must be an integer or a string, got true"),
    ("t['images'][0]['id'] = [1]", r"images\[0\] \(id \[1\]\): its `id` must be an integer or a string, got \[1\]"),
    ("del t['categories'][0]['id']", r"categories\[0\]: it has no `id`"),
    ("t['annotations'][0]['image_id'] = '1'", "its `image_id` '1' is not in"),
    ("t['annotations'][0]['category_id'] = 9", "its `category_id` 9 is not in .*the categories of this file"),
    ("t['annotations'][0]['category_id'] = 1.5", r"its `category_id` must be an integer or a string, got 1\.5"),
    ("t['annotations'][0] = 'x'", r"annotations\[0\]:.*be an object, got 'x'"),
    # Flags.
    *[
        (f"t['annotations'][1]['iscrowd'] = {v}",
        rf"annotations\[1\] \(id 2\): its `iscrowd` must be 0 or 1, got {said}")
        for v, said in (("'0'", "'0'"), ("None", "null"), ("-1", "-1"), ("2", "2"), ("0.5", "0.5"), ("[]", r"\[\]"))
    ],
    ("t['annotations'][0]['ignore'] = 'no'", "0 or 1, got 'no'"),
    # Sizes.
    *[
        (f"t['annotations'][1]['area'] = {v}",
        rf"annotations\[1\] \(id 2\): its `area` (must be a finite number, got|has the) {said}")
        for v, said in (
            ("-1", "impossible value -1;"), ("float('nan')", "nan; it is the number"), ("None", "null"),
            ("'400'", "'400'"), ("1e11", "impossible value 100000000000.0;"), ("10**400", "1000"), ("True", "true"),
            ("[400]", r"\[400\]"),
        )
    ],
    ("del t['annotations'][0]['area']", "its `area` is missing; it is"),
    ("t['images'][0]['height'] = 60.5", r"images\[0\] \(id 1\): height must be an integer"),
    ("t['images'][0]['width'] = 10**400", "width must be between 1 and 65535 px"),
    ("del t['images'][0]['width']", "it has no width"),
    # Segmentations.
    ("del t['annotations'][1]['segmentation']", r"annotations\[1\] \(id 2\): it has no segmentation"),
    *[
        (f"t['annotations'][1]['segmentation'] = {v}", said)
        for v, said in (
            ("[]", r"or run-length encoding, got \[\]"), ("None", "or run-length encoding, got null"),
            ("[[]]", "polygon 0 must be a flat"), ("7", "or run-length encoding, got 7"),
            ("'x'", "or run-length encoding, got 'x'"), ("{}", "'size' and 'counts'"),
            ("[[1, 2, 3, 4, 5, 10**400]]", "polygon 0"), ("{'size': [60, 60], 'counts': [10**400]}", "counts"),
            ("{'size': [6, 6], 'counts': [36]}",
            r"size as its image, \[60, 60\] \[height, width\], got \[6, 6\]"),
            ("{'size': [60, 60], 'counts': 'x'}", "invalid run-length code"),
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), REFUSED)
@pytest.mark.parametrize("rule", [COCO_AP, LVIS_AP], ids=lambda r: r.name)
def test_annotation_files_that_are_refused(tmp_path: Path, rule: DetectionProtocol, change: str, said: str) -> None:
    truth = truth_file()
    exec(change, {"t": truth})
    with pytest.raises(DatasetError, match=said) as caught:
        score(tmp_path, truth, perfect(truth_file()), rule)
    assert "truth.json" in str(caught.value)
    assert "results.json" not in str(caught.value)


@pytest.mark.parametrize(("crowd", "expected"), [(0, 50.5), (False, 50.5), (1, 100), (True, 100), ("missing", 50.5)])
def test_crowds(tmp_path: Path, crowd: Any, expected: float) -> None:
    truth = truth_file()
    # Two of one class, of which one is found: half of it, unless the other is a crowd.
    truth["annotations"][1] |= {"category_id": 1, "iscrowd": crowd}
    if crowd == "missing":
        del truth["annotations"][1]["iscrowd"]
    assert score(tmp_path, truth, perfect(truth_file())[:1])["AP"] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: r.name)
@pytest.mark.parametrize(
    "more",
    [
        {"bbox": [0, 0, 600, 600]}, {"bbox": None}, {"bbox": []}, {"bbox": "x"}, {"caption": "a cat"}, {"id": 1},
        {"keypoints": []}, {"area": -5}, {"iscrowd": 1}, {"bbox": [1, 2], "area": None, "ignore": "x"},
    ],
)  # fmt: skip
def test_other_keys_of_results_do_not_matter(tmp_path: Path, rule: DetectionProtocol, more: dict[str, Any]) -> None:
    truth = truth_file()
    rows = perfect(truth)
    # Off by a little, so that the sizes of what is found count.
    rows[1]["segmentation"] = [box_polygon(31, 30, 24, 20)]
    plain = score(tmp_path, truth, rows, rule)
    assert 10 < plain["AP"] < 100
    assert score(tmp_path, truth, [row | more for row in rows], rule) == pytest.approx(plain, nan_ok=True)


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: r.name)
@pytest.mark.parametrize("form", ["polygons", "uncompressed", "bytes as text", "mixed"])
def test_results_may_have_any_form_of_mask(tmp_path: Path, rule: DetectionProtocol, form: str) -> None:
    truth = truth_file()
    rows = perfect(truth)
    for k, row in enumerate(rows):
        code = coco_mask.frPyObjects(row["segmentation"], SIZE, SIZE)[0]
        if form == "uncompressed" or (form == "mixed" and k):
            x = 5 if k == 0 else 30
            # Columns of the square, one after another.
            counts = [x * SIZE + x] + [20, SIZE - 20] * 20
            row["segmentation"] = {"size": [SIZE, SIZE], "counts": [*counts[:-1], SIZE * SIZE - sum(counts[:-1])]}
        elif form == "bytes as text":
            row["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    assert score(tmp_path, truth, rows, rule)["AP"] == pytest.approx(100)


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: r.name)
def test_nothing_found_and_nothing_to_find(tmp_path: Path, rule: DetectionProtocol) -> None:
    truth = truth_file()
    found = score(tmp_path, truth, [], rule)
    assert (found["AP"], found["APs"]) == (0, 0)
    assert found["APm"] != found["APm"]
    truth["annotations"] = []
    assert all(v != v for v in score(tmp_path, truth, [], rule).values())
    for part in ("categories", "images"):
        truth[part] = []
        assert all(v != v for v in score(tmp_path, truth, [], rule).values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("r[0]['image_id'] = [1]", r"entry 0: its `image_id` must be an integer or a string, got \[1\]"),
        ("r[0]['image_id'] = {'a': 1}", "entry 0: its `image_id` must be an integer or a string, got"),
        ("r[0]['image_id'] = 10**400", "entry 0: its `image_id` .* is not in"),
        ("r[0]['image_id'] = '1'", "it has the number 1: write ids in one way"),
        ("r[1]['category_id'] = None", "entry 1: its `category_id` must be an integer or a string, got"),
        ("del r[1]['category_id']", "entry 1: it has no `category_id`"),
        ("r[1]['score'] = 10**400", "entry 1: its `score` must be a finite number, got .*; it is the number"),
        ("r[1]['score'] = '0.9'", r"entry 1: its `score` must be a finite number, got '0\.9'; it is the number"),
        ("r[1]['score'] = True", "entry 1: its `score` must be a finite number, got true; it is the number"),
        ("r[1]['score'] = float('inf')", "entry 1: its `score` must be a finite number, got inf; it is the number"),
        ("del r[1]['segmentation']", "entry 1:.*it has no segmentation"),
        ("r[1]['segmentation'] = [[0, 0, 1]]", "entry 1: polygon 0 must be a flat"),
        ("r[1] = None", "entry 1: it must be an object, got null"),
    ],
)
@pytest.mark.parametrize("rule", [COCO_AP, LVIS_AP], ids=lambda r: r.name)
def test_results_that_are_refused(tmp_path: Path, rule: DetectionProtocol, change: str, said: str) -> None:
    rows: Any = perfect(truth_file())
    exec(change, {"r": rows})
    with pytest.raises(PredictionError, match=said) as caught:
        score(tmp_path, truth_file(), rows, rule)
    assert "results.json: 1 of 2 entries cannot be scored against" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "t['images'][0]['neg_category_ids'] = None",
            r"images\[0\] \(id 1\): its `neg_category_ids` must be a list of category ids, got null",
        ),
        (
            "t['images'][0]['not_exhaustive_category_ids'] = 3",
            "its `not_exhaustive_category_ids` must be a list of category ids, got 3",
        ),
        ("t['images'][0]['neg_category_ids'] = ['1']", "its `neg_category_ids` contains .*, whose type differs from"),
        (
            "t['images'][0]['neg_category_ids'] = [[1]]",
            r"its `neg_category_ids` must be an integer or a string, got \[1\]",
        ),
        (
            "t['categories'][0]['frequency'] = 'rare'",
            r"categories\[0\] \(id 1\):.*\(rare, common, frequent\), got 'rare'",
        ),
        ("del t['categories'][1]['frequency']", r"\(rare, common, frequent\), got null"),
        ("del t['images'][0]['neg_category_ids']", "use --protocol coco-ap"),
    ],
)
def test_lvis_fields_that_are_refused(tmp_path: Path, change: str, said: str) -> None:
    truth = truth_file()
    exec(change, {"t": truth})
    with pytest.raises(DatasetError, match=said):
        score(tmp_path, truth, perfect(truth_file()), LVIS_AP)


def test_what_lvis_leaves_out(tmp_path: Path) -> None:
    truth = truth_file()
    truth["annotations"][1] |= {"category_id": 1}
    rows = perfect(truth_file())[:1]
    assert score(tmp_path, truth, rows, LVIS_AP)["AP"] == pytest.approx(50.5, abs=0.1)
    # lvis-api looks at `ignore`, and not at `iscrowd`; COCO's evaluation the other way round.
    ignored, crowd = deepcopy(truth), deepcopy(truth)
    ignored["annotations"][1]["ignore"] = 1
    crowd["annotations"][1]["iscrowd"] = 1
    assert score(tmp_path, ignored, rows, LVIS_AP)["AP"] == pytest.approx(100)
    assert score(tmp_path, crowd, rows, LVIS_AP)["AP"] == pytest.approx(50.5, abs=0.1)
    assert score(tmp_path, ignored, rows, COCO_AP)["AP"] == pytest.approx(50.5, abs=0.1)
    notes = score_detections([read_annotations(tmp_path / "truth.json")], tmp_path / "results.json", [COCO_AP])
    assert notes["coco-ap"].notes == ("1 annotations have `ignore` set. COCO's evaluator does not read it: they count",)


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: r.name)
def test_results_that_come_twice_count_once(tmp_path: Path, rule: DetectionProtocol) -> None:
    truth = truth_file()
    rows = perfect(truth)
    assert score(tmp_path, truth, [*rows, *rows[:1]], rule)["AP"] == pytest.approx(100)
    notes = score_detections([read_annotations(tmp_path / "truth.json")], tmp_path / "results.json", [rule])
    assert "1 detections are the same as an earlier one" in notes[rule.name].notes[-1]
    # With another score it is another detection.
    assert score(tmp_path, truth, [*rows, rows[0] | {"score": 0.95}], rule)["AP50"] == pytest.approx(100)
