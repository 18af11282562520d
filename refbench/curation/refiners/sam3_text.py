"""SAM 3 prompted with words: the class of an object, and the expressions that refer to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refbench.adapters.box_prompts import UNION
from refbench.adapters.sam3 import Sam3
from refbench.curation.refiners.base import Box, Refined, Target
from refbench.curation.surroundings import BoolArray


class Sam3Text:
    """SAM 3 prompted with words, through transformers.

    The first variant is prompted with the class of the object, the others with its expressions in turn. Of all
    instances that SAM 3 finds, the one with the highest IoU with the coarse mask is the answer. A mask without a class
    and without expressions has no answer.

    Args:
        weights: a folder written by `save_pretrained`, or a model id of the hub.
        device: for example cpu or cuda:0.
        revision: commit of the hub repository; set it to make results reproducible.
        threshold: threshold on the score of an instance, between 0 and 1.

    Source: Carion et al., "SAM 3: Segment Anything with Concepts", 2025.
    """

    name = "sam3-text"

    def __init__(self, weights: str, device: str = "cpu", revision: str = "main", threshold: float = 0.3) -> None:
        self.network = Sam3(weights, device, UNION, threshold, revision)
        self.weights_sha256 = self.network.weights_sha256
        self._last: tuple[NDArray[np.uint8], Image.Image] | None = None

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; raises ValueError, because words are needed: they are in the `Target` of `refine_target`."""
        raise ValueError("sam3-text needs the class or the expressions of a mask")

    def refine_target(self, image: NDArray[np.uint8], target: Target, variants: int) -> Sequence[Refined]:
        """See `Refiner`; the confidence is the score of the instance, 0 if no instance overlaps the mask."""
        texts = list(dict.fromkeys(t for t in (target.category, *target.expressions) if t))
        if not texts:
            raise ValueError("the mask has neither a class nor an expression to prompt SAM 3 with")
        if self._last is None or self._last[0] is not image:
            # The adapter knows an image by its identity, and embeds it once.
            self._last = image, Image.fromarray(image)
        prompts = [texts[k % len(texts)] for k in range(variants)]
        answers = self.network.segment([self._last[1]] * variants, prompts)
        return [_closest(answer.instances, target.mask) for answer in answers]


def _closest(instances: Sequence[tuple[object, float]], mask: BoolArray) -> Refined:
    """The instance with the highest IoU with the mask; an empty mask if none overlaps it."""
    best, answer = 0.0, Refined(np.zeros(mask.shape, bool), 0.0)
    for drawn, score in instances:
        pixels = np.asarray(drawn.cpu() if hasattr(drawn, "cpu") else drawn, bool)
        iou = float((pixels & mask).sum() / (pixels | mask).sum())
        if iou > best:
            best, answer = iou, Refined(pixels, min(1.0, max(0.0, float(score))))
    return answer
