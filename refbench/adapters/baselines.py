"""Baselines that need no weights.

`everything` and `center` are lower bounds that ignore the expression. `nothing` shows how empty masks are scored.
`noisy-oracle` predicts a modified target, to measure how sensitive a metric is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from refbench.errors import AdapterError
from refbench.masks.mask import Mask
from refbench.masks.whole_numbers import STEPS, cosine_and_sine, whole
from refbench.records import Question, Sample
from refbench.storage.samples import load_objects


class Nothing:
    """Predicts an empty mask for every expression."""

    name = "nothing"
    needs_images = False
    questions_suffice = True

    def segment_samples(self, samples: Sequence[Question], images: Sequence[Any]) -> list[Mask]:
        return [Mask.empty(s.height, s.width) for s in samples]


class Everything:
    """Predicts the whole image for every expression."""

    name = "everything"
    needs_images = False
    questions_suffice = True

    def segment_samples(self, samples: Sequence[Question], images: Sequence[Any]) -> list[Mask]:
        return [Mask.full(s.height, s.width) for s in samples]


class Center:
    """Predicts a centred rectangle of half the height and half the width of the image."""

    name = "center"
    needs_images = False
    questions_suffice = True

    def segment_samples(self, samples: Sequence[Question], images: Sequence[Any]) -> list[Mask]:
        return [self._rectangle(s.height, s.width) for s in samples]

    def _rectangle(self, height: int, width: int) -> Mask:
        pixels = np.zeros((height, width), dtype=bool)
        pixels[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        return Mask.from_array(pixels)


class NoisyOracle:
    """Predicts the target with deliberate errors.

    Shares are fractions of the samples, between 0 and 1. At most one error is applied to a sample.

    Args:
        dilate: number of pixels by which the mask grows (Euclidean distance); if negative, the mask is eroded.
        shift: number of pixels by which the mask is moved, in a random direction; pixels that leave the image are lost.
        swap: share of samples where another object of the image is predicted, if there is one.
        miss: share of samples where the mask is empty.
        part: share of samples where only the left half of the mask is kept.
        merge: share of samples where the target and another object are predicted together, if there is one.
        invent: share of the samples without target where an object of the image is predicted, if there is one.
        seed: seed of the random choices, which depend only on the seed and the sample, not on the order.
    """

    name = "noisy-oracle"
    needs_images = False

    def __init__(
        self,
        dilate: int = 0,
        shift: int = 0,
        swap: float = 0.0,
        miss: float = 0.0,
        part: float = 0.0,
        merge: float = 0.0,
        invent: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._shares = {"swap": swap, "miss": miss, "part": part, "merge": merge}
        for name, share in {**self._shares, "invent": invent}.items():
            if not 0 <= share <= 1:
                raise AdapterError(f"{name} must be between 0 and 1 (a share of the samples), got {share}")
        if sum(self._shares.values()) > 1 + 1e-9:
            raise AdapterError(
                f"the sum of {', '.join(self._shares)} must be at most 1, because all of them are shares of the "
                "same samples"
            )
        if shift < 0:
            raise AdapterError(f"shift must be a non-negative distance in pixels, got {shift}")
        self.dilate = dilate
        self.shift = shift
        self.swap, self.miss, self.part, self.merge, self.invent = swap, miss, part, merge, invent
        self.seed = seed
        self._others: dict[str, dict[str, list[tuple[str, Mask]]]] = {}

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Any]) -> list[Mask]:
        return [self._spoil(s) for s in samples]

    def fault(self, sample: Sample) -> str:
        """The error for a sample, by the name of its option.

        "" if no error is chosen, or if the error needs another object and the image has none.
        """
        return self._drawn(sample)[0]

    def _spoil(self, sample: Sample) -> Mask:
        fault, direction, other = self._drawn(sample)
        mask = sample.target
        if fault == "miss":
            return Mask.empty(*mask.size)
        if other is not None:
            mask = mask.union(other) if fault == "merge" else other
        if fault == "part":
            mask = Mask.from_array(_half(mask.to_array()))
        if not self.dilate and not self.shift:
            return mask
        pixels = mask.to_array()
        if self.shift:
            across, down = (whole(self.shift * part) for part in cosine_and_sine(direction))
            pixels = _moved(pixels, down, across)
        return Mask.from_array(_dilated(pixels, self.dilate) if self.dilate else pixels)

    def _drawn(self, sample: Sample) -> tuple[str, int, Mask | None]:
        """The error, the direction of the shift, and the other object if the error needs one."""
        text = f"{self.seed}/{sample.sample_id}".encode()
        random = np.random.default_rng(list(hashlib.sha256(text).digest()))
        place, direction, pick = random.random(), int(random.random() * STEPS), random.random()
        fault = ""
        of_nothing = {"swap": self.swap, "invent": self.invent}
        for name, share in (of_nothing if sample.no_target else self._shares).items():
            if 0 <= place < share:
                fault = name
            place -= share
        if fault not in ("swap", "merge", "invent"):
            return fault, direction, None
        others = self._other_masks(sample)
        return (fault, direction, others[int(pick * len(others))]) if others else ("", direction, None)

    def _other_masks(self, sample: Sample) -> list[Mask]:
        dataset = sample.dataset
        if dataset not in self._others:
            by_image: dict[str, list[tuple[str, Mask]]] = {}
            for o in load_objects(dataset):
                if not o.crowd:
                    by_image.setdefault(o.image_id, []).append((o.ann_id, o.mask))
            self._others[dataset] = by_image
        found = self._others[dataset].get(sample.image_id, [])
        return [mask for ann_id, mask in found if ann_id not in sample.ann_ids]


def _dilated(pixels: NDArray[np.bool_], by_px: int) -> NDArray[np.bool_]:
    """The mask dilated by a Euclidean distance, or eroded if the distance is negative; everything outside the image
    counts as background.
    """
    if not pixels.any():
        return pixels
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    margin = max(by_px, 0) + 1
    window = (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )
    out = np.zeros_like(pixels)
    if by_px > 0:
        out[window] = distance_transform_edt(~pixels[window]) <= by_px
    else:
        # Padding makes the border of the image an outline, as it is for the Boundary IoU band.
        out[window] = distance_transform_edt(np.pad(pixels[window], 1))[1:-1, 1:-1] > -by_px
    return out


def _half(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of the mask to the left of the column that divides its area in half."""
    columns = np.cumsum(pixels.sum(axis=0))
    kept = pixels.copy()
    kept[:, int(np.searchsorted(columns, columns[-1] / 2)) :] = False
    return kept


def _moved(pixels: NDArray[np.bool_], down: int, right: int) -> NDArray[np.bool_]:
    height, width = pixels.shape
    out = np.zeros_like(pixels)
    if abs(down) < height and abs(right) < width:
        out[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = pixels[
            max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
        ]
    return out
