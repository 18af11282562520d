"""`ReferringMetric.update` on dense arrays, against its parts and against torchmetrics with OpenCV."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.segmentation import MeanIoU

from refbench import Mask, ReferringMetric, pair_counts

HEIGHT, WIDTH, BATCH = 480, 640, 8
ROUNDS = 30
# Of the diagonal, as in Boundary IoU.
BAND_SHARE = 0.02
UPDATES = 100_000


def _masks(seed: int) -> NDArray[np.bool_]:
    """Smooth shapes of a tenth to a third of the image, bool (BATCH, H, W)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    out = np.zeros((BATCH, HEIGHT, WIDTH), bool)
    for k in range(BATCH):
        cy, cx = random.uniform(0.3, 0.7, 2) * (HEIGHT, WIDTH)
        angle = np.arctan2(y - cy, x - cx)
        radius = random.uniform(0.2, 0.35) * HEIGHT * (1 + 0.2 * np.sin(random.integers(2, 7) * angle))
        out[k] = np.hypot(y - cy, x - cx) < radius
    return out


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The band of Boundary IoU by OpenCV, as its authors publish it."""
    height, width = mask.shape
    reach = max(1, round(BAND_SHARE * float(np.hypot(height, width))))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=reach)
    return np.asarray(mask.astype(np.uint8) - eroded[1:-1, 1:-1])


def _with_torchmetrics(predictions: NDArray[np.bool_], targets: NDArray[np.bool_]) -> None:
    metric = MeanIoU(num_classes=1, input_format="one-hot")
    metric.update(torch.from_numpy(predictions[:, None]).long(), torch.from_numpy(targets[:, None]).long())
    metric.compute()
    for p, t in zip(predictions, targets, strict=True):
        first, second = _boundary(p), _boundary(t)
        _ = (first & second).sum() / max(1, (first | second).sum())


def _by_parts(predictions: NDArray[np.bool_], targets: NDArray[np.bool_]) -> None:
    pair_counts([Mask.from_array(p) for p in predictions], [Mask.from_array(t) for t in targets])


def _with_refbench(predictions: NDArray[np.bool_], targets: NDArray[np.bool_]) -> None:
    ReferringMetric().update(predictions, targets)


def _best(functions: list[Callable[[Any, Any], None]], predictions: Any, targets: Any) -> list[float]:
    """The shortest of ROUNDS turns of each function, in seconds; the functions take turns.

    Every second round goes backwards: a function that comes after a similar one finds the masks in the cache.
    """
    best = [np.inf] * len(functions)
    for number in range(ROUNDS):
        turns = list(enumerate(functions))
        for k, function in turns if number % 2 else reversed(turns):
            start = time.perf_counter()
            function(predictions, targets)
            best[k] = min(best[k], time.perf_counter() - start)
    return best


def _growth() -> tuple[float, float]:
    """Megabytes that memory grows over the second half of UPDATES updates, and seconds per update."""
    metric = ReferringMetric()
    small = np.zeros((1, 48, 64), bool)
    small[:, 10:30, 10:30] = True
    start, half = time.perf_counter(), 0
    for number in range(UPDATES):
        metric.update(small, small)
        if number == UPDATES // 2:
            half = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - half) / 1024
    return grown, (time.perf_counter() - start) / UPDATES


def measure() -> dict[str, Any]:
    """Seconds, ratios and megabytes."""
    predictions, targets = _masks(0), _masks(1)
    ours, parts, theirs = _best([_with_refbench, _by_parts, _with_torchmetrics], predictions, targets)
    grown, each = _growth()
    return {
        f"update, {BATCH} pairs of {WIDTH} x {HEIGHT} (ms a pair)": 1000 * ours / BATCH,
        "update / (encoding + pair_counts)": ours / parts,
        "(torchmetrics MeanIoU + Boundary IoU by OpenCV) / update": theirs / ours,
        f"memory growth in the second half of {UPDATES:,} updates (MB)": grown,
        "update of one small pair (microseconds)": 1e6 * each,
    }
