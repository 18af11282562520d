"""`refbench`: the default protocol. No mask is resized, no sample is dropped, and nothing is averaged twice.

Every expression counts once, at the original size of its image, against the union of the polygons of its target. For an
expression without target, an empty mask has IoU 1 and any other mask has IoU 0. A failed sample has IoU 0, even without
target, because a crash must not score. Pixels that a dataset marks as ignored (ReasonSeg) do not count. Thresholds use
`>=`. The `no_target` flag of a prediction is stored, but only masks count here.
"""

from __future__ import annotations

import numpy as np

from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import BOUNDARY, Cumulative, FloatArray, Mean, Precision, Protocol

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def sample_iou(scores: ScoreTable) -> FloatArray:
    """IoU of each sample, float64 (N,), between 0 and 1."""
    return _shares(scores.intersection, scores.union, scores.failed)


def sample_boundary_iou(scores: ScoreTable) -> FloatArray:
    """Boundary IoU of each sample, float64 (N,), between 0 and 1. Source: Cheng et al., CVPR 2021, equation 2."""
    return _shares(scores.boundary_intersection, scores.boundary_union, scores.failed)


def _shares(top: np.ndarray, bottom: np.ndarray, failed: np.ndarray) -> FloatArray:
    both_empty = np.where(failed, 0.0, 1.0)
    out: FloatArray = np.where(bottom > 0, top / np.maximum(bottom, 1), both_empty)
    return out


REFBENCH = Protocol(
    name="refbench",
    summary="original size, union of polygons, every expression, both empty = 1, failures = 0, >=",
    source="refbench, docs/explanation/numbers.md",
    text="the expression as built",
    binarisation="by the adapter",
    resampling="by the adapter, to the original size",
    metrics={
        "cumulative_iou": Cumulative(),
        "mean_iou": Mean(),
        **{f"precision_at_{t}": Precision(t) for t in PRECISION_THRESHOLDS},
        "mean_boundary_iou": Mean(counts=BOUNDARY),
        "cumulative_boundary_iou": Cumulative(counts=BOUNDARY),
    },
    headline="cumulative_iou",
    leaves_out_ignored=True,
)
