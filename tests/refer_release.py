"""A small REFER release to break: two images, three objects, a few refs."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


def content() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    refs = [
        _ref(1, 11, 1, "val", ["left square", "the square"]),
        _ref(2, 12, 1, "val", ["other one"]),
        _ref(3, 13, 2, "testA", ["big thing"]),
    ]
    instances = {
        "images": [
            {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "height": 60, "width": 80},
            {"id": 2, "file_name": "COCO_train2014_000000000002.jpg", "height": 50, "width": 40},
        ],
        "annotations": [
            _annotation(11, 1, SQUARE),
            _annotation(12, 1, [50.0, 10.0, 70.0, 10.0, 70.0, 40.0]),
            _annotation(13, 2, SQUARE),
        ],
        "categories": [{"id": 7, "name": "square"}],
    }
    return deepcopy(refs), deepcopy(instances)


def _ref(ref_id: int, ann_id: int, image_id: int, split: str, texts: list[str]) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * ref_id + k, "sent": t, "raw": t.upper(), "tokens": t.split()} for k, t in enumerate(texts)
    ]
    return {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": sentences}


def _annotation(ann_id: int, image_id: int, polygon: list[float]) -> dict[str, Any]:
    box = [10.0, 10.0, 20.0, 20.0]
    return {"id": ann_id, "image_id": image_id, "category_id": 7, "segmentation": [polygon], "bbox": box, "iscrowd": 0}


def write(folder: Path, refs: Any, instances: Any, protocol: int = 0) -> Path:
    """Writes the release; returns the folder for --annotations. Images go to `folder/images`."""
    place = folder / "refer" / "refcoco"
    place.mkdir(parents=True)
    (place / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=protocol))
    (place / "instances.json").write_text(json.dumps(instances))
    images = folder / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for name, height, width in (("1", 60, 80), ("2", 50, 40)):
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"COCO_train2014_{int(name):012d}.jpg")
    return folder / "refer"
