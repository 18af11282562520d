"""The metrics of a protocol as `compute_metrics` of the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from refbench.errors import MaskError
from refbench.scoring.referring_metric import ReferringMetric

# What the Trainer pads logits and labels with.
PADDING = -100


class TrainerMetrics:
    """`compute_metrics` for `transformers.Trainer`: logits (B, H, W) against masks (B, H, W).

    With `batch_eval_metrics=True` in the training arguments, the Trainer calls it batch by batch, and no logits of the
    whole evaluation are kept.

    Args:
        protocol: as for `refbench.ReferringMetric`.
        threshold: a pixel is predicted if its logit is above this.

    Raises (when called):
        MaskError: a label is not 0 or 1, or the Trainer has padded images of different sizes.

    Example:
        >>> import numpy as np
        >>> from transformers import EvalPrediction
        >>> masks = np.ones((2, 4, 4), np.int64)
        >>> TrainerMetrics()(EvalPrediction(predictions=masks - 0.5, label_ids=masks))["mean_iou"]
        100.0
    """

    def __init__(self, protocol: str = "refbench", threshold: float = 0.0) -> None:
        self._metric = ReferringMetric(protocol)
        self._threshold = threshold

    def __call__(self, predicted: Any, compute_result: bool = True) -> dict[str, float]:
        """Add an `EvalPrediction`; returns the metrics in percent and starts anew if `compute_result`, else nothing."""
        logits, masks = predicted.predictions, predicted.label_ids
        logits = logits[0] if isinstance(logits, tuple) else logits
        if bool((logits == PADDING).any()):
            raise MaskError(
                "the images of the evaluation have different sizes, and the Trainer padded them; resize all images to "
                "one size"
            )
        self._metric.update(logits > self._threshold, masks)
        if not compute_result:
            return {}
        # The Trainer has gathered the samples of all processes.
        found = self._metric.compute(synchronise=False)
        self._metric.reset()
        return found
