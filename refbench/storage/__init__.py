"""Files: datasets, predictions, images, and provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.storage.images import load_image
    from refbench.storage.manifest import Manifest, read_manifest
    from refbench.storage.samples import load_objects, load_samples, sample_table

__all__ = [
    "Manifest",
    "load_image",
    "load_objects",
    "load_samples",
    "read_manifest",
    "sample_table",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Manifest": "refbench.storage.manifest:Manifest",
        "load_image": "refbench.storage.images:load_image",
        "load_objects": "refbench.storage.samples:load_objects",
        "load_samples": "refbench.storage.samples:load_samples",
        "read_manifest": "refbench.storage.manifest:read_manifest",
        "sample_table": "refbench.storage.samples:sample_table",
    },
)
