"""Counts over all masks of a prediction, for models that return several masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refbench.scoring.counts import Batch, Measure


def _count(batch: Batch) -> Mapping[str, NDArray[Any]]:
    number = np.array([len(several) for several in batch.instances], np.int64)
    iou_sum = np.zeros(len(number))
    for k in np.flatnonzero(number).tolist():
        size = [int(batch.heights[k]), int(batch.widths[k])]
        target = [{"size": size, "counts": batch.targets[k]}]
        answers = [{"size": size, "counts": code} for code in batch.instances[k]]
        # Two empty masks are 0 / 0 to pycocotools, which is not a number.
        iou_sum[k] = float(np.nan_to_num(coco_mask.iou(answers, target, [0])).sum())
    return {"number": number, "iou_sum": iou_sum}


DETECTIONS = Measure("detections", ("number", "iou_sum"), _count)
