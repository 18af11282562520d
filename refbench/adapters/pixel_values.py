"""What an image processor of transformers makes of an image, the same bits with less work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

VALUES = 256
# Height and width: one that is enlarged and one that is reduced, not square, so that cropping and padding would show.
TRIAL_SIZES = ((7, 12), (611, 433))


def load_image_processor(model: str, revision: str) -> Any:
    """The image processor of a model, always the one that resizes with Pillow: that of torchvision rounds differently,
    so that results would depend on what is installed.
    """
    return AutoImageProcessor.from_pretrained(model, revision=revision, backend="pil")


class PixelValues:
    """The `pixel_values` of an image processor of transformers, the same bits in about half of the time.

    Rescaling and normalising map each of the 256 values of a channel to one number. The processor computes this table
    once; then 8-bit pixels are looked up in it, and no arrays of floats are copied. Pillow resizes the image without
    the detours of the processor, which hold Python's lock (3 ms an image of 640 x 480, now 0.5 ms) and so delay all
    other threads. If the result differs from the processor's on trial images, for example because it crops or pads, the
    processor is called for every image.

    Args:
        processor: an image processor of transformers.
        dtype: dtype of the values.
    """

    def __init__(self, processor: Any, dtype: torch.dtype) -> None:
        self._processor = processor
        self._dtype = dtype
        self._values: Callable[[Image.Image], torch.Tensor] = self._by_processor
        try:
            self._tables = self._table_of_each_channel()
            self._size = (int(processor.size["width"]), int(processor.size["height"]))
            self._resample = Image.Resampling(int(processor.resample))
            same = all(
                torch.equal(self._by_table(trial), self._by_processor(trial)) for trial in map(_noise, TRIAL_SIZES)
            )
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            # It has other options; all that is known of it is that it can be called.
            same = False
        if same:
            self._values = self._by_table

    @property
    def by_table(self) -> bool:
        """Whether the values are looked up."""
        return self._values == self._by_table

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The values of an RGB image, shape (1, 3, height, width) of the network's input."""
        return self._values(image)

    def _by_table(self, image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize(self._size, self._resample))
        found = np.empty((1, 3, *pixels.shape[:2]), self._tables[0].dtype)
        for channel, table in enumerate(self._tables):
            # "clip" skips the check of each index; 8 bits are always within the table.
            np.take(table, pixels[..., channel], out=found[0, channel], mode="clip")
        return torch.from_numpy(found).to(self._dtype)

    def _by_processor(self, image: Image.Image) -> torch.Tensor:
        values: torch.Tensor = self._processor(images=[image], return_tensors="pt")["pixel_values"]
        return values.to(self._dtype)

    def _table_of_each_channel(self) -> list[np.ndarray]:
        ramp = np.repeat(np.arange(VALUES, dtype=np.uint8)[None, :, None], 3, axis=2)
        values = self._processor(images=[Image.fromarray(ramp)], do_resize=False, return_tensors="pt")["pixel_values"]
        if values.shape != (1, 3, 1, VALUES):
            raise ValueError("the image processor changes the size of the image even without resizing")
        # NumPy has no bfloat16.
        dtype = torch.float32 if self._dtype == torch.bfloat16 else self._dtype
        return [line.numpy() for line in values[0, :, 0].to(dtype)]


def _noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, VALUES, (*size, 3), dtype=np.uint8))
