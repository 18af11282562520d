"""A metric object for training loops: update with masks, compute percentages, merge over processes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.errors import MaskError, PredictionError
from refbench.masks.conversion import mask_of
from refbench.masks.counting import count_codes
from refbench.masks.mask import Mask
from refbench.masks.pairs import COUNTS, PairCounts
from refbench.plugins.loading import load
from refbench.records import Estimate
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Every, Evidence, Protocol, summarise, value_of
from refbench.scoring.protocols.canvases import ORIGINAL
from refbench.scoring.protocols.targets import UNION

STATE_VERSION = 1


class ReferringMetric:
    """The metrics of a protocol over masks that come in batches.

    Only the counts of pixels are kept, eight integers for each sample, so the result is the same for every batch size,
    order and number of processes, to the last bit. If `torch.distributed` is initialised, `compute` gathers the samples
    of all processes first.

    Args:
        protocol: a name from `refbench list protocols`. Protocols that need more than two masks, for example the
            sentences of a ref or polygons, are refused.

    Raises:
        PredictionError: the protocol needs more than masks; the message says what.

    Example:
        >>> import numpy as np
        >>> metric = ReferringMetric()
        >>> target = np.zeros((2, 4, 4), bool)
        >>> target[:, :2] = True
        >>> prediction = target.copy()
        >>> prediction[1, 1] = False
        >>> metric.update(prediction, target)
        >>> found = metric.compute()
        >>> found["cumulative_iou"], found["mean_iou"]
        (75.0, 75.0)
    """

    def __init__(self, protocol: str = "refbench") -> None:
        self.protocol = _rule(protocol)
        self._rows: list[tuple[str | None, str, bool, bool, bool, tuple[int, ...]]] = []

    def __len__(self) -> int:
        """The number of samples so far, in this process."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"ReferringMetric({self.protocol.name!r}), {len(self)} samples"

    def update(
        self,
        predictions: Any,
        targets: Any,
        *,
        image_ids: Sequence[Any] | None = None,
        sample_ids: Sequence[Any] | None = None,
        no_target: Sequence[bool] | None = None,
        predicted_no_target: Sequence[bool] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions, targets: bool or 0/1 arrays or tensors of the shape (H, W) or (B, H, W), or lists of arrays,
                tensors, `Mask`s or COCO run-length codes, whose sizes may differ from sample to sample. Probabilities
                must be thresholded first.
            image_ids: the image of each sample, for intervals by image; by default, each sample has its own.
            sample_ids: a name for each sample. A sample that comes twice counts once. Samplers for several GPUs
                repeat samples, so that every process has as many.
            no_target: whether the expression has no target; by default, whether the target mask is empty.
            predicted_no_target: whether the model says that there is no target; by default, whether the predicted mask
                is empty.

        Raises:
            MaskError: the batch sizes or the sizes of a pair differ, or a mask has other values than 0 and 1.
        """
        predicted, meant = _masks(predictions, "predictions"), _masks(targets, "targets")
        n = len(meant)
        if len(predicted) != n:
            raise MaskError(f"{len(predicted)} predictions for {n} targets; pass as many of both")
        columns = {"image_ids": image_ids, "sample_ids": sample_ids, "no_target": no_target,
                   "predicted_no_target": predicted_no_target}  # fmt: skip
        for name, values in columns.items():
            if values is not None and len(values) != n:
                raise MaskError(f"{name} has {len(values)} entries for {n} samples")
        for k, (p, t) in enumerate(zip(predicted, meant, strict=True)):
            if p.size != t.size:
                raise MaskError(
                    f"sample {k} of the batch: the prediction has the size {p.size}, the target {t.size}; resize the "
                    "prediction to the size of the target"
                )
        sizes = np.array([t.size for t in meant], np.int64).reshape(-1, 2)
        counts = count_codes([p.counts for p in predicted], [t.counts for t in meant], sizes[:, 0], sizes[:, 1])
        start = len(self._rows)
        for k in range(n):
            self._rows.append(
                (
                    None if sample_ids is None else str(sample_ids[k]),
                    f"#{start + k}" if image_ids is None else str(image_ids[k]),
                    False,
                    bool(no_target[k]) if no_target is not None else meant[k].area == 0,
                    bool(predicted_no_target[k]) if predicted_no_target is not None else predicted[k].area == 0,
                    tuple(int(c) for c in counts[k]),
                )
            )

    def compute(self, prefix: str = "") -> dict[str, float]:
        """The metrics of the protocol in percent, over all processes; NaN if the protocol leaves one undefined.

        Args:
            prefix: put before every name, for example "val/".

        Raises:
            PredictionError: there are no samples.
        """
        evidence = Evidence(self._table(self._gathered()))
        return {f"{prefix}{n}": value_of(self.protocol, m, evidence) for n, m in self.protocol.metrics.items()}

    def intervals(self) -> dict[str, Estimate]:
        """The metrics with their 95 % intervals, bootstrapped by image (see `image_ids`), over all processes."""
        return summarise(self.protocol, Evidence(self._table(self._gathered()))).metrics

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """The counts of the samples of this process, int64 (N,) each, in pixels."""
        table = np.array([row[-1] for row in self._rows], np.int64).reshape(-1, len(COUNTS))
        return PairCounts.of(table).by_name()

    def reset(self) -> None:
        """Forget all samples."""
        self._rows.clear()

    def merge(self, other: ReferringMetric) -> None:
        """Add the samples of another metric object with the same protocol."""
        if other.protocol.name != self.protocol.name:
            raise PredictionError(f"cannot merge {other.protocol.name} into {self.protocol.name}")
        self._rows += other._rows

    def state_dict(self) -> dict[str, Any]:
        """All samples, as plain lists that can be stored in a checkpoint or as JSON."""
        rows = [[*row[:-1], list(row[-1])] for row in self._rows]
        return {"version": STATE_VERSION, "protocol": self.protocol.name, "rows": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all samples by those of `state_dict`.

        Raises:
            PredictionError: the state is of another protocol or version, or is damaged.
        """
        if state.get("version") != STATE_VERSION or state.get("protocol") != self.protocol.name:
            raise PredictionError(
                f"the state is of protocol {state.get('protocol')!r}, version {state.get('version')!r}; expected "
                f"{self.protocol.name!r}, version {STATE_VERSION}"
            )
        try:
            self._rows = [
                (s, str(i), bool(f), bool(n), bool(p), tuple(map(int, c))) for s, i, f, n, p, c in state["rows"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise PredictionError(f"the state is damaged ({error})") from None

    def _gathered(self) -> list[Any]:
        """The rows of all processes. A sample that occurs twice is kept once."""
        rows: list[Any] = [(0, *row) for row in self._rows]
        # Not imported: a process that has not imported torch cannot be one of several.
        distributed = getattr(sys.modules.get("torch"), "distributed", None)
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            every: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(every, self._rows)
            rows = [(rank, *row) for rank, part in enumerate(every) for row in part]
        kept, seen = [], set()
        for rank, sample_id, image_id, *rest in rows:
            if sample_id is not None and sample_id in seen:
                continue
            seen.add(sample_id)
            # Without ids, the first images of two processes are two images.
            kept.append((sample_id, f"{rank}{image_id}" if image_id.startswith("#") else image_id, *rest))
        return kept

    def _table(self, rows: Sequence[Any]) -> ScoreTable:
        if not rows:
            raise PredictionError("the metric has no samples; call update first")
        counts = np.array([row[-1] for row in rows], np.int64)
        return ScoreTable(
            sample_id=[row[0] if row[0] is not None else str(k) for k, row in enumerate(rows)],
            image_id=[row[1] for row in rows],
            failed=np.array([row[2] for row in rows], bool),
            no_target=np.array([row[3] for row in rows], bool),
            predicted_no_target=np.array([row[4] for row in rows], bool),
            **PairCounts.of(counts).by_name(),
        )


def _rule(name: str) -> Protocol:
    rule = load("protocols", name)
    if not isinstance(rule, Protocol):
        raise PredictionError(
            f"{name} scores detections against an annotation file; use `refbench score --ground-truth`"
        )
    lacks = [
        *(["polygons, to draw the targets"] if rule.target != UNION else []),
        *(["a fixed canvas, on which it draws the targets itself"] if rule.canvas != ORIGINAL else []),
        *(["the refs of the sentences"] if not isinstance(rule.units, Every) else []),
        *([f"{', '.join(m.name for m in rule.measures)}"] if rule.measures else []),
        *([f"one of the datasets {', '.join(rule.datasets)}"] if rule.datasets else []),
    ]
    if lacks:
        raise PredictionError(f"{name} needs more than two masks: {'; '.join(lacks)}. Use `refbench score` on a split")
    return rule


def _masks(given: Any, what: str) -> list[Mask]:
    """The masks of a batch."""
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    if isinstance(given, Mask | Mapping):
        given = [given]
    if isinstance(given, np.ndarray):
        if given.ndim not in (2, 3):
            raise MaskError(f"{what} must have the shape (H, W) or (B, H, W), got {given.shape}")
        given = given[None] if given.ndim == 2 else given
    if not isinstance(given, Iterable):
        raise MaskError(f"{what} must be arrays, tensors, masks or run-length codes, got {type(given).__name__}")
    return [mask_of(one, f"{what}[{k}]") for k, one in enumerate(given)]
