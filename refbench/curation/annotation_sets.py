"""Masks of another annotation set of the same images, such as LVIS for COCO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pycocotools import mask as coco_mask

from refbench.curation.edits import Replace
from refbench.curation.folder import load_items, open_curation
from refbench.curation.items import ImageItems
from refbench.errors import DatasetError, RunError
from refbench.masks.mask import Mask
from refbench.storage.samples import load_objects


def replacements(folder: Path, dataset: str, least_iou: float = 0.8) -> tuple[list[Replace], pd.DataFrame]:
    """Propose edits that replace masks of a curation by those of another annotation set, such as LVIS for COCO.

    Images are matched by their id. A mask is replaced by the object of `dataset` with the highest IoU, if the IoU is at
    least `least_iou`, the masks differ, and the object is not a better match for another mask of the image.

    Returns:
        The edits, and a table with one row per mask: item_id, by, iou. `by` is "" for a mask without a match.

    Raises:
        RunError: the folder is not a curation folder.
        DatasetError: `dataset` is not built, or has none of the images.
    """
    if not 0 < least_iou <= 1:
        raise RunError(f"the least IoU must be above 0 and at most 1, got {least_iou:g}")
    curation = open_curation(folder)
    by_image: dict[str, list[tuple[str, Mask]]] = {}
    for found in load_objects(dataset):
        if not found.crowd and found.mask.area:
            by_image.setdefault(found.image_id, []).append((f"{dataset}/{found.ann_id}", found.mask))
    images = load_items(curation.address)
    if not any(i.image_id in by_image for i in images):
        raise DatasetError(f"{dataset} has no object on an image of {curation.address}; images are matched by their id")
    edits, rows = [], []
    for image in images:
        matches = _matches(image, by_image.get(image.image_id, ()), least_iou)
        for target in image.masks:
            by, mask, iou = matches.get(target.mask_id, ("", None, 0.0))
            rows.append([target.mask_id, by, iou])
            if mask is not None and mask != target.mask:
                edits.append(Replace(mask=target.mask_id, by=by, reason=f"IoU {iou:.3f} with {by}"))
    return edits, pd.DataFrame(rows, columns=["item_id", "by", "iou"])


def _matches(
    image: ImageItems, others: Sequence[tuple[str, Mask]], least_iou: float
) -> dict[str, tuple[str, Mask, float]]:
    """The match of each mask, by mask id. Pairs with a higher IoU are chosen first, and each object only once."""
    others = [pair for pair in others if pair[1].size == (image.height, image.width)]
    masks = [t for t in image.masks if t.mask.area]
    if not others or not masks:
        return {}
    ious = coco_mask.iou([t.mask.to_rle() for t in masks], [m.to_rle() for _, m in others], [0] * len(others))
    ranked = sorted(
        (-float(ious[k, n]), k, n) for k in range(len(masks)) for n in range(len(others)) if ious[k, n] >= least_iou
    )
    out: dict[str, tuple[str, Mask, float]] = {}
    taken: set[int] = set()
    for minus, k, n in ranked:
        if masks[k].mask_id not in out and n not in taken:
            out[masks[k].mask_id] = (*others[n], -minus)
            taken.add(n)
    return out
