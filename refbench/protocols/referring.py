"""Published rules of referring segmentation, each restated from the evaluator named in `source`.

A failed sample is an empty prediction, and never worth a point: where a rule gives 1 for nothing found where nothing
is, a crash gets 0. Values are in percent, whatever the original prints.
"""

from __future__ import annotations

import numpy as np

from refbench.protocols.base import (
    Cumulative,
    FirstOfObject,
    Judged,
    Mean,
    MeanOfImages,
    Metric,
    Over,
    Own,
    Precision,
    Protocol,
    RandomOfImage,
    SampleIou,
    Terms,
    Worth,
    everyone,
    with_target,
)
from refbench.protocols.targets import CANVAS_480, HOLE, OPENCV, RLE_CORRUPT

STORED_MASK = "the original resizes and thresholds scores; a stored mask is taken as it is"
RESIZED = (
    "the original never leaves its canvas of 480 x 480; here the stored mask is resized to it by nearest neighbour"
)
PADDED = "on several GPUs the original counts the images that pad the last batch twice"
TENTHS = (0.5, 0.6, 0.7, 0.8, 0.9)

CRIS = Protocol(
    name="cris",
    summary="mean IoU with 1e-6 in the denominator, both empty = 0, > float32 thresholds",
    source="DerrickWang005/CRIS.pytorch engine/engine.py:inference (e596332)",
    sources={
        "target": "DerrickWang005/CRIS.pytorch tools/data_process.py (e596332)",
        "text": "DerrickWang005/CRIS.pytorch utils/dataset.py (e596332)",
    },
    text="sent, 17 tokens",
    binarisation="sigmoid > 0.35",
    resampling="bicubic, inverse warp",
    sample_iou=SampleIou(under=1e-6),
    both_empty=Worth(0.0),
    metrics={
        "IoU": Mean(),
        # torch.arange(0.5, 1, 0.1) in float32: 0.6 is 0.60000002 there, and 0.9 is 0.89999998.
        **{f"Pr@{t}": Precision(float(np.float32(t / 100)), strict=True) for t in (50, 60, 70, 80, 90)},
    },
    headline="IoU",
    when_empty=0.0,
    caveats=(STORED_MASK, "the printed IoU is a mean over sentences; tables set it beside cumulative IoU of others"),
)

VLT = Protocol(
    name="vlt",
    summary="mean of (I + 1e-10) / (U + 1e-10), > thresholds .50:.05:.95",
    source="henghuiding/Vision-Language-Transformer callbacks/eval.py:cal_seg_iou (9b24015)",
    binarisation="sigmoid > segment_thresh",
    resampling="cv2 linear, letterbox",
    sample_iou=SampleIou(over=1e-10, under=1e-10),
    metrics={
        "seg_iou": Mean(),
        **{f"seg_prec@{t:.2f}": Precision(float(t), strict=True) for t in np.arange(0.5, 1, 0.05)},
    },
    headline="seg_iou",
    caveats=(STORED_MASK,),
)

