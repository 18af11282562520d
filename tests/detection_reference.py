"""The rules for lists of detections, restated over the JSON of their files: COCO, LVIS and SA-Co."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def code_of(row: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """A segmentation in any of its forms as a compressed code."""
    segmentation = row["segmentation"]
    if isinstance(segmentation, list):
        polygons = [[float(v) for v in polygon] for polygon in segmentation]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def pixels_of(row: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    return coco_mask.decode(code_of(row, *size)).astype(bool)


def overlap(found: NDArray[np.bool_], there: NDArray[np.bool_], crowd: bool = False) -> float:
    shared = int((found & there).sum())
    of = int(found.sum()) if crowd else int((found | there).sum())
    return shared / of if shared else 0.0


def once(rows: list[dict[str, Any]], sizes: dict[Any, tuple[int, int]]) -> list[dict[str, Any]]:
    """The results without those that are the same as an earlier one."""
    seen, out = set(), []
    for row in rows:
        key = row["image_id"], row["category_id"], float(row["score"]), pixels_of(row, sizes[row["image_id"]]).tobytes()
        if key not in seen:
            seen.add(key)
            out.append(row)
    return out


def coco_ap(content: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """The twelve figures of COCO's evaluation of masks, NaN where there is nothing to find.

    In each image and class the best 100 (10, 1) detections, best first, each take the instance with which they overlap
    most, if by the threshold. Crowds and instances of another size are there to be matched, a crowd by many, but count
    neither for nor against; nor does an unmatched detection of another size.
    """
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    truths: dict[Any, list[Any]] = defaultdict(list)
    for a in content["annotations"]:
        mask = pixels_of(a, sizes[a["image_id"]])
        truths[a["image_id"], a["category_id"]].append((mask, bool(a.get("iscrowd", 0)), float(a["area"])))
    found: dict[Any, list[Any]] = defaultdict(list)
    for row in once(rows, sizes):
        mask = pixels_of(row, sizes[row["image_id"]])
        found[row["image_id"], row["category_id"]].append((mask, float(row["score"])))
    for listed in found.values():
        listed.sort(key=lambda one: -one[1])
    overlaps = {
        key: np.array([[overlap(m, t, crowd) for t, crowd, _ in truths.get(key, [])] for m, _ in listed])
        for key, listed in found.items()
    }
    out: dict[str, float] = {}
    for name, size, most, threshold in (
        ("AP", "", 100, None), ("AP50", "", 100, 0), ("AP75", "", 100, 5), ("APs", "s", 100, None),
        ("APm", "m", 100, None), ("APl", "l", 100, None), ("AR1", "", 1, None), ("AR10", "", 10, None),
        ("AR100", "", 100, None), ("ARs", "s", 100, None), ("ARm", "m", 100, None), ("ARl", "l", 100, None),
    ):  # fmt: skip
        chosen = THRESHOLDS if threshold is None else THRESHOLDS[threshold : threshold + 1]
        values: list[float] = []
        for category in {c["id"]: None for c in content["categories"]}:
            read = [_class_value(category, sizes, truths, found, overlaps, SIZES[size], most, t) for t in chosen]
            values += [v[name.startswith("AR")] for v in read if v is not None]
        out[name] = 100 * float(np.mean(values)) if values else float("nan")
    return out


def _class_value(
    category: Any, sizes: Any, truths: Any, found: Any, overlaps: Any, area: tuple[float, float], most: int, at: float
) -> tuple[float, float] | None:
    """(average precision, recall) of a class at a threshold; None if it has no instance."""
    positives = 0
    scored: list[tuple[float, bool]] = []
    for image in sorted(sizes, key=str if any(isinstance(i, str) for i in sizes) else None):
        there, listed = truths.get((image, category), []), found.get((image, category), [])[:most]
        ignored = [crowd or not area[0] <= size <= area[1] for _, crowd, size in there]
        positives += ignored.count(False)
        order = sorted(range(len(there)), key=lambda g: ignored[g])
        taken: set[int] = set()
        for k, (mask, score) in enumerate(listed):
            best, match = min(at, 1 - 1e-10), None
            for g in order:
                if g in taken and not there[g][1]:
                    continue
                if match is not None and not ignored[match] and ignored[g]:
                    break
                if overlaps[image, category][k, g] >= best:
                    best, match = overlaps[image, category][k, g], g
            if match is not None:
                taken.add(match)
                if ignored[match]:
                    continue
            elif not area[0] <= int(mask.sum()) <= area[1]:
                continue
            scored.append((score, match is not None))
    if not positives:
        return None
    scored.sort(key=lambda one: -one[0])
    hits = np.array([hit for _, hit in scored], float)
    true, total = np.cumsum(hits), np.arange(1, len(hits) + 1)
    precision = true / total if len(hits) else np.array([])
    # The best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    where = np.searchsorted(true / positives, RECALLS, side="left")
    read = [precision[w] if w < len(precision) else 0.0 for w in where]
    return float(np.mean(read)), float(true[-1] / positives) if len(hits) else 0.0


def federated_ap(content: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """The rule of the LVIS paper (section 3), restated.

    Of an image the 300 best detections count. A detection of a class that was neither found nor searched for in the
    image is dropped; of a class that is not exhaustively drawn there, an unmatched one is ignored. Matching is
    greedy by score at each IoU threshold; precision is made monotone and read at 101 recalls; AP is the mean over
    thresholds and over the classes that have annotations.
    """
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    negative = {i["id"]: set(i["neg_category_ids"]) for i in content["images"]}
    partial = {i["id"]: set(i["not_exhaustive_category_ids"]) for i in content["images"]}
    truths: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for a in content["annotations"]:
        truths[a["image_id"], a["category_id"]].append(code_of(a, *sizes[a["image_id"]]))
    per_image: dict[int, list[Any]] = defaultdict(list)
    for row in once(rows, sizes):
        per_image[row["image_id"]].append(row)
    found: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for image_id, listed in per_image.items():
        for row in sorted(listed, key=lambda r: -r["score"])[:300]:
            key = image_id, row["category_id"]
            if key in truths or row["category_id"] in negative[image_id]:
                found[key].append(row)
    thresholds = np.linspace(0.5, 0.95, 10)
    recalls = np.linspace(0, 1, 101)
    values: dict[int, list[float]] = {}
    for category in content["categories"]:
        number = category["id"]
        positives = sum(len(v) for (_, c), v in truths.items() if c == number)
        if not positives:
            continue
        values[number] = []
        for threshold in thresholds:
            scores, hits = [], []
            for image_id in sorted(sizes):
                listed = found.get((image_id, number), [])
                masks = truths.get((image_id, number), [])
                if not listed:
                    continue
                codes = [code_of(row, *sizes[image_id]) for row in listed]
                overlaps = coco_mask.iou(codes, masks, [0] * len(masks)) if masks else None
                taken: set[int] = set()
                for k, row in enumerate(listed):
                    best, at = min(threshold, 1 - 1e-10), -1
                    for g in range(len(masks)):
                        if g not in taken and overlaps is not None and overlaps[k, g] >= best:
                            best, at = overlaps[k, g], g
                    if at >= 0:
                        taken.add(at)
                    elif number in partial[image_id]:
                        continue
                    scores.append(row["score"])
                    hits.append(at >= 0)
            order = np.argsort(-np.array(scores), kind="mergesort")
            true = np.cumsum(np.array(hits, float)[order]) if hits else np.array([])
            false = np.cumsum(~np.array(hits, bool)[order]) if hits else np.array([])
            recall = true / positives
            precision = true / np.maximum(true + false, np.spacing(1))
            for k in range(len(precision) - 1, 0, -1):
                precision[k - 1] = max(precision[k - 1], precision[k])
            at = np.searchsorted(recall, recalls, side="left")
            read = np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0) if hits else [0.0]
            values[number].append(float(np.mean(read)))
    frequency = {c["id"]: c["frequency"] for c in content["categories"]}
    out = {"AP": list(values.values()), "AP50": [v[0] for v in values.values()]}
    for group in "rcf":
        out[f"AP{group}"] = [v for n, v in values.items() if frequency[n] == group]
    return {name: float(np.mean(found)) if found else float("nan") for name, found in out.items()}


def sa_co(contents: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, float]:
    """cgF1 of SA-Co, restated: pairs that everybody annotated exhaustively, the annotator that fits best, sums.

    The matching is checked by trying all, so it is for few instances.
    """
    sizes = {i["id"]: (i["height"], i["width"]) for i in contents[0]["images"]}
    partial = {i["id"] for c in contents for i in c["images"] if not i["is_instance_exhaustive"]}
    found: dict[Any, list[Any]] = defaultdict(list)
    for row in once(rows, sizes):
        if row["score"] >= 0.5:
            found[row["image_id"]].append(pixels_of(row, sizes[row["image_id"]]))
    outcomes = []
    for image in (i["id"] for i in contents[0]["images"] if i["id"] not in partial):
        best: tuple[float, int, int, NDArray[np.int64]] | None = None
        for content in contents:
            there = [
                pixels_of(a, sizes[image])
                for a in content["annotations"]
                if a["image_id"] == image and not a.get("iscrowd", 0)
            ]
            matched = _matched(np.array([[overlap(f, t) for t in there] for f in found[image]]), len(there))
            precision, recall = matched / (len(found[image]) + 1e-4), matched / (len(there) + 1e-4)
            fit = float((2 * precision * recall / (precision + recall + 1e-4)).mean())
            if not there and not found[image]:
                # Nothing to find and nothing found: nothing fits better.
                fit = 2.0
            if best is None or fit > best[0]:
                best = fit, len(there), len(found[image]), matched
        assert best is not None
        outcomes.append(best[1:])
    tp = sum((m for _, _, m in outcomes), np.zeros(10))
    there_sum, found_sum = sum(t for t, _, _ in outcomes), sum(f for _, f, _ in outcomes)
    positive_found = sum(f for t, f, _ in outcomes if t)

    def f1(precision: Any, recall: Any) -> Any:
        return 2 * precision * recall / (precision + recall + 1e-4)

    precision, recall = tp / (found_sum + 1e-4), tp / (there_sum + 1e-4)
    micro = tp / (positive_found + 1e-4)
    both = [(m / (f + 1e-4), m / (t + 1e-4)) for t, f, m in outcomes if t and f]
    il = {
        (here, said): sum(bool(t) == here and bool(f) == said for t, f, _ in outcomes)
        for here in (True, False)
        for said in (True, False)
    }
    hit, miss, false, none = il[True, True], il[True, False], il[False, True], il[False, False]
    il_precision, il_recall = hit / (hit + false + 1e-6), hit / (hit + miss + 1e-6)
    correlation = (hit * none - false * miss) / (
        ((hit + false) * (hit + miss) * (none + false) * (none + miss)) ** 0.5 + 1e-6
    )
    values = {
        "precision": precision, "recall": recall, "F1": f1(precision, recall), "positive_micro_precision": micro,
        "positive_micro_F1": f1(micro, recall), "cgF1": f1(micro, recall) * correlation,
        "positive_macro_F1": np.mean([f1(p, r) for p, r in both], axis=0) if both else np.full(10, np.nan),
    }  # fmt: skip
    out = {
        "IL_precision": il_precision, "IL_recall": il_recall, "IL_MCC": correlation,
        "IL_F1": 2 * il_precision * il_recall / (il_precision + il_recall + 1e-6),
        "IL_FPR": false / (false + none + 1e-6),
    }  # fmt: skip
    for name, value in values.items():
        out |= {name: float(np.mean(value)), f"{name}@0.5": float(value[0]), f"{name}@0.75": float(value[5])}
    return {name: 100 * float(value) for name, value in out.items()}


def _matched(overlaps: NDArray[np.float64], there: int) -> NDArray[np.int64]:
    """How many pairs of the matching with the largest sum of overlaps reach each threshold; scipy's, of equal ones."""
    found = len(overlaps)
    if not found or not there:
        return np.zeros(10, np.int64)
    values = overlaps[linear_sum_assignment(-overlaps)]
    short = overlaps if found <= there else overlaps.T
    tried = (
        sum(short[k, g] for k, g in enumerate(p)) for p in itertools.permutations(range(short.shape[1]), len(short))
    )
    assert max(tried) == pytest.approx(values.sum(), abs=1e-12)
    return np.array([(values >= t).sum() for t in THRESHOLDS])
