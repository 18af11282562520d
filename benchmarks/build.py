"""Building and reloading a published split against the REFER way, and LVIS at its full size."""

from __future__ import annotations

import gc
import json
import pickle
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from benchmarks.data import process_cost, temporary_home, test_data
from refbench.datasets.builders import refer
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.storage.progress import silent
from refbench.storage.samples import load_samples, sample_table

TURNS = 5
LVIS_IMAGES, LVIS_ANNOTATIONS = 19_809, 244_707


def measure() -> dict[str, Any]:
    """Medians of turns in one process, ours and the peer's one after the other; LVIS as a process of its own."""
    with temporary_home() as folder:
        return {**_refcoco(), **_lvis(folder)}


def _refcoco() -> dict[str, Any]:
    release = test_data() / "whole-splits" / "refer"

    def build() -> None:
        build_dataset("refcoco", refer.build, Sources(release), silent)

    ways: dict[str, Callable[[], Any]] = {
        "build": build,
        "reload": lambda: load_samples("refcoco/val"),
        "list": lambda: sample_table("refcoco/val"),
        "refer": lambda: _refer_way(release / "refcoco", False),
        "refer again": lambda: _refer_way(release / "refcoco", True),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            gc.collect()
            began = time.perf_counter()
            kept = way()
            if turn:  # the first one compiles and fills the caches of the disk
                seconds[name].append(time.perf_counter() - began)
            del kept
    took = {name: statistics.median(values) for name, values in seconds.items()}
    each, once = took["refer again"], took["refer"]
    return {
        "expressions of refcoco/val": len(load_samples("refcoco/val")),
        "build, s (wanted at most 3)": took["build"],
        "reload all samples, s (wanted at most 0.1)": took["reload"],
        "list without masks, s": took["list"],
        "REFER way, a mask for each expression, s": each,
        "REFER way, a mask for each ref, s": once,
        "build against REFER, each expression (wanted at least 5)": each / took["build"],
        "reload against REFER, each expression (wanted at least 50)": each / took["reload"],
        "build against REFER, each ref": once / took["build"],
        "reload against REFER, each ref": once / took["reload"],
    }


def _refer_way(folder: Path, each_expression: bool) -> int:
    """What a script does that loads the release by the API of lichengunc/refer and asks for every mask.

    Restated: unpickle, parse, index by id, and for each ref (or, as loaders that list sentences do, for each
    expression) rasterise the polygons, decode them and add the parts up, as `getMask` does.
    """
    with (folder / "refs(unc).p").open("rb") as file:
        refs = pickle.load(file, encoding="latin1")
    instances = json.loads((folder / "instances.json").read_text())
    images = {row["id"]: row for row in instances["images"]}
    annotations = {row["id"]: row for row in instances["annotations"]}
    area = 0
    for ref in refs:
        image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
        for _ in ref["sentences"] if each_expression else (None,):
            codes = coco_mask.frPyObjects(annotation["segmentation"], image["height"], image["width"])
            mask = np.sum(coco_mask.decode(codes), axis=2).astype(np.uint8)
            area += int(sum(coco_mask.area(codes))) + int(mask[0, 0])
    return area


def _lvis(folder: Path) -> dict[str, Any]:
    path = folder / "lvis_v1_val.json"
    _write_lvis(path)
    command = [sys.executable, "-m", "refbench", "build", "lvis", "--annotations", str(path)]
    seconds, megabytes = process_cost(command)
    return {
        "LVIS annotation file, MB": path.stat().st_size / 1e6,
        f"LVIS, {LVIS_ANNOTATIONS} annotations, s (wanted at most 120)": seconds,
        "LVIS peak memory, MB (wanted at most 3000)": megabytes,
    }


def _write_lvis(path: Path) -> None:
    """The real annotations of 100 images, repeated to the numbers of LVIS v1 val."""
    content = json.loads((test_data() / "lvis" / "lvis_val_100.json").read_text())
    images, annotations = content["images"], content["annotations"]
    copies = LVIS_IMAGES // len(images)

    def number(copy: int, image_id: int) -> int:
        return copy * 1_000_000 + image_id

    made = [{**images[k % len(images)], "id": number(k // len(images), images[k % len(images)]["id"])}
            for k in range(LVIS_IMAGES)]  # fmt: skip
    rows = []
    for k in range(LVIS_ANNOTATIONS):
        source = annotations[k % len(annotations)]
        copy = (k // len(annotations)) % copies
        rows.append({**source, "id": k + 1, "image_id": number(copy, source["image_id"])})
    with path.open("w") as file:
        json.dump({**content, "images": made, "annotations": rows}, file)
