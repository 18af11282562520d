"""Small datasets in the true layouts of their releases, over the two images of `refer_release`."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import refer_release
from PIL import Image
from pycocotools import mask as coco_mask

SIZES = {1: (60, 80), 2: (50, 40)}
SECOND = [50.0, 10.0, 70.0, 10.0, 70.0, 40.0]


def picture(image_id: int) -> bytes:
    random = np.random.default_rng(image_id)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (*SIZES[image_id], 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def file_name(image_id: int, split: str = "train2014") -> str:
    return f"COCO_{split}_{image_id:012d}.jpg"


def write_images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in SIZES:
        (folder / file_name(image_id)).write_bytes(picture(image_id))
    return folder


def crowd() -> dict[str, Any]:
    """A crowd in the lower right corner of image 1, as an uncompressed run-length code."""
    mask = np.zeros((60, 80), np.uint8)
    mask[50:58, 60:78] = 1
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {
        "id": 14, "image_id": 1, "category_id": 7, "iscrowd": 1, "bbox": [60, 50, 18, 8],
        "segmentation": {"size": [60, 80], "counts": counts},
    }  # fmt: skip


def grefs() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """gRefCOCO: two objects, one, one with a crowd, a crowd alone, and nothing."""
    _, instances = refer_release.content()
    instances["annotations"].append(crowd())
    rows = [
        ([11, 12], 1, "val", ["both of them"]),
        ([-1], 1, "val", ["a purple elephant", "the second moon"]),
        ([13], 2, "testA", ["the only one"]),
        ([11, 14], 1, "testB", ["the square and the crowd"]),
        ([14], 1, "testB", ["the crowd"]),
    ]
    refs = []
    for ref_id, (ann_ids, image_id, split, texts) in enumerate(rows):
        sentences = [
            {"sent_id": 10 * ref_id + k, "sent": t, "raw": t, "tokens": t.split()} for k, t in enumerate(texts)
        ]
        refs.append(
            {
                "ref_id": ref_id, "ann_id": ann_ids, "category_id": [7 if a > 0 else -1 for a in ann_ids],
                "image_id": image_id, "file_name": "ignored.jpg", "split": split, "sentences": sentences,
                "sent_ids": [s["sent_id"] for s in sentences], "no_target": ann_ids == [-1],
            }
        )  # fmt: skip
    return refs, instances


def write_grefcoco(folder: Path, refs: Any, instances: Any, name: str = "grefs(unc).json") -> Path:
    place = folder / "grefcoco"
    place.mkdir(parents=True, exist_ok=True)
    content = json.dumps(refs).encode() if name.endswith(".json") else pickle.dumps(refs, protocol=2)
    (place / name).write_bytes(content)
    (place / "instances.json").write_text(json.dumps(instances))
    return folder


def refzom() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ref-ZOM: one, many and zero; the second image is from val2014, and one ann_id is a bare integer."""
    refs, instances = grefs()
    for ref, source in zip(refs, ("many", "zero", "one", "many", "one"), strict=True):
        del ref["no_target"]
        ref.update(source=source, split="test" if ref["split"] == "val" else "train")
    refs[1]["ann_id"] = []
    refs[2]["ann_id"] = 13
    instances["images"][1]["file_name"] = file_name(2, "val2014")
    return refs, instances


def write_refzom(folder: Path, refs: Any, instances: Any, name: str = "Ref_ZOM.p") -> Path:
    place = folder / "refzom"
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(pickle.dumps(refs, protocol=0))
    (place / "instances.json").write_text(json.dumps(instances))
    return folder


