"""GrabCut: two mixtures of colours, inside and outside, and a cut between them along the edges (OpenCV).

Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004, as OpenCV implements it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refbench.curation.refiners.base import Box, Refined, core_of, reach_px, unfold
from refbench.curation.surroundings import BoolArray, signed_distance, window_of


class GrabCut:
    """A model of the colours inside and outside, and a cut between them along edges (OpenCV)."""

    name = "grabcut"

    def __init__(self, rounds: int = 5) -> None:
        self.rounds = rounds
        # Masks are refined in parallel, and a cut should hang neither on the number of cores nor on the processor.
        cv2.setNumThreads(1)
        cv2.setUseOptimized(False)

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is the share of pixels near the outline that its last round did not move."""
        reach = reach_px(mask)
        window = window_of(mask, 3 * reach + 4)
        inside = mask[window]
        distance = signed_distance(inside)
        labels = np.full(inside.shape, cv2.GC_BGD, np.uint8)
        labels[distance < reach] = cv2.GC_PR_BGD
        labels[inside] = cv2.GC_PR_FGD
        picture = np.ascontiguousarray(image[window][..., ::-1])
        found, moved = self._cut(picture, labels)
        if not found.any():
            # In a busy image everything can become ground: then what is deep inside is the object for certain. Not
            # at first, since a hole that was filled may be deep inside.
            labels[core_of(inside, reach)] = cv2.GC_FGD
            found, moved = self._cut(picture, labels)
        near = np.abs(distance) < reach
        return Refined(unfold(found, window, mask.shape), float(1 - moved[near].mean()))

    def _cut(self, picture: NDArray[np.uint8], start: NDArray[np.uint8]) -> tuple[BoolArray, BoolArray]:
        """The object, and the pixels that the last round changed."""
        labels = start.copy()
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        # Its mixtures begin with k-means, which draws numbers.
        cv2.setRNGSeed(1)
        cv2.grabCut(picture, labels, None, background, foreground, self.rounds - 1, cv2.GC_INIT_WITH_MASK)
        before = labels.copy()
        cv2.grabCut(picture, labels, None, background, foreground, 1, cv2.GC_EVAL)
        return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD), labels != before
