"""Protocols that draw a box around the predicted mask: Acc@0.5 of REC, the F1 of GREC, and the summary of benchmark-
samtok.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refbench.masks.counting import count_codes
from refbench.masks.pairs import PairCounts
from refbench.scoring.counts import Batch, Measure
from refbench.scoring.protocols.base import Cumulative, FloatArray, Judged, Mean, Own, Protocol, Terms, Worth
from refbench.scoring.protocols.caveats import STORED_MASK

SIDES = ("left", "top", "right", "bottom")


def _boxes_of(codes: Sequence[bytes], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> FloatArray:
    """Boxes (left, top, right, bottom), float64 (B, 4), right and bottom exclusive; all zero for an empty mask."""
    rles = [{"size": [h, w], "counts": c} for h, w, c in zip(heights.tolist(), widths.tolist(), codes, strict=True)]
    boxes: FloatArray = np.asarray(coco_mask.toBbox(rles), np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _boxes(batch: Batch) -> Mapping[str, FloatArray]:
    found = _boxes_of(batch.predictions, batch.heights, batch.widths)
    meant = _boxes_of(batch.targets, batch.heights, batch.widths)
    given = np.concatenate(
        [batch.annotated_boxes[:, :2], batch.annotated_boxes[:, :2] + batch.annotated_boxes[:, 2:]], axis=1
    )
    boxes = {"prediction": found, "target": meant, "annotated": given}
    return {f"{name}_{side}": box[:, k] for name, box in boxes.items() for k, side in enumerate(SIDES)}


BOXES = Measure("boxes", tuple(f"{n}_{s}" for n in ("prediction", "target", "annotated") for s in SIDES), _boxes)


def _box(judged: Judged, name: str) -> FloatArray:
    """(4, N): left, top, right, bottom."""
    return np.stack([judged.evidence.measured[BOXES.name][f"{name}_{side}"] for side in SIDES])


def _overlap(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Intersection and union of boxes (4, N)."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = sides[0] * sides[1]
    areas = [np.prod(np.clip(box[2:] - box[:2], 0, None), axis=0) for box in (a, b)]
    return both, areas[0] + areas[1] - both


def _rec(judged: Judged) -> Terms:
    found = _box(judged, "prediction").astype(np.float32)
    empty = judged.evidence.scores.prediction_area == 0
    # The original's box ends at the last pixel, not after it.
    found[2:] -= 1
    # In the original, left, top, width and height of the annotated box are float16; all later values are float32.
    annotated = _box(judged, "annotated")
    corner = annotated[:2].astype(np.float16).astype(np.float32)
    given = np.concatenate([corner, corner + (annotated[2:] - annotated[:2]).astype(np.float16).astype(np.float32)])
    low, high = np.maximum(found[:2], given[:2]), np.minimum(found[2:], given[2:])
    apart = (high <= low).any(axis=0)
    sides, sides_found, sides_given = (b - a for a, b in ((low, high), (found[:2], found[2:]), (given[:2], given[2:])))
    both = sides[0] * sides[1]
    either = sides_found[0] * sides_found[1] + sides_given[0] * sides_given[1] - both
    share = np.where(apart | (either <= 0), np.float32(0), both / np.where(either > 0, either, np.float32(1)))
    right = ~empty & (share > np.float32(0.5))
    return right.astype(np.float64), np.ones(len(right))


REC_ACC = Protocol(
    name="rec-acc@0.5",
    summary="share of sentences whose mask's box overlaps the annotated box by more than 0.5",
    source="jcwang0602/MLLMSeg mllmseg/test_mllmseg_res.py (a8fceda)",
    text="sent, lower case, no final stop",
    binarisation="mask > 0.5",
    resampling="bilinear from 448",
    metrics={"rec_bbox_iou_0.5": Own("share of boxes with IoU > 0.5", _rec)},
    headline="rec_bbox_iou_0.5",
    when_empty=0.0,
    measures=(BOXES,),
    caveats=(
        STORED_MASK,
        "the box is that of the mask; elsewhere, models that predict a box are scored by their own box",
        "the original's box ends at the mask's last pixel, a pixel short of COCO's, and left, top, width and height of "
        "the true box are rounded to float16",
    ),
)


def _iou_of(found: FloatArray, meant: FloatArray) -> FloatArray:
    both, either = _overlap(found, meant)
    shares: FloatArray = np.where(either > 0, both / np.where(either > 0, either, 1), 0.0)
    return shares


def _giou_of(found: FloatArray, meant: FloatArray) -> FloatArray:
    """Generalised IoU of boxes (Rezatofighi et al., CVPR 2019)."""
    _, either = _overlap(found, meant)
    hull = np.prod(np.maximum(found[2:], meant[2:]) - np.minimum(found[:2], meant[:2]), axis=0)
    loss = np.where(hull > 0, (hull - either) / np.where(hull > 0, hull, 1), 0.0)
    return _iou_of(found, meant) - loss


def _arctan(ratio: FloatArray) -> FloatArray:
    """The arc tangent of non-negative numbers, accurate to 2e-16, computed by operations that every processor rounds in
    the same way.

    The last bit of arctan in numpy depends on the processor, but stored metrics must be the same on every processor.
    """
    above = ratio > 1
    x = np.where(above, 1 / np.where(above, ratio, 1), ratio)
    # Halved twice, an angle of at most 45 degrees has a tangent below 0.2, where the series is short.
    for _ in range(2):
        x = x / (1 + np.sqrt(1 + x * x))
    square, series = x * x, np.zeros_like(x)
    for k in range(11, -1, -1):
        series = (-1) ** k / (2 * k + 1) + square * series
    angle: FloatArray = 4 * x * series
    return np.where(above, math.pi / 2 - angle, angle)


def _ciou_of(found: FloatArray, meant: FloatArray) -> FloatArray:
    """Complete IoU of boxes (Zheng et al., 2020), with the constants of the original."""
    iou, epsilon = _iou_of(found, meant), 1e-9
    apart = (((found[:2] + found[2:]) - (meant[:2] + meant[2:])) / 2) ** 2
    hull = (np.maximum(found[2:], meant[2:]) - np.minimum(found[:2], meant[:2])) ** 2
    sides_found, sides_meant = (np.clip(box[2:] - box[:2], 0, None) for box in (found, meant))
    angles = [_arctan(w / (h + epsilon)) for w, h in (sides_meant, sides_found)]
    shape = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    weight = np.where(shape > 0, shape / (1 - iou + shape + epsilon), 0.0)
    ciou: FloatArray = iou - apart.sum(axis=0) / (hull.sum(axis=0) + epsilon) - weight * shape
    return ciou


def _mean_box(of: Callable[[FloatArray, FloatArray], FloatArray], words: str) -> Own:
    def terms(judged: Judged) -> Terms:
        scores = judged.evidence.scores
        there = (scores.prediction_area > 0) & (scores.target_area > 0)
        values = of(_box(judged, "prediction"), _box(judged, "target"))
        return np.where(there, values, 0.0), np.ones(len(there))

    return Own(words, terms)


def _share(top: NDArray[np.int64], bottom: NDArray[np.int64]) -> FloatArray:
    shares: FloatArray = np.where(bottom > 0, top / np.maximum(bottom, 1), 0.0)
    return shares


def _precision(judged: Judged) -> Terms:
    scores = judged.evidence.scores
    return _share(scores.intersection, scores.prediction_area), np.ones(len(scores))


def _recall(judged: Judged) -> Terms:
    scores = judged.evidence.scores
    return _share(scores.intersection, scores.target_area), np.ones(len(scores))


def _f1(judged: Judged) -> Terms:
    precision, ones = _precision(judged)
    recall, _ = _recall(judged)
    total = precision + recall
    return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0), ones


def _sets(batch: Batch) -> Mapping[str, FloatArray]:
    """Measures over all masks of a prediction: IoU of their union, best IoU, and whether their number is right."""
    counts = count_codes(batch.predictions, batch.targets, batch.heights, batch.widths)
    table = PairCounts.of(counts)
    iou = _share(table.intersection, table.union)
    same = (table.prediction_area > 0) == (table.target_area > 0)
    out = {"union_iou": iou.copy(), "best_match_iou": iou.copy(), "n_acc": same.astype(np.float64)}
    for k in (k for k, several in enumerate(batch.instances) if several):
        size = [int(batch.heights[k]), int(batch.widths[k])]
        answers = [{"size": size, "counts": code} for code in batch.instances[k]]
        target = [{"size": size, "counts": batch.targets[k]}]
        meant = int(coco_mask.area(target)[0])
        # In pycocotools, 0 / 0 may be NaN or 1; in the original it is 0.
        masks = [coco_mask.merge(answers), *answers]
        ious = [float(v) for v in np.ravel(coco_mask.iou(masks, target, [0]))] if meant else [0.0] * len(masks)
        out["union_iou"][k] = ious[0]
        out["best_match_iou"][k] = max(ious[1:]) / len(answers)
        out["n_acc"][k] = sum(int(area > 0) for area in coco_mask.area(answers)) == int(meant > 0)
    return out


SETS = Measure("sets", ("union_iou", "best_match_iou", "n_acc"), _sets)


def _of_set(column: str, words: str) -> Own:
    def terms(judged: Judged) -> Terms:
        # A failed sample has no prediction. Without a target, the original would count that as right; here it scores 0.
        values = np.where(judged.evidence.scores.failed, 0.0, judged.evidence.measured[SETS.name][column])
        return values, np.ones(len(values))

    return Own(words, terms)


SAMTOK_BENCH = Protocol(
    name="samtok-bench",
    summary="means of mask and of box scores, 0 / 0 = 0; gIoU and box_ciou are of boxes, cIoU is of masks",
    source="MaxShroyer/benchmark-samtok utils/metrics.py (5018d52)",
    text="the sentence in a fixed prompt",
    binarisation="sigmoid > 0.5",
    resampling="bilinear",
    both_empty=Worth(0.0),
    metrics={
        "mIoU": Mean(),
        "precision": Own("mean of I / |P|", _precision),
        "recall": Own("mean of I / |T|", _recall),
        "f1": Own("mean of the F1 of pixels", _f1),
        "box_iou": _mean_box(_iou_of, "mean IoU of boxes"),
        "box_giou": _mean_box(_giou_of, "mean generalised IoU of boxes"),
        "box_ciou": _mean_box(_ciou_of, "mean complete IoU of boxes"),
        "gIoU": _mean_box(_giou_of, "mean generalised IoU of boxes"),
        "cIoU": Cumulative(),
        "union_iou": _of_set("union_iou", "mean IoU of the union of all answers"),
        "best_match_iou": _of_set("best_match_iou", "mean of the best mask's IoU / number of masks"),
        "n_acc": _of_set("n_acc", "share of predictions with the right number of masks"),
    },
    headline="mIoU",
    when_empty=0.0,
    measures=(BOXES, SETS),
    signed=("box_giou", "box_ciou", "gIoU"),
    caveats=(
        STORED_MASK,
        "the stored mask stands for the first non-empty one of several masks",
        "gIoU is the generalised IoU of boxes, the cIoU of a single sample the complete IoU of boxes; n_acc counts "
        "masks and is not the N_acc of gres",
    ),
)


GREC_SCORE, GREC_OVERLAP = 0.7, 0.5


def _matched(generalised: bool) -> Callable[[Batch], Mapping[str, NDArray[np.int64]]]:
    """For each sample, the number of predicted boxes, of target boxes, and of matches between them."""

    def count(batch: Batch) -> Mapping[str, NDArray[np.int64]]:
        whole = _boxes_of(batch.predictions, batch.heights, batch.widths).astype(np.float32)
        columns = np.zeros((len(whole), 3), np.int64)
        # Most samples have one box each, and are counted together.
        pairs = zip(batch.boxes_of_objects, batch.instances, strict=True)
        one = np.array([len(meant) == 1 and not instances for meant, instances in pairs], bool)
        alone = [meant for meant, is_one in zip(batch.boxes_of_objects, one, strict=True) if is_one]
        columns[one] = _of_one(whole[one], alone, generalised)
        for k in np.flatnonzero(~one).tolist():
            meant = batch.boxes_of_objects[k]
            if batch.instances[k]:
                codes = [c for c, s in zip(batch.instances[k], batch.scores[k], strict=True) if s >= GREC_SCORE]
                n = np.full(len(codes), 1, np.int64)
                found = _boxes_of(codes, n * batch.heights[k], n * batch.widths[k]).astype(np.float32)
            else:
                found = whole[k : k + 1]
            found = found[(found[:, 2:] > found[:, :2]).all(axis=1)]
            given = _corners(meant)
            columns[k] = len(found), len(given), _greedy(_overlaps(found, given, generalised))
        return dict(zip(("found", "meant", "matched"), columns.T, strict=True))

    return count


def _corners(boxes: FloatArray) -> NDArray[np.float32]:
    """Boxes (left, top, width, height) as (left, top, right, bottom)."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)