def lvis() -> dict[str, Any]:
    """Image 1: two cups (one class), a bow; image 2: a cup, not exhaustive, and one that covers no pixel."""
    images = [
        {
            "id": i, "height": SIZES[i][0], "width": SIZES[i][1], "license": 1, "date_captured": "",
            "coco_url": f"http://images.cocodataset.org/{where}2017/{i:012d}.jpg",
            "neg_category_ids": [3] if i == 1 else [2], "not_exhaustive_category_ids": [] if i == 1 else [1],
        }
        for i, where in ((1, "val"), (2, "train"))
    ]  # fmt: skip
    annotations = [
        _lvis_row(1, 1, 1, [refer_release.SQUARE]),
        _lvis_row(2, 1, 1, [SECOND]),
        _lvis_row(3, 1, 2, [[30, 45, 40, 45, 40, 55, 30, 55], [35, 50, 45, 50, 45, 58, 35, 58]]),
        _lvis_row(4, 2, 1, [refer_release.SQUARE]),
        _lvis_row(5, 2, 1, [[5, 5, 5.1, 5, 5.1, 5.1]]),
    ]
    categories = [
        {"id": 1, "name": "cup", "synset": "cup.n.01", "synonyms": ["cup"], "def": "", "frequency": "f"},
        {
            "id": 2,
            "name": "bow_(decorative_ribbons)",
            "synset": "bow.n.08",
            "synonyms": [],
            "def": "",
            "frequency": "c",
        },
        {"id": 3, "name": "acorn", "synset": "acorn.n.01", "synonyms": ["acorn"], "def": "", "frequency": "r"},
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _lvis_row(ann_id: int, image_id: int, category: int, polygons: list[list[float]]) -> dict[str, Any]:
    return {"id": ann_id, "image_id": image_id, "category_id": category, "segmentation": polygons, "area": 1.0,
            "bbox": [1.0, 1.0, 5.0, 5.0]}  # fmt: skip


def write_lvis(folder: Path, content: Any, name: str = "lvis_v1_val.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    for image_id, where in ((1, "val2017"), (2, "train2017")):
        (folder / "images" / where).mkdir(parents=True, exist_ok=True)
        (folder / "images" / where / f"{image_id:012d}.jpg").write_bytes(picture(image_id))
    return folder / name


def sginw() -> dict[str, Any]:
    """Fruits: apples on image 1 (two of them, one as a code), a pear on image 2; ids begin at 3 and 0."""
    images = [{"id": i - 1, "file_name": f"fruit-{i}.jpg", "height": SIZES[i][0], "width": SIZES[i][1]} for i in SIZES]
    second = {**crowd(), "id": 1, "image_id": 0, "category_id": 3, "iscrowd": 0}
    annotations = [
        {"id": 0, "image_id": 0, "category_id": 3, "segmentation": [refer_release.SQUARE], "bbox": [10, 10, 20, 20]},
        second,
        {"id": 2, "image_id": 1, "category_id": 5, "segmentation": [refer_release.SQUARE], "bbox": [10, 10, 20, 20]},
    ]
    return {
        "info": {}, "licenses": [], "images": images, "annotations": annotations,
        "categories": [{"id": 3, "name": "apple"}, {"id": 5, "name": "pear"}],
    }  # fmt: skip


def write_sginw(folder: Path, content: Any, name: str = "Fruits", splits: tuple[str, ...] = ("valid",)) -> Path:
    for split in splits:
        place = folder / name / split
        place.mkdir(parents=True, exist_ok=True)
        (place / "_annotations_min1cat.coco.json").write_text(json.dumps(content))
        for image_id in SIZES:
            (place / f"fruit-{image_id}.jpg").write_bytes(picture(image_id))
    return folder


def sa_co() -> dict[str, Any]:
    """Crowded: two phrases on image 1 (two instances, none), one on image 2, and one that is not exhaustive."""
    pairs = [(10, 1, "the blue square", 1), (11, 1, "a fish_ball", 1), (12, 2, "thing", 1), (13, 2, "a crowd", 0)]
    images = [
        {
            "id": pair, "file_name": f"1/100{i}/metaclip_{i}.jpeg", "text_input": phrase, "height": SIZES[i][0],
            "width": SIZES[i][1], "queried_category": str(pair), "is_instance_exhaustive": whole,
            "is_pixel_exhaustive": whole,
        }
        for pair, i, phrase, whole in pairs
    ]  # fmt: skip
    masks = [(1, 10, 1, [refer_release.SQUARE]), (2, 10, 1, [SECOND]), (3, 12, 2, [refer_release.SQUARE]),
             (4, 13, 2, [refer_release.SQUARE])]  # fmt: skip
    annotations = []
    for ann_id, pair, i, polygons in masks:
        code = coco_mask.merge(coco_mask.frPyObjects([list(map(float, p)) for p in polygons], *SIZES[i]))
        annotations.append(
            {
                "id": ann_id, "image_id": pair, "category_id": 1, "iscrowd": int(ann_id == 4), "source": "manual",
                "area": 0.01, "bbox": [0.1, 0.2, 0.3, 0.25],
                "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
            }
        )  # fmt: skip
    return {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def write_sa_co(folder: Path, content: Any, name: str = "gold_crowded_merged_a_release_test.json") -> Path:
    """The annotations in `gt-annotations`, the images in `images`; returns the file."""
    place = folder / "gt-annotations"
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(json.dumps(content))
    for image_id in SIZES:
        photograph = folder / "images" / f"1/100{image_id}/metaclip_{image_id}.jpeg"
        photograph.parent.mkdir(parents=True, exist_ok=True)
        photograph.write_bytes(picture(image_id))
    return place / name


def reasonseg() -> dict[str, Any]:
    """A large target, a smaller ignored shape inside it, a still smaller target inside that, and a flag."""

    def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
        return [[left, top], [right, top], [right, bottom], [left, bottom]]

    return {
        "text": ["the thing that keeps you dry", "what would you take along in the rain?"],
        "is_sentence": True,
        "shapes": [
            {"label": "target", "points": box(25, 25, 30, 30), "shape_type": "polygon", "image_name": "a.jpg"},
            {"label": "ignore", "points": box(20, 20, 40, 40), "shape_type": "polygon", "image_name": "a.jpg"},
            {"label": "target", "points": box(10, 10, 50, 50), "shape_type": "polygon", "image_name": "a.jpg"},
            {"label": "flag", "points": [[0, 0]], "shape_type": "polygon", "image_name": "a.jpg"},
        ],
    }  # fmt: skip


def write_reasonseg(folder: Path, content: Any, encoding: str = "utf-8") -> Path:
    for split in ("val", "test"):
        place = folder / "ReasonSeg" / split
        place.mkdir(parents=True, exist_ok=True)
        (place / f"umbrella_{split}.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
        (place / f"umbrella_{split}.jpg").write_bytes(picture(1))
    return folder


# The features of jxu124/refcoco-benchmark, as on its card.
_ANNOTATION = pa.struct(
    [
        ("area", pa.float64()), ("bbox", pa.list_(pa.float64())), ("category_id", pa.int64()), ("id", pa.int64()),
        ("image_id", pa.int64()), ("iscrowd", pa.int64()), ("segmentation", pa.list_(pa.list_(pa.float64()))),
    ]
)  # fmt: skip
_SENTENCE = pa.struct(
    [("raw", pa.string()), ("sent", pa.string()), ("sent_id", pa.int64()), ("tokens", pa.list_(pa.string()))]
)
_REF = pa.struct(
    [
        ("ann_id", pa.int64()), ("category_id", pa.int64()), ("file_name", pa.string()), ("image_id", pa.int64()),
        ("ref_id", pa.int64()), ("sent_ids", pa.list_(pa.int64())), ("sentences", pa.list_(_SENTENCE)),
        ("split", pa.string()),
    ]
)  # fmt: skip
_INFO = pa.struct(
    [
        ("coco_url", pa.string()), ("date_captured", pa.string()), ("file_name", pa.string()),
        ("flickr_url", pa.string()), ("height", pa.int64()), ("id", pa.int64()), ("license", pa.int64()),
        ("width", pa.int64()),
    ]
)  # fmt: skip
TABLE_SCHEMA = pa.schema(
    [
        ("ref_list", pa.list_(pa.struct([("ann_info", _ANNOTATION), ("ref_info", _REF)]))),
        ("image_info", _INFO),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)


def table_rows(refs: list[dict[str, Any]], instances: dict[str, Any], split: str, images: Path) -> list[dict[str, Any]]:
    """Rows of one split of the table; images are read from `images`."""
    rows = []
    annotations = {a["id"]: a for a in instances["annotations"]}
    for info in instances["images"]:
        mine = [r for r in refs if r["image_id"] == info["id"] and r["split"] == split]
        if not mine:
            continue
        path = next(images.rglob(info["file_name"]))
        refs_here = [{"ann_info": {"area": 1.0, **annotations[r["ann_id"]]}, "ref_info": r} for r in mine]
        rows.append(
            {"ref_list": refs_here, "image_info": info, "image": {"bytes": path.read_bytes(), "path": path.name}}
        )
    return rows


def write_tables(
    folder: Path, refs: list[dict[str, Any]], instances: dict[str, Any], images: Path, prefix: str = "refcoco_unc_"
) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split in dict.fromkeys(r["split"] for r in refs):
        table = pa.Table.from_pylist(table_rows(refs, instances, split, images), TABLE_SCHEMA)
        pq.write_table(table, folder / "data" / f"{prefix}{split}-00000-of-00001-0123456789abcdef.parquet")
    return folder


def write_lmms_table(folder: Path) -> Path:
    """The columns of lmms-lab/RefCOCO: one flat list per row."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {
        "question_id": "11", "image": {"bytes": picture(1), "path": "1.jpg"}, "question": "?", "answer": ["square"],
        "segmentation": refer_release.SQUARE + SECOND, "bbox": [10.0, 10.0, 20.0, 20.0], "iscrowd": 0,
        "file_name": file_name(1),
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), folder / "val-00000-of-00004.parquet")
    return folder
