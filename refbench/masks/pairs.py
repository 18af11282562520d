"""The six counts of a pair of masks, by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COUNTS = ("intersection", "union", "prediction_area", "target_area", "boundary_intersection", "boundary_union")

# A band lies along the target's outline (`plain.batches`). `deep`: the target's pixels that it encloses;
# `deep_missing`: those of them that the prediction misses. `band_missing`: the target's pixels in the band that the
# prediction misses; `band_extra`: its pixels in the band outside of the target. `far_*`: its pixels beyond the band, on
# other objects or elsewhere.
# `other_*`: the object with the highest IoU with the prediction; `joint_*`: the union of that object and the target.
ERROR_COLUMNS = (
    "deep",
    "deep_missing",
    "band_missing",
    "band_extra",
    "far_on_others",
    "far_elsewhere",
    "other_intersection",
    "other_union",
    "joint_intersection",
    "joint_union",
)


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Counts of N pairs of masks in pixels, int64 (N,) each; boundary counts are those of the bands of Boundary IoU."""

    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    prediction_area: NDArray[np.int64]
    target_area: NDArray[np.int64]
    boundary_intersection: NDArray[np.int64]
    boundary_union: NDArray[np.int64]

    @staticmethod
    def of(table: NDArray[np.int64]) -> PairCounts:
        """Create the counts from a table, int64 (N, 6), with the columns in the order of COUNTS."""
        return PairCounts(*(np.ascontiguousarray(column) for column in table.T))

    def by_name(self) -> dict[str, NDArray[np.int64]]:
        """The counts by their names."""
        return {name: getattr(self, name) for name in COUNTS}
