"""Predictions in memory: a mapping, an iterable, a DataFrame, or masks in the order of the split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from refbench.errors import MaskError, PredictionError
from refbench.masks.conversion import mask_of
from refbench.records import Prediction
from refbench.storage.predictions import Claim, SampleIndex, checked_score

COLUMNS = ("sample_id", "mask")


class GivenPredictions:
    """Predictions for the samples of a split, in one of the forms that `score` takes.

    Args:
        given: a mapping of sample ids to masks; a DataFrame with the columns `sample_id` and `mask`, and optionally
            `score`; an iterable of `Prediction`s, of `(sample_id, mask)` or of `(sample_id, mask, score)`; or one mask
            for each sample, in the order of the split. A mask is a `Mask`, a COCO run-length code, or a bool or 0/1
            array or tensor (H, W).

    Raises:
        PredictionError: the object has none of these forms.
    """

    def __init__(self, given: Any) -> None:
        if not isinstance(given, Iterable) or isinstance(given, (bytes, bytearray)):
            raise PredictionError(
                "predictions must be a path, a mapping, an iterable, an array or a DataFrame, got "
                f"{type(given).__name__}"
            )
        if hasattr(given, "columns") and hasattr(given, "itertuples"):
            missing = [name for name in COLUMNS if name not in given.columns]
            if missing:
                raise PredictionError(
                    f"the DataFrame has no column {missing[0]!r}; it needs the columns {' and '.join(COLUMNS)}, and "
                    "may have the column score"
                )
        self._given: Any = given

    def entries(self, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
        """The predictions with their place for messages, and the rows of their samples in the split.

        Raises:
            PredictionError: a sample is not in the split, or a mask is invalid or has another size than its image.
        """
        in_order = 0
        for number, (sample_id, mask, score) in enumerate(self._rows()):
            where = f"prediction {number}"
            if sample_id is None:
                if number >= len(index.sample_ids):
                    raise PredictionError(
                        f"there are more masks than the {len(index.sample_ids)} samples of the split; pass sample ids"
                    )
                sample_id = index.sample_ids[number]
                in_order += 1
            row = index.row(where, sample_id)
            where += f" ({sample_id})"
            yield where, row, _claim(where, row, mask, score, index)
        if in_order and in_order != len(index.sample_ids):
            raise PredictionError(
                f"{in_order} masks without sample ids for {len(index.sample_ids)} samples; pass one mask for each "
                "sample, in the order of the split, or a mapping of sample ids to masks"
            )

    def _rows(self) -> Iterator[tuple[Any, Any, Any]]:
        """Sample id (None for a mask without one), mask or `Prediction`, and score."""
        given = self._given
        if isinstance(given, Mapping):
            yield from ((sample_id, mask, None) for sample_id, mask in given.items())
        elif hasattr(given, "columns") and hasattr(given, "itertuples"):
            scores = given["score"] if "score" in given.columns else [None] * len(given)
            for sample_id, mask, score in zip(given["sample_id"], given["mask"], scores, strict=True):
                if not isinstance(sample_id, str):
                    raise PredictionError(f"the column sample_id must hold texts, got {sample_id!r}")
                yield sample_id, mask, None if score is None or _is_empty(score) else score
        else:
            for entry in given:
                if isinstance(entry, Prediction):
                    yield entry.sample_id, entry, entry.score
                elif isinstance(entry, (tuple, list)) and len(entry) in (2, 3) and isinstance(entry[0], str):
                    yield entry[0], entry[1], entry[2] if len(entry) == 3 else None
                else:
                    yield None, entry, None


def _is_empty(cell: Any) -> bool:
    """Whether a cell of a DataFrame is NaN or NA."""
    try:
        return bool(cell != cell)
    except TypeError:
        return True  # pandas.NA has no truth value


def _claim(where: str, row: int, given: Any, score: Any, index: SampleIndex) -> Claim:
    prediction = given if isinstance(given, Prediction) else None
    try:
        mask = mask_of(given if prediction is None else prediction.mask)
    except MaskError as error:
        raise PredictionError(f"{where}: {error}") from None
    except (TypeError, ValueError, AttributeError):
        raise PredictionError(f"{where} is not a mask: {type(given).__name__}") from None
    index.check_size(where, row, *mask.size)
    number = None if score is None else checked_score(where, score.item() if isinstance(score, np.generic) else score)
    if prediction is None:
        return Claim(mask.counts, number)
    instances = tuple((i.mask.counts, i.score) for i in prediction.instances)
    return Claim(mask.counts, number, prediction.no_target, instances, prediction.error)
