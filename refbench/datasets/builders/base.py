"""Code shared by all dataset builders: their inputs, the result of a build, and how it is written to disk."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from refbench._version import __version__
from refbench.errors import DatasetError, summarise_problems
from refbench.records import AnnotatedObject, Sample
from refbench.storage.files import (
    BATCH_ROWS,
    file_sha256,
    replace_folder,
    rows_writer,
    without_garbage_collection,
    write_json,
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
class Part:
    """Some images of a dataset: their samples by split, and all their annotated objects."""

    splits: Mapping[str, Sequence[Sample]]
    objects: Sequence[AnnotatedObject]


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Samples of one split as they are written: a table, their lines in the fingerprint, and what is counted."""

    table: pa.Table
    lines: bytes
    questions: list[bytes]
    sample_ids: list[str]
    image_ids: set[str]
    ref_ids: set[str]
    no_target: int


@dataclass(frozen=True, slots=True)
class PartRows:
    """A part as it is written; other processes can make it."""

    splits: Mapping[str, SplitRows]
    objects: pa.Table
    object_lines: bytes


@dataclass(frozen=True, slots=True)
class Built:
    """A dataset before it is written: samples by split, all annotated objects, and their sources.

    A large dataset need not be in memory as a whole: `parts` are the rows of further images, which are written before
    the next ones are made. `splits` must have all splits, also if their samples are all in `parts`. While the parts are
    made, notes may be added, and a DatasetError may be raised.

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
    parts: Iterable[PartRows] = ()

    def all_parts(self) -> Generator[PartRows]:
        """The rows of all images: those in `splits` and `objects`, some at a time, and then those in `parts`."""
        for split, samples in self.splits.items():
            for start in range(0, len(samples), BATCH_ROWS):
                yield rows_of(Part({split: samples[start : start + BATCH_ROWS]}, ()))
        for start in range(0, len(self.objects), BATCH_ROWS):
            yield rows_of(Part({}, self.objects[start : start + BATCH_ROWS]))
        try:
            yield from self.parts
        except OSError as error:
            # Of a source; errors of the files that are written have messages of their own.
            raise DatasetError(f"the sources cannot be read any further: {error}; mend this and build again") from error


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
    return _of_lines(_sample_lines(samples, _Texts()))


def objects_fingerprint(objects: Iterable[AnnotatedObject]) -> str:
    return _of_lines(_object_lines(objects, _Texts()))


def _of_lines(lines: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def questions_fingerprint(samples: Iterable[Sample]) -> str:
    """The sha256 of the triples of expression, annotations and image, in any order, without masks.

    Two copies of a split that differ only in their ref ids or their rasterisation have the same value.
    """
    return _of_questions(map(_question, samples))


def _question(sample: Sample) -> bytes:
    return _words_text([sample.image_id, sorted(sample.ann_ids), sample.expression])


def _of_questions(questions: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(sorted(questions))).hexdigest()


def dataset_fingerprint(splits: Mapping[str, str], objects: str) -> str:
    """The sha256 of the fingerprints of the splits and of the objects."""
    parts = [f"{split}:{fingerprint}" for split, fingerprint in sorted(splits.items())]
    return hashlib.sha256("\n".join([*parts, f"objects:{objects}"]).encode("ascii")).hexdigest()


# repr of a float is exact and the same on every platform, so this text is canonical.
_TEXT = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))
# The fewest rows that are written at once, except the last ones of a table.
LEAST_ROWS = BATCH_ROWS // 2
# Polygons and boxes whose texts are kept: those of many images.
KEPT_TEXTS = 20_000


def _numbers_text(numbers: Sequence[float]) -> bytes:
    """Finite numbers as `_TEXT` encodes them, by an encoder that is eight times as fast. It writes very large and very
    small numbers in another way.
    """
    text = msgspec.json.encode(numbers)
    unusual = b"e" in text or b"0.0000" in text or b"null" in text
    return _TEXT.encode(numbers).encode("ascii") if unusual else text


def _words_text(values: Any) -> bytes:
    """The same for texts and integers. The faster encoder writes what is not printable ASCII in another way."""
    try:
        text = msgspec.json.encode(values)
    except UnicodeEncodeError:
        text = b"\x7f"
    return text if text.isascii() and b"\x7f" not in text else _TEXT.encode(values).encode("ascii")


class _Texts:
    """The texts of numbers and tags. The samples and objects of a part share polygons and boxes, and each is encoded
    once.
    """

    def __init__(self) -> None:
        # By id; the numbers are kept, so that no id is used twice.
        self._numbers: dict[int, tuple[Sequence[float], bytes]] = {}
        self._tags: dict[tuple[str, ...], bytes] = {}

    def numbers(self, numbers: Sequence[float]) -> bytes:
        known = self._numbers.get(id(numbers))
        if known is None:
            if len(self._numbers) >= KEPT_TEXTS:
                self._numbers.clear()
            known = self._numbers[id(numbers)] = numbers, _numbers_text(numbers)
        return known[1]

    def polygons(self, polygons: Polygons) -> bytes:
        return b"[%b]" % b",".join([self.numbers(polygon) for polygon in polygons])

    def tags(self, tags: tuple[str, ...]) -> bytes:
        if tags not in self._tags:
            if len(self._tags) >= KEPT_TEXTS:
                self._tags.clear()
            self._tags[tags] = _words_text(tags)
        return self._tags[tags]


def _sample_lines(samples: Iterable[Sample], texts: _Texts) -> Iterator[bytes]:
    """Samples as canonical JSON, one per line."""
    for s in samples:
        words = _words_text(
            [
                *(s.sample_id, s.image_id, s.height, s.width, s.expression, s.raw_expression, s.ref_id, s.sent_id),
                *(s.ann_ids, s.category, s.target.counts.decode("ascii"), s.no_target),
            ]
        )
        numbers = texts.polygons(s.polygons), texts.numbers(s.box_xywh)
        yield b"%b,%b,%b,%b]\n" % (words[:-1], *numbers, texts.tags(s.tags))


def _object_lines(objects: Iterable[AnnotatedObject], texts: _Texts) -> Iterator[bytes]:
    for o in objects:
        words = _words_text([o.ann_id, o.image_id, o.category, o.crowd, o.mask.size, o.mask.counts.decode("ascii")])
        yield b"%b,%b,%b]\n" % (words[:-1], texts.polygons(o.polygons), texts.numbers(o.box_xywh))


def rows_of(part: Part, wanted: Sequence[str] = ()) -> PartRows:
    """A part as it is written. With `wanted`, only these splits, and the objects on their images."""
    texts = _Texts()
    splits = {
        split: SplitRows(
            table=samples_table(samples),
            lines=b"".join(_sample_lines(samples, texts)),
            questions=list(map(_question, samples)),
            sample_ids=[s.sample_id for s in samples],
            image_ids={s.image_id for s in samples},
            ref_ids={s.ref_id for s in samples},
            no_target=sum(s.no_target for s in samples),
        )
        for split, samples in part.splits.items()
        if not wanted or split in wanted
    }
    objects = part.objects
    if wanted:
        images = {image_id for rows in splits.values() for image_id in rows.image_ids}
        objects = [o for o in objects if o.image_id in images]
    return PartRows(splits, objects_table(objects), b"".join(_object_lines(objects, texts)))


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
    pool = ThreadPoolExecutor(1)
    with ExitStack() as stack:

        def table(name: str, schema: pa.Schema) -> _Table:
            return _Table(stack.enter_context(rows_writer(staging / f"{name}.parquet", schema)), schema, pool)

        splits = {split: _Split(f"{dataset}/{split}", table(split, SAMPLE_SCHEMA)) for split in built.splits}
        objects, of_objects = table("objects", OBJECT_SCHEMA), hashlib.sha256()
        # Before the files are closed, also after an error.
        stack.callback(pool.shutdown, cancel_futures=True)
        # Closed after an error too: it may have processes that read the next parts.
        for part in stack.enter_context(closing(built.all_parts())):
            for split, rows in part.splits.items():
                splits[split].add(rows)
            objects.add(part.objects)
            of_objects.update(part.object_lines)
        for written in (objects, *(split.table for split in splits.values())):
            written.close()
        objects.finish()
        infos = {split: rows.info(built.refs_without_sentences.get(split, 0)) for split, rows in splits.items()}
    of_splits = {split: s.fingerprint for split, s in infos.items()}
    manifest = Manifest(
        dataset=dataset,
        builder=BuilderInfo(built.builder, built.version, {**built.options, **(options or {})}),
        refbench_version=__version__,
        licence=built.licence,
        image_ids=built.image_ids,
        annotation_ids=built.annotation_ids,
        sources=built.sources,
        splits=infos,
        objects=objects.count,
        notes=built.notes,
        fingerprint=dataset_fingerprint(of_splits, of_objects.hexdigest()),
    )
    write_json(staging / MANIFEST_FILE, manifest.to_json())
    replace_folder(staging, dataset_folder(dataset))
    return manifest


class _Table:
    """A table that a thread writes in batches while the next rows are made."""

    def __init__(self, write: Callable[[pa.Table], None], schema: pa.Schema, pool: ThreadPoolExecutor) -> None:
        self._write = write
        self._pool = pool
        self._kept: pa.Table = schema.empty_table()
        self._writing: deque[Future[None]] = deque()
        self.count = 0

    def add(self, rows: pa.Table) -> None:
        self.count += rows.num_rows
        self._kept = pa.concat_tables([self._kept, rows])
        if self._kept.num_rows >= LEAST_ROWS:
            self._submit()

    def close(self) -> None:
        """No rows follow. A table without rows gets one empty row group."""
        if self._kept.num_rows or not self.count:
            self._submit()

    def finish(self) -> None:
        """Wait until all rows are written."""
        self._wait(0)

    def _submit(self) -> None:
        batch, self._kept = self._kept, self._kept.schema.empty_table()
        self._writing.append(self._pool.submit(lambda: self._write(batch.combine_chunks())))
        # Rows that are being written take memory.
        self._wait(1)

    def _wait(self, most: int) -> None:
        while len(self._writing) > most:
            self._writing.popleft().result()


class _Split:
    """A split while it is written, and what the manifest says of it."""

    def __init__(self, address: str, table: _Table) -> None:
        self._address = address
        self.table = table
        self._lines = hashlib.sha256()
        self._questions: list[bytes] = []
        self._sample_ids: set[str] = set()
        self._image_ids: set[str] = set()
        self._ref_ids: set[str] = set()
        self._no_target = 0

    def add(self, rows: SplitRows) -> None:
        for sample_id in rows.sample_ids:
            if sample_id in self._sample_ids:
                raise DatasetError(
                    f"{self._address}: the sample id {sample_id} occurs twice because a ref contains the same sent_id "
                    "twice; the annotation file is damaged"
                )
            self._sample_ids.add(sample_id)
        self.table.add(rows.table)
        self._lines.update(rows.lines)
        self._questions += rows.questions
        self._image_ids |= rows.image_ids
        self._ref_ids |= rows.ref_ids
        self._no_target += rows.no_target

    def info(self, refs_without_sentences: int) -> SplitInfo:
        """Call it after the last sample; it waits until all are written."""
        self.table.finish()
        return SplitInfo(
            images=len(self._image_ids),
            refs=len(self._ref_ids),
            expressions=self.table.count,
            no_target=self._no_target,
            fingerprint=self._lines.hexdigest(),
            questions=_of_questions(self._questions),
            refs_without_sentences=refs_without_sentences,
        )
