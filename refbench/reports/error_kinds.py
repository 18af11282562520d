"""Costs of the kinds of errors: every wrong pixel of a sample is assigned to one kind, so that the costs add up.

The kinds and their rules:

* `failed`: the model crashed, or returned no prediction.
* `false_alarm`: there is no target, but the prediction is not empty.
* `missed`: the prediction covers less than a tenth of the target.
* `wrong_object`: the IoU of the prediction with another object is at least a tenth, is higher than the IoU with the
  target, and is not lower than the IoU with the union of both.

In all other samples, each wrong pixel is assigned to one kind:

* `boundary`: inside a band along the outline of the target.
* `part`: in the target, outside the band, and not predicted. If more than 15 % of the target outside the band is
  missing, the missing pixels in the band are `part` as well.
* `merged`: predicted, outside the band, on another object.
* `spill`: predicted, outside the band, on no object.

The kind of a sample is the kind of error that costs this sample most. The threshold of a tenth is taken from TIDE
(Bolya et al., ECCV 2020), which calls a detection below it background. The band is as wide as that of Boundary IoU, 2 %
of the diagonal. However, it extends outwards by at most the half-width of the target, and inwards by at most half of
the half-width, so that small objects can have `part` errors as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refbench.masks.counting import boundary_widths_px, count_errors
from refbench.masks.pairs import ERROR_COLUMNS
from refbench.scoring.counts import Batch, Measure, Measured, ScoreTable

KINDS = ("failed", "missed", "wrong_object", "merged", "part", "boundary", "spill", "false_alarm")
HARDLY, MUCH = 0.1, 0.15
MEANING = {
    "failed": "no prediction, or a crash",
    "missed": "less than a tenth of the target covered",
    "wrong_object": "another object of the image predicted",
    "merged": "pixels of other objects predicted too",
    "part": "pixels of the target not predicted",
    "boundary": "pixels along the outline",
    "spill": "pixels of no object predicted",
    "false_alarm": "prediction not empty although there is no target",
}


def _count(batch: Batch) -> Mapping[str, NDArray[np.int64]]:
    bands = boundary_widths_px(batch.heights, batch.widths)
    counts = count_errors(
        batch.predictions, batch.targets, batch.objects, batch.others, batch.heights, batch.widths, bands
    )
    return {name: counts[:, k] for k, name in enumerate(ERROR_COLUMNS)}


ERRORS = Measure("errors", ERROR_COLUMNS, _count, needs_objects=True)


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """The wrong pixels of each sample.

    `pixels`, int64 (N, 8), contains the number of wrong pixels by kind, in the order of KINDS. `kind`, int64 (N,), is
    the index of the kind of each sample in KINDS, or -1 if nothing is wrong.
    """

    pixels: NDArray[np.int64]
    kind: NDArray[np.int64]

    def names(self) -> list[str]:
        """The kind of each sample as text; "" if nothing is wrong."""
        return ["" if k < 0 else KINDS[k] for k in self.kind.tolist()]


def attribute(scores: ScoreTable, measured: Measured) -> ErrorTable:
    """Assign the wrong pixels of each sample to kinds; `measured` contains the columns of ERRORS.

    The pixels of all kinds of a sample add up exactly to union minus intersection.
    """
    columns = measured[ERRORS.name]
    lost = scores.union - scores.intersection
    pixels = np.zeros((len(scores), len(KINDS)), np.int64)
    at = {kind: k for k, kind in enumerate(KINDS)}
    undecided = np.ones(len(scores), bool)

    def decide(kind: str, rows: NDArray[np.bool_]) -> None:
        here = undecided & rows
        pixels[here, at[kind]] = lost[here]
        undecided[here] = False

    decide("failed", scores.failed)
    # An empty target counts as no target.
    decide("false_alarm", scores.target_area == 0)
    decide("wrong_object", _fits_another(scores, columns))
    decide("missed", scores.intersection < HARDLY * scores.target_area)
    # If much of the inside is missing, the missing pixels of the band have the same cause and count as `part`.
    lacks_inside = columns["deep_missing"] > MUCH * columns["deep"]
    parts = {
        "boundary": columns["band_extra"] + np.where(lacks_inside, 0, columns["band_missing"]),
        "part": columns["deep_missing"] + np.where(lacks_inside, columns["band_missing"], 0),
        "merged": columns["far_on_others"],
        "spill": columns["far_elsewhere"],
    }
    for kind, counts in parts.items():
        pixels[undecided, at[kind]] = counts[undecided]
    kinds = np.where(lost > 0, pixels.argmax(axis=1), -1)
    # A failed sample without a target has no wrong pixel, but the whole sample is lost.
    return ErrorTable(pixels, np.where(scores.failed, at["failed"], kinds))


def _fits_another(scores: ScoreTable, columns: Mapping[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    other, other_union = columns["other_intersection"], np.maximum(columns["other_union"], 1)
    joint, joint_union = columns["joint_intersection"], np.maximum(columns["joint_union"], 1)
    # Quotients are compared as products of integers, so that equal ones are equal.
    better_than_target = other * np.maximum(scores.union, 1) > scores.intersection * other_union
    not_both_together = other * joint_union >= joint * other_union
    at_all: NDArray[np.bool_] = other >= HARDLY * other_union
    return better_than_target & not_both_together & at_all


def cumulative_losses(errors: ErrorTable, scores: ScoreTable, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Points of cumulative IoU that each kind costs, in percent (8,); the sum is 100 minus the metric."""
    total = int(scores.union[rows].sum())
    losses: NDArray[np.float64] = 100 * errors.pixels[rows].sum(axis=0) / max(total, 1)
    if total == 0 and scores.failed[rows].any():
        # No sample has a target and some sample failed: the metric is 0.
        losses[KINDS.index("failed")] = 100.0
    return losses


def mean_losses(errors: ErrorTable, scores: ScoreTable, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Points of mean IoU that each kind costs, in percent (8,); the sum is 100 minus the metric."""
    shares = loss_shares(errors.pixels[rows], scores.union[rows], scores.failed[rows])
    losses: NDArray[np.float64] = 100 * shares.sum(axis=0) / max(int(rows.sum()), 1)
    return losses


def loss_shares(pixels: NDArray[np.int64], union: NDArray[np.int64], failed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The IoU that each kind of error costs each sample, float (N, 8) between 0 and 1.

    Args:
        pixels: wrong pixels by kind, (N, 8).
        union, failed: of the samples, (N,).
    """
    shares: NDArray[np.float64] = pixels / np.maximum(union, 1)[:, None]
    # A crash where there is no target loses the sample without a wrong pixel.
    shares[failed & (union == 0), KINDS.index("failed")] = 1.0
    return shares
