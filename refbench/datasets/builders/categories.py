"""Class names as expressions (shared by LVIS and SGinW), and the supercategories of COCO's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from refbench.masks.mask import Mask
from refbench.records import AnnotatedObject, Sample

# COCO's groups of its 80 classes (cocodataset.org, instances_*.json).
_GROUPS = {
    "person": ("person",),
    "vehicle": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    "outdoor": ("traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    "animal": ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    "accessory": ("backpack", "umbrella", "handbag", "tie", "suitcase"),
    "sports": (
        "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
        "surfboard", "tennis racket",
    ),
    "kitchen": ("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    "food": (
        "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    ),
    "furniture": ("chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    "electronic": ("tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    "appliance": ("microwave", "oven", "toaster", "sink", "refrigerator"),
    "indoor": ("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
}  # fmt: skip
SUPERCATEGORIES = {name: group for group, names in _GROUPS.items() for name in names}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that has expressions; `path` is "" if the dataset is built without images."""

    image_id: str
    path: str
    height: int
    width: int


@cache
def readable(name: str) -> str:
    """`bow_(decorative_ribbons)` -> `bow (decorative ribbons)`; the published name is kept in raw_expression."""
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
    """One class on one image: the target is the union of `objects`; without objects, the sample has no target."""
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
