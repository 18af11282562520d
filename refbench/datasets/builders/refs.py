"""Converts rows of a refs file (RefCOCO, gRefCOCO, Ref-ZOM) to samples: a ref has objects and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from refbench.datasets.builders.base import Built, refuse
from refbench.datasets.builders.coco import CocoInstances
from refbench.errors import DatasetError, MaskError
from refbench.masks.mask import Mask
from refbench.records import WHOLE_NUMBERS_TAG, AnnotatedObject, Sample
from refbench.storage.coco_rows import is_id, is_text
from refbench.storage.manifest import Source
from refbench.storage.progress import Progress

NO_OBJECTS: tuple[list[int], ...] = ([], [-1])
# RIS-DMMI `refer/refer.py` gives such a ref an empty mask whatever its ann_id.
NOTHING_IN_REFZOM = "zero"


@dataclass(frozen=True, slots=True)
class RefStyle:
    """The format of refs in a release.

    `splits` are the published names. If `several` is true, `ann_id` is a list of any length, and `[]` or `[-1]` means
    that there is no target. `skip_crowds` excludes crowd annotations from the target. If `sources` is true, as in
    Ref-ZOM, `ann_id` can also be an integer, and `source` is kept as a tag.
    """

    splits: tuple[str, ...]
    several: bool = False
    skip_crowds: bool = False
    sources: bool = False


@dataclass(frozen=True, slots=True)
class _Target:
    mask: Mask
    objects: tuple[AnnotatedObject, ...]
    category: str
    polygons: tuple[tuple[float, ...], ...]
    box_xywh: tuple[float, float, float, float]
    tags: tuple[str, ...]


class PathsOfImages(Protocol):
    """Paths of images.

    `path_of(image_id)` is "" if the dataset is built without images; `notes` state where the images were found.
    """

    def path_of(self, image_id: int) -> str: ...
    def notes(self) -> list[str]: ...


class RefReader:
    """Converts refs to samples; problems of rows are appended to `coco.problems`."""

    def __init__(
        self,
        dataset: str,
        style: RefStyle,
        coco: CocoInstances,
        images: PathsOfImages,
        only: Collection[str] = (),
    ) -> None:
        """`only` lists the splits to build; if empty, all are built."""
        self.only = frozenset(only)
        self.dataset = dataset
        self.style = style
        self.coco = coco
        self.images = images
        self.problems = coco.problems
        self.image_ids: set[int] = set()
        self.crowd_parts = 0
        self.crowds_only = 0
        self._ref_ids: set[int] = set()
        self._targets: dict[tuple[int, ...], _Target | str] = {}
        self.left_out = 0
        self.without_sentences: Counter[str] = Counter()

    def samples(self, where: str, ref: Any) -> Iterator[tuple[str, Sample]]:
        """(split, sample) for each sentence of one ref; `where` states its position in the file."""
        ann_ids = self._well_formed(where, ref)
        if ann_ids is None:
            return
        ref_id, split, sentences = ref["ref_id"], ref["split"], ref["sentences"]
        where = f"{where} (ref_id {ref_id})"
        if not self._asks(where, ref):
            return
        image_id = self._image_id(where, ref, ann_ids)
        target = None if image_id is None else self._target(where, ann_ids, image_id)
        if image_id is None or target is None:
            return
        sent_ids = ref.get("sent_ids")
        if isinstance(sent_ids, list) and len(sent_ids) > len(sentences):
            self.problems.append(f"{where}: sent_ids names {len(sent_ids)} sentences, {len(sentences)} are there")
        try:
            image_path = self.images.path_of(image_id)
        except DatasetError as error:
            self.problems.append(f"{where}: {error}")
            return
        self.image_ids.add(image_id)
        source = ref.get("source") if self.style.sources else None
        tags = (*target.tags, f"source-{source}") if is_text(source) else target.tags
        for k, sentence in enumerate(sentences):
            found = self._sentence(f"{where}: sentences[{k}]", sentence)
            if found is None:
                continue
            sent_id, text, raw = found
            yield (
                split,
                Sample(
                    sample_id=f"{self.dataset}/{split}/{ref_id}/{sent_id}",
                    image_id=str(image_id),
                    image_path=image_path,
                    height=target.mask.height,
                    width=target.mask.width,
                    expression=text,
                    raw_expression=raw,
                    ref_id=str(ref_id),
                    sent_id=str(sent_id),
                    ann_ids=tuple(o.ann_id for o in target.objects),
                    category=target.category,
                    target=target.mask,
                    no_target=not target.objects,
                    polygons=target.polygons,
                    box_xywh=target.box_xywh,
                    tags=tags,
                ),
            )

    def _well_formed(self, where: str, ref: Any) -> tuple[int, ...] | None:
        """The annotation ids of a ref with valid fields; otherwise None, and a problem is appended."""
        if not isinstance(ref, dict):
            self.problems.append(f"{where}: a {type(ref).__name__} where a dict was expected")
            return None
        ref_id, split, sentences = ref.get("ref_id"), ref.get("split"), ref.get("sentences")
        ann_ids = self._ann_ids(ref)
        if not is_id(ref_id) or ann_ids is None or not isinstance(split, str) or not isinstance(sentences, list):
            kind = "a list of integers ann_id" if self.style.several else "integer ann_id"
            self.problems.append(f"{where}: needs integer ref_id and {kind}, a split and a list of sentences")
            return None
        return ann_ids

    def _asks(self, where: str, ref: dict[str, Any]) -> bool:
        """Whether a ref belongs to this build and has sentences. Its fields have already been validated."""
        ref_id, split = ref["ref_id"], ref["split"]
        if ref_id in self._ref_ids:
            self.problems.append(f"{where}: this ref_id was given before")
            return False
        self._ref_ids.add(ref_id)
        if split not in self.style.splits:
            self.problems.append(
                f"{where}: {split[:40]!r} is no name of a split of {self.dataset}, which has "
                f"{', '.join(self.style.splits)}; these may be the refs of another dataset or split author"
            )
            return False
        if self.only and split not in self.only:
            # Checked before the image is looked up: the hub has only the images of the evaluation splits.
            self.left_out += 1
            return False
        if not ref["sentences"]:
            # gRefCOCO contains refs without sentences; its authors say to skip them.
            self.without_sentences[split] += 1
            return False
        return True

    def _sentence(self, where: str, sentence: Any) -> tuple[int, str, str] | None:
        """(sent_id, text, raw text) of a sentence; None if it is invalid, and a problem is appended."""
        if not isinstance(sentence, dict) or not is_id(sentence.get("sent_id")) or "sent" not in sentence:
            self.problems.append(f"{where} needs 'sent_id' and 'sent'")
            return None
        text = sentence["sent"]
        raw = sentence.get("raw", text)
        if is_text(text) and is_text(raw):
            return sentence["sent_id"], text, raw
        wrong = next(v for v in (text, raw) if not is_text(v))
        problem = "is not text" if not isinstance(wrong, str) else f"is not in UTF-8: {wrong[:60]!r}"
        self.problems.append(f"{where} {problem}")
        return None

    def _ann_ids(self, ref: dict[str, Any]) -> tuple[int, ...] | None:
        value = ref.get("ann_id")
        if self.style.sources and ref.get("source") == NOTHING_IN_REFZOM:
            return ()
        if not self.style.several or (self.style.sources and is_id(value)):
            return (value,) if is_id(value) else None
        if not isinstance(value, list) or not all(map(is_id, value)):
            return None
        return () if value in NO_OBJECTS else tuple(value)

    def _image_id(self, where: str, ref: dict[str, Any], ann_ids: tuple[int, ...]) -> int | None:
        """The image id of a ref if all its annotations are on that image; otherwise None, and a problem is appended."""
        claimed = ref.get("image_id")
        if self.style.several:
            flag = ref.get("no_target", not ann_ids)
            if not isinstance(flag, bool) or flag != (not ann_ids):
                stated = str(flag) if isinstance(flag, bool) else f"a {type(flag).__name__}"
                self.problems.append(f"{where}: no_target is {stated}, but ann_id lists {len(ann_ids)} annotations")
                return None
            if len(set(ann_ids)) != len(ann_ids):
                self.problems.append(f"{where}: ann_id names an annotation twice")
                return None
            if not is_id(claimed):
                self.problems.append(f"{where}: it has no integer image_id")
                return None
        for ann_id in ann_ids:
            if ann_id not in self.coco.annotations:
                self.problems.append(f"{where}: annotation {ann_id} is not in {self.coco.path.name}")
                return None
            found = self.coco.annotations[ann_id][1]["image_id"]
            if claimed is None:
                claimed = found
            if not is_id(claimed) or claimed != found:
                shown = claimed if is_id(claimed) else type(claimed).__name__
                self.problems.append(f"{where}: image_id {shown}, but annotation {ann_id} is on image {found}")
                return None
        if not is_id(claimed) or claimed not in self.coco.images:
            stated = str(claimed) if is_id(claimed) else type(claimed).__name__
            self.problems.append(f"{where}: image {stated} is not in {self.coco.path.name}")
            return None
        return claimed

    def _target(self, where: str, ann_ids: tuple[int, ...], image_id: int) -> _Target | None:
        # Without a target, the key contains the image, so expressions on different images share no target.
        key = ann_ids or (-1, image_id)
        if key not in self._targets:
            self._targets[key] = self._read_target(ann_ids, image_id)
        found = self._targets[key]
        if isinstance(found, str):
            # Reported for every ref with this target.
            self.problems.append(f"{where}: {found}")
            return None
        return found

    def _read_target(self, ann_ids: tuple[int, ...], image_id: int) -> _Target | str:
        """The target, or the reason why it cannot be read."""
        try:
            height, width = self.coco.size_of(image_id)
        except MaskError as error:
            return f"image {image_id}: {error}"
        objects = []
        for ann_id in ann_ids:
            try:
                objects.append(self.coco.read_object(ann_id))
            except MaskError as error:
                position = self.coco.annotations[ann_id][0]
                return f"annotation {ann_id} ({self.coco.path.name} annotations[{position}]): {error}"
        tags: tuple[str, ...] = ()
        if self.style.skip_crowds and any(o.crowd for o in objects):
            kept = [o for o in objects if not o.crowd]
            if kept:
                self.crowd_parts += len(objects) - len(kept)
                objects, tags = kept, ("crowd-left-out",)
            else:
                self.crowds_only += 1
                tags = ("crowd-only",)
        tags += self._whole_numbers(objects)
        if len(objects) == 1:
            only = objects[0]
            return _Target(only.mask, (only,), only.category, only.polygons, only.box_xywh, tags)
        mask = Mask.empty(height, width).union(*(o.mask for o in objects))
        names = {o.category for o in objects}
        polygons = tuple(p for o in objects for p in o.polygons)
        return _Target(mask, tuple(objects), names.pop() if len(names) == 1 else "", polygons, mask.box_xywh, tags)

    def _whole_numbers(self, objects: Sequence[AnnotatedObject]) -> tuple[str, ...]:
        """A tag for polygons with integer coordinates in the file; ReLA truncates their vertices when it scales
        them.
        """
        written = [self.coco.annotations[int(o.ann_id)][1]["segmentation"] if o.polygons else () for o in objects]
        places = [k for k, p in enumerate(p for one in written for p in one) if all(map(is_id, p))]
        if not places:
            return ()
        whole = len(places) == sum(map(len, written))
        return (WHOLE_NUMBERS_TAG if whole else "-".join([WHOLE_NUMBERS_TAG, *map(str, places)]),)


def built_from_refs(
    reader: RefReader,
    refs: Sequence[tuple[str, Any]],
    builder: str,
    version: int,
    sources: Sequence[Source],
    licence: str,
    progress: Progress,
) -> Built:
    """The dataset built from refs, given as (position, ref); raises one error that lists all problems."""
    splits: dict[str, list[Sample]] = {}
    for row, (where, ref) in enumerate(refs):
        for split, sample in reader.samples(where, ref):
            splits.setdefault(split, []).append(sample)
        if row % 200 == 0 or row + 1 == len(refs):
            progress("refs", row + 1, len(refs))
    refuse(reader.dataset, reader.problems)
    if not splits:
        raise DatasetError(f"{reader.dataset} was not built because its file contains no refs")
    notes: list[str] = []
    if reader.left_out:
        notes.append(f"{reader.left_out} refs of other splits than {', '.join(sorted(reader.only))} are left out")
    silent = reader.without_sentences
    if silent:
        places = ", ".join(f"{split} {count}" for split, count in silent.items())
        notes.append(f"{silent.total()} refs have no sentences and are left out: {places}")
    of_images: dict[str, set[str]] = {}
    for split, samples in splits.items():
        for s in samples:
            of_images.setdefault(s.image_id, set()).add(split)
    torn = sum(len(there) > 1 for there in of_images.values())
    if torn:
        notes.append(f"{torn} images are in more than one split: these splits leak into each other")
    objects = reader.coco.objects_of(reader.image_ids, notes)
    notes += reader.images.notes()
    if reader.crowd_parts:
        notes.append(f"{reader.crowd_parts} crowd annotations are left out of unions (tag crowd-left-out)")
    if reader.crowds_only:
        notes.append(f"{reader.crowds_only} targets consist of crowds only and keep them (tag crowd-only)")
    repeated = sum(n - 1 for samples in splits.values() for n in Counter(map(_question, samples)).values())
    if repeated:
        notes.append(f"{repeated} expressions repeat another one of the same ref, as published; all are kept")
    return Built(builder, version, splits, objects, list(sources), licence, notes, refs_without_sentences=silent)


def _question(sample: Sample) -> tuple[str, str]:
    return sample.ref_id, sample.expression
