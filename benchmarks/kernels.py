"""`pair_counts` on real masks, against the published formula, a faster form of it, and the libraries that count IoU."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

import cv2
import faster_coco_eval.core.mask as faster_mask
import hotcoco.mask as hotcoco_mask
import numpy as np
import vernier
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from benchmarks.data import coco128_pairs, seconds_of
from refbench.masks.counting import pair_counts
from refbench.masks.mask import Mask
from refbench.masks.threads import available_cores
from refbench.storage.children import end_with_parent

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


Rles = list[dict[str, Any]]


def iou_of_pairs(library: Any, predictions: Rles, targets: Rles) -> None:
    """The IoU of each pair by the `iou` of a library, which pycocotools, hotcoco and faster-coco-eval call alike."""
    for p, t in zip(predictions, targets, strict=True):
        library.iou([p], [t], [0])


def boundary_iou_of_pairs(predictions: Rles, targets: Rles) -> None:
    """The Boundary IoU of each pair by faster-coco-eval."""
    for p, t in zip(predictions, targets, strict=True):
        faster_mask.iou([faster_mask.rleToBoundary(p)], [faster_mask.rleToBoundary(t)], [0])


def vernier_evaluation(predictions: list[Mask], targets: list[Mask]) -> Any:
    """vernier's evaluation of a dataset that has each pair as an image; its `evaluate` counts IoU and Boundary IoU."""
    images = [{"id": k, "height": t.height, "width": t.width} for k, t in enumerate(targets, 1)]
    rows = [
        [{"id": k, "image_id": k, "category_id": 1, "iscrowd": 0, "score": 1.0, "area": m.area,
          "bbox": list(map(float, m.box_xywh)), "segmentation": {"size": list(m.size), "counts": m.counts.decode()}}
         for k, m in enumerate(masks, 1)]
        for masks in (targets, predictions)
    ]  # fmt: skip
    made: list[Any] = []
    for given in rows:
        coco = COCO()
        coco.dataset = {"images": images, "categories": [{"id": 1, "name": "object"}], "annotations": given}
        coco.createIndex()
        made.append(coco)
    return vernier.COCOeval(made[0], made[1], "boundary")


@contextmanager
def two_processes(predictions: list[Mask], targets: list[Mask]) -> Iterator[Callable[[], float]]:
    """What a second core can add on this machine: two processes that share nothing count one half each. The function
    gives the seconds of one after the other against both at once.
    """
    half = len(targets) // 2
    context = multiprocessing.get_context("fork")

    parent = os.getpid()

    def count_when_told(pipe: Any, part: slice) -> None:
        end_with_parent(parent)
        some_p, some_t = predictions[part], targets[part]
        while pipe.recv():
            pair_counts(some_p, some_t, threads=1)
            pipe.send(True)

    pipes = []
    for part in (slice(0, half), slice(half, 2 * half)):
        ours, theirs = context.Pipe()
        context.Process(target=count_when_told, args=(theirs, part), daemon=True).start()
        pipes.append(ours)

    def gain() -> float:
        began = time.perf_counter()
        for pipe in pipes:
            pipe.send(True)
            pipe.recv()
        between = time.perf_counter()
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()
        return (between - began) / (time.perf_counter() - between)

    try:
        yield gain
    finally:
        for pipe in pipes:
            pipe.send(False)


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
    one_core = two_cores = of_dicts = math.inf
    libraries = {"pycocotools": coco_mask, "hotcoco": hotcoco_mask, "faster-coco-eval": faster_mask}
    iou = dict.fromkeys(libraries, math.inf)
    gains, most = [], []
    with two_processes(predictions, targets) as gain_of_processes:
        for _ in range(25):
            # Taken in turns, so that a change of the machine's speed meets all of them.
            one = seconds_of(lambda: pair_counts(predictions, targets, threads=1), 1) / n
            two = seconds_of(lambda: pair_counts(predictions, targets, threads=2), 1) / n
            dicts = seconds_of(lambda: pair_counts(rles_p, rles_t, threads=1), 1) / n
            of_dicts = min(of_dicts, dicts)
            for name, library in libraries.items():
                iou[name] = min(iou[name], seconds_of(partial(iou_of_pairs, library, rles_p, rles_t), 1) / n)
            one_core, two_cores = min(one_core, one), min(two_cores, two)
            gains.append(one / two)
            most.append(gain_of_processes())
    some_rles = [[m.to_rle() for m in masks] for masks in (some_p, some_t)]
    bands = seconds_of(lambda: boundary_iou_of_pairs(*some_rles), 3) / SLOW_PAIRS
    with redirect_stdout(io.StringIO()):
        evaluation = vernier_evaluation(some_p, some_t)
        of_vernier = seconds_of(evaluation.evaluate, 3) / SLOW_PAIRS
    published = seconds_of(lambda: count_as_published(some_p, some_t), 3) / SLOW_PAIRS
    boxed = seconds_of(lambda: count_in_the_box(some_p, some_t), 5) / SLOW_PAIRS
    figures: dict[str, Any] = {
        "pairs": n,
        "pair_counts, one core, us a pair": 1e6 * one_core,
        "pair_counts, two threads, us a pair": 1e6 * two_cores,
        "pair_counts of COCO dicts, one core, us a pair": 1e6 * of_dicts,
        "COCO dicts against Masks (wanted at most 1.3)": of_dicts / one_core,
        **{f"{name}, mask iou alone, us a pair": 1e6 * seconds for name, seconds in iou.items()},
        **{f"COCO dicts, times faster than the mask iou of {name}": t / of_dicts for name, t in iou.items()},
        "faster-coco-eval, Boundary IoU, us a pair": 1e6 * bands,
        "vernier, evaluation by Boundary IoU, us a pair": 1e6 * of_vernier,
        "times faster than the Boundary IoU of faster-coco-eval": bands / of_dicts,
        "times faster than the evaluation of vernier": of_vernier / of_dicts,
        "OpenCV decode-and-erode as published, us a pair": 1e6 * published,
        "OpenCV in the box, one kernel, us a pair": 1e6 * boxed,
        "times faster than published OpenCV (wanted 100)": published / one_core,
        "times faster than boxed OpenCV (wanted 25)": boxed / one_core,
    }
    if available_cores() >= 2:
        figures["two threads against one, median of 25 turns (wanted 1.9)"] = float(np.median(gains))
        figures["two processes against one, median of 25 turns"] = float(np.median(most))
    return figures
