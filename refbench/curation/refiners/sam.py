"""SAM and its kin, prompted by the box, points inside and outside, and the coarse mask itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from refbench.adapters.segment_anything import Prompts, SegmentAnything
from refbench.curation.refiners.base import Box, Refined, reach_px
from refbench.curation.surroundings import BoolArray, signed_distance


class _Prompted:
    """What they share: prompts of a coarse mask, a shared embedding, and a choice among several answers.

    Args:
        weights: a folder written by `save_pretrained`, or a hub id.
        device: e.g. cpu or cuda:0.
        revision: commit of the hub repository; pin it for results that are to be repeated.
        mask_prompt: also give the coarse mask; without it box and points alone.
    """

    name = ""

    def __init__(self, weights: str, device: str = "cpu", revision: str = "main", mask_prompt: bool = True) -> None:
        self.mask_prompt = mask_prompt
        self.network = SegmentAnything(weights, device, revision, self.name)
        self.weights_sha256 = self.network.weights_sha256

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is the IoU that the network expects of its answer."""
        return self.refine_many(image, [mask], [box])[0]

    def refine_many(self, image: NDArray[np.uint8], masks: Sequence[BoolArray], boxes: Sequence[Box]) -> list[Refined]:
        """All masks of an image: it is embedded once."""
        found = [_points(mask) for mask in masks]
        prompts = Prompts(
            boxes=torch.tensor([[left, top, left + w, top + h] for left, top, w, h in boxes], dtype=torch.float32),
            points=torch.tensor([[[x, y] for x, y, _ in one] for one in found], dtype=torch.float32),
            labels=torch.tensor([[label for *_, label in one] for one in found], dtype=torch.int64),
            masks=np.stack(masks) if self.mask_prompt else None,
        )
        drawn, confidences = self.network.decode(self.network.embed(image), prompts, best_of_several=True)
        return [Refined(m, float(c)) for m, c in zip(drawn.cpu().numpy(), confidences.cpu(), strict=True)]


class Sam(_Prompted):
    """SAM through transformers, prompted by box, points and mask.

    Source: Kirillov et al., "Segment Anything", ICCV 2023.
    """

    name = "sam"


class SamHq(_Prompted):
    """SAM-HQ through transformers: SAM with a token for boundaries.

    Source: Ke et al., "Segment Anything in High Quality", NeurIPS 2023.
    """

    name = "sam-hq"


class Sam2(_Prompted):
    """SAM 2 through transformers, prompted by box, points and mask.

    Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024.
    """

    name = "sam2"


class Sam3(_Prompted):
    """SAM 3 through transformers: its tracker, which takes boxes, points and masks.

    Source: Carion et al., "SAM 3: Segment Anything with Concepts", 2025.
    """

    name = "sam3"


def _points(mask: BoolArray) -> list[tuple[float, float, int]]:
    """(x, y, label): the deepest point inside, the deepest one far from it, and one of the ground beside the mask."""
    distance = signed_distance(np.pad(mask, 1))[1:-1, 1:-1]
    first = _place(distance == distance.min())
    rows, columns = np.indices(mask.shape)
    apart = np.square(rows - first[0]) + np.square(columns - first[1])
    deep = distance <= 0.5 * distance.min()
    second = _place(deep & (apart == apart[deep].max()))
    ring = np.abs(distance - 2 * reach_px(mask))
    outside = _place((ring == ring.min()) & ~mask) if not mask.all() else first
    label = 0 if not mask.all() else 1
    return [(float(c), float(r), k) for (r, c), k in ((first, 1), (second, 1), (outside, label))]


def _place(where: BoolArray) -> tuple[int, int]:
    rows, columns = np.nonzero(where)
    return int(rows[0]), int(columns[0])