def _of_one(found: NDArray[np.float32], meant: Sequence[FloatArray], generalised: bool) -> NDArray[np.int64]:
    """What `_matched` counts, (N, 3), for N samples with one box each."""
    if not len(found):
        return np.zeros((0, 3), np.int64)
    given = _corners(np.concatenate(meant))
    there = (found[:, 2:] > found[:, :2]).all(axis=1)
    overlap = _float32_overlap(found, given, generalised)
    return np.stack([there, np.ones(len(found), bool), there & (overlap >= GREC_OVERLAP)], axis=1).astype(np.int64)


def _overlaps(found: NDArray[np.float32], given: NDArray[np.float32], generalised: bool) -> NDArray[np.float32]:
    """IoU, or generalised IoU, of every box in `found` with every box in `given`, (N, M); in float32, as in the
    original.
    """
    return _float32_overlap(found[:, None], given[None], generalised)


def _float32_overlap(a: NDArray[np.float32], b: NDArray[np.float32], generalised: bool) -> NDArray[np.float32]:
    """`_overlaps` of boxes whose axes, but for the last, fit together."""
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    both = sides[..., 0] * sides[..., 1]
    areas = [np.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (a, b)]
    either = areas[0] + areas[1] - both
    iou: NDArray[np.float32] = both / np.where(either > 0, either, np.float32(1))
    if not generalised:
        return iou
    hull_sides = np.clip(np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2]), 0, None)
    hull = hull_sides[..., 0] * hull_sides[..., 1]
    giou: NDArray[np.float32] = iou - (hull - either) / np.where(hull > 0, hull, np.float32(1))
    return giou


