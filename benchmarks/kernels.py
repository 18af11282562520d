"""`pair_counts` on real masks, against the published formula, a faster form of it, and pycocotools."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from benchmarks.data import coco128_pairs, seconds_of
from refbench.masks.counting import pair_counts
from refbench.masks.mask import Mask
from refbench.masks.threads import available_cores

SLOW_PAIRS = 300


def band_px(height: int, width: int) -> int:
    return max(1, round(0.02 * math.hypot(height, width)))


def eroded_as_published(pixels: NDArray[np.uint8], d: int) -> NDArray[np.uint8]:
    """Pad by one, then d erosions with 3 x 3 (boundary-iou-api `mask_to_boundary`)."""
    padded = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    out: NDArray[np.uint8] = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)[1:-1, 1:-1]
    return out


def count_as_published(predictions: list[Mask], targets: list[Mask]) -> list[tuple[int, ...]]:
    counts = []
    for p, t in zip(predictions, targets, strict=True):
        a, b = coco_mask.decode(p.to_rle()), coco_mask.decode(t.to_rle())
        d = band_px(p.height, p.width)
        counts.append(_counts(a, b, a - eroded_as_published(a, d), b - eroded_as_published(b, d)))
    return counts


def count_in_the_box(predictions: list[Mask], targets: list[Mask]) -> list[tuple[int, ...]]:
    """The same pixels, sooner: everything in the box of both masks, one erosion with a (2d+1)^2 kernel."""
    counts = []
    for p, t in zip(predictions, targets, strict=True):
        rle_p, rle_t = p.to_rle(), t.to_rle()
        boxes = coco_mask.toBbox([rle_p, rle_t]).astype(int)
        left, top = boxes[:, :2].min(axis=0)
        right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
        d = band_px(p.height, p.width)
        kernel = np.ones((2 * d + 1, 2 * d + 1), np.uint8)
        parts, bands = [], []
        for rle in (rle_p, rle_t):
            part = np.ascontiguousarray(coco_mask.decode(rle)[top:bottom, left:right])
            parts.append(part)
            # Everything outside the box is background, as is everything outside the image.
            bands.append(part - cv2.erode(part, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0))
        counts.append(_counts(*parts, *bands))
    return counts


def _counts(a: Any, b: Any, band_a: Any, band_b: Any) -> tuple[int, ...]:
    return tuple(cv2.countNonZero(x) for x in (a & b, a | b, a, b, band_a & band_b, band_a | band_b))


def coco_iou(predictions: list[dict[str, Any]], targets: list[dict[str, Any]]) -> None:
    for p, t in zip(predictions, targets, strict=True):
        coco_mask.iou([p], [t], [0])


def measure() -> dict[str, Any]:
    """Microseconds a pair on one core, and ratios; the peers' counts are checked to be equal."""
    cv2.setNumThreads(1)
    predictions, targets = coco128_pairs()
    chosen = np.random.default_rng(0).permutation(len(predictions))[:SLOW_PAIRS]
    some_p, some_t = [predictions[k] for k in chosen], [targets[k] for k in chosen]
    ours = pair_counts(some_p, some_t, threads=1)
    expected = list(zip(*(v.tolist() for v in ours.values()), strict=True))
    for peer in (count_as_published, count_in_the_box):
        if peer(some_p, some_t) != expected:
            raise AssertionError(f"{peer.__name__} counts other pixels")
    rles_p, rles_t = [m.to_rle() for m in predictions], [m.to_rle() for m in targets]
    n = len(predictions)
    one_core = two_cores = iou = of_dicts = math.inf
    gains = []
    for _ in range(25):
        # Taken in turns, so that a change of the machine's speed meets all of them.
        one = seconds_of(lambda: pair_counts(predictions, targets, threads=1), 1) / n
        two = seconds_of(lambda: pair_counts(predictions, targets, threads=2), 1) / n
        dicts = seconds_of(lambda: pair_counts(rles_p, rles_t, threads=1), 1) / n
        of_dicts = min(of_dicts, dicts)
        iou = min(iou, seconds_of(lambda: coco_iou(rles_p, rles_t), 1) / n)
        one_core, two_cores = min(one_core, one), min(two_cores, two)
        gains.append(one / two)
    published = seconds_of(lambda: count_as_published(some_p, some_t), 3) / SLOW_PAIRS
    boxed = seconds_of(lambda: count_in_the_box(some_p, some_t), 5) / SLOW_PAIRS
    figures: dict[str, Any] = {
        "pairs": n,
        "pair_counts, one core, us a pair": 1e6 * one_core,
        "pair_counts, two threads, us a pair": 1e6 * two_cores,
        "pair_counts of COCO dicts, one core, us a pair": 1e6 * of_dicts,
        "COCO dicts against Masks (wanted at most 1.3)": of_dicts / one_core,
        "times faster than pycocotools.mask.iou, COCO dicts (wanted 2)": iou / of_dicts,
        "pycocotools.mask.iou, us a pair": 1e6 * iou,
        "OpenCV decode-and-erode as published, us a pair": 1e6 * published,
        "OpenCV in the box, one kernel, us a pair": 1e6 * boxed,
        "times faster than published OpenCV (wanted 100)": published / one_core,
        "times faster than boxed OpenCV (wanted 25)": boxed / one_core,
        "times faster than pycocotools.mask.iou (wanted 1)": iou / one_core,
    }
    if available_cores() >= 2:
        figures["two threads against one, median of 25 turns (wanted 1.7)"] = float(np.median(gains))
    return figures
