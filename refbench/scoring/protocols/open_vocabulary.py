"""Mean IoU over the classes of LVIS, by two published definitions; AP is in `average_precision`."""

from __future__ import annotations

from refbench.scoring.protocols.base import Mean, Protocol, Worth

UNPUBLISHED = 'the rule behind the "LVIS mIoU" of the Moondream paper is not published; this does not claim to be it'

LVIS_INSTANCE = Protocol(
    name="lvis-instance",
    summary="mIoU, every instance asked for by its class name: for the splits <split>-instance of lvis",
    source="MaxShroyer/benchmark-samtok benchmark.py:iter_expressions, utils/metrics.py (5018d52)",
    text="the class name",
    both_empty=Worth(0.0),
    metrics={"mIoU": Mean()},
    headline="mIoU",
    when_empty=0.0,
    datasets=("lvis",),
    splits=("-instance",),
    caveats=(UNPUBLISHED, "two instances of one class share an expression: no answer can be right for both"),
)

LVIS_CATEGORY_UNION = Protocol(
    name="lvis-category-union",
    summary="mIoU against the union of a class's instances: for the splits <split>-category of lvis",
    source="refbench; a reading of LVIS that leaves no expression ambiguous",
    text="the class name",
    both_empty=Worth(0.0),
    metrics={"mIoU": Mean()},
    headline="mIoU",
    when_empty=0.0,
    datasets=("lvis",),
    splits=("-category",),
    caveats=(UNPUBLISHED, "classes that are not drawn exhaustively in an image are left out when lvis is built"),
)
