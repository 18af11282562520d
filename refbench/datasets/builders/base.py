"""Code shared by all dataset builders: their inputs, the result of a build, and how it is written to disk."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from refbench._version import __version__
from refbench.errors import DatasetError, summarise_problems
from refbench.records import AnnotatedObject, Sample
from refbench.storage.files import (
    file_sha256,
    in_batches,
    replace_folder,
    without_garbage_collection,
    write_json,
    write_rows,
)
from refbench.storage.locks import exclusive
from refbench.storage.manifest import (
    MANIFEST_FILE,
    BuilderInfo,
    Manifest,
    Source,
    SplitInfo,
    dataset_folder,
    read_manifest,
)
from refbench.storage.progress import Progress
from refbench.storage.samples import OBJECT_SCHEMA, SAMPLE_SCHEMA, objects_table, samples_table


@dataclass(frozen=True, slots=True)
class Sources:
    """Input paths from the user: a folder in the original layout, or the file itself.

    `downloads` lists the hub repositories, with commits, that the files were downloaded from. `splits` selects the
    splits to build; if empty, all are built.
    """

    annotations: Path | None = None
    images: Path | None = None
    downloads: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """A dataset before it is written: samples by split, all annotated objects, and their sources.

    `version` is increased whenever the same sources would result in different samples. `notes` report irregularities
    that did not stop the build; nothing is dropped without a note. `image_ids` and `annotation_ids` identify the
    numbering scheme of the ids: datasets with the same scheme can be compared image by image and object by object.
    `options` are the options with which an export was built. The options of the current build are added and take
    precedence. `refs_without_sentences` is the number of refs without sentences, by split.
    """

    builder: str
    version: int
    splits: dict[str, list[Sample]]
    objects: list[AnnotatedObject]
    sources: list[Source]
    licence: str
    notes: list[str] = field(default_factory=list)
    image_ids: str = "coco"
    annotation_ids: str = "coco"
    options: Mapping[str, Any] = field(default_factory=dict)
    refs_without_sentences: Mapping[str, int] = field(default_factory=dict)


NO_IMAGES = "built without images: it can be scored, but no model can run on it"
Polygons = tuple[tuple[float, ...], ...]
STAGING = ".staging"
# A name is a folder, a part of an address, and a word in commands and pages.
NEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


class Builder(Protocol):
    """Builds a dataset. Files that the builder creates (rendered images) are written to `folder`, which becomes the
    folder of the dataset.

    Options that change the samples are keyword parameters with a default; `refbench build -o key=value` sets them, and
    the manifest records them.
    """

    def __call__(
        self, dataset: str, sources: Sources, folder: Path, progress: Progress, /, **options: Any
    ) -> Built: ...


def build_dataset(
    dataset: str, builder: Callable[..., Built], sources: Sources, progress: Progress, **options: Any
) -> Manifest:
    """Build, write and publish a dataset in `$REFBENCH_HOME/datasets`; returns its manifest.

    `builder` is called with the same arguments as a `Builder`.

    Raises:
        DatasetError: the sources are missing or invalid; an existing build then stays unchanged.
    """
    with staging_folder(dataset) as staging, without_garbage_collection():
        built = builder(dataset, sources, staging, progress, **options)
        _keep_wanted(dataset, built, sources.splits)
        gone = _splits_built(dataset) - set(built.splits)
        if gone:
            built.notes.append(f"it replaced a build that also had {', '.join(sorted(gone))}; build those splits again")
        built.notes.extend(f"downloaded from {place}" for place in sources.downloads)
        return write_dataset(dataset, built, staging, options)


def _keep_wanted(dataset: str, built: Built, wanted: Sequence[str]) -> None:
    if not wanted:
        return
    missing = sorted(set(wanted) - set(built.splits))
    if missing:
        raise DatasetError(
            f"{dataset}: the files have no split {missing[0]!r}; their splits are {', '.join(built.splits) or 'none'}"
        )
    for split in set(built.splits) - set(wanted):
        del built.splits[split]
    images = {s.image_id for samples in built.splits.values() for s in samples}
    built.objects[:] = [o for o in built.objects if o.image_id in images]


def _splits_built(dataset: str) -> set[str]:
    try:
        return set(read_manifest(dataset).splits)
    except DatasetError:
        return set()


def find_annotations(path: Path, folder: str, names: Sequence[str], release: str) -> Path:
    """The file in the folder `path`, in the original layout, whose name is one of `names`. If `path` is itself such a
    file, it is returned.
    """
    shown = " or ".join(names)
    if path.is_file():
        if path.name not in names:
            raise DatasetError(
                f"{path} is not the original file of this dataset ({shown}); a dataset that is built from another "
                "file would get the wrong name"
            )
        return path
    for candidate in (place / name for place in (path / folder, path) for name in names):
        if candidate.is_file():
            return candidate
    raise DatasetError(
        f"{path} contains neither {folder}/{shown} nor {shown}; pass the folder of {release} or the file "
        "itself as --annotations"
    )


def refuse(dataset: str, problems: Sequence[str], things: str = "rows") -> None:
    """Raise one DatasetError that lists all problems, if there are any, so that they can be fixed together."""
    if problems:
        raise DatasetError(
            f"{dataset} was not built; the number of invalid {things} is {len(problems)}.\n"
            f"{summarise_problems(problems)}\n"
            "Correct the files or download them again. Rows are counted from 0."
        )


def source_of(path: Path) -> Source:
    return Source(path.name, file_sha256(path), path.stat().st_size)


def samples_fingerprint(samples: Iterable[Sample]) -> str:
    """The sha256 of the expressions and their targets, in order. The location of the images is not included."""
    lines = _Lines()
    for s in samples:
        head = [s.sample_id, s.image_id, s.height, s.width, s.expression, s.raw_expression, s.ref_id, s.sent_id]
        middle = [s.ann_ids, s.category, s.target.counts.decode("ascii"), s.no_target]
        lines.add([*head, *middle], s.polygons, [s.box_xywh, s.tags])
    return lines.sha256()


def objects_fingerprint(objects: Iterable[AnnotatedObject]) -> str:
    lines = _Lines()
    for o in objects:
        head = [o.ann_id, o.image_id, o.category, o.crowd, o.mask.size, o.mask.counts.decode("ascii")]
        lines.add(head, o.polygons, [o.box_xywh])
    return lines.sha256()


def questions_fingerprint(samples: Iterable[Sample]) -> str:
    """The sha256 of the triples of expression, annotations and image, in any order, without masks.

    Two copies of a split that differ only in their ref ids or their rasterisation have the same value.
    """
    lines = sorted(_words_text([s.image_id, sorted(s.ann_ids), s.expression]) for s in samples)
    return hashlib.sha256("\n".join(lines).encode("ascii")).hexdigest()


def dataset_fingerprint(splits: Mapping[str, str], objects: str) -> str:
    """The sha256 of the fingerprints of the splits and of the objects."""
    parts = [f"{split}:{fingerprint}" for split, fingerprint in sorted(splits.items())]
    return hashlib.sha256("\n".join([*parts, f"objects:{objects}"]).encode("ascii")).hexdigest()


# repr of a float is exact and the same on every platform, so this text is canonical.
_TEXT = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


def _numbers_text(numbers: Any) -> str:
    """Nested lists of finite numbers as `_TEXT` encodes them, by an encoder that is eight times as fast. It writes very
    large and very small numbers in another way.
    """
    text = msgspec.json.encode(numbers).decode("ascii")
    return _TEXT.encode(numbers) if "e" in text or "0.0000" in text or "null" in text else text


def _words_text(values: Any) -> str:
    """The same for texts and integers. The faster encoder writes what is not printable ASCII in another way."""
    try:
        text = msgspec.json.encode(values)
    except UnicodeEncodeError:
        return _TEXT.encode(values)
    return text.decode("ascii") if text.isascii() and b"\x7f" not in text else _TEXT.encode(values)


class _Lines:
    """A digest of rows as canonical JSON, one row per line.

    Polygons take most of the time. The samples of one object are adjacent, so its polygons are encoded once.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._polygons: Polygons | None = None
        self._after: list[Any] = []
        self._text = ""

    def add(self, before: list[Any], polygons: Polygons, after: list[Any]) -> None:
        if polygons is not self._polygons or after != self._after:
            self._polygons, self._after = polygons, after
            box, *tags = after
            texts = [_numbers_text(polygons), _numbers_text(box), *map(_words_text, tags)]
            self._text = f"{','.join(texts)}]\n"
        self._digest.update(f"{_words_text(before)[:-1]},{self._text}".encode("ascii"))

    def sha256(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def staging_folder(dataset: str) -> Iterator[Path]:
    """A new folder for the dataset; it is deleted at the end unless it was published. One process at a time builds a
    dataset.

    Raises:
        DatasetError: the name is not valid, another process builds this dataset, or the folder cannot be created.
    """
    if not NEW_NAME.fullmatch(dataset):
        raise DatasetError(
            f"{dataset[:120]!r} is not a valid name for a dataset; a name has at most 100 characters, namely letters, "
            "digits and . _ + -, and begins with a letter or digit"
        )
    place = dataset_folder(dataset).parent / STAGING / dataset
    try:
        with exclusive(place, wanted=DatasetError):
            try:
                # Left by killed builds; nobody else builds this dataset now.
                for leftover in place.iterdir():
                    if leftover.is_dir():
                        shutil.rmtree(leftover, ignore_errors=True)
                folder = Path(tempfile.mkdtemp(dir=place))
            except OSError as error:
                raise DatasetError(
                    f"cannot write to {place}: {error.strerror}; set REFBENCH_HOME to a writable folder"
                ) from error
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        for empty in (place, place.parent):
            with suppress(OSError):
                # It stays if another process uses it.
                empty.rmdir()


def write_dataset(dataset: str, built: Built, staging: Path, options: Mapping[str, Any] | None = None) -> Manifest:
    """Write the tables and the manifest to `staging`, and swap it with the folder of the dataset.

    A reader sees either the old dataset or the new one, never a mixture.
    """
    _check_unique(dataset, built)
    tables: list[tuple[str, pa.Schema, Iterable[pa.Table]]] = [
        (split, SAMPLE_SCHEMA, in_batches(samples, samples_table)) for split, samples in built.splits.items()
    ]
    tables.append(("objects", OBJECT_SCHEMA, in_batches(built.objects, objects_table)))
    with ThreadPoolExecutor(1) as pool:
        # The tables are written while the fingerprints are computed: files are compressed without the GIL.
        writing = [pool.submit(write_rows, staging / f"{name}.parquet", *table) for name, *table in tables]
        try:
            splits = {
                split: SplitInfo(
                    images=len({s.image_id for s in samples}),
                    refs=len({s.ref_id for s in samples}),
                    expressions=len(samples),
                    no_target=sum(s.no_target for s in samples),
                    fingerprint=samples_fingerprint(samples),
                    questions=questions_fingerprint(samples),
                    refs_without_sentences=built.refs_without_sentences.get(split, 0),
                )
                for split, samples in built.splits.items()
            }
            of_objects = objects_fingerprint(built.objects)
            for written in writing:
                written.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    of_splits = {split: s.fingerprint for split, s in splits.items()}
    manifest = Manifest(
        dataset=dataset,
        builder=BuilderInfo(built.builder, built.version, {**built.options, **(options or {})}),
        refbench_version=__version__,
        licence=built.licence,
        image_ids=built.image_ids,
        annotation_ids=built.annotation_ids,
        sources=built.sources,
        splits=splits,
        objects=len(built.objects),
        notes=built.notes,
        fingerprint=dataset_fingerprint(of_splits, of_objects),
    )
    write_json(staging / MANIFEST_FILE, manifest.to_json())
    replace_folder(staging, dataset_folder(dataset))
    return manifest


def _check_unique(dataset: str, built: Built) -> None:
    for split, samples in built.splits.items():
        seen: set[str] = set()
        for s in samples:
            if s.sample_id in seen:
                raise DatasetError(
                    f"{dataset}/{split}: the sample id {s.sample_id} occurs twice because a ref contains the same "
                    "sent_id twice; the annotation file is damaged"
                )
            seen.add(s.sample_id)
