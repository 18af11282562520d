"""Segmenters with a common interface, and code that several of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.adapters.base import Segmenter
    from refbench.adapters.contract import check_adapter

__all__ = [
    "Segmenter",
    "check_adapter",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Segmenter": "refbench.adapters.base:Segmenter",
        "check_adapter": "refbench.adapters.contract:check_adapter",
    },
)
