"""Splits of a few samples, made by hand, for the checks and the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from refbench.curation.items import ImageItems, items_of
from refbench.masks.mask import Mask
from refbench.records import AnnotatedObject, Sample

HEIGHT, WIDTH = 60, 80


def square(top: int, left: int, side: int, height: int = HEIGHT, width: int = WIDTH) -> Mask:
    pixels = np.zeros((height, width), bool)
    pixels[top : top + side, left : left + side] = True
    return Mask.from_array(pixels)


def sample(ref: str, sent: int, expression: str, mask: Mask | None, **changes: object) -> Sample:
    """One expression; `ref` names its annotation too."""
    target = Mask.empty(HEIGHT, WIDTH) if mask is None else mask
    values: dict[str, object] = {
        "sample_id": f"toy/val/{ref}/{sent}", "image_id": "1", "image_path": "", "height": target.height,
        "width": target.width, "expression": expression, "raw_expression": expression, "ref_id": ref,
        "sent_id": str(sent), "ann_ids": () if mask is None else (ref,), "category": "square", "target": target,
        "no_target": mask is None, "box_xywh": target.box_xywh,
    }  # fmt: skip
    return Sample(**{**values, **changes})  # type: ignore[arg-type]


def objects_of(samples: Sequence[Sample]) -> list[AnnotatedObject]:
    found = {s.ref_id: s for s in samples if not s.no_target}
    return [
        AnnotatedObject(r, s.image_id, s.category, False, s.target, s.polygons, s.box_xywh) for r, s in found.items()
    ]


def image(samples: Sequence[Sample]) -> ImageItems:
    (found,) = items_of(samples, objects_of(samples))
    return found


def save_picture(folder: Path, pixels: np.ndarray, name: str = "1.png") -> str:
    path = folder / name
    Image.fromarray(pixels).save(path)
    return str(path)
