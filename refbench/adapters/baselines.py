"""Baselines that need no weights.

`everything` and `center` are lower bounds: a model below them has learnt nothing from the words. `nothing` shows what
empty masks alone score.
`noisy-oracle` returns a perturbed target, to measure a metric's sensitivity.
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
from refbench.records import Sample
from refbench.storage.samples import load_objects


class Nothing:
    """Answers every expression with an empty mask."""

    name = "nothing"
    needs_images = False

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Any]) -> list[Mask]:
        return [Mask.empty(s.height, s.width) for s in samples]


class Everything:
    """Answers every expression with the whole image."""

    name = "everything"
    needs_images = False

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Any]) -> list[Mask]:
        return [Mask.full(s.height, s.width) for s in samples]


class Center:
    """Answers every expression with a centred rectangle of half the image's height and width."""

    name = "center"
    needs_images = False

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Any]) -> list[Mask]:
        return [self._rectangle(s.height, s.width) for s in samples]

    def _rectangle(self, height: int, width: int) -> Mask:
        pixels = np.zeros((height, width), dtype=bool)
        pixels[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        return Mask.from_array(pixels)


class NoisyOracle:
    """The target with deliberate faults.

    Shares are fractions of the samples, in 0..1; at most one fault is applied to a sample.

    Args:
        dilate: grow the mask by this many px (Euclidean); negative erodes.
        shift: move it by this many px in a direction drawn for each sample; what leaves the image is lost.
        swap: share answered with another object of the image, if there is one.
        miss: share answered with an empty mask.
        part: share of which only the left half of the mask is kept.
        merge: share answered with the target and another object together, if there is one.
        invent: share of the samples without target answered with an object of the image, if there is one.
        seed: of all draws, which depend on seed and sample alone, not on the order.
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
                raise AdapterError(f"{name} is a share of samples in 0..1, not {share}")
        if sum(self._shares.values()) > 1 + 1e-9:
            raise AdapterError(f"{', '.join(self._shares)} are shares of the same samples; together at most 1")
        if shift < 0:
            raise AdapterError(f"shift is a distance in px, not {shift}")
        self.dilate = dilate
        self.shift = shift
        self.swap, self.miss, self.part, self.merge, self.invent = swap, miss, part, merge, invent
        self.seed = seed
        self._others: dict[str, dict[str, list[tuple[str, Mask]]]] = {}

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Any]) -> list[Mask]:
        return [self._spoil(s) for s in samples]

    def fault(self, sample: Sample) -> str:
        """The fault that is drawn for a sample, by its option's name.

        "" if none is drawn, or if the image has no other object and the fault needs one.
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
        """The fault, the direction of the shift, and the other object where the fault needs one."""
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
    """Grown (or, below zero, eroded) by a Euclidean distance; outside the image is background."""
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
    """What lies left of the column that halves the mask."""
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
