"""LVIS in two views: one sample per instance, and one per (image, class), whose target is the union of its instances.

Files: `lvis_v1_val.json` of the release (also v0.5 and train), in COCO format. In addition, each image has the classes
that are known to be absent (`neg_category_ids`), and those whose instances are not all annotated
(`not_exhaustive_category_ids`). Source of the fields: lvis-api and lvisdataset.org. The images are those of COCO 2017,
train and val, named by `coco_url`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbench.datasets.builders.base import Built, Part, PartRows, Sources, refuse, rows_of, source_of
from refbench.datasets.builders.categories import Picture, category_sample
from refbench.datasets.builders.coco import CheckedImages, CocoInstances, object_of, read_instances
from refbench.errors import DatasetError, MaskError
from refbench.records import AnnotatedObject, Sample
from refbench.storage.coco_rows import is_id
from refbench.storage.process_pool import map_in_processes
from refbench.storage.progress import Progress

VERSION = 1
LICENCE = "annotations: CC BY 4.0 (lvisdataset.org); images: their Flickr licences, see COCO"
NAME = re.compile(r"lvis_(?:v[0-9.]+_)?(train|val|minival)\w*\.json")
RELEASES = {1203: "lvis-v1", 1230: "lvis-v0.5"}
NOT_EXHAUSTIVE = ("drop", "keep")
IMAGES_AT_ONCE = 100
# Fewer take less time than starting processes.
MANY_ANNOTATIONS = 50_000


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
    coco = CocoInstances(read_instances(path), path, problems)
    images = CheckedImages(coco, sources.images, folder)
    if not problems:
        _check_categories(coco)
    rules = _Rules(
        dataset,
        f"{split}-instance",
        f"{split}-category",
        {i: _Category(coco.category_names[i], row.get("frequency")) for i, (_, row) in coco.categories.items()},
        negatives,
        not_exhaustive == "keep",
        path.name,
        sources.splits,
    )
    notes: list[str] = []
    numbering = RELEASES.get(len(coco.category_names), "lvis")
    return Built(
        "lvis",
        VERSION,
        {rules.instance_split: [], rules.category_split: []},
        [],
        [source_of(path)],
        LICENCE,
        notes,
        annotation_ids=numbering,
        parts=_parts(rules, coco, images, progress, notes),
    )


@dataclass(frozen=True, slots=True)
class _Category:
    name: str
    frequency: Any

    def tags(self, incomplete: bool) -> tuple[str, ...]:
        tags = (f"frequency-{self.frequency}",) if self.frequency in ("r", "c", "f") else ()
        return (*tags, "not-exhaustive") if incomplete else tags


@dataclass(frozen=True, slots=True)
class _Rules:
    """What is the same for all images; `keep` is whether incomplete classes stay in the category view."""

    dataset: str
    instance_split: str
    category_split: str
    categories: Mapping[int, _Category]
    negatives: bool
    keep: bool
    file_name: str
    wanted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Annotated:
    """An image with its rows of `annotations`, each with its position in the file; `absent` and `incomplete` are
    classes.
    """

    picture: Picture
    where: str
    annotations: Sequence[tuple[int, dict[str, Any]]]
    absent: Sequence[int]
    incomplete: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Found:
    """What was read of some images. If there are problems, `rows` is None."""

    rows: PartRows | None
    instances: int
    images_with_expressions: int
    problems: list[str]
    empty: list[str]
    dropped: int


def _parts(
    rules: _Rules, coco: CocoInstances, images: CheckedImages, progress: Progress, notes: list[str]
) -> Iterator[PartRows]:
    """The images, some at a time, so that the polygons of LVIS are not in memory together; read by a process per core,
    unless there are few.
    """
    annotated = _annotated(coco, images, progress)
    jobs = [(rules, annotated[k : k + IMAGES_AT_ONCE]) for k in range(0, len(annotated), IMAGES_AT_ONCE)]
    done, instances, asked, dropped = 0, 0, 0, 0
    empty: list[str] = []
    workers = None if len(coco.annotations) >= MANY_ANNOTATIONS else 1
    for (_, some), found in zip(jobs, map_in_processes(_read_images, jobs, workers, of_script=False), strict=True):
        done += len(some)
        progress("images", done, len(annotated))
        coco.problems += found.problems
        # If a row is invalid, the others are only checked.
        if found.rows is not None and not coco.problems:
            yield found.rows
        instances += found.instances
        asked += found.images_with_expressions
        dropped += found.dropped
        empty += found.empty
    refuse(rules.dataset, coco.problems)
    if not instances:
        raise DatasetError(
            f"{coco.path} contains no annotations; refbench builds only LVIS train and val, because the test split "
            "has no annotations"
        )
    found_notes = []
    if empty:
        found_notes.append(
            f"{len(empty)} annotations cover no pixel; they are kept among the objects, but no expression "
            f"refers to them: {', '.join(empty[:10])}{' ...' if len(empty) > 10 else ''}"
        )
    if dropped:
        found_notes.append(
            f"{dropped} (image, class) pairs are not exhaustively annotated: not in {rules.category_split}"
        )
    if asked < len(coco.images):
        found_notes.append(f"{len(coco.images) - asked} of {len(coco.images)} images have no expression")
    notes[:0] = [*found_notes, *images.notes()]


def _annotated(coco: CocoInstances, images: CheckedImages, progress: Progress) -> list[_Annotated]:
    """The images with their rows; those of a wrong size, or without a file, are problems."""
    by_image: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for ann_id, (position, row) in coco.annotations.items():
        if row["image_id"] not in coco.images:
            coco.problems.append(f"{coco.where(ann_id)}: image {row['image_id']} is not in the file")
        elif row.get("category_id") not in coco.category_names:
            coco.problems.append(f"{coco.where(ann_id)}: category {row.get('category_id')} is not in the file")
        else:
            by_image[row["image_id"]].append((position, row))
    annotated = []
    for done, (image_id, (position, image)) in enumerate(coco.images.items(), 1):
        if done % 1000 == 0 and images.place is not None:
            progress("image files", done, len(coco.images))
        where = f"{coco.path.name} images[{position}] (id {image_id})"
        try:
            picture = Picture(str(image_id), images.path_of(image_id), *coco.size_of(image_id))
        except (MaskError, DatasetError) as error:
            coco.problems.append(f"{where}: {error}")
            continue
        absent, incomplete = _ids(image, "neg_category_ids"), _ids(image, "not_exhaustive_category_ids")
        annotated.append(_Annotated(picture, where, by_image.pop(image_id, ()), absent, incomplete))
    return annotated


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


def _check_categories(coco: CocoInstances) -> None:
    for image_id, (position, image) in coco.images.items():
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key)
            if not isinstance(ids, list) or not all(is_id(i) and i in coco.category_names for i in ids):
                coco.problems.append(
                    f"{coco.path.name} images[{position}] (id {image_id}): {key} is not a list of categories "
                    "of the file; is this a COCO file instead of an LVIS one?"
                )


def _read_images(job: tuple[_Rules, Sequence[_Annotated]]) -> _Found:
    """Read some images; other processes can do it."""
    rules, images = job
    reader = _Reader(rules)
    for image in images:
        reader.read(image)
    part = Part({rules.instance_split: reader.instances, rules.category_split: reader.categories}, reader.objects)
    return _Found(
        None if reader.problems else rows_of(part, rules.wanted),
        len(reader.instances),
        len({s.image_id for s in (*reader.instances, *reader.categories)}),
        reader.problems,
        reader.empty,
        reader.dropped,
    )


class _Reader:
    def __init__(self, rules: _Rules) -> None:
        self.rules = rules
        self.objects: list[AnnotatedObject] = []
        self.instances: list[Sample] = []
        self.categories: list[Sample] = []
        self.problems: list[str] = []
        self.empty: list[str] = []
        self.dropped = 0

    def read(self, image: _Annotated) -> None:
        rules, picture = self.rules, image.picture
        incomplete = set(image.incomplete)
        groups: dict[int, list[AnnotatedObject]] = defaultdict(list)
        for position, row in image.annotations:
            category = rules.categories[row["category_id"]]
            try:
                found = object_of(row, picture.height, picture.width, category.name)
            except MaskError as error:
                self.problems.append(f"{rules.file_name} annotations[{position}] (id {row['id']}): {error}")
                continue
            self.objects.append(found)
            if found.mask.area == 0:
                self.empty.append(found.ann_id)
                continue
            groups[row["category_id"]].append(found)
            tags = category.tags(row["category_id"] in incomplete)
            split = rules.instance_split
            self.instances.append(
                category_sample(rules.dataset, split, found.ann_id, picture, found.category, [found], tags)
            )
        for number, objects in groups.items():
            if number in incomplete and not rules.keep:
                self.dropped += 1
                continue
            self._add(picture, number, objects, rules.categories[number].tags(number in incomplete))
        for number in image.absent:
            if number in groups:
                self.problems.append(f"{image.where}: category {number} is annotated and in neg_category_ids")
            elif rules.negatives:
                self._add(picture, number, [], (*rules.categories[number].tags(False), "negative"))

    def _add(self, picture: Picture, category: int, objects: list[AnnotatedObject], tags: tuple[str, ...]) -> None:
        rules, ref_id = self.rules, f"{picture.image_id}-{category}"
        name = rules.categories[category].name
        self.categories.append(
            category_sample(rules.dataset, rules.category_split, ref_id, picture, name, objects, tags)
        )


def _ids(image: dict[str, Any], key: str) -> list[int]:
    ids = image.get(key)
    return list(dict.fromkeys(ids)) if isinstance(ids, list) and all(map(is_id, ids)) else []
