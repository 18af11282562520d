"""Boundary metrics: Boundary IoU with any width, its average as in HQ-SAM, the F of DAVIS, and trimaps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from refbench.errors import PredictionError
from refbench.masks.counting import count_bands, count_codes, count_outlines
from refbench.masks.pairs import PairCounts
from refbench.scoring.counts import Batch, Measure
from refbench.scoring.protocols.base import (
    BOUNDARY,
    Cumulative,
    FloatArray,
    Judged,
    Mean,
    Own,
    Protocol,
    Terms,
    Worth,
)

DEFAULT_RATIO = 0.02
DAVIS_SHARE = 0.008
NO_OUTLINE = "small objects lie entirely in the band: report its width, and the size of the image"


def boundary_iou(*ratios: float) -> Protocol:
    """Boundary IoU with any widths, each a share of the diagonal: the mean over sentences, and the cumulative value.

    Raises:
        PredictionError: a ratio is not in (0, 1].
    """
    widths = ratios or (DEFAULT_RATIO,)
    for ratio in widths:
        if not 0 < ratio <= 1:
            raise PredictionError(
                f"the ratio in boundary-iou(ratio) must be in (0, 1] (a share of the image diagonal), got {ratio:g}"
            )
    names = {ratio: repr(float(ratio)) for ratio in dict.fromkeys(widths)}
    return Protocol(
        name=f"boundary-iou({','.join(names.values())})" if ratios else "boundary-iou",
        summary="IoU of the inner bands of both masks, whose width is a share of the diagonal; any widths",
        source="bowenc0221/boundary-iou-api boundary_iou/utils/boundary_utils.py:mask_to_boundary (37d2558)",
        text="the expression as built",
        metrics={
            f"{kind}({text})": metric(counts=f"boundary-{text}")
            for text in names.values()
            for kind, metric in (("boundary_iou", Mean), ("cumulative_boundary_iou", Cumulative))
        },
        leaves_out_ignored=True,
        headline=f"boundary_iou({next(iter(names.values()))})",
        measures=tuple(_band(ratio, f"boundary-{text}") for ratio, text in names.items()),
        caveats=(NO_OUTLINE, "the original prints AP with it (boundary-ap), no mean; the metric names are ours"),
    )


def _band(ratio: float, name: str) -> Measure:
    def count(batch: Batch) -> Mapping[str, NDArray[np.int64]]:
        counts = count_codes(batch.predictions, batch.targets, batch.heights, batch.widths, ratio)
        columns = PairCounts.of(counts)
        return {"intersection": columns.boundary_intersection, "union": columns.boundary_union}

    return Measure(name, ("intersection", "union"), count)


BIOU_HQSAM = Protocol(
    name="biou-hqsam",
    summary="means of IoU and of Boundary IoU at 2 %, where 0 / 0 leaves no value at all",
    source="SysCV/sam-hq train/utils/misc.py:mask_iou, boundary_iou; train/train.py:evaluate (fb181f8)",
    text="none: the original is prompted by boxes",
    binarisation="logit > 0",
    resampling="bilinear",
    both_empty=Worth(float("nan")),
    metrics={"val_iou_0": Mean(), "val_boundary_iou_0": Mean(counts=BOUNDARY)},
    leaves_out_ignored=True,
    headline="val_boundary_iou_0",
    when_empty=0.0,
    caveats=(
        "the original numbers its four sets 0 to 3 and averages over sets; here is one set",
        "two empty masks are 0 / 0 in the original: the mean has no value then",
        NO_OUTLINE,
    ),
)


def _outlines(batch: Batch) -> Mapping[str, NDArray[np.int64]]:
    diagonals = np.sqrt(batch.heights.astype(np.float64) ** 2 + batch.widths.astype(np.float64) ** 2)
    radii = np.ceil(DAVIS_SHARE * diagonals).astype(np.int64)
    counts = count_outlines(batch.predictions, batch.targets, batch.heights, batch.widths, radii)
    return {column: counts[:, k] for k, column in enumerate(OUTLINES.columns)}


OUTLINES = Measure("outlines", ("prediction", "target", "prediction_matched", "target_matched"), _outlines)


def _davis_f_of(judged: Judged) -> FloatArray:
    """2 P R / (P + R) of each sample, where P and R are the matched shares of the two outlines."""
    columns = {c: judged.evidence.measured[OUTLINES.name][c].astype(np.float64) for c in OUTLINES.columns}
    found, meant = columns["prediction"], columns["target"]
    precision = np.where(found > 0, columns["prediction_matched"] / np.maximum(found, 1), 1.0)
    recall = np.where(meant > 0, columns["target_matched"] / np.maximum(meant, 1), 1.0)
    # If only one mask has an outline, none of it is matched (share 0); the missing outline's share is 1, set above.
    precision = np.where((found > 0) & (meant == 0), 0.0, precision)
    recall = np.where((found == 0) & (meant > 0), 0.0, recall)
    total = precision + recall
    f: FloatArray = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)
    return np.where(judged.evidence.scores.failed & (meant == 0), 0.0, f)


def _f_mean(judged: Judged) -> Terms:
    return _davis_f_of(judged), np.ones(len(judged.values))


def _f_recall(judged: Judged) -> Terms:
    return (_davis_f_of(judged) > 0.5).astype(np.float64), np.ones(len(judged.values))


def _j_recall(judged: Judged) -> Terms:
    return (judged.values > 0.5).astype(np.float64), np.ones(len(judged.values))


def _jf_mean(judged: Judged) -> Terms:
    return (judged.values + _davis_f_of(judged)) / 2, np.ones(len(judged.values))


_DAVIS = "davisvideochallenge/davis2017-evaluation davis2017/metrics.py:f_measure, db_eval_iou (ac7c43f)"
_F_METRICS = {
    "F-Mean": Own("mean of the F of outlines", _f_mean),
    "F-Recall": Own("share of sentences with F > 0.5", _f_recall),
}
_DAVIS_CAVEATS = (
    "the original averages over the frames of an object, then over objects, and adds Decay; here each sentence is one",
)

DAVIS_F = Protocol(
    name="davis-f",
    summary="F of 1-pixel outlines matched within 0.8 % of the diagonal",
    source=_DAVIS,
    text="none: the original follows objects through videos",
    metrics=_F_METRICS,
    leaves_out_ignored=True,
    headline="F-Mean",
    measures=(OUTLINES,),
    caveats=_DAVIS_CAVEATS,
)

DAVIS_JF = Protocol(
    name="davis-jf",
    summary="the mean of IoU (both empty = 1) and of the F of outlines",
    source=_DAVIS,
    text="none: the original follows objects through videos",
    metrics={
        "J&F-Mean": Own("mean of IoU and F", _jf_mean),
        "J-Mean": Mean(),
        "J-Recall": Own("share of sentences with IoU > 0.5", _j_recall),
        **_F_METRICS,
    },
    leaves_out_ignored=True,
    headline="J&F-Mean",
    measures=(OUTLINES,),
    caveats=_DAVIS_CAVEATS,
)


def trimap(k: float = 5) -> Protocol:
    """IoU inside a band of k pixels on both sides of the outline of the target.

    Raises:
        PredictionError: k is not a positive number of pixels.
    """
    if k < 1 or k != int(k):
        raise PredictionError(f"the width in trimap(k) must be a positive integer number of pixels, got {k:g}")
    width = int(k)

    def count(batch: Batch) -> Mapping[str, NDArray[np.int64]]:
        codes = batch.predictions, batch.targets, batch.heights, batch.widths
        eroded, dilated, in_eroded, in_dilated = count_bands(*codes, np.full(len(batch.heights), width)).T
        pair = PairCounts.of(count_codes(*codes))
        # The band depends on the target alone: it is the dilated target without the eroded target. The union (P | T)
        # is counted inside this band.
        return {
            "intersection": pair.intersection - in_eroded,
            "union": in_dilated + pair.target_area - pair.intersection - eroded,
            "band": dilated - eroded,
        }

    measure = Measure(f"trimap-{width}", ("intersection", "union", "band"), count)

    def with_band(judged: Judged) -> NDArray[np.bool_]:
        band: NDArray[np.bool_] = judged.evidence.measured[measure.name]["band"] > 0
        return band

    def mean(judged: Judged) -> Terms:
        here = with_band(judged)
        return np.where(here, judged.values, 0.0), here.astype(np.float64)

    return Protocol(
        name=f"trimap({width})",
        summary="IoU inside a band of k pixels to both sides of the target's outline",
        source="Kohli et al., Robust Higher Order Potentials, IJCV 2009; as in DeepLab, arXiv 1606.00915, figure 10",
        text="the expression as built",
        metrics={
            "trimap_mean_iou": Own("mean over sentences that have an outline", mean, counts=measure.name),
            "trimap_cumulative_iou": Cumulative(counts=measure.name),
        },
        leaves_out_ignored=True,
        headline="trimap_mean_iou",
        measures=(measure,),
        caveats=(
            "no public code defines the band; here it is a square dilation of the target less its erosion, and the "
            "image's border is no outline",
            "a target without an outline (none, or the whole image) has no band and is not counted",
        ),
    )
