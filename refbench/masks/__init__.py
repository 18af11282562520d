"""Masks as run-length codes, and pixel counts of pairs of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.masks.counting import pair_counts
    from refbench.masks.mask import Mask

__all__ = [
    "Mask",
    "pair_counts",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Mask": "refbench.masks.mask:Mask",
        "pair_counts": "refbench.masks.counting:pair_counts",
    },
)
