"""Protocols whose originals compare masks on a canvas of their own; each is restated from the evaluator named in
`source`.

The originals resize the target to the input size of the network, and never resize the prediction back. Here the stored
mask is resized in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refbench.scoring.protocols.base import (
    Cumulative,
    Evidence,
    Judged,
    Judgement,
    Mean,
    Metric,
    Over,
    Own,
    Precision,
    Protocol,
    SampleIou,
    Terms,
    Worth,
    everyone,
    with_target,
)
from refbench.scoring.protocols.canvases import (
    LONG_384,
    LONG_640,
    SQUARE_320,
    SQUARE_384,
    SQUARE_448,
    SQUARE_480,
    SQUARE_512,
)
from refbench.scoring.protocols.caveats import FLOAT32_SUMS, RESIZED
from refbench.scoring.protocols.generalised import FLAGGED_EMPTY, N_ACC, T_ACC_IF_ANY, ByFlag
from refbench.scoring.protocols.targets import HOLE, UNION

TENTHS = (0.5, 0.6, 0.7, 0.8, 0.9)


def _lavt_metrics(over: Over, thresholds: tuple[float, ...] = TENTHS) -> dict[str, Metric]:
    return {
        "Mean IoU": Mean(over=over),
        **{f"precision@{t}": Precision(t, over=over) for t in thresholds},
        "overall IoU": Cumulative(over=over),
    }


LAVT_480 = Protocol(
    name="lavt-480",
    summary="480 x 480 by nearest neighbour, pixels of two polygons are background, sums of integers, >=",
    source="yz93/LAVT-RIS test.py:evaluate, computeIoU (1da0af9)",
    text="raw, 20 tokens",
    target=HOLE,
    canvas=SQUARE_480,
    binarisation="argmax of two logits",
    resampling="none",
    both_empty=Worth(0.0),
    metrics=_lavt_metrics(everyone),
    headline="overall IoU",
    when_empty=0.0,
    caveats=(RESIZED,),
)

MAGNET_480 = Protocol(
    name="magnet-480",
    summary="the accumulators of lavt-480",
    source="yxchng/mask-grounding test.py (2debc7e)",
    text="raw, 20 tokens",
    target=HOLE,
    canvas=SQUARE_480,
    binarisation="softmax * sigmoid > 0.5",
    resampling="bilinear, align_corners",
    both_empty=Worth(0.0),
    metrics=_lavt_metrics(everyone),
    headline="overall IoU",
    when_empty=0.0,
    caveats=(RESIZED, "its README sets the mean IoU of CRIS beside the cumulative IoU of others"),
)

CARIS_448 = Protocol(
    name="caris-448",
    summary="the sums of lavt-480 on 448 x 448, in float32; two empty masks leave the mean without a value",
    source="lsa1997/CARIS eval.py:batch_evaluate (4b24546)",
    sources=dict.fromkeys(("text", "target"), "lsa1997/CARIS data/dataset_refer_bert.py:ReferDatasetTest (4b24546)"),
    text="sent, 20 tokens",
    target=HOLE,
    canvas=SQUARE_448,
    binarisation="argmax of two logits",
    resampling="none",
    sample_iou=SampleIou(single_precision=True),
    both_empty=Worth(float("nan")),
    metrics=_lavt_metrics(everyone, (0.5, 0.7, 0.9)),
    headline="overall IoU",
    when_empty=0.0,
    caveats=(
        RESIZED,
        FLOAT32_SUMS,
        "with --eval_ori_size the original keeps the target at its own size; here is its default",
    ),
)


def _empty_where_nothing(judged: Judged) -> Terms:
    scores = judged.evidence.scores
    right = scores.no_target & (scores.prediction_area == 0) & ~scores.failed
    return right.astype(np.float64), scores.no_target.astype(np.float64)


REFZOM_DMMI = Protocol(
    name="refzom-dmmi",
    summary="lavt-480 over expressions with a target, on unions; those without count as right if the mask is empty",
    source="toggle1995/RIS-DMMI test.py (753cd60)",
    sources={"target": "toggle1995/RIS-DMMI refer/refer.py:307 (753cd60)"},
    text="raw, 20 tokens",
    target=UNION,
    canvas=SQUARE_480,
    binarisation="argmax of two logits",
    resampling="none",
    both_empty=Worth(0.0),
    metrics={
        **_lavt_metrics(with_target),
        "Mean accuracy for one-to-zero sample": Own(
            "share of empty masks where there is no target", _empty_where_nothing
        ),
    },
    headline="overall IoU",
    when_empty=0.0,
    caveats=(RESIZED,),
)

SMOOTH = 1e-6


def _f_scores(judged: Judged) -> NDArray[np.float64]:
    scores = judged.evidence.scores
    precision = (judged.intersection + SMOOTH) / (scores.prediction_area + SMOOTH)
    recall = (judged.intersection + SMOOTH) / (scores.target_area + SMOOTH)
    f: NDArray[np.float64] = 2 * precision * recall / (precision + recall)
    # In the original, two empty masks have an F of 1, also after a crash; here a crash gets 0.
    return np.where(scores.failed & (scores.target_area == 0), 0.0, f)


def _f_mean(judged: Judged) -> Terms:
    return _f_scores(judged), np.ones(len(judged.values))


def _jf_mean(judged: Judged) -> Terms:
    return (judged.values + _f_scores(judged)) / 2, np.ones(len(judged.values))


POLYFORMER_512 = Protocol(
    name="polyformer-512",
    summary="512 x 512 by OpenCV's nearest neighbour, pixels of two polygons are background; oIoU, mIoU, F of pixels",
    source="amazon-science/polygon-transformer utils/eval_utils.py:eval_refcoco (69fc728)",
    sources={
        "canvas": "amazon-science/polygon-transformer data/refcoco_dataset.py:89 (69fc728)",
        **dict.fromkeys(
            ("text", "target"), "amazon-science/polygon-transformer data/create_finetuning_data.py (69fc728)"
        ),
    },
    text="sent",
    target=HOLE,
    canvas=SQUARE_512,
    binarisation="polygons filled by scikit-image",
    resampling="none",
    both_empty=Worth(0.0),
    metrics={
        "mIoU score": Mean(),
        "oIoU score": Cumulative(),
        "f score": Own("mean of the F1 of pixels, each count + 1e-6", _f_mean),
        "J&F": Own("mean of IoU and F", _jf_mean),
        **{f"prec@{t}": Precision(t) for t in TENTHS},
    },
    headline="oIoU score",
    when_empty=0.0,
    caveats=(RESIZED, FLOAT32_SUMS, "its ap det score is of boxes that the model gives beside its polygons"),
)


@dataclass(frozen=True, slots=True)
class CrowdIfSeveral:
    """SeqTR treats an object with several polygons as a crowd: its IoU is I / |P|, as pycocotools computes it for
    crowds.
    """

    words: str = "0; for an object of several polygons I / |P|, as for a crowd"

    def judge(self, evidence: Evidence, intersection: NDArray[np.int64], union: NDArray[np.int64]) -> Judgement:
        scores = evidence.scores
        several = np.fromiter(evidence.several, bool) if len(evidence.several) else np.zeros(len(scores), bool)
        below = np.where(several, scores.prediction_area, union)
        return Judgement(intersection, below, below == 0, np.zeros(len(scores)))


SEQTR = Protocol(
    name="seqtr",
    summary="longer side 640; IoU of pycocotools, an object of several polygons taken for a crowd; >=",
    source="seanzhuh/SeqTR seqtr/apis/test.py:accuracy, evaluate_model (445e732)",
    sources={
        **dict.fromkeys(
            ("target", "both_empty"), "seanzhuh/SeqTR seqtr/datasets/pipelines/loading.py:_load_mask (445e732)"
        ),
        "canvas": "seanzhuh/SeqTR seqtr/datasets/pipelines/transforms.py:Resize (445e732)",
    },
    text="the expression without punctuation, lower case, 15 words",
    canvas=LONG_640,
    binarisation="a polygon of 18 corners, rasterised by pycocotools",
    resampling="none",
    both_empty=CrowdIfSeveral(),
    metrics={"mIoU": Mean(), **{f"MaskACC@{t}": Precision(t) for t in TENTHS}},
    headline="mIoU",
    when_empty=0.0,
    caveats=(
        RESIZED,
        "the original averages its MaskACC over batches of 128, of which the last one is smaller and weighs more",
    ),
)

C3VG = Protocol(
    name="c3vg",
    summary="320 x 320 by OpenCV's nearest neighbour; oIoU: sums; mIoU and >= in float32",
    source="Dmmm1997/C3VG c3vg/apis/test.py:mask_overlaps_withIU, evaluate_model (7738820)",
    sources={"canvas": "Dmmm1997/C3VG configs/C3VG-Mix.py (7738820)"},
    text="the expression without punctuation, lower case, 20 tokens",
    canvas=SQUARE_320,
    binarisation="sigmoid >= 0.5",
    resampling="none",
    sample_iou=SampleIou(single_precision=True),
    both_empty=Worth(0.0),
    metrics={"mIoU": Mean(), "oIoU": Cumulative(), **{f"MaskACC@{t}": Precision(t) for t in TENTHS}},
    headline="mIoU",
    when_empty=0.0,
    caveats=(
        RESIZED,
        "the original averages its MaskACC over batches of 16, of which the last one is smaller and weighs more",
    ),
)

ONEREF = Protocol(
    name="oneref",
    summary="longer side 384 by PyTorch's nearest neighbour; mIoU and oIoU; two empty masks leave mIoU without a value",
    source="linhuixiao/OneRef utils/eval_utils.py:trans_vg_eval_test, engine.py:evaluate (882ed1b)",
    sources={
        "target": "linhuixiao/OneRef datasets/data_loader.py:convert_coco_poly_mask (882ed1b)",
        "canvas": "linhuixiao/OneRef datasets/transforms.py:RandomResize, NormalizeAndPad (882ed1b)",
    },
    text="the phrase, lower case",
    canvas=LONG_384,
    binarisation="sigmoid > 0.5, before the resize",
    resampling="bilinear",
    sample_iou=SampleIou(single_precision=True),
    both_empty=Worth(float("nan")),
    metrics={"mIoU": Mean(), "oIoU": Cumulative()},
    headline="mIoU",
    when_empty=0.0,
    caveats=(
        RESIZED,
        FLOAT32_SUMS,
        "the original pads the image to a square, and what is predicted on the padding counts",
        "on several GPUs its oIoU is that of the first one's samples",
    ),
)

NO_BOX_ABOVE = (
    "in the original, no-target means that no box scores above 0.7; here, the prediction's flag or an empty mask"
)

DERIS_GRES = Protocol(
    name="deris-gres",
    summary="the sums of gres on 384 x 384 by OpenCV; no-target where no box scores above 0.7",
    source="Dmmm1997/DeRIS deris/evaluations/grefcoco.py:gres_evaluate (2406687)",
    sources={
        "target": "Dmmm1997/DeRIS deris/datasets/pipelines/loading.py:_load_masks (2406687)",
        "canvas": "Dmmm1997/DeRIS configs/gres/DERIS-B-grefcoco.py (2406687)",
    },
    text="the expression, lower case, 50 tokens",
    canvas=SQUARE_384,
    binarisation="union of masks (sigmoid >= 0.5) whose boxes score above 0.7",
    resampling="none",
    both_empty=ByFlag(),
    metrics={
        "gIoU": Mean(),
        "cIoU": Cumulative(),
        "T_acc": T_ACC_IF_ANY,
        "N_acc": N_ACC,
        **{f"Pr@{t}": Precision(t, over=with_target) for t in (0.7, 0.8, 0.9)},
    },
    headline="gIoU",
    when_empty=0.0,
    caveats=(RESIZED, NO_BOX_ABOVE),
)

DERIS_REFZOM = Protocol(
    name="deris-refzom",
    summary="refzom-dmmi on 384 x 384 by OpenCV; no-target where no box scores above 0.7",
    source="Dmmm1997/DeRIS deris/evaluations/refzom.py:refzom_evaluate (2406687)",
    sources={"canvas": "Dmmm1997/DeRIS configs/gres/DERIS-B-grefcoco.py (2406687)"},
    text="the expression, lower case, 50 tokens",
    canvas=SQUARE_384,
    binarisation="union of masks (sigmoid >= 0.5) whose boxes score above 0.7",
    resampling="none",
    both_empty=Worth(0.0),
    metrics={
        "mIoU": Mean(over=with_target),
        "oIoU": Cumulative(over=with_target),
        "macc": FLAGGED_EMPTY,
        **{f"MaskACC@{t}": Precision(t, over=with_target) for t in TENTHS},
    },
    headline="oIoU",
    when_empty=0.0,
    caveats=(RESIZED, NO_BOX_ABOVE),
)
