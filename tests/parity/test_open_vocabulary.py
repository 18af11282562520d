"""The two readings of LVIS mIoU, on real annotations, restated on pixels from the annotation file itself."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refbench import load_samples, score
from refbench.datasets.builders import lvis
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import PredictionError
from refbench.masks.mask import Mask
from refbench.records import Prediction
from refbench.storage.predictions import json_line
from refbench.storage.progress import silent

Pixels = dict[tuple[int, int], list[np.ndarray]]


def annotated(path: Path) -> tuple[Pixels, set[tuple[int, int]]]:
    """(image, class) -> masks of its instances, and the pairs that are not exhaustively drawn."""
    content = json.loads(path.read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    found: Pixels = defaultdict(list)
    for row in content["annotations"]:
        parts = coco_mask.frPyObjects(row["segmentation"], *sizes[row["image_id"]])
        found[row["image_id"], row["category_id"]].append(coco_mask.decode(parts).any(axis=2))
    return found, {(i["id"], c) for i in content["images"] for c in i["not_exhaustive_category_ids"]}


def moved(mask: np.ndarray) -> np.ndarray:
    return np.roll(mask, (4, -7), axis=(0, 1))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("view", "rule"), [("instance", "lvis-instance"), ("category", "lvis-category-union")])
def test_lvis_mean_iou(test_data: Path, home: Path, tmp_path: Path, view: str, rule: str) -> None:
    source = test_data / "lvis" / "lvis_val_100.json"
    place = tmp_path / "lvis_v0.5_val.json"
    place.write_bytes(source.read_bytes())
    build_dataset("lvis", lvis.build, Sources(place), silent, negatives=False, not_exhaustive="drop")
    found, incomplete = annotated(source)
    if view == "instance":
        expected = [iou(moved(m), m) for masks in found.values() for m in masks if m.any()]
    else:
        unions = [np.logical_or.reduce(m) for pair, m in found.items() if pair not in incomplete]
        expected = [iou(moved(u), u) for u in unions if u.any()]
    lines = [
        json_line(Prediction(s.sample_id, Mask.from_array(moved(s.target.to_array()))))
        for s in load_samples(f"lvis/val-{view}")
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    scored = score(tmp_path / "p.jsonl", f"lvis/val-{view}", protocols=[rule])
    assert scored.summaries[rule].samples == len(expected) > 250
    assert scored.summaries[rule].metrics["mIoU"].value == pytest.approx(100 * np.mean(expected), abs=1e-9)
    other = "lvis-category-union" if view == "instance" else "lvis-instance"
    with pytest.raises(PredictionError, match="is a rule for splits that end in"):
        score(tmp_path / "p.jsonl", f"lvis/val-{view}", protocols=[other])
