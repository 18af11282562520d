"""The canvas on which masks are compared: the size of the image, or a size that the loader of the original uses.

These loaders all resize by nearest neighbour, but three libraries select three different pixels. Each rule is written
here as a map from new to old rows or columns, so that masks are resized as run lengths, without decoding:

* Pillow takes the pixel at the centre of the new pixel: `(i + 0.5) * old / new`, computed as a cumulative sum.
* OpenCV and mmcv take the pixel at the corner of the new pixel: `i * (1 / (new / old))`.
* PyTorch also takes the pixel at the corner, `i * (old / new)` in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from refbench.masks.mask import Mask
from refbench.masks.resizing import Places, resize_codes


@lru_cache(maxsize=4096)
def pillow_nearest(old: int, new: int) -> Places:
    """For each of the `new` pixels, the index of the old pixel (one of `old`) that it copies.

    Source: Pillow `Geometry.c:ImagingScaleAffine` (13.0).
    """
    step = old / new
    # Cumulative sums, as in Pillow: multiples of the step would be rounded differently.
    at = np.cumsum(np.concatenate([[step * 0.5], np.full(new - 1, step)]))
    return np.minimum(at.astype(np.int64), old - 1)


@lru_cache(maxsize=4096)
def opencv_nearest(old: int, new: int) -> Places:
    """Like `pillow_nearest`, for `cv2.resize` with INTER_NEAREST; OpenCV `resize.cpp:resizeNN`."""
    step = 1.0 / (new / old)
    places: Places = np.minimum(np.floor(np.arange(new) * step).astype(np.int64), old - 1)
    return places


@lru_cache(maxsize=4096)
def torch_nearest(old: int, new: int) -> Places:
    """Like `pillow_nearest`, for `torch.nn.functional.interpolate` with mode="nearest"; ATen `UpSample.h`."""
    step = np.float32(old) / np.float32(new)
    places: Places = np.minimum(np.floor(np.arange(new, dtype=np.float32) * step).astype(np.int64), old - 1)
    return places


def half_up(value: float) -> int:
    """How mmcv rounds a resized side (`image/geometric.py:_scale_size`)."""
    return int(value + 0.5)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The size at which masks are compared; without `side`, the size of the image.

    Attributes:
        words: the name in tables.
        side: height and width in pixels or, if `keeps_ratio`, the longer of the two.
        keeps_ratio: whether the aspect ratio is kept; the padding of the original is background in both masks.
        nearest: which old pixel each new pixel copies.
        rounded: how the shorter side is rounded to an integer.
    """

    words: str
    side: int | None = None
    keeps_ratio: bool = False
    nearest: Callable[[int, int], Places] = pillow_nearest
    rounded: Callable[[float], int] = round

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) in pixels that an image of this height and width has on this canvas."""
        if self.side is None:
            return height, width
        if not self.keeps_ratio:
            return self.side, self.side
        ratio = self.side / max(height, width)
        # At least one pixel per side: the originals would fail on such a narrow image.
        return max(1, self.rounded(height * ratio)), max(1, self.rounded(width * ratio))

    def resized(self, mask: Mask) -> Mask:
        """The mask on this canvas."""
        height, width = (np.array([side], np.int64) for side in mask.size)
        return Mask(*self.size_of(*mask.size), self.resized_codes([mask.counts], height, width)[0])

    def resized_codes(
        self, codes: Sequence[bytes], heights: NDArray[np.int64], widths: NDArray[np.int64]
    ) -> list[bytes]:
        """The codes of N checked masks on this canvas; see `resized`."""
        if self.side is None:
            return list(codes)
        return resize_codes(codes, heights, widths, self.size_of, self.nearest)


ORIGINAL = Canvas("original size")
SQUARE_480 = Canvas("480 x 480", 480)
SQUARE_448 = Canvas("448 x 448", 448)
SQUARE_512 = Canvas("512 x 512 by OpenCV", 512, nearest=opencv_nearest)
SQUARE_384 = Canvas("384 x 384 by OpenCV", 384, nearest=opencv_nearest)
SQUARE_320 = Canvas("320 x 320 by OpenCV", 320, nearest=opencv_nearest)
LONG_640 = Canvas("longer side 640 by OpenCV", 640, True, opencv_nearest, half_up)
LONG_384 = Canvas("longer side 384 by PyTorch", 384, True, torch_nearest)
