"""Protocols of papers whose evaluator follows an existing protocol, with the metric names of these papers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from refbench.scoring.protocols.base import Cumulative, Mean, Metric, Protocol
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.protocols.referring import CRIS, LISA, MMDET_REFSEG


def _as(
    rule: Protocol,
    name: str,
    source: str,
    metrics: Mapping[str, Metric] | None = None,
    headline: str = "",
    caveats: tuple[str, ...] = (),
) -> Protocol:
    return dataclasses.replace(
        rule,
        name=name,
        summary=f"the rule of {rule.name}",
        source=source,
        sources={},
        metrics=metrics or rule.metrics,
        headline=headline or rule.headline,
        caveats=(*rule.caveats, *caveats),
        same_as=rule.name,
    )


ETRIS = _as(CRIS, "etris", "kkakkkka/ETRIS engine/engine.py:inference (cdc6d8e)")

PIXELLM = _as(LISA, "pixellm", "MaverickRen/PixelLM train_ds.py:validate (ebf0792)")

TEXT4SEG = _as(
    LISA,
    "text4seg",
    "mc-lan/Text4Seg llava/eval/eval_refer_seg.py (d6540b6)",
    {"giou": Mean(), "ciou": Cumulative(1e-10)},
    caveats=("its masks pass through PNG files, where the value 2 becomes background as well",),
)

SEGAGENT = _as(
    LISA,
    "segagent",
    "aim-uofa/SegAgent evaltools/eval_result_iou.py (21eca0a)",
    {"class_iou": Cumulative(1e-5), "global_iou": Mean(1e-5)},
    "class_iou",
)

F_LMM = _as(
    MMDET_REFSEG,
    "f-lmm",
    "wusize/F-LMM scripts/multiprocess_eval_refcoco.py (47d3c2a)",
    caveats=("it takes the first sentence of each annotation (text_mode select_first)",),
)

UNIPIXEL = _as(
    REFBENCH,
    "unipixel",
    "PolyU-ChenLab/UniPixel unipixel/eval/infer_seg.py, eval_refcoco.py (5c8e941)",
    {"CIoU": Cumulative(), "GIoU": Mean()},
    "CIoU",
    caveats=("its BBox Acc is of a box around the mask without parts below 10 pixels, which is not counted here",),
)
