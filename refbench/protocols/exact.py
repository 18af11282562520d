"""`refbench`: the default protocol. Nothing is resized, dropped or averaged twice.

Every expression counts once, on its image's original pixels, against the union of the target's polygons. An
expression without a target is answered rightly by an empty mask (IoU 1) and wrongly by any pixel (IoU 0). A
failed sample has IoU 0, also when it has no target: a crash must not be worth a point. Thresholds are met
by equality (`>=`). The `no_target` flag of a prediction is stored, but masks alone count here.
"""

from __future__ import annotations

import numpy as np

from refbench.protocols.base import FloatArray, Protocol, ScoreTable, Terms

PRECISION_THRESHOLDS = (5, 6, 7, 8, 9)


def sample_iou(scores: ScoreTable) -> FloatArray:
    """IoU of each sample in 0..1, float64 (N,)."""
    return _shares(scores.intersection, scores.union, scores.failed)


def sample_boundary_iou(scores: ScoreTable) -> FloatArray:
    """Boundary IoU of each sample in 0..1, float64 (N,). Source: Cheng et al., CVPR 2021, equation 2."""
    return _shares(scores.boundary_intersection, scores.boundary_union, scores.failed)


def _shares(top: np.ndarray, bottom: np.ndarray, failed: np.ndarray) -> FloatArray:
    both_empty = np.where(failed, 0.0, 1.0)
    out: FloatArray = np.where(bottom > 0, top / np.maximum(bottom, 1), both_empty)
    return out


def _mean(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    return values, np.ones(len(values))


def _cumulative_iou(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
    return scores.intersection.astype(np.float64), scores.union.astype(np.float64)


def _cumulative_boundary_iou(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
    return scores.boundary_intersection.astype(np.float64), scores.boundary_union.astype(np.float64)


def _precision_at(tenths: int) -> Terms:
    def metric(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        # 10 I >= t U in integers: an IoU of exactly 0.6 reaches 0.6, whatever floats make of it.
        reached = 10 * scores.intersection >= tenths * scores.union
        reached &= ~((scores.union == 0) & scores.failed)
        return _mean(reached.astype(np.float64))

    return metric


REFBENCH = Protocol(
    name="refbench",
    summary="original size, union of polygons, every expression, both empty = 1, failures = 0, >=",
    source="refbench; the choices are those of section 1 of the README's 'How numbers are made'",
    metrics={
        "cumulative_iou": _cumulative_iou,
        "mean_iou": lambda scores: _mean(sample_iou(scores)),
        **{f"precision_at_0.{t}": _precision_at(t) for t in PRECISION_THRESHOLDS},
        "mean_boundary_iou": lambda scores: _mean(sample_boundary_iou(scores)),
        "cumulative_boundary_iou": _cumulative_boundary_iou,
    },
)