def _greedy(overlaps: NDArray[np.float32]) -> int:
    """Number of one-to-one matches with an overlap of at least GREC_OVERLAP, best pairs first."""
    left, matched = overlaps.copy(), 0
    for _ in range(min(overlaps.shape)):
        best = int(left.argmax())
        if left.flat[best] < GREC_OVERLAP:
            break
        matched += 1
        row, column = divmod(best, left.shape[1])
        left[row], left[:, column] = 0, 0
    return matched


def _grec(name: str, generalised: bool, source: str, caveats: tuple[str, ...]) -> Protocol:
    overlap = "generalised IoU" if generalised else "IoU"
    measure = Measure(name, ("found", "meant", "matched"), _matched(generalised), needs_boxes=True)

    def column(judged: Judged, which: str) -> NDArray[np.int64]:
        values: NDArray[np.int64] = judged.evidence.measured[measure.name][which]
        return values

    def correct(judged: Judged) -> Terms:
        scores = judged.evidence.scores
        found, meant, matched = (column(judged, c) for c in measure.columns)
        # An F1 of 1: every box that is meant is found, and nothing else.
        whole = (found == meant) & (matched == meant)
        right = np.where(scores.no_target, found == 0, whole & (meant > 0)) & ~scores.failed
        return right.astype(np.float64), np.ones(len(right))

    def target_accuracy(judged: Judged) -> Terms:
        here = ~judged.evidence.scores.no_target
        return (here & (column(judged, "found") > 0)).astype(np.float64), here.astype(np.float64)

    def no_target_accuracy(judged: Judged) -> Terms:
        scores = judged.evidence.scores
        right = scores.no_target & (column(judged, "found") == 0) & ~scores.failed
        return right.astype(np.float64), scores.no_target.astype(np.float64)

    return Protocol(
        name=name,
        summary=f"share of sentences whose boxes have an F1 of 1 at {overlap} >= 0.5; no-target: no box",
        source=source,
        text="the expression, lower case",
        binarisation="boxes that score at least 0.7",
        resampling="none",
        metrics={
            "F1_score": Own(f"share of sentences with an F1 of 1 at {overlap} >= 0.5", correct),
            "T_acc": Own("share of targets with a box", target_accuracy),
            "N_acc": Own("share of no-targets without a box", no_target_accuracy),
        },
        headline="F1_score",
        when_empty=0.0,
        measures=(measure,),
        caveats=(
            "boxes are drawn around the masks of `instances` that score at least 0.7, or around the mask of an answer "
            "without instances",
            *caveats,
        ),
    )


GREC = _grec(
    "grec",
    True,
    "henghuiding/gRefCOCO mdetr/datasets/refexp.py:RefExpEvaluator (41a8f00)",
    ("the paper defines Pr@(F1=1, IoU>=0.5) by the IoU, which is grec-iou; its code takes the generalised IoU",),
)
GREC_IOU = _grec(
    "grec-iou",
    False,
    "He et al., GREC: Generalized Referring Expression Comprehension, arXiv 2308.16182, section 4",
    ("no code prints it: the authors' code takes the generalised IoU, as the protocol grec does",),
)
