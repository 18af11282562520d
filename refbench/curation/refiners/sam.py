"""The SAM refiners, prompted with a box around the coarse mask and with points where the answer and the mask differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from refbench.adapters.segment_anything import Embedded, Prompts, SegmentAnything
from refbench.curation.refiners.base import Box, Refined, Target
from refbench.curation.refiners.clicks import Click
from refbench.curation.surroundings import BoolArray
from refbench.masks.mask import Mask

# Each side of the box moves outwards by noise: its standard deviation is a share of the side, at most so many pixels.
NOISE_SHARE, MOST_NOISE_PX = 0.1, 10.0
# Islands and holes of fewer pixels are removed from a mask that is at least LARGE times as large.
SPECK_PX, LARGE = 100, 10
EIGHT = np.ones((3, 3))
# Classes that are thin, or that have other things on them: points would be on the wrong thing.
BOX_ONLY = ("bed", "bicycle", "bowl", "dining table", "motorcycle", "scissors")


class _Prompted:
    """Shared code of the SAM refiners: the answer is a majority vote over several trials with different boxes and
    points.

    In the first round of a trial, the prompt is only a box. Each further round adds a point where the answer and the
    coarse mask differ, and passes the network its own logits. The coarse mask itself is never a prompt, because the
    network would copy it.

    Args:
        weights: a folder written by `save_pretrained`, or a model id of the hub.
        device: for example cpu or cuda:0.
        revision: commit of the hub repository; set it to make results reproducible.
        trials: number of trials per variant.
        points: number of rounds after the first one.
        box_only: categories that are prompted without points.

    Source: Singh et al., "Benchmarking Object Detectors with COCO: A New Path Forward", ECCV 2024 (COCO-ReM), its
    `coco_rem/modeling/sam_refiner.py` and `scripts/refine_boundaries.py`.
    """

    name = ""

    def __init__(
        self,
        weights: str,
        device: str = "cpu",
        revision: str = "main",
        trials: int = 10,
        points: int = 2,
        box_only: Sequence[str] = BOX_ONLY,
    ) -> None:
        if trials < 1 or points < 0:
            raise ValueError(f"trials must be at least 1 (got {trials}), and points must be at least 0 (got {points})")
        self.trials = trials
        self.points = points
        self.box_only = (box_only,) if isinstance(box_only, str) else tuple(box_only)
        self.network = SegmentAnything(weights, device, revision, self.name)
        self.weights_sha256 = self.network.weights_sha256
        self._last: tuple[NDArray[np.uint8], Embedded] | None = None

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is the mean IoU that the network predicts for its answers."""
        return self.refine_target(image, Target(mask, box), 1)[0]

    def refine_target(self, image: NDArray[np.uint8], target: Target, variants: int) -> list[Refined]:
        """See `Refiner`; all masks of an image share its embedding."""
        if self._last is None or self._last[0] is not image:
            self._last = image, self.network.embed(image)
        return [self._vote(self._last[1], target, variant) for variant in range(variants)]

    def segment_clicks(self, image: NDArray[np.uint8], mask: BoolArray, clicks: Sequence[Click]) -> BoolArray:
        """Segment the object that a person's clicks describe, bool (H, W). `mask` is the mask so far and may be
        empty.
        """
        if self._last is None or self._last[0] is not image:
            self._last = image, self.network.embed(image)
        known = mask.copy()
        for click in clicks:
            known[click.y, click.x] |= click.inside
        box = torch.tensor([Mask.from_array(known).box_xywh], dtype=torch.float32)
        box[:, 2:] += box[:, :2]
        points = torch.tensor([[(c.x, c.y) for c in clicks]], dtype=torch.float32)
        labels = torch.tensor([[int(c.inside) for c in clicks]])
        drawn: BoolArray = self.network.decode(self._last[1], Prompts(box, points, labels)).masks[0].cpu().numpy()
        return drawn

    def _vote(self, image: Embedded, target: Target, variant: int) -> Refined:
        # The draws belong to the mask, so they do not depend on its neighbours or on the process.
        seed = [variant, int(target.mask.sum()), *(int(v) for v in target.box)]
        draws = [np.random.default_rng([*seed, trial]) for trial in range(self.trials)]
        boxes = torch.tensor([widened(target.box, target.mask.shape, d) for d in draws], dtype=torch.float32)
        found = self.network.decode(image, Prompts(boxes))
        spots: list[list[tuple[int, int]]] = [[] for _ in draws]
        for _ in range(0 if target.category in self.box_only else self.points):
            for spot, drawn, one in zip(spots, found.masks.cpu().numpy(), draws, strict=True):
                spot.append(differing_point(target.mask, drawn, one))
            points = torch.tensor(spots, dtype=torch.float32)
            labels = torch.tensor([[int(target.mask[y, x]) for x, y in spot] for spot in spots])
            found = self.network.decode(image, Prompts(boxes, points, labels, found.logits))
        majority = 2 * found.masks.sum(dim=0) > self.trials
        return Refined(without_specks(majority.cpu().numpy()), float(found.confidences.mean()))


