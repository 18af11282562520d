"""The items of a curation, image by image: each mask of a split once, with its expressions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from refbench.masks.mask import Mask
from refbench.records import AnnotatedObject, Sample

Thing = TypeVar("Thing")


@dataclass(frozen=True, slots=True)
class TargetMask:
    """A mask that expressions of a split refer to; several refs may refer to the same mask."""

    mask_id: str
    image_id: str
    mask: Mask
    polygons: tuple[tuple[float, ...], ...]
    box_xywh: tuple[float, float, float, float]
    category: str
    ann_ids: tuple[str, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class ImageItems:
    """All annotations of one image; `objects` includes those without expressions."""

    image_id: str
    image_path: str
    height: int
    width: int
    masks: tuple[TargetMask, ...]
    samples: tuple[Sample, ...]
    objects: tuple[AnnotatedObject, ...]

    def others(self, target: TargetMask) -> list[AnnotatedObject]:
        """The annotated objects except those of this mask and crowds."""
        return [o for o in self.objects if o.ann_id not in target.ann_ids and not o.crowd]


def evenly(things: Sequence[Thing], most: int) -> list[Thing]:
    """At most `most` of the things, evenly spread over all, in their order."""
    if len(things) <= most:
        return list(things)
    return [things[k * len(things) // most] for k in range(most)]


def mask_id_of(sample: Sample) -> str:
    """The mask id, `<dataset>/<split>/<annotation ids, joined by +>`; the ref id replaces the annotation ids if the
    target has none.
    """
    return f"{sample.address}/{'+'.join(sorted(sample.ann_ids)) or sample.ref_id}"


def items_of(samples: Sequence[Sample], objects: Iterable[AnnotatedObject] = ()) -> list[ImageItems]:
    """The images of a split with their masks, in order of first appearance. An expression without a target adds
    no mask.
    """
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image_id, []).append(sample)
    annotated: dict[str, list[AnnotatedObject]] = {}
    for found in objects:
        annotated.setdefault(found.image_id, []).append(found)
    return [_image(image_id, rows, annotated.get(image_id, ())) for image_id, rows in by_image.items()]


def _image(image_id: str, samples: Sequence[Sample], objects: Sequence[AnnotatedObject]) -> ImageItems:
    meaning: dict[str, list[Sample]] = {}
    for sample in samples:
        if not sample.no_target:
            meaning.setdefault(mask_id_of(sample), []).append(sample)
    masks = []
    for mask_id, rows in meaning.items():
        s = rows[0]
        masks.append(
            TargetMask(mask_id, image_id, s.target, s.polygons, s.box_xywh, s.category, s.ann_ids, tuple(rows))
        )
    first = samples[0]
    return ImageItems(
        image_id, first.image_path, first.height, first.width, tuple(masks), tuple(samples), tuple(objects)
    )
