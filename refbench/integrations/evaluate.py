"""`ReferringMetric` with the interface of a module of Hugging Face's `evaluate`. It does not need that library."""

from __future__ import annotations

from typing import Any

from refbench.scoring.referring_metric import ReferringMetric


class EvaluateModule:
    """A metric with `add`, `add_batch` and `compute`, as `evaluate.load` returns.

    Predictions and references are masks: bool or 0/1 arrays or tensors (H, W), `Mask`s or COCO run-length codes.

    Args:
        protocol: as for `refbench.ReferringMetric`.

    Example:
        >>> import numpy as np
        >>> metric = EvaluateModule()
        >>> metric.add_batch(predictions=np.ones((2, 4, 4), bool), references=np.ones((2, 4, 4), bool))
        >>> metric.compute()["mean_iou"]
        100.0
    """

    def __init__(self, protocol: str = "refbench") -> None:
        self.name = f"refbench/{protocol}"
        self._metric = ReferringMetric(protocol)

    def add(self, *, prediction: Any, reference: Any, **ids: Any) -> None:
        """Add one pair; `sample_ids` and the other arguments of `ReferringMetric.update` have one entry."""
        self._metric.update([prediction], [reference], **ids)

    def add_batch(self, *, predictions: Any, references: Any, **ids: Any) -> None:
        """Add a batch; further arguments as for `ReferringMetric.update`."""
        self._metric.update(predictions, references, **ids)

    def compute(self, *, predictions: Any = None, references: Any = None, **ids: Any) -> dict[str, float]:
        """The metrics in percent over everything that was added, and the masks given here; then forget all samples."""
        if predictions is not None:
            self._metric.update(predictions, references, **ids)
        found = self._metric.compute()
        self._metric.reset()
        return found


def load(protocol: str = "refbench") -> EvaluateModule:
    """A module for a protocol, like `evaluate.load`."""
    return EvaluateModule(protocol)