class Sam(_Prompted):
    """SAM through transformers, prompted with boxes and points.

    Source: Kirillov et al., "Segment Anything", ICCV 2023.
    """

    name = "sam"


class SamHq(_Prompted):
    """SAM-HQ through transformers: SAM with a token for boundaries.

    Source: Ke et al., "Segment Anything in High Quality", NeurIPS 2023.
    """

    name = "sam-hq"


class Sam2(_Prompted):
    """SAM 2 through transformers, prompted with boxes and points.

    Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024.
    """

    name = "sam2"


class Sam3(_Prompted):
    """SAM 3 through transformers: its tracker, prompted with boxes and points.

    Source: Carion et al., "SAM 3: Segment Anything with Concepts", 2025.
    """

    name = "sam3"


def widened(box: Box, shape: tuple[int, ...], draws: np.random.Generator) -> list[float]:
    """The box as left, top, right and bottom. Its sides are moved outwards by random noise and clipped to the image.

    Values are rounded to eighths of a pixel, so that they do not depend on the processor.
    """
    left, top, width, height = box
    spread = np.minimum(NOISE_SHARE * np.array([width, height, width, height]), MOST_NOISE_PX)
    outwards = np.abs(draws.normal(0, 1, 4)) * spread * np.array([-1, -1, 1, 1])
    moved = np.array([left, top, left + width, top + height]) + np.round(8 * outwards) / 8
    sides = [float(v) for v in np.clip(moved, 0, [shape[1], shape[0], shape[1], shape[0]])]
    return sides


def differing_point(mask: BoolArray, drawn: BoolArray, draws: np.random.Generator) -> tuple[int, int]:
    """(x, y) of a random pixel where the two masks differ, or of any pixel of `mask` if they are equal."""
    rows, columns = np.nonzero(mask ^ drawn)
    if not len(rows):
        rows, columns = np.nonzero(mask)
    k = int(draws.integers(len(rows)))
    return int(columns[k]), int(rows[k])


def without_specks(mask: BoolArray) -> BoolArray:
    """The mask without holes and islands of fewer than SPECK_PX pixels; small masks are not changed.

    If all islands are that small, the largest one is kept.
    """
    if np.count_nonzero(mask) <= LARGE * SPECK_PX:
        return mask
    filled = mask | _small_parts(~mask)
    cleaned: BoolArray = filled & ~_small_parts(filled)
    if not cleaned.any():
        labels, _ = ndimage.label(filled, EIGHT)
        cleaned = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return cleaned


def _small_parts(pixels: BoolArray) -> BoolArray:
    labels, _ = ndimage.label(pixels, EIGHT)
    small: BoolArray = (np.bincount(labels.ravel()) < SPECK_PX)[labels] & pixels
    return small
