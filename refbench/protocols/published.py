"""Published scoring rules, each restated from the evaluator named in `source`.

A failed sample is an empty prediction, and never worth a point: where a rule gives 1 for nothing found where nothing
is, a crash gets 0. Values are in percent, whatever the original prints.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refbench.protocols.base import Choices, FloatArray, Protocol, ScoreTable, Terms
from refbench.protocols.targets import HOLE, HOLE_480, POLYGONS_480, RLE_CORRUPT, UNION
from refbench.statistics.bootstrap import image_codes

STORED_MASK = "the original resizes and thresholds scores; a stored mask is taken as it is"


def _ones(scores: ScoreTable) -> FloatArray:
    return np.ones(len(scores.failed))


def _iou(epsilon: float, both_empty: float) -> Callable[[ScoreTable], FloatArray]:
    """I / (U + epsilon) of each sample, `both_empty` where U is 0."""

    def values(scores: ScoreTable) -> FloatArray:
        bottom = np.maximum(scores.union + epsilon, np.finfo(np.float64).tiny)
        shares: FloatArray = np.where(
            scores.union > 0, scores.intersection / bottom, np.where(scores.failed, 0.0, both_empty)
        )
        return shares

    return values


def _vlt_iou(scores: ScoreTable) -> FloatArray:
    shares: FloatArray = (scores.intersection + 1e-10) / (scores.union + 1e-10)
    return np.where(scores.failed & (scores.union == 0), 0.0, shares)


def _mean(values: Callable[[ScoreTable], FloatArray], epsilon: float = 0.0) -> Terms:
    """The mean over samples; `epsilon` stands in the original's denominator beside their number."""

    def terms(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        ones = _ones(scores)
        return values(scores), ones + epsilon / max(len(ones), 1)

    return terms


def _mean_of_images(values: Callable[[ScoreTable], FloatArray]) -> Terms:
    """The mean over images of the mean over each image's samples."""

    def terms(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        codes, count = image_codes(scores.image_id)
        share: FloatArray = 1.0 / np.bincount(codes, minlength=count)[codes].astype(np.float64)
        return values(scores) * share, share

    return terms


def _cumulative(epsilon: float = 0.0) -> Terms:
    def terms(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        bottom: FloatArray = scores.union.astype(np.float64) + epsilon / max(len(scores.union), 1)
        return scores.intersection.astype(np.float64), bottom

    return terms


def _above(values: Callable[[ScoreTable], FloatArray], threshold: float) -> Terms:
    def terms(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        return (values(scores) > threshold).astype(np.float64), _ones(scores)

    return terms


# GSVA / MLLMSeg: the flag decides where nothing is meant; a rejected target keeps the credit of its mask.


def _nothing_meant(scores: ScoreTable) -> np.ndarray:
    nothing: np.ndarray = scores.target_area == 0
    return nothing


def _gsva_iou(scores: ScoreTable) -> FloatArray:
    masks = scores.intersection / (scores.union + 1e-8)
    values: FloatArray = np.where(_nothing_meant(scores), scores.predicted_no_target.astype(np.float64), masks)
    return values


def _gsva_cumulative(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
    spared = _nothing_meant(scores) & scores.predicted_no_target
    return scores.intersection.astype(np.float64), np.where(spared, 0, scores.union).astype(np.float64)


def _no_target_accuracy(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
    nothing = _nothing_meant(scores)
    return (nothing & scores.predicted_no_target).astype(np.float64), nothing.astype(np.float64)


def _target_accuracy(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
    something = ~_nothing_meant(scores)
    return (something & ~scores.predicted_no_target).astype(np.float64), something.astype(np.float64)


# GRES: on ReLA's canvas. The flag decides everything, whatever the mask holds.


def _gres_flag(pixels: int | None) -> Callable[[ScoreTable], np.ndarray]:
    """The flag that a prediction gives itself, or fewer than `pixels` of foreground on the canvas."""

    def flag(scores: ScoreTable) -> np.ndarray:
        if pixels is None:
            return scores.predicted_no_target
        few: np.ndarray = (scores.prediction_area < pixels) & ~scores.failed
        return few

    return flag


def _gres_metrics(pixels: int | None = None, legacy: bool = False) -> dict[str, Terms]:
    flag = _gres_flag(pixels)

    def spared(scores: ScoreTable) -> np.ndarray:
        both: np.ndarray = scores.no_target & flag(scores)
        return both

    def credited(scores: ScoreTable) -> np.ndarray:
        neither: np.ndarray = ~scores.no_target & ~flag(scores)
        return neither

    def iou(scores: ScoreTable) -> FloatArray:
        masks = scores.intersection / np.maximum(scores.union, 1)
        values: FloatArray = np.where(credited(scores), masks, spared(scores).astype(np.float64))
        return values

    def cumulative(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        top = np.where(credited(scores), scores.intersection, 0)
        return top.astype(np.float64), np.where(spared(scores), 0, scores.union).astype(np.float64)

    def accuracy(of_nothing: bool) -> Terms:
        def terms(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
            nothing, said = scores.no_target, flag(scores)
            if legacy:
                # Positive is "nothing is meant": TP / (TP + FN + 1), and TP / (TP + FP + 1) under the name T_acc.
                beside = nothing if of_nothing else said
                return (nothing & said).astype(np.float64), beside.astype(np.float64) + 1.0 / max(len(said), 1)
            right = nothing & said if of_nothing else ~nothing & ~said
            return right.astype(np.float64), (nothing if of_nothing else ~nothing).astype(np.float64)

        return terms

    def precision(tenths: int) -> Terms:
        def terms(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
            reached = credited(scores) & (10 * scores.intersection >= tenths * scores.union) & (scores.union > 0)
            return reached.astype(np.float64), (~scores.no_target).astype(np.float64)

        return terms

    return {
        "gIoU": _mean(iou),
        "cIoU": cumulative,
        "T_acc": accuracy(of_nothing=False),
        "N_acc": accuracy(of_nothing=True),
        **{f"Pr@0.{t}": precision(t) for t in (7, 8, 9)},
    }


# LAVT: a canvas of 480 x 480, sums of integers, thresholds met by equality.


def _reached(tenths: int, counted: Callable[[ScoreTable], np.ndarray]) -> Terms:
    def terms(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        reached = (10 * scores.intersection >= tenths * scores.union) & (scores.union > 0) & counted(scores)
        return reached.astype(np.float64), counted(scores).astype(np.float64)

    return terms


def _lavt_metrics(counted: Callable[[ScoreTable], np.ndarray]) -> dict[str, Terms]:
    def mean_iou(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        here = counted(scores)
        return np.where(here, _iou(0.0, 0.0)(scores), 0.0), here.astype(np.float64)

    def overall(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
        here = counted(scores)
        return (scores.intersection * here).astype(np.float64), (scores.union * here).astype(np.float64)

    return {
        "Mean IoU": mean_iou,
        **{f"precision@0.{t}": _reached(t, counted) for t in (5, 6, 7, 8, 9)},
        "overall IoU": overall,
    }


def _all_samples(scores: ScoreTable) -> np.ndarray:
    return np.ones(len(scores.failed), bool)


def _with_target(scores: ScoreTable) -> np.ndarray:
    return ~scores.no_target


def _empty_where_nothing(scores: ScoreTable) -> tuple[FloatArray, FloatArray]:
    right = scores.no_target & (scores.prediction_area == 0) & ~scores.failed
    return right.astype(np.float64), scores.no_target.astype(np.float64)


EVERY = "every sentence"
ORIGINAL = "original size"

CRIS = Protocol(
    name="cris",
    summary="mean IoU with 1e-6 in the denominator, both empty = 0, > float32 thresholds",
    source="DerrickWang005/CRIS.pytorch engine/engine.py:inference (e596332)",
    choices=Choices(
        EVERY, "sent", UNION, ORIGINAL, "sigmoid > 0.35", "bicubic, inverse warp", "I / (U + 1e-6)", "0",
        "mean over sentences", "> thresholds of float32",
    ),
    metrics={
        "IoU": _mean(_iou(1e-6, 0.0)),
        # torch.arange(0.5, 1, 0.1) in float32: 0.6 is 0.60000002 there, and 0.9 is 0.89999998.
        **{f"Pr@{t}": _above(_iou(1e-6, 0.0), float(np.float32(0.5 + 0.1 * k)))
           for k, t in enumerate((50, 60, 70, 80, 90))},
    },
    when_empty=0.0,
    caveats=(STORED_MASK, "the printed IoU is a mean over sentences; tables set it beside cumulative IoU of others"),
)  # fmt: skip

VLT = Protocol(
    name="vlt",
    summary="mean of (I + 1e-10) / (U + 1e-10), > thresholds .50:.05:.95",
    source="henghuiding/Vision-Language-Transformer callbacks/eval.py:cal_seg_iou (9b24015)",
    choices=Choices(
        EVERY, "sent", UNION, ORIGINAL, "sigmoid > segment_thresh", "cv2 linear, letterbox",
        "(I + 1e-10) / (U + 1e-10)", "1", "mean over sentences", "> np.arange(0.5, 1, 0.05)",
    ),
    metrics={
        "seg_iou": _mean(_vlt_iou),
        **{f"seg_prec@{t:.2f}": _above(_vlt_iou, float(t)) for t in np.arange(0.5, 1, 0.05)},
    },
    caveats=(STORED_MASK,),
)  # fmt: skip

LISA = Protocol(
    name="lisa",
    summary="giou: mean of I / (U + 1e-5), both empty = 1; ciou: sums; pixels of two polygons are background",
    source="dvlab-research/LISA train_ds.py:validate, utils/utils.py:intersectionAndUnionGPU (3cb2d43)",
    choices=Choices(
        EVERY, "sent, lower case", HOLE, ORIGINAL, "logit > 0", "bilinear in two steps", "I / (U + 1e-5)", "1",
        "mean over sentences; sum I / sum U", "none",
    ),
    metrics={"giou": _mean(_iou(1e-5, 1.0), 1e-5), "ciou": _cumulative(1e-10)},
    target=HOLE,
    caveats=(
        STORED_MASK,
        "the original sums in float32 and, on several GPUs, counts the images that pad the last batch twice",
        "ReasonSeg: the original leaves pixels to ignore out of its counts and asks the first phrasing alone; here not",
    ),
)  # fmt: skip

EVF_SAM = Protocol(
    name="evf-sam",
    summary="as lisa, with 1e-10 in the denominator",
    source="hustvl/EVF-SAM eval.py (9935dc5)",
    choices=Choices(
        EVERY, "sent", HOLE, ORIGINAL, "logit > 0", "bilinear in two steps", "I / (U + 1e-10)", "1",
        "mean over sentences; sum I / sum U", "none",
    ),
    metrics={"giou": _mean(_iou(1e-10, 1.0), 1e-10), "ciou": _cumulative(1e-10)},
    target=HOLE,
    caveats=(STORED_MASK, "on several GPUs the original counts the images that pad the last batch twice"),
)  # fmt: skip

SA2VA = Protocol(
    name="sa2va",
    summary="as lisa, on targets that went through a run-length encoder with pixels of the value 2",
    source="bytedance/Sa2VA projects/sa2va/evaluation/dataset/RES.py:evaluate (9832e1a)",
    choices=Choices(
        EVERY, "sent", RLE_CORRUPT, ORIGINAL, "sigmoid > 0.5", "bilinear", "I / (U + 1e-5)", "1",
        "mean over sentences; sum I / sum U", "none",
    ),
    metrics={"GIoU": _mean(_iou(1e-5, 1.0)), "CIoU": _cumulative()},
    target=RLE_CORRUPT,
    caveats=(STORED_MASK,),
)  # fmt: skip

MLLMSEG_RES = Protocol(
    name="mllmseg-res",
    summary="giou is a mean over images of means; ciou: sums",
    source="jcwang0602/MLLMSeg mllmseg/test_mllmseg_res.py (a8fceda)",
    choices=Choices(
        "every sentence, those of an image in one prompt", "sent, lower case, no final stop", UNION, ORIGINAL,
        "sigmoid >= 0.5", "bilinear from 448", "I / (U + 1e-5)", "1", "mean over images of means; sum I / sum U",
        "none",
    ),
    metrics={"giou": _mean_of_images(_iou(1e-5, 1.0)), "ciou": _cumulative(1e-10)},
    caveats=(
        STORED_MASK,
        "the original feeds all sentences of an image and the form of the answer in one prompt: another condition than "
        "one sentence at a time, which no rule of scoring undoes",
    ),
)  # fmt: skip

GSVA_GRES = Protocol(
    name="gsva-gres",
    summary="generalised: a flag for no target; a rejected target keeps the credit of its mask",
    source="LeapLabTHU/GSVA solver.py:eval_gres (618dc79), jcwang0602/MLLMSeg mllmseg/test_mllmseg_gres.py (a8fceda)",
    choices=Choices(
        EVERY, "sent", UNION, ORIGINAL, "logit >= 0", "bilinear", "I / (U + 1e-8)", "by the [REJ] token",
        "mean over sentences; sum I / sum U", "none",
    ),
    metrics={
        "giou": _mean(_gsva_iou),
        "ciou": _gsva_cumulative,
        "N_acc": _no_target_accuracy,
        "T_acc": _target_accuracy,
    },
    when_empty=0.0,
    caveats=(
        STORED_MASK,
        "a prediction without a flag of its own counts as rejected if its mask is empty; the original reads the [REJ] "
        "token with the true answer in context",
        "crowd annotations belong to the original's targets: build grefcoco with -o crowd=use",
    ),
)  # fmt: skip

REFCOCO_M = Protocol(
    name="refcoco-m",
    summary="mIoU over every (image, sentence) against the stored code",
    source="dataset card of moondream/refcoco-m",
    choices=Choices(
        EVERY, "sentence", UNION, ORIGINAL, "not stated", "not stated", "I / U", "not stated", "mean over sentences",
        "none",
    ),
    metrics={"mIoU": _mean(_iou(0.0, 0.0))},
    when_empty=0.0,
    caveats=("the card states no rule for two empty masks; its targets are never empty",),
)  # fmt: skip

UNINEXT = Protocol(
    name="uninext",
    summary="oIoU: sums; mIoU: mean of pycocotools' iou",
    source="MasterBin-IIAU/UNINEXT detectron2/evaluation/refcocoeval.py (5ab0386), as in berkeley-hipie/HIPIE",
    choices=Choices(
        "every sentence, a pseudo-image each", "sent", UNION, ORIGINAL, "the detection of the highest score",
        "code at its own size", "I / U", "not reached", "sum I / sum U; mean over sentences", "boxes only",
    ),
    metrics={"oIoU": _cumulative(), "mIoU": _mean(_iou(0.0, 0.0))},
    when_empty=0.0,
    caveats=("the original crashes on a sentence without a detection; here that is an empty mask",),
)  # fmt: skip

CANVAS_480 = "480 x 480"
RESIZED = (
    "the original never leaves its canvas of 480 x 480; here the stored mask is resized to it by nearest neighbour"
)

LAVT_480 = Protocol(
    name="lavt-480",
    summary="480 x 480 by nearest neighbour, pixels of two polygons are background, sums of integers, >=",
    source="yz93/LAVT-RIS test.py:evaluate, computeIoU (1da0af9)",
    choices=Choices(
        EVERY, "raw, 20 tokens", HOLE_480, CANVAS_480, "argmax of two logits", "none", "I / U", "0",
        "mean over sentences; sum I / sum U", ">= .5 to .9",
    ),
    metrics=_lavt_metrics(_all_samples),
    when_empty=0.0,
    target=HOLE_480,
    caveats=(RESIZED,),
)  # fmt: skip

MAGNET_480 = Protocol(
    name="magnet-480",
    summary="the accumulators of lavt-480",
    source="yxchng/mask-grounding test.py (2debc7e)",
    choices=Choices(
        EVERY, "raw, 20 tokens", HOLE_480, CANVAS_480, "softmax * sigmoid > 0.5", "bilinear, align_corners", "I / U",
        "0",
        "mean over sentences; sum I / sum U", ">= .5 to .9",
    ),
    metrics=_lavt_metrics(_all_samples),
    when_empty=0.0,
    target=HOLE_480,
    caveats=(RESIZED, "its README sets the mean IoU of CRIS beside the cumulative IoU of others"),
)  # fmt: skip

REFZOM_DMMI = Protocol(
    name="refzom-dmmi",
    summary="lavt-480 over expressions with a target; those without count as right if the mask is empty",
    source="toggle1995/RIS-DMMI test.py (753cd60)",
    choices=Choices(
        "every sentence; those without target apart", "raw, 20 tokens", HOLE_480, CANVAS_480, "argmax of two logits",
        "none", "I / U", "0", "mean over sentences; sum I / sum U", ">= .5 to .9",
    ),
    metrics={
        **_lavt_metrics(_with_target),
        "Mean accuracy for one-to-zero sample": _empty_where_nothing,
    },
    when_empty=0.0,
    target=HOLE_480,
    caveats=(RESIZED,),
)  # fmt: skip

_GRES_CHOICES = Choices(
    EVERY, "raw, 20 tokens", POLYGONS_480, CANVAS_480, "argmax of two channels", "none", "I / U",
    "by the flag for no target", "mean over sentences; sum I / sum U", ">= .7 .8 .9, over targets",
)  # fmt: skip
_GRES_CAVEATS = (
    RESIZED,
    "a prediction without a flag of its own counts as flagged if its mask is empty",
    "crowd annotations are not in the original's targets: build grefcoco with its default",
)

GRES = Protocol(
    name="gres",
    summary="generalised: the flag for no target decides, whatever the mask holds; ReLA's canvas",
    source="henghuiding/ReLA gres_model/evaluation/refer_evaluation.py (3ca9551)",
    choices=_GRES_CHOICES,
    metrics=_gres_metrics(),
    when_empty=0.0,
    target=POLYGONS_480,
    caveats=_GRES_CAVEATS,
)

GRES_LEGACY_TACC = Protocol(
    name="gres-legacy-tacc",
    summary="gres before August 2023: T_acc was TP / (TP + FP + 1), N_acc TP / (TP + FN + 1)",
    source="henghuiding/ReLA branch original, changed by commit 884ef17",
    choices=_GRES_CHOICES,
    metrics=_gres_metrics(legacy=True),
    when_empty=0.0,
    target=POLYGONS_480,
    caveats=_GRES_CAVEATS,
)

GRES_MASK_EMPTY_50 = Protocol(
    name="gres-mask-empty(50)",
    summary="gres for models without a flag: fewer than 50 pixels on the canvas say that nothing is meant",
    source="Liu et al., GRES, CVPR 2023 (the rule is in no code that was read)",
    choices=_GRES_CHOICES,
    metrics=_gres_metrics(pixels=50),
    when_empty=0.0,
    target=POLYGONS_480,
    caveats=(RESIZED, _GRES_CAVEATS[2]),
)
