"""Rules that draw a box around a mask: Acc@0.5 of REC, and the summary of benchmark-samtok."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refbench.kernels import COLUMNS
from refbench.mask import count_codes
from refbench.protocols.base import Cumulative, FloatArray, Judged, Mean, Own, Protocol, Terms, Worth
from refbench.protocols.referring import STORED_MASK
from refbench.scores import Batch, Measure

SIDES = ("left", "top", "right", "bottom")


def _boxes_of(codes: Sequence[bytes], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> FloatArray:
    """Left, top, and the right and bottom after the last pixel, float64 (B, 4); all zero for an empty mask."""
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
    return np.stack([judged.evidence.measured[f"{BOXES.name}.{name}_{side}"] for side in SIDES])


def _overlap(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Intersection and union of boxes (4, N)."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = sides[0] * sides[1]
    areas = [np.prod(np.clip(box[2:] - box[:2], 0, None), axis=0) for box in (a, b)]
    return both, areas[0] + areas[1] - both


def _rec(judged: Judged) -> Terms:
    found = _box(judged, "prediction")
    empty = judged.evidence.scores.prediction_area == 0
    # The original's box ends at the last pixel, not after it, and its boxes of the truth are float16.
    found[2:] -= 1
    given = _box(judged, "annotated").astype(np.float16).astype(np.float64)
    both, either = _overlap(found, given)
    right = ~empty & (either > 0) & (both > 0.5 * either)
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
        "the box is drawn around the mask; models that answer with a box of their own are scored by that elsewhere",
        "the original's box ends at the mask's last pixel, a pixel short of COCO's, and the true box is rounded to "
        "float16",
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


def _ciou_of(found: FloatArray, meant: FloatArray) -> FloatArray:
    """Complete IoU of boxes (Zheng et al., 2020), with the constants of the original."""
    iou, epsilon = _iou_of(found, meant), 1e-9
    apart = (((found[:2] + found[2:]) - (meant[:2] + meant[2:])) / 2) ** 2
    hull = (np.maximum(found[2:], meant[2:]) - np.minimum(found[:2], meant[:2])) ** 2
    sides_found, sides_meant = (np.clip(box[2:] - box[:2], 0, None) for box in (found, meant))
    angles = [np.arctan2(w, h + epsilon) for w, h in (sides_meant, sides_found)]
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
    """What is made of all masks of an answer: their union, the best of them, their number."""
    counts = count_codes(batch.predictions, batch.targets, batch.heights, batch.widths)
    table = dict(zip(COLUMNS, counts.T, strict=True))
    iou = _share(table["intersection"], table["union"])
    same = (table["prediction_area"] > 0) == (table["target_area"] > 0)
    out = {"union_iou": iou.copy(), "best_match_iou": iou.copy(), "n_acc": same.astype(np.float64)}
    for k in (k for k, several in enumerate(batch.instances) if several):
        size = [int(batch.heights[k]), int(batch.widths[k])]
        answers = [{"size": size, "counts": code} for code in batch.instances[k]]
        target = [{"size": size, "counts": batch.targets[k]}]
        meant = int(coco_mask.area(target)[0])
        # pycocotools makes 0 / 0 a NaN or a 1 as it comes; the original makes it 0.
        masks = [coco_mask.merge(answers), *answers]
        ious = [float(v) for v in np.ravel(coco_mask.iou(masks, target, [0]))] if meant else [0.0] * len(masks)
        out["union_iou"][k] = ious[0]
        out["best_match_iou"][k] = max(ious[1:]) / len(answers)
        out["n_acc"][k] = sum(int(area > 0) for area in coco_mask.area(answers)) == int(meant > 0)
    return out


SETS = Measure("sets", ("union_iou", "best_match_iou", "n_acc"), _sets)


def _of_set(column: str, words: str) -> Own:
    def terms(judged: Judged) -> Terms:
        # A crash answers nothing, which the original would count as right where nothing is meant.
        values = np.where(judged.evidence.scores.failed, 0.0, judged.evidence.measured[f"{SETS.name}.{column}"])
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
        "best_match_iou": _of_set("best_match_iou", "mean of the best answer's IoU by their number"),
        "n_acc": _of_set("n_acc", "share of answers with as many masks as meant"),
    },
    headline="mIoU",
    when_empty=0.0,
    measures=(BOXES, SETS),
    signed=("box_giou", "box_ciou", "gIoU"),
    caveats=(
        STORED_MASK,
        "the stored mask stands for the first of several answers that is not empty",
        "gIoU is the generalised IoU of boxes, the cIoU of a single sample the complete IoU of boxes; n_acc counts "
        "masks and is not the N_acc of gres",
    ),
)
