"""Class names as expressions: what LVIS and SGinW share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refbench.mask import Mask
from refbench.records import AnnotatedObject, Sample


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that is asked about; `path` is "" without photographs."""

    image_id: str
    path: str
    height: int
    width: int


def readable(name: str) -> str:
    """`bow_(decorative_ribbons)` -> `bow (decorative ribbons)`; the name as published stays in raw_expression."""
    return " ".join(name.replace("_", " ").split())


def category_sample(
    dataset: str,
    split: str,
    ref_id: str,
    picture: Picture,
    name: str,
    objects: Sequence[AnnotatedObject],
    tags: Sequence[str] = (),
) -> Sample:
    """One class on one image: the target is the union of its `objects`, or nothing if there are none."""
    if len(objects) == 1:
        mask, box, polygons = objects[0].mask, objects[0].box_xywh, objects[0].polygons
    else:
        mask = Mask.empty(picture.height, picture.width).union(*(o.mask for o in objects))
        box, polygons = mask.box_xywh, tuple(p for o in objects for p in o.polygons)
    return Sample(
        sample_id=f"{dataset}/{split}/{ref_id}/0",
        image_id=picture.image_id,
        image_path=picture.path,
        height=picture.height,
        width=picture.width,
        expression=readable(name),
        raw_expression=name,
        ref_id=ref_id,
        sent_id="0",
        ann_ids=tuple(o.ann_id for o in objects),
        category=name,
        target=mask,
        no_target=not objects,
        polygons=polygons,
        box_xywh=box,
        tags=tuple(tags),
    )
