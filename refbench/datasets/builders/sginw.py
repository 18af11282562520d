"""SGinW (Segmentation in the Wild): 25 small sets; each image has one expression per class of its set.

Layout (microsoft/X-Decoder, branch seginw): `<Name>/{train,train_10shot,valid}/_annotations_min1cat.coco.json` in COCO
format, with the images next to it. Results are published on `valid`, as AP over all classes and images of a set.
Therefore a class that is absent from an image is also an expression, without target.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from refbench.datasets.builders.base import Built, Sources, refuse, source_of
from refbench.datasets.builders.categories import Picture, category_sample
from refbench.datasets.builders.coco import CheckedImages, CocoInstances, file_name_of
from refbench.errors import DatasetError, MaskError
from refbench.records import AnnotatedObject, Sample
from refbench.storage.files import read_json
from refbench.storage.images import Photographs
from refbench.storage.manifest import Source
from refbench.storage.progress import Progress

VERSION = 1
LICENCE = "as each source on roboflow.com states; see the cards"
PREFIX = "sginw-"
FILE = "_annotations_min1cat.coco.json"
SPLITS = ("valid", "train", "train_10shot")


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read the splits that exist; see `refbench.datasets.builders.base.Builder`.

    Raises:
        DatasetError: lists all invalid rows with their positions in the file.
    """
    name = dataset.removeprefix(PREFIX)
    found = _find(name, sources)
    problems: list[str] = []
    splits: dict[str, list[Sample]] = {}
    objects: list[AnnotatedObject] = []
    files: list[Source] = []
    notes: list[str] = []
    for done, (split, path) in enumerate(found.items()):
        coco = CocoInstances(read_json(path), path, problems)
        place = sources.images or path.parent
        photographs = Photographs(place)
        names = [file_name_of(image) for _, image in coco.images.values()]
        beside = any(map(photographs.holds, names))
        images = CheckedImages(coco, place if beside or sources.images else None, folder)
        samples, there = _read(dataset, split, coco, images)
        if samples:
            splits[split] = samples
        objects += there
        files.append(Source(f"{name}/{split}/{FILE}", source_of(path).sha256, path.stat().st_size))
        notes += [f"{split}: {note}" for note in images.notes()]
        if names and not beside and not sources.images:
            notes.append(f"{split}: none of its images is in {place}; the first is named {names[0]}")
        progress("splits", done + 1, len(found))
    refuse(dataset, problems)
    if not splits:
        raise DatasetError(f"{dataset}: the files must contain both images and classes")
    return Built("sginw", VERSION, splits, objects, files, LICENCE, notes, image_ids=dataset, annotation_ids=dataset)


def _find(name: str, sources: Sources) -> dict[str, Path]:
    path = sources.annotations
    if path is None:
        raise DatasetError(
            f"{PREFIX}{name} is built from its folder; pass --annotations FOLDER, where FOLDER contains "
            f"{name}/valid/{FILE}"
        )
    if path.is_file():
        if path.name != FILE or path.parent.name not in SPLITS or path.parent.parent.name != name:
            raise DatasetError(f"{path} must be {name}/<split>/{FILE}, where the split is one of {', '.join(SPLITS)}")
        return {path.parent.name: path}
    for root in (path / name, path):
        found = {split: root / split / FILE for split in SPLITS if (root / split / FILE).is_file()}
        if found and root.resolve().name == name:
            return found
    raise DatasetError(
        f"{path} contains no {name}/valid/{FILE}; pass the folder of the unpacked release with --annotations"
    )


def _read(
    dataset: str, split: str, coco: CocoInstances, images: CheckedImages
) -> tuple[list[Sample], list[AnnotatedObject]]:
    groups: dict[tuple[int, int], list[AnnotatedObject]] = defaultdict(list)
    objects = []
    for ann_id, (_, row) in coco.annotations.items():
        image_id, category = row["image_id"], row.get("category_id")
        if image_id not in coco.images or category not in coco.category_names:
            coco.problems.append(f"{coco.where(ann_id)}: image {image_id} or category {category} is not in the file")
            continue
        try:
            found = coco.read_object(ann_id)
        except MaskError as error:
            coco.problems.append(f"{coco.where(ann_id)}: {error}")
            continue
        # Each split counts its images and annotations from 0.
        found = AnnotatedObject(
            f"{split}-{ann_id}", f"{split}-{image_id}", found.category, found.crowd, found.mask, found.polygons,
            found.box_xywh,
        )  # fmt: skip
        objects.append(found)
        groups[image_id, category].append(found)
    samples = []
    for image_id, (position, _) in coco.images.items():
        try:
            picture = Picture(f"{split}-{image_id}", images.path_of(image_id), *coco.size_of(image_id))
        except (MaskError, DatasetError) as error:
            coco.problems.append(f"{coco.path.name} images[{position}] (id {image_id}): {error}")
            continue
        for category, name in coco.category_names.items():
            targets = groups.get((image_id, category), [])
            tags = () if targets else ("absent",)
            samples.append(category_sample(dataset, split, f"{image_id}-{category}", picture, name, targets, tags))
    return samples, objects
