"""SA-Co (Segment Anything with Concepts), Gold and Silver: noun phrases whose target is every matching instance.

Layout (facebookresearch/sam3, `scripts/eval/{gold,silver}/README.md`, 99d02f2): COCO files in which an "image" is a
pair of an image and a noun phrase, `text_input`. Gold consists of seven subsets with one file for each of three
annotators. Silver consists of ten domains with one file each. If a pair has no annotations, its phrase matches nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from refbench.datasets.builders.base import Built, Sources, refuse, source_of
from refbench.datasets.builders.categories import Picture, category_sample
from refbench.datasets.builders.coco import CheckedImages, CocoInstances, file_name_of
from refbench.errors import DatasetError, MaskError
from refbench.records import AnnotatedObject, Sample
from refbench.storage.coco_rows import is_text, shown
from refbench.storage.files import read_json
from refbench.storage.manifest import Source
from refbench.storage.progress import Progress

VERSION = 1
LICENCE = "SAM License for the annotations; the images keep their own"
GOLD_SUBSETS = ("metaclip", "sa1b", "attributes", "crowded", "wiki_common", "fg_food", "fg_sports_equipment")
ANNOTATORS = ("a", "b", "c")
SILVER_DOMAINS = (
    "bdd100k", "droid", "ego4d", "food_rec", "geode", "inaturalist", "nga_art", "sav", "yt1b", "fathomnet",
)  # fmt: skip
# Split -> file of the release.
FILES = {
    "sa-co-gold": {
        f"{subset}-{annotator}": f"gold_{subset}_merged_{annotator}_release_test.json"
        for subset in GOLD_SUBSETS
        for annotator in ANNOTATORS
    },
    "sa-co-silver": {
        domain: f"silver_{domain}{'' if domain == 'fathomnet' else '_merged'}_test.json" for domain in SILVER_DOMAINS
    },
}
# Tags: pairs with instances that may be missing or merged; those of them whose union may also lack pixels.
PARTIAL, PARTIAL_PIXELS = "not-exhaustive", "not-pixel-exhaustive"


def build(
    dataset: str,
    sources: Sources,
    folder: Path,
    progress: Progress,
    *,
    not_exhaustive: Literal["keep", "skip"] = "keep",
) -> Built:
    """Read the files that exist; see `refbench.datasets.builders.base.Builder`.

    `not_exhaustive`: how to treat pairs in which instances may be missing. `keep` keeps them with a tag, and the
    protocol sa-co ignores them. `skip` drops them. A note states the number of these pairs.

    Raises:
        DatasetError: lists all invalid rows with their positions in the file.
    """
    problems: list[str] = []
    splits: dict[str, list[Sample]] = {}
    objects: list[AnnotatedObject] = []
    files: list[Source] = []
    notes: list[str] = []
    found = _find(dataset, sources)
    for done, (split, path) in enumerate(found.items()):
        coco = CocoInstances(read_json(path), path, problems)
        images = CheckedImages(coco, _images_of(split, sources.images), folder)
        part = _read(dataset, split, coco, images, keep=not_exhaustive == "keep")
        if part.samples:
            splits[split] = part.samples
        objects += part.objects
        files.append(source_of(path))
        notes += [f"{split}: {note}" for note in (*part.notes, *images.notes())]
        progress("splits", done + 1, len(found))
    refuse(dataset, problems)
    if not splits:
        raise DatasetError(f"{dataset}: the files contain no pair of an image and a phrase")
    return Built("sa_co", VERSION, splits, objects, files, LICENCE, notes, image_ids=dataset, annotation_ids=dataset)


def _images_of(split: str, place: Path | None) -> Path | None:
    """The image folder of a split: the subfolder in SAM 3's configuration if it exists, otherwise the given folder."""
    if place is None:
        return None
    domain = split.rpartition("-")[0] or split
    names = [domain, {"nga_art": "nga"}.get(domain, domain)]
    if domain in GOLD_SUBSETS:
        names.append("sa1b" if domain == "sa1b" else "metaclip")
    return next((place / name for name in names if (place / name).is_dir()), place)


