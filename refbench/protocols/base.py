"""What a protocol is: named metrics, each a ratio of two sums over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.records import Estimate, Summary
from refbench.statistics.bootstrap import image_codes, ratio_intervals

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """The columns of scores.parquet, each an array of shape (N,), in sample order; counts in pixels."""

    sample_id: Any
    image_id: Any
    failed: NDArray[np.bool_]
    no_target: NDArray[np.bool_]
    predicted_no_target: NDArray[np.bool_]
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    prediction_area: NDArray[np.int64]
    target_area: NDArray[np.int64]
    boundary_intersection: NDArray[np.int64]
    boundary_union: NDArray[np.int64]


Terms = Callable[[ScoreTable], tuple[FloatArray, FloatArray]]


@dataclass(frozen=True, slots=True)
class Choices:
    """The ten choices that a published number rests on, in words; two numbers compare only where all agree."""

    units: str
    text: str
    target: str
    canvas: str
    binarisation: str
    resampling: str
    sample_iou: str
    both_empty: str
    aggregation: str
    precision: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """A published way to turn counts into numbers.

    `metrics` maps the name as the original prints it to a function of the score table that returns
    numerators and denominators, float64 (N,); the metric is 100 * sum / sum, in percent. `when_empty` is
    the value, 0..1, of a ratio whose denominator is zero. `target` names how targets are drawn (see
    `refbench.protocols.targets`), `caveats` what the original saw and a stored mask cannot give.
    """

    name: str
    summary: str
    source: str
    metrics: Mapping[str, Terms]
    when_empty: float = 1.0
    target: str = "union"
    choices: Choices | None = None
    caveats: tuple[str, ...] = ()


def summarise(protocol: Protocol, scores: ScoreTable) -> Summary:
    """Metrics with their 95 % intervals, bootstrapped by image."""
    terms = [metric(scores) for metric in protocol.metrics.values()]
    tops = np.stack([t for t, _ in terms])
    bottoms = np.stack([b for _, b in terms])
    images, image_count = image_codes(scores.image_id)
    # Nothing to find and nothing found is right only if nobody crashed on the way.
    when_empty = 0.0 if scores.failed.any() else protocol.when_empty
    metrics: dict[str, Estimate] = {}
    if image_count:
        low, high = ratio_intervals(tops, bottoms, images, image_count, when_empty)
        for k, name in enumerate(protocol.metrics):
            top, bottom = float(tops[k].sum()), float(bottoms[k].sum())
            value = top / bottom if bottom > 0 else when_empty
            metrics[name] = Estimate(100 * value, 100 * float(low[k]), 100 * float(high[k]))
    return Summary(protocol.name, metrics, len(scores.failed), int(scores.failed.sum()))
