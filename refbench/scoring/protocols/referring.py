"""Published protocols of referring segmentation, each restated from the evaluator named in `source`.

A failed sample counts as an empty prediction and never gets credit: if a rule gives 1 for an empty prediction without
target, a failed sample gets 0. Values are in percent, whatever the original prints.
"""

from __future__ import annotations

import numpy as np

from refbench.scoring.protocols.base import (
    Cumulative,
    DistinctOfObject,
    FirstOfObject,
    FirstOfRef,
    FirstPhrasing,
    Judged,
    Mean,
    MeanOfImages,
    Metric,
    Own,
    Precision,
    Protocol,
    RandomOfImage,
    SampleIou,
    Terms,
    Worth,
)
from refbench.scoring.protocols.caveats import PADDED, STORED_MASK
from refbench.scoring.protocols.instances import DETECTIONS
from refbench.scoring.protocols.targets import HOLE, OPENCV, OR_HOLE, RLE_CORRUPT

TENTHS = (0.5, 0.6, 0.7, 0.8, 0.9)


def _cris_precision() -> dict[str, Metric]:
    # torch.arange(0.5, 1, 0.1) in float32: 0.6 is 0.60000002 there, and 0.9 is 0.89999998.
    return {f"Pr@{t}": Precision(float(np.float32(t / 100)), strict=True) for t in (50, 60, 70, 80, 90)}


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
    metrics={"IoU": Mean(), **_cris_precision()},
    headline="IoU",
    when_empty=0.0,
    caveats=(STORED_MASK, "the printed IoU is a mean over sentences; tables set it beside cumulative IoU of others"),
)

CGFORMER = Protocol(
    name="cgformer",
    summary="as cris, with oIoU: sums beside it",
    source="Toneyaya/CGFormer engine/engine.py:inference (67d3390)",
    sources={
        "target": "Toneyaya/CGFormer tools/data_process.py (67d3390)",
        "text": "Toneyaya/CGFormer utils/dataset.py (67d3390)",
    },
    text="sent, 20 tokens",
    binarisation="sigmoid > 0.5",
    resampling="bicubic, align_corners",
    sample_iou=CRIS.sample_iou,
    both_empty=CRIS.both_empty,
    metrics={"oIoU": Cumulative(), "mIoU": CRIS.metrics["IoU"], **_cris_precision()},
    headline="oIoU",
    when_empty=0.0,
    caveats=(STORED_MASK,),
)

DETRIS = Protocol(
    name="detris",
    summary="as cris, with Overall IoU: sums beside it",
    source="jiaqihuang01/DETRIS engine/engine.py:inference (c94b1e1)",
    sources={
        "target": "jiaqihuang01/DETRIS tools/data_process.py (c94b1e1)",
        "text": "jiaqihuang01/DETRIS utils/dataset.py (c94b1e1)",
    },
    text="sent, 17 tokens",
    binarisation="sigmoid > 0.35",
    resampling="bicubic, inverse warp",
    sample_iou=CRIS.sample_iou,
    both_empty=CRIS.both_empty,
    metrics={"Mean IoU": CRIS.metrics["IoU"], **_cris_precision(), "Overall IoU": Cumulative()},
    headline="Overall IoU",
    when_empty=0.0,
    caveats=(STORED_MASK,),
)

VLT = Protocol(
    name="vlt",
    summary="mean of (I + 1e-10) / (U + 1e-10), > thresholds .50:.05:.95",
    source="henghuiding/Vision-Language-Transformer callbacks/eval.py:cal_seg_iou (9b24015)",
    sources=dict.fromkeys(
        ("text", "binarisation"), "henghuiding/Vision-Language-Transformer config/base.yaml (9b24015)"
    ),
    text="sent, 15 words",
    binarisation="sigmoid > 0.35",
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
        "units": "dvlab-research/LISA utils/dataset.py:ValDataset (3cb2d43)",
        "target": "dvlab-research/LISA utils/dataset.py:ValDataset, utils/utils.py:intersectionAndUnionGPU (3cb2d43)",
        "text": "dvlab-research/LISA utils/dataset.py:ValDataset (3cb2d43)",
    },
    units=FirstPhrasing(),
    text="sent, lower case",
    target=HOLE,
    leaves_out_ignored=True,
    binarisation="logit > 0",
    resampling="bilinear in two steps",
    sample_iou=SampleIou(under=1e-5),
    metrics={"giou": Mean(1e-5), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(
        STORED_MASK,
        "the original sums in float32 and, on several GPUs, counts the images that pad the last batch twice",
    ),
)

