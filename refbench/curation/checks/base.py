"""The interface of checks, and the view of an image that checks share.

A check is a small class. Its docstring states what it reports, and its fields are thresholds that a recipe can set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.surroundings import Surroundings
from refbench.errors import DatasetError
from refbench.records import Finding, Sample
from refbench.storage.images import load_image

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (NOTE, WARNING, ERROR)
# The check of `refbench curate audit --against`, which compares splits and has no class.
LEAKS = "image-leaks"


class ImageView:
    """One image for all checks; what several checks need is decoded once."""

    def __init__(self, items: ImageItems, with_picture: bool) -> None:
        self.items = items
        self._with_picture = with_picture
        self._arrays: dict[str, NDArray[np.bool_]] = {}
        self._surroundings: dict[str, Surroundings] = {}

    @cached_property
    def picture(self) -> NDArray[np.uint8] | None:
        """uint8 (H, W, 3) RGB; None if the audit runs without images or the image cannot be read."""
        return None if self.picture_error or not self._with_picture else self._loaded[0]

    @cached_property
    def picture_error(self) -> str:
        """Why the image cannot be read; "" if it can, or if it is not needed."""
        return self._loaded[1] if self._with_picture else ""

    @cached_property
    def _loaded(self) -> tuple[NDArray[np.uint8] | None, str]:
        items = self.items
        try:
            return np.asarray(load_image(items.image_path, items.height, items.width)), ""
        except DatasetError as error:
            return None, str(error)

    def pixels(self, target: TargetMask) -> NDArray[np.bool_]:
        """The pixels of a mask, bool (H, W)."""
        if target.mask_id not in self._arrays:
            self._arrays[target.mask_id] = target.mask.to_array()
        return self._arrays[target.mask_id]

    def surroundings(self, target: TargetMask) -> Surroundings | None:
        """A mask with the pixels around it; None if there is no image or the mask is empty."""
        if self.picture is None or target.mask.area == 0:
            return None
        if target.mask_id not in self._surroundings:
            others = [o.mask.to_array() for o in self.items.others(target)]
            self._surroundings[target.mask_id] = Surroundings.of(self.picture, self.pixels(target), others)
        return self._surroundings[target.mask_id]


@runtime_checkable
class ImageCheck(Protocol):
    """A check that looks at one image at a time."""

    code: ClassVar[str]
    severity: ClassVar[str]
    needs_images: ClassVar[bool]

    def find(self, image: ImageView) -> Iterator[Finding]: ...


@runtime_checkable
class SplitCheck(Protocol):
    """A check that compares images with each other."""

    code: ClassVar[str]
    severity: ClassVar[str]
    needs_images: ClassVar[bool]

    def find_in_split(self, images: Sequence[ImageItems]) -> Iterator[Finding]: ...


@dataclass(frozen=True)
class Reporter:
    """Creates the findings of a check; checks inherit from it and set their code and severity."""

    code: ClassVar[str] = ""
    severity: ClassVar[str] = WARNING
    needs_images: ClassVar[bool] = False

    def on_mask(self, target: TargetMask, message: str, value: float = float("nan")) -> Finding:
        return Finding(self.code, self.severity, "mask", target.mask_id, target.image_id, message, round(value, 6))

    def on_expression(self, sample: Sample, message: str, value: float = float("nan")) -> Finding:
        return Finding(
            self.code, self.severity, "expression", sample.sample_id, sample.image_id, message, round(value, 6)
        )

    def on_image(self, items: ImageItems, message: str, value: float = float("nan")) -> Finding:
        return Finding(self.code, self.severity, "image", items.image_id, items.image_id, message, round(value, 6))
