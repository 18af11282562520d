"""Curation: audit, apply and diff on the published RefCOCO val, proposals a second on coco128's images."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data import temporary_home, test_data
from refbench.curation.differences import diff
from refbench.curation.findings import audit
from refbench.curation.folder import load_items
from refbench.curation.ledger import Ledger, rows_of, write_ledger
from refbench.curation.proposals import propose
from refbench.curation.recipe import parse_recipe
from refbench.curation.revision import apply
from refbench.datasets.builders import refer
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.masks.mask import Mask
from refbench.records import Action, Decision
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import silent

REFINERS = ("grabcut", "random-walker", "active-contour", "watershed", "superpixels")
PHOTOGRAPHS = 16
SMALLEST_PX = 400


def measure() -> dict[str, Any]:
    """Seconds of one call each; a second call of audit, apply and diff, since the first one compiles."""
    with temporary_home() as folder:
        return {**_whole_split(folder), **_refiners(folder)}


def _whole_split(folder: Path) -> dict[str, Any]:
    build_dataset("refcoco", refer.build, Sources(test_data() / "whole-splits" / "refer"), silent)
    recipe = parse_recipe("", "no recipe")
    audit_s = _second(lambda: audit("refcoco/val", recipe, out=folder / "audit", with_images=False))
    ledger = folder / "ledger.parquet"
    write_ledger(ledger, _ledger("refcoco/val"))
    apply_s = _second(lambda: apply("refcoco/val", ledger, "cleaned"))
    diff_s = _second(lambda: diff("refcoco/val", "cleaned/val"))
    return {
        "expressions of refcoco/val": sum(len(i.samples) for i in load_items("refcoco/val")),
        "audit without images, s (wanted at most 10)": audit_s,
        "apply, s (wanted at most 5)": apply_s,
        "diff, s (wanted at most 5)": diff_s,
    }


def _ledger(address: str) -> Ledger:
    """Of every three masks one kept, one replaced by its box, one dropped."""
    images = load_items(address)
    masks: dict[str, Decision] = {}
    for k, target in enumerate(t for i in images for t in i.masks):
        action = (Action.KEEP, Action.CHANGE, Action.DROP)[k % 3]
        left, top, width, height = target.box_xywh
        corners = [left, top, left + width, top, left + width, top + height, left, top + height]
        box = Mask.from_polygons([corners], *target.mask.size) if action == Action.CHANGE else None
        masks[target.mask_id] = Decision(target.mask_id, action, "proposals", "measured", box)
    words = {s.sample_id: Decision(s.sample_id, Action.KEEP, "language", "") for i in images for s in i.samples}
    return Ledger(address, split_fingerprint(address), "none", "", tuple(rows_of(images, masks, words, {})))


def _refiners(folder: Path) -> dict[str, Any]:
    masks = _build_photographs(folder)
    out: dict[str, Any] = {"masks of the images": masks, "photographs": PHOTOGRAPHS}
    for name in REFINERS:
        recipe = parse_recipe(f'[[refiners]]\nname = "{name}"\n', name)
        place = folder / name
        audit("refcoco/val", recipe, out=place, checks=["mask-empty"], workers=1)
        began = time.perf_counter()
        propose(place)
        out[f"{name}, proposals a second on all cores, their start included"] = masks / (time.perf_counter() - began)
    return out


def _build_photographs(folder: Path) -> int:
    """The first images of coco128 as a split whose expressions are class names; returns how many masks."""
    content = json.loads((test_data() / "coco128" / "annotations" / "instances_train2017.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    images = {i["id"] for i in content["images"][:PHOTOGRAPHS]}
    refs = []
    for k, a in enumerate(content["annotations"]):
        if a["image_id"] in images and not a["iscrowd"] and a["area"] >= SMALLEST_PX:
            name = names[a["category_id"]]
            sentences = [{"sent_id": k, "sent": name, "raw": name, "tokens": [name]}]
            refs.append(
                {"ref_id": k, "ann_id": a["id"], "image_id": a["image_id"], "split": "val", "sentences": sentences}
            )
    place = folder / "coco128" / "refcoco"
    place.mkdir(parents=True)
    (place / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    (place / "instances.json").write_text(json.dumps(content))
    sources = Sources(folder / "coco128", test_data() / "coco128" / "train2017")
    build_dataset("refcoco", refer.build, sources, silent)
    return sum(len(i.masks) for i in load_items("refcoco/val"))


def _second(work: Callable[[], Any]) -> float:
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
