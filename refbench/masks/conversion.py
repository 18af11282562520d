"""Masks from what people have: arrays, tensors on any device, run-length codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refbench.errors import MaskError
from refbench.masks.mask import Mask


def mask_of(value: Any, what: str = "a mask") -> Mask:
    """A mask from a `Mask`, a COCO run-length code, or a bool or 0/1 array or tensor (H, W).

    Args:
        what: the name of the value in error messages.

    Raises:
        MaskError: the value has another shape or other values, or its code is invalid.
    """
    if isinstance(value, Mask):
        return value
    if isinstance(value, Mapping):
        return Mask.from_rle(value)
    if hasattr(value, "detach"):
        # A tensor, without importing torch.
        value = value.detach().cpu().numpy()
    pixels = np.asarray(value)
    if pixels.ndim != 2:
        raise MaskError(f"{what} must have the shape (H, W), got {pixels.shape}")
    if pixels.dtype != np.bool_:
        if not ((pixels == 0) | (pixels == 1)).all():
            raise MaskError(f"{what} must contain only False and True, or 0 and 1; apply a threshold first")
        pixels = pixels != 0
    return Mask.from_array(pixels)
