"""LVIS in two views: one sample per instance, and one per (image, class), whose target is the union of its instances.

Files: `lvis_v1_val.json` of the release (also v0.5 and train), in COCO format. In addition, each image has the classes
that are known to be absent (`neg_category_ids`), and those whose instances are not all annotated
(`not_exhaustive_category_ids`). Source of the fields: lvis-api and lvisdataset.org. The images are those of COCO 2017,
train and val, named by `coco_url`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from refbench.datasets.builders.base import Built, Sources, refuse, source_of
from refbench.datasets.builders.categories import Picture, category_sample
from refbench.datasets.builders.coco import CheckedImages, CocoInstances
from refbench.errors import DatasetError, MaskError
from refbench.records import AnnotatedObject, Sample
from refbench.storage.coco_rows import is_id
from refbench.storage.files import read_json
from refbench.storage.progress import Progress

VERSION = 1
LICENCE = "annotations: CC BY 4.0 (lvisdataset.org); images: their Flickr licences, see COCO"
NAME = re.compile(r"lvis_(?:v[0-9.]+_)?(train|val|minival)\w*\.json")
RELEASES = {1203: "lvis-v1", 1230: "lvis-v0.5"}
NOT_EXHAUSTIVE = ("drop", "keep")


def build(
    dataset: str,
    sources: Sources,
    folder: Path,
    progress: Progress,
    *,
    negatives: bool = False,
    not_exhaustive: str = "drop",
) -> Built:
    """Read one annotation file; see `refbench.datasets.builders.base.Builder`.

    The splits are `<split>-instance` and `<split>-category`; the expression is the name of the class.

    Args:
        negatives: for every class in `neg_category_ids`, add an expression without target to the category view.
        not_exhaustive: `drop` excludes the (image, class) pairs in `not_exhaustive_category_ids` from the category
            view, because an incomplete target penalises predictions that find the missing instances. `keep` includes
            these pairs, with the tag `not-exhaustive`. The instance view always includes their instances, with the tag.

    Raises:
        DatasetError: lists all invalid rows with their positions in the file.
    """
    if not_exhaustive not in NOT_EXHAUSTIVE:
        raise DatasetError(
            f"{dataset}: the value of -o not_exhaustive={not_exhaustive} must be {' or '.join(NOT_EXHAUSTIVE)}"
        )
    path, split = _find(dataset, sources)
    problems: list[str] = []
    coco = CocoInstances(read_json(path), path, problems)
    images = CheckedImages(coco, sources.images, folder)
    reader = _Reader(dataset, split, coco, images)
    if not problems:
        reader.check_categories()
    by_image: dict[int, list[int]] = defaultdict(list)
    for ann_id, (_, row) in coco.annotations.items():
        if row["image_id"] not in coco.images:
            problems.append(f"{coco.where(ann_id)}: image {row['image_id']} is not in the file")
        elif row.get("category_id") not in coco.category_names:
            problems.append(f"{coco.where(ann_id)}: category {row.get('category_id')} is not in the file")
        else:
            by_image[row["image_id"]].append(ann_id)
    for done, image_id in enumerate(coco.images):
        reader.read_image(image_id, by_image.pop(image_id, []), negatives, not_exhaustive == "keep")
        if done % 500 == 499 or done + 1 == len(coco.images):
            progress("images", done + 1, len(coco.images))
    refuse(dataset, problems)
    if not reader.instances:
        raise DatasetError(
            f"{path} contains no annotations; refbench builds only LVIS train and val, because the test split "
            "has no annotations"
        )
    notes = [*_notes(reader, split, len(coco.images)), *images.notes()]
    splits = {f"{split}-instance": reader.instances, f"{split}-category": reader.categories}
    numbering = RELEASES.get(len(coco.category_names), "lvis")
    return Built("lvis", VERSION, splits, reader.objects, [source_of(path)], LICENCE, notes, annotation_ids=numbering)


def _notes(reader: _Reader, split: str, images: int) -> list[str]:
    notes = []
    if reader.empty:
        notes.append(
            f"{len(reader.empty)} annotations cover no pixel; they are kept among the objects, but no expression "
            f"refers to them: {', '.join(reader.empty[:10])}{' ...' if len(reader.empty) > 10 else ''}"
        )
    if reader.dropped:
        notes.append(f"{reader.dropped} (image, class) pairs are not exhaustively annotated: not in {split}-category")
    asked = {s.image_id for s in (*reader.instances, *reader.categories)}
    if len(asked) < images:
        notes.append(f"{images - len(asked)} of {images} images have no expression")
    return notes


def _find(dataset: str, sources: Sources) -> tuple[Path, str]:
    path = sources.annotations
    if path is None:
        raise DatasetError(f"{dataset} is built from its annotation file; pass --annotations lvis_v1_val.json")
    if path.is_dir():
        found = [p for p in sorted(path.glob("lvis_*.json")) if NAME.fullmatch(p.name)]
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise DatasetError(
                f"{path} must contain exactly one LVIS file, found: {names}; pass one file with --annotations, for "
                "example "
                "lvis_v1_val.json"
            )
        path = found[0]
    match = NAME.fullmatch(path.name)
    if match is None:
        raise DatasetError(
            f"{path} does not have the name of an LVIS file (such as lvis_v1_val.json), so its split is unknown"
        )
    return path, match[1]


class _Reader:
    def __init__(self, dataset: str, split: str, coco: CocoInstances, images: CheckedImages) -> None:
        self.dataset = dataset
        self.split = split
        self.coco = coco
        self.images = images
        self.objects: list[AnnotatedObject] = []
        self.instances: list[Sample] = []
        self.categories: list[Sample] = []
        self.empty: list[str] = []
        self.dropped = 0

    def check_categories(self) -> None:
        for image_id, (position, image) in self.coco.images.items():
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                ids = image.get(key)
                if not isinstance(ids, list) or not all(is_id(i) and i in self.coco.category_names for i in ids):
                    self.coco.problems.append(
                        f"{self.coco.path.name} images[{position}] (id {image_id}): {key} is not a list of categories "
                        "of the file; is this a COCO file instead of an LVIS one?"
                    )

    def read_image(self, image_id: int, ann_ids: list[int], negatives: bool, keep: bool) -> None:
        position, image = self.coco.images[image_id]
        try:
            picture = Picture(str(image_id), self.images.path_of(image_id), *self.coco.size_of(image_id))
        except (MaskError, DatasetError) as error:
            self.coco.problems.append(f"{self.coco.path.name} images[{position}] (id {image_id}): {error}")
            return
        incomplete = set(_ids(image, "not_exhaustive_category_ids"))
        groups: dict[int, list[AnnotatedObject]] = defaultdict(list)
        for ann_id in ann_ids:
            row = self.coco.annotations[ann_id][1]
            try:
                found = self.coco.read_object(ann_id, may_be_empty=True)
            except MaskError as error:
                self.coco.problems.append(f"{self.coco.where(ann_id)}: {error}")
                continue
            # `found` has the mask now; keeping both would hold all of LVIS in memory twice.
            row["segmentation"] = None
            self.objects.append(found)
            if found.mask.area == 0:
                self.empty.append(found.ann_id)
                continue
            category = row["category_id"]
            groups[category].append(found)
            tags = self._tags(category, category in incomplete)
            split = f"{self.split}-instance"
            self.instances.append(
                category_sample(self.dataset, split, found.ann_id, picture, found.category, [found], tags)
            )
        for category, objects in groups.items():
            if category in incomplete and not keep:
                self.dropped += 1
                continue
            tags = self._tags(category, category in incomplete)
            self._add(picture, category, objects, tags)
        for category in _ids(image, "neg_category_ids"):
            if category in groups:
                self.coco.problems.append(
                    f"{self.coco.path.name} images[{position}] (id {image_id}): category {category} is annotated "
                    "and in neg_category_ids"
                )
            elif negatives:
                self._add(picture, category, [], (*self._tags(category, False), "negative"))

    def _add(self, picture: Picture, category: int, objects: list[AnnotatedObject], tags: tuple[str, ...]) -> None:
        name = self.coco.category_names[category]
        ref_id = f"{picture.image_id}-{category}"
        self.categories.append(
            category_sample(self.dataset, f"{self.split}-category", ref_id, picture, name, objects, tags)
        )

    def _tags(self, category: int, incomplete: bool) -> tuple[str, ...]:
        frequency = self.coco.categories[category][1].get("frequency")
        tags = (f"frequency-{frequency}",) if frequency in ("r", "c", "f") else ()
        return (*tags, "not-exhaustive") if incomplete else tags


def _ids(image: dict[str, Any], key: str) -> list[int]:
    ids = image.get(key)
    return list(dict.fromkeys(ids)) if isinstance(ids, list) and all(map(is_id, ids)) else []
