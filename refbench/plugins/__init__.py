"""Plug-ins: finding builders, adapters, protocols, checks and refiners, and reading their options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.plugins.loading import available, load, load_adapter

__all__ = [
    "available",
    "load",
    "load_adapter",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "available": "refbench.plugins.loading:available",
        "load": "refbench.plugins.loading:load",
        "load_adapter": "refbench.plugins.loading:load_adapter",
    },
)
