"""Annotation files of COCO, which RefCOCO, gRefCOCO, Ref-ZOM, LVIS and SGinW all use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, TypedDict

import msgspec

from refbench.datasets.builders.base import NO_IMAGES
from refbench.datasets.builders.tables import find_tables, unpack_images
from refbench.errors import DatasetError, MaskError
from refbench.masks.mask import Mask
from refbench.masks.rle import check_size
from refbench.records import AnnotatedObject
from refbench.storage.coco_rows import is_id, is_text, read_box, read_crowd, read_mask
from refbench.storage.files import read_json
from refbench.storage.images import Photographs, image_size

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop "
    "sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, "
    "umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball "
    "glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, "
    "apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")
# The numbers of the 80 categories run to 90 with these left out (instances_train2014.json).
_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORIES_2014 = [
    {"id": number, "name": name}
    for number, name in zip((i for i in range(1, 91) if i not in _UNUSED), _NAMES, strict=True)
]

# COCO polygons end at the image border; a corner further out than this belongs to another image.
OUTSIDE_TOLERANCE_PX = 2.0


class _Row(TypedDict, total=False):
    """A row of `annotations`. Its segmentation stays JSON until it is read: as numbers of Python, the polygons of LVIS
    take five times as much memory.
    """

    id: Any
    image_id: Any
    category_id: Any
    segmentation: msgspec.Raw
    bbox: Any
    iscrowd: Any


class _Form(TypedDict, total=False):
    images: Any
    annotations: list[_Row]
    categories: Any


def read_instances(path: Path) -> Any:
    """The content of an annotation file of COCO, for `CocoInstances`."""
    return read_json(path, form=_Form)


class CocoInstances:
    """The images, annotations and categories of an `instances.json`, validated and accessible by id.

    Problems of rows are appended to `problems`, with their positions in the file.
    """

    def __init__(self, content: Any, path: Path, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        if not isinstance(content, dict):
            raise DatasetError(f"{path} is not a COCO annotation file; expected an object with images and annotations")
        self.images = self._by_id(content, "images", ("height", "width"))
        self.annotations = self._by_id(content, "annotations", ("image_id", "segmentation"))
        self.categories = self._by_id(content, "categories", ("name",))
        self.category_names = {i: str(row["name"]) for i, (_, row) in self.categories.items()}
        for i, name in self.category_names.items():
            if not is_text(name):
                problems.append(
                    f"{path.name} categories[{self.categories[i][0]}]: the name is not text that can be written"
                )
                self.category_names[i] = ""
        self._objects: dict[int, AnnotatedObject] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    def _by_id(
        self, content: Mapping[str, Any], key: str, needed: tuple[str, ...]
    ) -> dict[int, tuple[int, dict[str, Any]]]:
        rows = content.get(key)
        if not isinstance(rows, list):
            raise DatasetError(f"{self.path} has no list {key!r}, so it is not the annotation file of the release")
        out: dict[int, tuple[int, dict[str, Any]]] = {}
        for position, row in enumerate(rows):
            problem = _row_problem(row, needed, out)
            if problem:
                self.problems.append(f"{self.path.name} {key}[{position}]{problem}")
            else:
                out[row["id"]] = position, row
        return out

    def size_of(self, image_id: int) -> tuple[int, int]:
        """(height, width); raises MaskError if they are not positive integers."""
        if image_id not in self._sizes:
            _, image = self.images[image_id]
            check_size(image["height"], image["width"])
            self._sizes[image_id] = image["height"], image["width"]
        return self._sizes[image_id]

    def where(self, ann_id: int) -> str:
        return f"{self.path.name} annotations[{self.annotations[ann_id][0]}] (id {ann_id})"

    def read_object(self, ann_id: int, may_be_empty: bool = False) -> AnnotatedObject:
        """The annotation as an object; raises MaskError (invalid segmentation) or KeyError (unknown image)."""
        known = self._objects.get(ann_id)
        if known is not None:
            return known
        _, row = self.annotations[ann_id]
        height, width = self.size_of(row["image_id"])
        found = object_of(row, height, width, self.category_names.get(row.get("category_id", -1), ""))
        if not may_be_empty and found.mask.area == 0:
            raise MaskError(f"its mask covers no pixel of the image ({height} x {width} pixels, height x width)")
        self._objects[ann_id] = found
        return found

    def objects_of(self, image_ids: Iterable[int], notes: list[str]) -> list[AnnotatedObject]:
        """Every readable annotation of these images, in file order; each unreadable annotation becomes a note.

        Invalid targets have already been reported as errors, so the notes concern only distractors.
        """
        wanted = set(image_ids)
        out = []
        for ann_id, (_, row) in self.annotations.items():
            if row["image_id"] not in wanted:
                continue
            try:
                out.append(self.read_object(ann_id))
            except MaskError as error:
                notes.append(f"left out {self.where(ann_id)}: {error}")
        return out


class CheckedImages:
    """Paths of the images of a COCO file; the size of each image is checked once against the file.

    `place` is a folder, a zip file, or a folder of Parquet files from the hub, whose images are unpacked to `folder`.
    """

    def __init__(self, coco: CocoInstances, place: Path | None, folder: Path) -> None:
        self.coco = coco
        self.place = place
        self.folder = folder
        self._unpacked: dict[str, str] = {}
        tables = [] if place is None else find_tables(place)
        if tables:
            wanted = {name for _, image in coco.images.values() if (name := _name_or_none(image))}
            self._unpacked = unpack_images(tables, wanted, folder)
        self.photographs = None if place is None else Photographs(place)
        # Keyed by name and size, since SA-Co lists an image once per noun phrase.
        self._paths: dict[tuple[str, int, int], str | DatasetError] = {}
        self._names: dict[str, str] = {}
        # Number of images found under their name in another release (2014 and 2017 have the same images).
        self.renamed = 0

    def notes(self) -> list[str]:
        """Notes about where the images were found."""
        if self.place is None:
            return [NO_IMAGES]
        if not self.renamed:
            return []
        return [f"{self.renamed} images were found under their names in another COCO release (the same images)"]

    def path_of(self, image_id: int) -> str:
        """The absolute path, a path relative to the folder of the dataset, or "" if it is built without images.

        Raises:
            DatasetError: the image is missing or unreadable, or its size differs from the annotation file.
        """
        if self.photographs is None:
            return ""
        key = file_name_of(self.coco.images[image_id][1]), *self.coco.size_of(image_id)
        if key not in self._paths:
            try:
                self._paths[key] = self._find(*key, self.photographs)
            except DatasetError as error:
                self._paths[key] = error
        found = self._paths[key]
        if isinstance(found, DatasetError):
            raise found
        return found

    def _find(self, file_name: str, height: int, width: int, photographs: Photographs) -> str:
        if file_name not in self._unpacked:
            path = photographs.find(file_name, height, width)
            other = self._names.setdefault(path, file_name)
            if other != file_name:
                raise DatasetError(
                    f"{path} matches the two file names {other} and {file_name}; store the images in subfolders, as "
                    "these names state"
                )
            self.renamed += Path(path).name != PurePath(file_name.replace("\\", "/")).name
            return path
        found = image_size(self.folder / self._unpacked[file_name])
        if found != (height, width):
            raise DatasetError(
                f"{file_name} has the size {found} (height, width), but {self.coco.path.name} states {(height, width)}"
            )
        return self._unpacked[file_name]


def file_name_of(image: Mapping[str, Any]) -> str:
    """`file_name`, or the last part of LVIS's `coco_url`, which is the file name in the 2017 release.

    LVIS v0.5 has both fields. Its `file_name` is the name of 2014, but the images are released under their names of
    2017 (lvis-api `lvis/vis.py` loads by coco_url). Users' own files in LVIS format may have only `file_name`.
    """
    by_url = "neg_category_ids" in image and image.get("coco_url") is not None
    name = image["coco_url"] if by_url else image.get("file_name")
    if not isinstance(name, str) or not name or not is_text(name):
        raise DatasetError(f"the image {image.get('id')} has no file name")
    return name.rpartition("/")[2] if by_url else name


def _name_or_none(image: Mapping[str, Any]) -> str | None:
    try:
        return file_name_of(image)
    except DatasetError:
        return None


def object_of(row: Mapping[str, Any], height: int, width: int, category: str) -> AnnotatedObject:
    """A row of `annotations` as an object; raises MaskError if its segmentation is invalid."""
    mask, polygons = read_segmentation(_decoded(row["segmentation"]), height, width)
    box = read_box(row.get("bbox"), mask)
    return AnnotatedObject(str(row["id"]), str(row["image_id"]), category, read_crowd(row), mask, polygons, box)


def _decoded(segmentation: Any) -> Any:
    if not isinstance(segmentation, msgspec.Raw):
        return segmentation
    try:
        return msgspec.json.decode(segmentation)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Such as 1e999, which json reads, and which is then refused in words.
        try:
            return json.loads(bytes(segmentation))
        except ValueError as error:
            raise MaskError(f"its `segmentation` cannot be read ({error})") from None


def read_segmentation(segmentation: Any, height: int, width: int) -> tuple[Mask, tuple[tuple[float, ...], ...]]:
    """A COCO `segmentation` as a mask, and its polygons if it has them.

    Raises:
        MaskError: it is not a valid segmentation, or its polygons extend beyond the image.
    """
    mask = read_mask(segmentation, height, width)
    if isinstance(segmentation, dict):
        return mask, ()
    polygons = tuple([tuple(map(float, p)) for p in segmentation])
    _check_inside(polygons, height, width)
    return mask, polygons


def _row_problem(row: Any, needed: tuple[str, ...], seen: Mapping[int, Any]) -> str:
    if not isinstance(row, dict) or not is_id(row.get("id")):
        return ": no integer 'id'"
    for key in needed:
        if key not in row:
            return f" (id {row['id']}): {', '.join(k for k in needed if k not in row)} is missing"
    if row["id"] in seen:
        return f": id {row['id']} is given twice"
    if not (is_id(row.get("image_id", 0)) and is_id(row.get("category_id", 0))):
        return f" (id {row['id']}): image_id and category_id must be integers"
    return ""


def _check_inside(polygons: tuple[tuple[float, ...], ...], height: int, width: int) -> None:
    t = OUTSIDE_TOLERANCE_PX
    shorter = min(height, width) + t
    for k, polygon in enumerate(polygons):
        if min(polygon) >= -t and max(polygon) <= shorter:
            continue
        xs, ys = polygon[0::2], polygon[1::2]
        if min(xs) < -t or max(xs) > width + t or min(ys) < -t or max(ys) > height + t:
            raise MaskError(
                f"polygon {k} extends beyond the image: it spans x {min(xs):g}..{max(xs):g} and y "
                f"{min(ys):g}..{max(ys):g}, but the image has {width} x {height} px (width x height)"
            )
