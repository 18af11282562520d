"""`refbench overlap`: images and objects that two splits share, or that a model may have been trained on."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.storage.files import check_is_file, read_json, read_table
from refbench.storage.manifest import dataset_folder, read_manifest
from refbench.storage.samples import split_table

# COCO's file names, 2014 and 2017, and those of REFER's refs, which end in the number of the object:
# COCO_train2014_000000000009.jpg, 000000000009.jpg, COCO_train2014_000000000009_3.jpg. Or a bare number.
FILE_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d+)(?:_\d+)?\.\w+$")
NUMBER = re.compile(r"0*(\d+)$")
SAME_OBJECT_IOU = 0.5
MAX_LIST_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Overlap:
    """What A shares with B. `objects_by` states how `objects` are compared; `images_a` and similar fields are
    totals.
    """

    a: str
    b: str
    images: int
    objects: int | None
    expressions: int
    objects_by: str
    images_a: int
    images_b: int
    expressions_a: int
    image_ids: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Side:
    name: str
    numbering: str
    annotations: str
    images: set[str]
    rows: list[dict[str, Any]]
    folder: Path | None


def overlap(a: str, b: str) -> Overlap:
    """Compare a split (`refcoco/val`) or a whole dataset (`refcoco`) with another, or with a list of images.

    `b` can be a file: one image id or file name per line, or a COCO JSON file, whose images are used. Then `objects` is
    None, because a list of images does not state which objects a model has seen. Two objects are the same if they have
    the same annotation id. If the annotations have different origins (RefCOCO and LVIS), they are the same if their
    masks have an IoU of at least 0.5.

    Raises:
        DatasetError: one of the two is not built, or they number their images differently.

    Example:
        >>> from refbench import overlap
        >>> found = overlap("snapshots/test", "snapshots")
        >>> found.images, found.images_a
        (8, 8)
    """
    if Path(a).is_file():
        raise DatasetError(f"{a} is a file; pass the split first and the image list second")
    first = _side(a)
    if not Path(b).is_file() and Path(b).suffix in (".txt", ".json", ".csv"):
        raise DatasetError(f"the image list {b} does not exist")
    second = _listed(Path(b), first.numbering) if Path(b).is_file() else _side(b)
    if first.numbering != second.numbering:
        raise DatasetError(
            f"{a} uses the image ids of {first.numbering}, but {b} uses the image ids of {second.numbering}; "
            "image ids from different numbering schemes cannot be compared"
        )
    shared = first.images & second.images
    objects: int | None
    if second.folder is None:
        objects, how = None, "unknown: a list of images names no objects"
    elif first.annotations == second.annotations:
        objects = len(_objects(first, shared) & _objects(second, shared))
        how = f"annotation id ({first.annotations})"
    else:
        objects, how = _same_masks(first, second, shared), f"mask IoU >= {SAME_OBJECT_IOU}"
    return Overlap(
        a, b, len(shared), objects, sum(row["image_id"] in shared for row in first.rows), how,
        len(first.images), len(second.images), len(first.rows), sorted(shared),
    )  # fmt: skip


def _side(address: str) -> _Side:
    dataset = address.partition("/")[0]
    manifest = read_manifest(dataset)
    splits = [address] if "/" in address else [f"{dataset}/{s}" for s in manifest.splits]
    rows: list[dict[str, Any]] = []
    for split in splits:
        # Listing never loads masks.
        rows += split_table(split, ["image_id", "ann_ids"]).to_pylist()
    images = {row["image_id"] for row in rows}
    folder = dataset_folder(dataset)
    return _Side(address, manifest.image_ids, manifest.annotation_ids, images, rows, folder)


def _objects(side: _Side, images: set[str]) -> set[str]:
    return {ann_id for row in side.rows if row["image_id"] in images for ann_id in row["ann_ids"]}


def _same_masks(a: _Side, b: _Side, images: set[str]) -> int:
    """Number of objects of A that are matched one-to-one with objects of B by mask IoU, best pairs first."""
    first, second = _masks(a, images), _masks(b, images)
    count = 0
    for image_id in sorted(images):
        ours, theirs = first.get(image_id, []), second.get(image_id, [])
        if not ours or not theirs or ours[0].size != theirs[0].size:
            continue
        table = coco_mask.iou([m.to_rle() for m in ours], [m.to_rle() for m in theirs], [0] * len(theirs))
        table = np.array(table, dtype=np.float64)
        while table.max() >= SAME_OBJECT_IOU:
            row, column = np.unravel_index(int(table.argmax()), table.shape)
            table[row, :] = table[:, column] = -1.0
            count += 1
    return count


def _masks(side: _Side, images: set[str]) -> dict[str, list[Mask]]:
    named = _objects(side, images)
    table = read_table((side.folder or Path()) / "objects.parquet", ["ann_id", "image_id", "height", "width", "counts"])
    out: dict[str, list[Mask]] = {}
    for row in table.to_pylist():
        if row["image_id"] in images and row["ann_id"] in named:
            mask = Mask(row["height"], row["width"], row["counts"].encode("ascii", "replace"))
            out.setdefault(row["image_id"], []).append(mask)
    return out


def _image_of(row: Any) -> str:
    """The file name if it is given, otherwise the id. The file name is preferred because some files renumber the
    images, with one id per expression.
    """
    if not isinstance(row, dict):
        return str(row)
    return str(row.get("file_name") or row.get("image_id", row.get("id", "")))


def _listed(path: Path, numbering: str) -> _Side:
    """The images of a list: lines of a text file, or `images` of a COCO JSON file."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise DatasetError(f"{path} is too large to be an image list")
    if path.suffix == ".json":
        content = read_json(path)
        rows = content.get("images") if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise DatasetError(f"{path} contains neither a list nor a COCO object with images")
        names = [_image_of(row) for row in rows]
    else:
        try:
            check_is_file(path)
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise DatasetError(f"{path} is not UTF-8 text; write one image id or file name per line") from None
    if not names:
        raise DatasetError(f"{path} lists no images")
    images = set()
    for k, name in enumerate(names):
        last = name.rpartition("/")[2]
        match = FILE_NAME.fullmatch(last) or NUMBER.fullmatch(last)
        if numbering == "coco" and match is None:
            raise DatasetError(f"{path}, entry {k + 1}: {name[:60]!r} is neither an image id nor a COCO file name")
        images.add(match[1] if numbering == "coco" and match else name)
    return _Side(str(path), numbering, "", images, [], None)