def _find(dataset: str, sources: Sources) -> dict[str, Path]:
    names, path = FILES[dataset], sources.annotations
    example = next(iter(names.values()))
    if path is None:
        raise DatasetError(
            f"{dataset} must be built from local files; pass --annotations FOLDER, where FOLDER contains {example}"
        )
    if path.is_file():
        splits = {name: split for split, name in names.items()}
        if path.name not in splits:
            raise DatasetError(f"{path} is not a file of {dataset}; the files have names such as {example}")
        return {splits[path.name]: path}
    places = [path, *sorted(p for p in path.glob("*") if p.is_dir())]
    wanted = [s for s in names if s in sources.splits] if sources.splits else list(names)
    found = {}
    for split in wanted:
        there = [place / names[split] for place in places if (place / names[split]).is_file()]
        if len(there) > 1:
            raise DatasetError(f"{there[0]} and {there[1]} are both files of the split {split}; keep only one of them")
        if there:
            found[split] = there[0]
    if not found:
        raise DatasetError(
            f"{path} and its subfolders contain no file of {dataset}, for example {names[(wanted or [*names])[0]]}"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """The content of one file."""

    samples: list[Sample]
    objects: list[AnnotatedObject]
    notes: list[str]


def _read(dataset: str, split: str, coco: CocoInstances, images: CheckedImages, *, keep: bool) -> _Part:
    pairs: dict[int, tuple[Picture, str, tuple[str, ...]]] = {}
    partial = 0
    for pair_id, (position, row) in coco.images.items():
        try:
            phrase, tags = _phrase(row), _tags(row)
            name, path, (height, width) = file_name_of(row), images.path_of(pair_id), coco.size_of(pair_id)
        except (MaskError, DatasetError) as error:
            coco.problems.append(f"{coco.path.name} images[{position}] (id {pair_id}): {error}")
            continue
        partial += PARTIAL in tags
        if keep or PARTIAL not in tags:
            # Image ids include the split, so that the instances of different annotators are not mixed.
            pairs[pair_id] = Picture(f"{split}-{name}", path, height, width), phrase, tags
    objects, by_pair, empty = _objects(split, coco, pairs)
    samples = []
    for pair_id, (picture, phrase, tags) in pairs.items():
        targets = by_pair.get(pair_id, [])
        sample = category_sample(dataset, split, str(pair_id), picture, phrase, targets, tags)
        # The phrase as given to SAM 3: underscores are not replaced by spaces.
        samples.append(replace(sample, expression=" ".join(phrase.split())))
    notes = []
    if partial:
        done = "are kept, with the tag not-exhaustive; the protocol sa-co leaves them out" if keep else "are skipped"
        notes.append(f"{partial} of {len(coco.images)} pairs are not annotated exhaustively; they {done}")
    if empty:
        notes.append(f"annotations without a pixel, which are left out: {empty}")
    return _Part(samples, objects, notes)


def _objects(
    split: str, coco: CocoInstances, pairs: Mapping[int, tuple[Picture, str, tuple[str, ...]]]
) -> tuple[list[AnnotatedObject], dict[int, list[AnnotatedObject]], int]:
    """The instances of `pairs` as a list, the same instances grouped by pair, and the number of empty annotations."""
    objects: list[AnnotatedObject] = []
    by_pair: dict[int, list[AnnotatedObject]] = defaultdict(list)
    empty = 0
    for ann_id, (_, row) in coco.annotations.items():
        pair_id = row["image_id"]
        if pair_id not in coco.images:
            coco.problems.append(f"{coco.where(ann_id)}: image {shown(pair_id)} is not in the file")
        if pair_id not in pairs:
            continue
        try:
            # `bbox` and `area` are fractions of the image here, not pixels: both are taken from the mask.
            found = coco.read_object(ann_id, may_be_empty=True)
        except MaskError as error:
            coco.problems.append(f"{coco.where(ann_id)}: {error}")
            continue
        if not found.mask.area:
            empty += 1
            continue
        picture, phrase, _ = pairs[pair_id]
        one = AnnotatedObject(
            f"{split}-{ann_id}", picture.image_id, phrase, found.crowd, found.mask, found.polygons, found.mask.box_xywh
        )
        objects.append(one)
        by_pair[pair_id].append(one)
    return objects, by_pair, empty


def _phrase(row: Mapping[str, Any]) -> str:
    text = row.get("text_input")
    if not is_text(text) or not text.strip():
        raise MaskError(f"its `text_input` must be a noun phrase, got {shown(text)}")
    return text


def _tags(row: Mapping[str, Any]) -> tuple[str, ...]:
    flags = []
    for name in ("is_instance_exhaustive", "is_pixel_exhaustive"):
        value = row.get(name, 0 if name == "is_pixel_exhaustive" else None)
        if not (isinstance(value, int) and value in (0, 1)):
            raise MaskError(f"its `{name}` must be 0 or 1, got {shown(value)}")
        flags.append(bool(value))
    instances, pixels = flags
    return () if instances else (PARTIAL,) if pixels else (PARTIAL, PARTIAL_PIXELS)