LISA = Protocol(
    name="lisa",
    summary="giou: mean of I / (U + 1e-5), both empty = 1; ciou: sums; pixels of two polygons are background",
    source="dvlab-research/LISA train_ds.py:validate (3cb2d43)",
    sources={
        "target": "dvlab-research/LISA utils/refer.py:getMask, utils/utils.py:intersectionAndUnionGPU (3cb2d43)",
        "text": "dvlab-research/LISA utils/dataset.py:ValDataset (3cb2d43)",
    },
    text="sent, lower case",
    target=HOLE,
    binarisation="logit > 0",
    resampling="bilinear in two steps",
    sample_iou=SampleIou(under=1e-5),
    metrics={"giou": Mean(1e-5), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(
        STORED_MASK,
        "the original sums in float32 and, on several GPUs, counts the images that pad the last batch twice",
        "ReasonSeg: the original leaves pixels to ignore out of its counts and asks the first phrasing alone; here not",
    ),
)

EVF_SAM = Protocol(
    name="evf-sam",
    summary="as lisa, with 1e-10 in the denominator",
    source="hustvl/EVF-SAM eval.py (9935dc5)",
    target=HOLE,
    binarisation="logit > 0",
    resampling="bilinear in two steps",
    sample_iou=SampleIou(under=1e-10),
    metrics={"giou": Mean(1e-10), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(STORED_MASK, PADDED),
)

SA2VA = Protocol(
    name="sa2va",
    summary="as lisa, on targets that went through a run-length encoder with pixels of the value 2",
    source="bytedance/Sa2VA projects/sa2va/evaluation/dataset/RES.py:evaluate (9832e1a)",
    target=RLE_CORRUPT,
    binarisation="sigmoid > 0.5",
    resampling="bilinear",
    sample_iou=SampleIou(under=1e-5),
    metrics={"GIoU": Mean(), "CIoU": Cumulative()},
    headline="CIoU",
    caveats=(STORED_MASK,),
)

GLAMM_3 = Protocol(
    name="glamm-3",
    summary="as lisa, over at most 3 random sentences of each image; seeded here, unseeded in the original",
    source="mbzuai-oryx/groundingLMM eval/referring_seg/infer_and_evaluate.py (e74865f)",
    sources=dict.fromkeys(
        ("units", "text", "target"), "mbzuai-oryx/groundingLMM dataset/segm_datasets/RefCOCO_Segm_ds.py (e74865f)"
    ),
    units=RandomOfImage(3),
    text="sent, lower case, in a random question",
    target=HOLE,
    binarisation="logit > 0",
    resampling="bilinear in two steps",
    sample_iou=SampleIou(under=1e-5),
    metrics={"giou": Mean(1e-5), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(
        STORED_MASK,
        "not deterministic in the original, which draws sentences and question templates anew each time; here the "
        "draw of the seed 0, without the templates",
        "the sentences of an image share one prompt in the original",
        PADDED,
    ),
)

MLLMSEG_RES = Protocol(
    name="mllmseg-res",
    summary="giou is a mean over images of means; ciou: sums",
    source="jcwang0602/MLLMSeg mllmseg/test_mllmseg_res.py (a8fceda)",
    text="sent, lower case, no final stop; those of an image in one prompt",
    binarisation="sigmoid >= 0.5",
    resampling="bilinear from 448",
    sample_iou=SampleIou(under=1e-5),
    metrics={"giou": MeanOfImages(), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(
        STORED_MASK,
        "the original feeds all sentences of an image and the form of the answer in one prompt: another condition than "
        "one sentence at a time, which no rule of scoring undoes",
        "its rec_bbox_iou_0.5 is the protocol rec-acc@0.5",
    ),
)

PSALM = Protocol(
    name="psalm",
    summary="as lisa, on targets filled by OpenCV from corners without their fractions",
    source="zamling/PSALM psalm/eval/referring_segmentation.py (d5dbfda)",
    text="instruction of the record",
    target=OPENCV,
    binarisation="the instance of the highest score",
    resampling="bilinear",
    sample_iou=SampleIou(under=1e-5),
    metrics={"giou": Mean(), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(
        STORED_MASK,
        "targets of OpenCV cover their outline too: the true mask itself scores below 100 against them",
    ),
)

XDECODER = Protocol(
    name="xdecoder",
    summary="the first sentence of each annotation; float32 IoU with 1e-6; cIoU: sums; >=",
    source="microsoft/X-Decoder datasets/evaluation/grounding_evaluation.py (165f8a6), as in UX-Decoder/SEEM (7b2e76d)",
    sources={
        "units": "microsoft/X-Decoder datasets/utils/refcoco2json.py (165f8a6)",
        "text": "microsoft/X-Decoder datasets/dataset_mappers/refcoco_dataset_mapper.py (165f8a6)",
        "target": "microsoft/X-Decoder datasets/dataset_mappers/refcoco_dataset_mapper.py (165f8a6)",
    },
    units=FirstOfObject(),
    text="raw, lower case",
    binarisation="sigmoid > 0.5",
    resampling="bicubic with antialias",
    sample_iou=SampleIou(under=1e-6, single_precision=True),
    both_empty=Worth(0.0),
    metrics={**{f"precision@{t}": Precision(t) for t in TENTHS}, "cIoU": Cumulative(), "mIoU": Mean()},
    headline="cIoU",
    when_empty=0.0,
    caveats=(
        STORED_MASK,
        "the original sums IoU in float32",
        "precisionB@ and mBIoU are of boxes that the model gives beside its masks; no mask tells them",
        "the original's annotation file holds RefCOCOg (UMD) val alone",
    ),
)

MMDET_REFSEG = Protocol(
    name="mmdet-refseg",
    summary="one unit an annotation, answered here by its first sentence; cIoU: sums; mIoU, 0/0 = 0",
    source="open-mmlab/mmdetection mmdet/evaluation/metrics/refseg_metric.py (0f8d6ef)",
    sources=dict.fromkeys(("units", "text"), "open-mmlab/mmdetection mmdet/datasets/refcoco.py (0f8d6ef)"),
    units=FirstOfObject(),
    text="raw, lower case; text_mode random, original, concat or select_first",
    both_empty=Worth(0.0),
    metrics={"cIoU": Cumulative(), "mIoU": Mean()},
    headline="cIoU",
    when_empty=0.0,
    caveats=(
        STORED_MASK,
        "the base configuration joins all sentences of an annotation to one prompt (text_mode concat), by default "
        "another mode draws one at random; masks of single sentences can only answer for select_first",
    ),
)

REFCOCO_M = Protocol(
    name="refcoco-m",
    summary="mIoU over every (image, sentence) against the stored code",
    source="dataset card of moondream/refcoco-m",
    text="sentence",
    both_empty=Worth(0.0),
    metrics={"mIoU": Mean()},
    headline="mIoU",
    when_empty=0.0,
    caveats=("the card states no rule for two empty masks; its targets are never empty",),
)

UNINEXT = Protocol(
    name="uninext",
    summary="oIoU: sums; mIoU: mean of pycocotools' iou",
    source="MasterBin-IIAU/UNINEXT detectron2/evaluation/refcocoeval.py (5ab0386), as in berkeley-hipie/HIPIE",
    sources={"units": "MasterBin-IIAU/UNINEXT conversion/convert_ref2coco.py (5ab0386)"},
    binarisation="the detection of the highest score",
    resampling="code at its own size",
    both_empty=Worth(0.0),
    metrics={"oIoU": Cumulative(), "mIoU": Mean()},
    headline="oIoU",
    when_empty=0.0,
    caveats=("the original crashes on a sentence without a detection; here that is an empty mask",),
)


def _lavt_metrics(over: Over) -> dict[str, Metric]:
    return {
        "Mean IoU": Mean(over=over),
        **{f"precision@{t}": Precision(t, over=over) for t in TENTHS},
        "overall IoU": Cumulative(over=over),
    }


LAVT_480 = Protocol(
    name="lavt-480",
    summary="480 x 480 by nearest neighbour, pixels of two polygons are background, sums of integers, >=",
    source="yz93/LAVT-RIS test.py:evaluate, computeIoU (1da0af9)",
    text="raw, 20 tokens",
    target=HOLE,
    canvas=CANVAS_480,
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
    canvas=CANVAS_480,
    binarisation="softmax * sigmoid > 0.5",
    resampling="bilinear, align_corners",
    both_empty=Worth(0.0),
    metrics=_lavt_metrics(everyone),
    headline="overall IoU",
    when_empty=0.0,
    caveats=(RESIZED, "its README sets the mean IoU of CRIS beside the cumulative IoU of others"),
)


def _empty_where_nothing(judged: Judged) -> Terms:
    scores = judged.evidence.scores
    right = scores.no_target & (scores.prediction_area == 0) & ~scores.failed
    return right.astype(np.float64), scores.no_target.astype(np.float64)


REFZOM_DMMI = Protocol(
    name="refzom-dmmi",
    summary="lavt-480 over expressions with a target; those without count as right if the mask is empty",
    source="toggle1995/RIS-DMMI test.py (753cd60)",
    text="raw, 20 tokens",
    target=HOLE,
    canvas=CANVAS_480,
    binarisation="argmax of two logits",
    resampling="none",
    both_empty=Worth(0.0),
    metrics={
        **_lavt_metrics(with_target),
        "Mean accuracy for one-to-zero sample": Own(
            "share of empty masks where nothing is meant", _empty_where_nothing
        ),
    },
    headline="overall IoU",
    when_empty=0.0,
    caveats=(RESIZED,),
)
