"""Which pixels several proposals for one mask agree on, and which proposal is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refbench.masks.counting import pair_counts
from refbench.masks.mask import Mask
from refbench.records import Proposal

# One pixel of distance from the image's edges weighs as much as this much agreement.
MISFIT_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well the proposals for one mask agree.

    All values are between 0 and 1, except `edge_gain_px` and `refiners`, the number of refiners that made a proposal.

    `best` is the proposal with the highest value of its agreement minus MISFIT_WEIGHT times the distance in pixels
    between its outline and the edges of the image. `agreement` is the mean boundary IoU of the best proposal with the
    proposals of the other refiners. `stability` is the mean boundary IoU between the first proposal of each refiner and
    its further proposals (for modified masks or other prompts); it is 1 if there are no further proposals. `source_iou`
    and `source_boundary_iou` compare the best proposal with the source mask. `edge_gain_px` is how much closer the
    outline of the best proposal is to the edges of the image than the outline of the source mask.
    """

    best: Proposal
    refiners: int
    agreement: float
    stability: float
    source_iou: float
    source_boundary_iou: float
    edge_gain_px: float

    def figures(self) -> dict[str, float]:
        """The values that a calibration may use. The keys are the names in `curation.recipe.FIGURES`."""
        return {
            "agreement": self.agreement,
            "stability": self.stability,
            "source_boundary_iou": self.source_boundary_iou,
            "edge_gain_px": self.edge_gain_px,
            "misfit_px": self.best.misfit_px,
            "confidence": self.best.confidence,
        }


def agree(source: Mask, proposals: Sequence[Proposal]) -> Agreement | None:
    """The agreement of the proposals for a mask, ignoring failed proposals; None if no proposal remains."""
    valid = [p for p in proposals if not p.error]
    if not valid:
        return None
    boundary = boundary_ious([p.mask for p in valid])
    voters = [k for k, p in enumerate(valid) if p.variant == 0] or list(range(len(valid)))
    refiners = [p.refiner for p in valid]
    agreement = np.array([_mean_with_others(k, voters, refiners, boundary) for k in range(len(valid))])
    misfit = np.array([p.misfit_px for p in valid])
    best = int(np.argmax(agreement - MISFIT_WEIGHT * misfit))
    chosen = valid[best]
    source_iou, source_boundary_iou = ious([chosen.mask], [source])
    return Agreement(
        best=chosen,
        refiners=len(set(refiners)),
        agreement=round(float(agreement[best]), 6),
        stability=round(_stability(valid, boundary), 6),
        source_iou=round(float(source_iou[0]), 6),
        source_boundary_iou=round(float(source_boundary_iou[0]), 6),
        edge_gain_px=round(chosen.source_misfit_px - chosen.misfit_px, 6),
    )


def boundary_iou(masks: Sequence[Mask], others: Sequence[Mask]) -> NDArray[np.float64]:
    """Boundary IoU of N pairs of masks, float (N,); 1 if both masks of a pair are empty."""
    return ious(masks, others)[1]


def ious(masks: Sequence[Mask], others: Sequence[Mask]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU and boundary IoU of N pairs of masks, each float (N,); 1 if both masks of a pair are empty."""
    counts = pair_counts(masks, others, threads=1)
    return (
        _ratio(counts["intersection"], counts["union"]),
        _ratio(counts["boundary_intersection"], counts["boundary_union"]),
    )


def boundary_ious(masks: Sequence[Mask]) -> NDArray[np.float64]:
    """Boundary IoU of every pair of masks, float (N, N)."""
    n = len(masks)
    rows, columns = np.triu_indices(n, 1)
    out = np.eye(n)
    if len(rows):
        out[rows, columns] = boundary_iou([masks[i] for i in rows.tolist()], [masks[j] for j in columns.tolist()])
        out[columns, rows] = out[rows, columns]
    return out


def votes(proposals: Sequence[Proposal]) -> NDArray[np.float64]:
    """The share of proposals that contain each pixel, float (H, W) between 0 and 1; failed proposals are ignored.

    Raises:
        ValueError: all proposals failed.
    """
    masks = [p.mask.to_array() for p in proposals if not p.error]
    if not masks:
        raise ValueError("all proposals failed, so there is no majority")
    share: NDArray[np.float64] = np.mean(masks, axis=0)
    return share


def _mean_with_others(k: int, voters: Sequence[int], refiners: Sequence[str], boundary: NDArray[np.float64]) -> float:
    others = [v for v in voters if refiners[v] != refiners[k]]
    # With a single refiner there is no agreement, however many variants it made.
    return float(boundary[k, others].mean()) if others else 0.0


def _stability(valid: Sequence[Proposal], boundary: NDArray[np.float64]) -> float:
    first = {p.refiner: k for k, p in enumerate(valid) if p.variant == 0}
    pairs = [boundary[k, first[p.refiner]] for k, p in enumerate(valid) if p.variant and p.refiner in first]
    return float(np.mean(pairs)) if pairs else 1.0


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(1, whole), 1.0)
