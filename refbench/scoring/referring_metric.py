"""A metric object for training loops: update with masks, compute percentages, merge over processes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.errors import MaskError, PredictionError
from refbench.masks.conversion import mask_of
from refbench.masks.counting import count_codes
from refbench.masks.mask import Mask
from refbench.masks.pairs import COUNTS, PairCounts
from refbench.plugins.loading import load, load_attribute
from refbench.records import Estimate
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Every, Evidence, Protocol, summarise, value_of
from refbench.scoring.protocols.canvases import ORIGINAL
from refbench.scoring.protocols.targets import UNION

STATE_VERSION = 1
# Columns of the numbers that are kept for a sample: three flags, then the counts.
FAILED, NO_TARGET, PREDICTED_NO_TARGET, FIRST_COUNT = 0, 1, 2, 3
WIDTH = FIRST_COUNT + len(COUNTS)


class _Rows:
    """The samples of one process: numbers, int64 (N, WIDTH), in a buffer that grows, and the ids that were given.

    An id that was not given is None.
    """

    def __init__(self) -> None:
        self._buffer = np.empty((0, WIDTH), np.int64)
        self._used = 0
        self.sample_ids: list[str | None] = []
        self.image_ids: list[str | None] = []

    def __len__(self) -> int:
        return self._used

    @property
    def numbers(self) -> NDArray[np.int64]:
        return self._buffer[: self._used]

    def add(
        self, numbers: NDArray[np.int64], sample_ids: Sequence[str | None], image_ids: Sequence[str | None]
    ) -> None:
        end = self._used + len(numbers)
        if end > len(self._buffer):
            larger = np.empty((max(2 * len(self._buffer), end, 64), WIDTH), np.int64)
            larger[: self._used] = self.numbers
            self._buffer = larger
        self._buffer[self._used : end] = numbers
        self._used = end
        self.sample_ids += sample_ids
        self.image_ids += image_ids


class ReferringMetric:
    """The metrics of a protocol over masks that come in batches.

    Only the counts of pixels are kept, nine integers for each sample, so `compute` gives the same for every batch size,
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
        self._rows = _Rows()

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
            predictions: bool or 0/1 arrays or tensors of the shape (H, W) or (B, H, W), or lists of arrays,
                tensors, `Mask`s or COCO run-length codes, whose sizes may differ from sample to sample. Probabilities
                must be thresholded first.
            targets: the correct masks, in any of these forms.
            image_ids: the image of each sample, for intervals by image; by default, each sample has its own.
            sample_ids: a name for each sample. A sample that comes twice counts once. Samplers for several GPUs
                repeat samples, so that every process has as many. If its predictions differ, the one with the smaller
                counts is kept, wherever it was computed.
            no_target: whether the expression has no target; by default, whether the target mask is empty.
            predicted_no_target: whether the model says that there is no target; by default, whether the predicted mask
                is empty.

        Raises:
            MaskError: the batch sizes or the sizes of a pair differ, or a mask has other values than 0 and 1.
        """
        counts = _dense(predictions, targets) if _on_gpu(predictions, targets) else _encoded(predictions, targets)
        n = len(counts)
        columns = {"image_ids": image_ids, "sample_ids": sample_ids, "no_target": no_target,
                   "predicted_no_target": predicted_no_target}  # fmt: skip
        for name, values in columns.items():
            if values is not None and len(values) != n:
                raise MaskError(f"{name} has {len(values)} entries for {n} samples")
        numbers = np.zeros((n, WIDTH), np.int64)
        numbers[:, FIRST_COUNT:] = counts
        areas = PairCounts.of(counts)
        numbers[:, NO_TARGET] = areas.target_area == 0 if no_target is None else list(map(bool, no_target))
        numbers[:, PREDICTED_NO_TARGET] = (
            areas.prediction_area == 0 if predicted_no_target is None else list(map(bool, predicted_no_target))
        )
        self._rows.add(numbers, _texts(sample_ids, n), _texts(image_ids, n))

    def compute(self, prefix: str = "", *, synchronise: bool = True) -> dict[str, float]:
        """The metrics of the protocol in percent, over all processes; NaN if the protocol leaves one undefined.

        Args:
            prefix: put before every name, for example "val/".
            synchronise: whether to gather the samples of all processes of `torch.distributed`.

        Raises:
            PredictionError: there are no samples.
        """
        evidence = Evidence(self._table(self._gathered() if synchronise else [self._rows]))
        return {f"{prefix}{n}": value_of(self.protocol, m, evidence) for n, m in self.protocol.metrics.items()}

    def intervals(self) -> dict[str, Estimate]:
        """The metrics with their 95 % intervals, bootstrapped by image (see `image_ids`), over all processes."""
        return summarise(self.protocol, Evidence(self._table(self._gathered()))).metrics

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """The counts of the samples of this process, int64 (N,) each, in pixels."""
        return PairCounts.of(self._rows.numbers[:, FIRST_COUNT:]).by_name()

    def to_array(self) -> NDArray[np.int64]:
        """The samples of this process as numbers, int64 (N, K), for programs that exchange tensors.

        The columns are a hash of the sample id and one of the image id, 0 for none, then flags and counts. Use
        `from_array` to get a metric again; its intervals differ, because images are numbered in another order.
        """
        hashes = [[_hash(i) for i in ids] for ids in (self._rows.sample_ids, self._rows.image_ids)]
        return np.column_stack([np.array(hashes, np.int64).reshape(2, -1).T, self._rows.numbers])

    @classmethod
    def from_array(cls, array: NDArray[np.int64], protocol: str = "refbench") -> ReferringMetric:
        """A metric with the samples of one or several `to_array`, one below the other.

        Raises:
            PredictionError: the array has another shape.
        """
        array = np.asarray(array, np.int64)
        if array.ndim != 2 or array.shape[1] != WIDTH + 2:
            raise PredictionError(f"the array must have the shape (N, {WIDTH + 2}), got {array.shape}")
        metric = cls(protocol)
        sample_ids, image_ids = ([str(i) if i else None for i in column.tolist()] for column in array[:, :2].T)
        metric._rows.add(array[:, 2:], sample_ids, image_ids)
        return metric

    def reset(self) -> None:
        """Forget all samples."""
        self._rows = _Rows()

    def merge(self, other: ReferringMetric) -> None:
        """Add the samples of another metric object with the same protocol."""
        if other.protocol.name != self.protocol.name:
            raise PredictionError(f"cannot merge {other.protocol.name} into {self.protocol.name}")
        # Copied first, because a metric may be merged with itself.
        self._rows.add(other._rows.numbers.copy(), list(other._rows.sample_ids), list(other._rows.image_ids))

    def state_dict(self) -> dict[str, Any]:
        """All samples, as plain lists that can be stored in a checkpoint or as JSON."""
        return {
            "version": STATE_VERSION,
            "protocol": self.protocol.name,
            "numbers": self._rows.numbers.tolist(),
            "sample_ids": list(self._rows.sample_ids),
            "image_ids": list(self._rows.image_ids),
        }

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
        rows = _Rows()
        try:
            numbers = np.array(state["numbers"], np.int64).reshape(-1, WIDTH)
            if not len(numbers) == len(state["sample_ids"]) == len(state["image_ids"]):
                raise ValueError("its columns have different lengths")
            rows.add(numbers, _texts(state["sample_ids"], len(numbers)), _texts(state["image_ids"], len(numbers)))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PredictionError(f"the state is damaged ({error})") from None
        self._rows = rows

    def _gathered(self) -> list[_Rows]:
        """The samples of all processes."""
        # Not imported: a process that has not imported torch cannot be one of several.
        distributed = getattr(sys.modules.get("torch"), "distributed", None)
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return [self._rows]
        every: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(every, (self._rows.numbers, self._rows.sample_ids, self._rows.image_ids))
        out = []
        for part in every:
            out.append(_Rows())
            out[-1].add(*part)
        return out

    def _table(self, parts: Sequence[_Rows]) -> ScoreTable:
        """The samples as a score table. A sample id that occurs twice is kept once."""
        everything = np.concatenate([part.numbers for part in parts])
        kept: list[int] = []
        sample_ids, image_ids = [], []
        seen: dict[str, int] = {}
        row = -1
        for part in parts:
            for sample_id, image_id in zip(part.sample_ids, part.image_ids, strict=True):
                row += 1
                name = f"#{row}" if sample_id is None else sample_id
                if name in seen:
                    at = seen[name]
                    if everything[row].tolist() < everything[kept[at]].tolist():
                        kept[at] = row
                    continue
                seen[name] = len(kept)
                kept.append(row)
                sample_ids.append(name)
                # Without an id of its image, a sample has an image of its own.
                image_ids.append(name if image_id is None else image_id)
        if not sample_ids:
            raise PredictionError("the metric has no samples; call update first")
        numbers = everything[kept]
        return ScoreTable(
            sample_id=sample_ids,
            image_id=image_ids,
            failed=numbers[:, FAILED] != 0,
            no_target=numbers[:, NO_TARGET] != 0,
            predicted_no_target=numbers[:, PREDICTED_NO_TARGET] != 0,
            **PairCounts.of(numbers[:, FIRST_COUNT:]).by_name(),
        )


def _on_gpu(predictions: Any, targets: Any) -> bool:
    """Whether both are dense tensors of one shape on a GPU. Such masks are counted there, and not copied."""
    tensors = all(getattr(masks, "is_cuda", False) for masks in (predictions, targets))
    return tensors and predictions.shape == targets.shape and predictions.ndim in (2, 3)


def _dense(predictions: Any, targets: Any) -> NDArray[np.int64]:
    if predictions.ndim == 2:
        predictions, targets = predictions[None], targets[None]
    counts: NDArray[np.int64] = load_attribute("refbench.masks.tensor_counts:dense_counts")(predictions, targets)
    return counts


def _encoded(predictions: Any, targets: Any) -> NDArray[np.int64]:
    """The counts of masks in any form, int64 (N, 6), columns as in COUNTS."""
    predicted, meant = _masks(predictions, "predictions"), _masks(targets, "targets")
    if len(predicted) != len(meant):
        raise MaskError(f"{len(predicted)} predictions for {len(meant)} targets; pass as many of both")
    for k, (p, t) in enumerate(zip(predicted, meant, strict=True)):
        if p.size != t.size:
            raise MaskError(
                f"sample {k} of the batch: the prediction has the size {p.size}, the target {t.size}; resize the "
                "prediction to the size of the target"
            )
    sizes = np.array([t.size for t in meant], np.int64).reshape(-1, 2)
    return count_codes([p.counts for p in predicted], [t.counts for t in meant], sizes[:, 0], sizes[:, 1])


def _hash(text: str | None) -> int:
    """A hash of an id; 0 for None."""
    return 0 if text is None else int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _texts(ids: Sequence[Any] | None, n: int) -> list[str | None]:
    if ids is None:
        return [None] * n
    # A tensor as text names its device.
    listed = ids.tolist() if hasattr(ids, "tolist") else [i.item() if hasattr(i, "item") else i for i in ids]
    return [None if i is None else str(i) for i in listed]


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
            squeeze = "; take its only channel with [:, 0]" if given.ndim == 4 and given.shape[1] == 1 else ""
            raise MaskError(f"{what} must have the shape (H, W) or (B, H, W), got {given.shape}{squeeze}")
        given = given[None] if given.ndim == 2 else given
    if not isinstance(given, Iterable):
        raise MaskError(f"{what} must be arrays, tensors, masks or run-length codes, got {type(given).__name__}")
    return [mask_of(one, f"{what}[{k}]") for k, one in enumerate(given)]
