"""`ReferringMetric` as a `torchmetrics.Metric`, for those who log with torchmetrics or Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from refbench.errors import PredictionError
from refbench.scoring import referring_metric


class ReferringMetric(Metric):
    """The metrics of a protocol as a torchmetrics metric.

    The values are those of `refbench.ReferringMetric`, float64 tensors in percent. torchmetrics gathers the samples of
    all processes; a sample with an id counts once.

    Args:
        protocol: as for `refbench.ReferringMetric`.
        metric: the only metric that `compute` returns, for example "mean_iou"; by default, `compute` returns a dict of
            all. In Lightning, pass an object with a single metric to `self.log`, and the dict to `self.log_dict`.
        kwargs: of `torchmetrics.Metric`, for example `sync_on_compute`.

    Raises:
        PredictionError: the protocol needs more than masks, or has no such metric.

    Example:
        >>> import torch
        >>> metric = ReferringMetric(metric="mean_iou")
        >>> metric(torch.ones(1, 4, 4, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool))
        tensor(100., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, protocol: str = "refbench", metric: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        rule = referring_metric.ReferringMetric(protocol).protocol
        if metric and metric not in rule.metrics:
            raise PredictionError(f"{protocol} has no metric {metric!r}; choose from {', '.join(rule.metrics)}")
        self.protocol, self.metric = protocol, metric
        self.rows: list[Tensor]
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        preds: Any,
        target: Any,
        *,
        image_ids: Sequence[Any] | None = None,
        sample_ids: Sequence[Any] | None = None,
        no_target: Sequence[bool] | None = None,
        predicted_no_target: Sequence[bool] | None = None,
    ) -> None:
        """Add a batch; see `refbench.ReferringMetric.update`."""
        batch = referring_metric.ReferringMetric(self.protocol)
        batch.update(
            preds, target, image_ids=image_ids, sample_ids=sample_ids, no_target=no_target,
            predicted_no_target=predicted_no_target,
        )  # fmt: skip
        self.rows.append(torch.from_numpy(batch.to_array()).to(self.device))

    def _sync_dist(self, *arguments: Any, **options: Any) -> None:
        # A process without a batch takes part with no rows; torchmetrics would exchange a tensor of another shape.
        if not self.rows:
            nothing = referring_metric.ReferringMetric(self.protocol).to_array()
            self.rows = [torch.from_numpy(nothing).to(self.device)]
        super()._sync_dist(*arguments, **options)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The metric, or a dict of all, as float64 tensors in percent."""
        if not len(self.rows) or not len(dim_zero_cat(self.rows)):
            raise PredictionError("the metric has no samples; call update first")
        rows = dim_zero_cat(self.rows).cpu().numpy()
        # torchmetrics has gathered the rows already.
        values = referring_metric.ReferringMetric.from_array(rows, self.protocol).compute(synchronise=False)
        found = {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in values.items()}
        return found[self.metric] if self.metric else found
