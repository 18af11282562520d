"""Click to segment on the review page, with the SAM refiner of the recipe if there is one, otherwise with a method that
needs no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.curation.items import ImageItems
from refbench.curation.proposals import make_refiner
from refbench.curation.recipe import Recipe
from refbench.curation.refiners.clicks import Click, segment_clicks
from refbench.curation.surroundings import FloatArray, edge_strength, lab_of
from refbench.errors import DatasetError, RefbenchError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load
from refbench.storage.images import load_image

MOST_CLICKS = 100


class ClickTool:
    """Draws masks from clicks; what the first click on an image computes is kept for the next ones.

    `name` is the refiner that draws, "" before the first click.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.name = ""
        self._recipe = recipe
        self._refiner: Any = None
        self._last: tuple[str, NDArray[np.uint8], FloatArray | None] | None = None
        # The page may ask again before the first answer is there.
        self._turn = Lock()

    def draw(self, image: ImageItems, mask: Mask, clicks: Sequence[Click]) -> Mask:
        """The object that the clicks describe.

        Args:
            mask: the mask so far, of the size of the image; it may be empty.

        Raises:
            DatasetError: the image cannot be read, or there are no clicks, too many, or some outside the image.
        """
        if not 0 < len(clicks) <= MOST_CLICKS:
            raise DatasetError(f"there must be 1 to {MOST_CLICKS} clicks, got {len(clicks)}")
        if any(not (0 <= c.x < image.width and 0 <= c.y < image.height) for c in clicks):
            raise DatasetError(f"a click is outside the image of {image.width} x {image.height} px (width x height)")
        with self._turn:
            self._choose()
            if self._last is None or self._last[0] != image.image_id:
                picture = np.asarray(load_image(image.image_path, image.height, image.width))
                edges = None if self._refiner is not None else edge_strength(lab_of(picture))
                self._last = image.image_id, picture, edges
            _, picture, edges = self._last
            if edges is None:
                return Mask.from_array(self._refiner.segment_clicks(picture, mask.to_array(), clicks))
            return Mask.from_array(segment_clicks(edges, mask.to_array(), clicks))

    def _choose(self) -> None:
        """Load the first refiner of the recipe that accepts clicks; use no refiner if there is none, or if its weights
        are missing.
        """
        if self.name:
            return
        for choice in self._recipe.refiners:
            if not hasattr(load("refiners", choice.name), "segment_clicks"):
                continue
            try:
                self._refiner, self.name = make_refiner(choice, "cpu"), choice.name
            except RefbenchError:
                continue
            return
        self.name = "clicks"