EVF_SAM = Protocol(
    name="evf-sam",
    summary="as lisa, with 1e-10 in the denominator",
    source="hustvl/EVF-SAM eval.py (9935dc5)",
    sources=dict.fromkeys(("text", "target"), "hustvl/EVF-SAM utils/dataset.py:ValDataset (9935dc5)"),
    units=FirstPhrasing(),
    text="sent, lower case",
    target=HOLE,
    leaves_out_ignored=True,
    binarisation="logit > 0",
    resampling="bilinear in two steps",
    sample_iou=SampleIou(under=1e-10),
    metrics={"giou": Mean(1e-10), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(STORED_MASK, PADDED),
)

SA2VA = Protocol(
    name="sa2va",
    summary="as lisa, on targets that went through a run-length encoder with pixels of the values 2 and 3",
    source="bytedance/Sa2VA projects/sa2va/evaluation/dataset/RES.py:evaluate (9832e1a)",
    sources={"target": "bytedance/Sa2VA projects/sa2va/evaluation/dataset/RES.py:decode_mask (9832e1a)"},
    target=RLE_CORRUPT,
    leaves_out_ignored=True,
    binarisation="sigmoid > 0.5",
    resampling="bilinear",
    sample_iou=SampleIou(under=1e-5),
    metrics={"CIoU": Cumulative(1e-10), "GIoU": Mean()},
    headline="CIoU",
    caveats=(STORED_MASK, "generalised expressions are scored by the same rule: the flag for no target is not read"),
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
    target=OR_HOLE,
    leaves_out_ignored=True,
    binarisation="logit > 0",
    resampling="bilinear in two steps",
    sample_iou=SampleIou(under=1e-5),
    metrics={"giou": Mean(1e-5), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(
        STORED_MASK,
        "not deterministic in the original, which draws new sentences and question templates each time; here the "
        "sentences are drawn with seed 0, without templates",
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
    metrics={"giou": MeanOfImages(1e-5), "ciou": Cumulative(1e-10)},
    headline="ciou",
    caveats=(
        STORED_MASK,
        "the original puts all sentences of an image and the form of the answer into one prompt; a run with one "
        "sentence at a time differs from that, and scoring cannot undo it",
        "its rec_bbox_iou_0.5 is the protocol rec-acc@0.5",
    ),
)


def _record_of_ref(name: str, source: str, records: str, mean: Mean) -> Protocol:
    """The evaluation of PSALM, and evaluations copied from it."""
    return Protocol(
        name=name,
        summary="one record per ref; as lisa, on targets filled by OpenCV from truncated corners",
        source=source,
        sources=dict.fromkeys(("units", "text"), records),
        units=FirstOfRef(),
        text="all sentences of the ref, each with a stop, in one prompt",
        target=OPENCV,
        # HyperSeg and InstructSeg paint ReasonSeg's ignored pixels as background; PSALM does not read ReasonSeg.
        binarisation="the instance of the highest score",
        resampling="bilinear",
        sample_iou=SampleIou(under=1e-5),
        metrics={"giou": mean, "ciou": Cumulative(1e-10)},
        headline="ciou",
        caveats=(
            STORED_MASK,
            "the original joins all sentences of a ref to one prompt; here the first sentence stands for them",
            "targets of OpenCV cover their outline too: the true mask itself scores below 100 against them",
        ),
    )


PSALM = _record_of_ref(
    "psalm",
    "zamling/PSALM psalm/eval/referring_segmentation.py (d5dbfda)",
    "zamling/PSALM datasets/build_RefCOCO.py, psalm/train/train_datasets.py:RefCOCO_dataset (d5dbfda)",
    Mean(),
)

HYPERSEG = _record_of_ref(
    "hyperseg",
    "congvvc/HyperSeg eval/eval_refcoco.py (5cfcf52)",
    "congvvc/HyperSeg hyperseg/eval/eval_dataset/eval_datasets.py:RefCOCO_dataset_test (5cfcf52)",
    Mean(1e-5),
)

INSTRUCTSEG = _record_of_ref(
    "instructseg",
    "congvvc/InstructSeg instructseg/eval/seg/eval_res.py (0134314)",
    "congvvc/InstructSeg instructseg/datasets/InstructSegDatasets.py:RefCOCO_dataset (0134314)",
    Mean(1e-5),
)

MLCD_SEG = Protocol(
    name="mlcd-seg",
    summary="global_iou: mean over images of means of I / (U + 1e-5); class_iou: sums",
    source="deepglint/unicom mlcd_vl/downstream/eval/eval/evaluate_refcoco.py, model_vqa_refcoco.py (ae71411)",
    text="as its question file has it",
    leaves_out_ignored=True,
    binarisation="logit > 0",
    resampling="bilinear",
    sample_iou=SampleIou(under=1e-5),
    metrics={"class_iou": Cumulative(1e-10), "global_iou": MeanOfImages()},
    headline="class_iou",
    caveats=(
        STORED_MASK,
        "a record of the original's question file holds several masks, whose mean counts once; its file was not read, "
        "and here the masks of one image are a record",
    ),
)

X_SAM = Protocol(
    name="x-sam",
    summary="sentences that an annotation has twice count once; gIoU: mean, both empty = 1; cIoU: sums",
    source="wanghao9610/X-SAM xsam/xsam/evaluation/evaluators/img_refseg_evaluator.py (2e76946)",
    sources={
        **dict.fromkeys(("units", "text"), "wanghao9610/X-SAM xsam/xsam/dataset/img_refseg_dataset.py:153 (2e76946)"),
        "target": "wanghao9610/X-SAM xsam/xsam/dataset/utils/mask.py:decode_mask (2e76946)",
    },
    units=DistinctOfObject(),
    text="sent, lower case",
    leaves_out_ignored=True,
    binarisation="sigmoid > 0.5 of the instance of the highest score",
    resampling="bilinear",
    metrics={"cIoU": Cumulative(), "gIoU": Mean()},
    headline="cIoU",
    caveats=(STORED_MASK,),
)


def _seg_zero_mean(judged: Judged) -> Terms:
    # `compute_iou` returns no pair where both masks are empty, and the loop goes on to the next sample.
    there = (judged.union > 0) | judged.evidence.scores.failed
    return np.where(there, judged.values, 0.0), there.astype(np.float64)


SEG_ZERO = Protocol(
    name="seg-zero",
    summary="gIoU: mean of I / U; a sample with two empty masks is left out",
    source="dvlab-research/Seg-Zero evaluation_scripts/calculate_iou.py, evaluation.py (42a3345)",
    text="the text of its own dataset, lower case, no final stop",
    binarisation="SAM 2's mask",
    resampling="SAM 2's own",
    both_empty=Worth(0.0),
    metrics={"gIoU": Own("mean over sentences, without those where both masks are empty", _seg_zero_mean)},
    headline="gIoU",
    when_empty=0.0,
    caveats=(
        "the original reads RefCOCO from datasets of its own on the hub, one row a question; which sentences they hold "
        "was not read",
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
        "the original sums IoU in float32, and puts the first sentences of all objects of an image through its decoder "
        "together; SEEM's first version resizes bilinearly",
        "precisionB@ and mBIoU are of boxes that the model predicts beside its masks; masks do not give them",
        "the original's annotation file holds RefCOCOg (UMD) val alone",
    ),
)

MMDET_REFSEG = Protocol(
    name="mmdet-refseg",
    summary="one unit per annotation, represented here by its first sentence; cIoU: sums; mIoU, 0/0 = 0",
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
        "the base configuration joins all sentences of an annotation to one prompt (text_mode concat); the default "
        "mode draws one at random; masks of single sentences correspond to select_first only",
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


def _over_detections(judged: Judged) -> Terms:
    """IoU of all detections if every sentence has the same number of detections; otherwise, IoU of the stored mask,
    which is that of the best detection.
    """
    number = judged.evidence.measured[DETECTIONS.name]["number"]
    if len(number) and number.min() == number.max() > 1:
        return judged.evidence.measured[DETECTIONS.name]["iou_sum"], number.astype(np.float64)
    return judged.values, np.ones(len(judged.values))


UNINEXT = Protocol(
    name="uninext",
    summary="oIoU: sums, of the best detection; mIoU: mean of pycocotools' iou over all detections",
    source="MasterBin-IIAU/UNINEXT detectron2/evaluation/refcocoeval.py (5ab0386), as in berkeley-hipie/HIPIE",
    sources={
        "units": "MasterBin-IIAU/UNINEXT conversion/convert_ref2coco.py (5ab0386)",
        "aggregation": "MasterBin-IIAU/UNINEXT detectron2/evaluation/coco_evaluation.py:_derive_refcoco_results",
    },
    binarisation="the detection of the highest score",
    resampling="code at its own size",
    both_empty=Worth(0.0),
    metrics={"oIoU": Cumulative(), "mIoU": Own("mean over all detections of all sentences", _over_detections)},
    headline="oIoU",
    when_empty=0.0,
    measures=(DETECTIONS,),
    caveats=(
        "the original crashes on a sentence without a detection; here that is an empty mask",
        "its mIoU needs the same number of detections (`instances`) for every sentence; else the original crashes, "
        "and here the best detection of each sentence counts",
    ),
)
