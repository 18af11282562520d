"""Where a built dataset is stored, and the content of its manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from refbench.errors import DatasetError
from refbench.records import Count
from refbench.storage.files import home, read_record
from refbench.storage.images import is_plain_name

MANIFEST_FILE = "manifest.json"
# How often a dataset is read that is built again meanwhile.
TRIES = 100
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Source:
    """A source file of a dataset."""

    name: str
    sha256: str
    bytes: Count


@dataclass(frozen=True, slots=True)
class BuilderInfo:
    """Which builder made a dataset, and with which options."""

    name: str
    version: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """The counts and digests of a split; `refs_without_sentences` have no expression and therefore no row."""

    images: Count
    refs: Count
    expressions: Count
    fingerprint: str
    no_target: Count = 0
    questions: str = ""
    refs_without_sentences: Count = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json. Fields with a default are missing in manifests of earlier versions."""

    splits: dict[str, SplitInfo]
    fingerprint: str
    dataset: str = ""
    builder: BuilderInfo = BuilderInfo("", 0)
    refbench_version: str = ""
    licence: str = ""
    image_ids: str = "coco"
    annotation_ids: str = "coco"
    sources: list[Source] = field(default_factory=list)
    objects: Count = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content as written to disk; `refs_without_sentences` is omitted if it is 0."""
        content = dataclasses.asdict(self)
        for split in content["splits"].values():
            if not split["refs_without_sentences"]:
                del split["refs_without_sentences"]
        return content


def dataset_folder(dataset: str) -> Path:
    if not is_plain_name(dataset):
        raise DatasetError(f"{dataset!r} is not a valid dataset name; `refbench list datasets` shows all names")
    return home() / "datasets" / dataset


def parse_address(address: str) -> tuple[str, str]:
    """`refcoco/testA` -> ("refcoco", "testA")."""
    dataset, slash, split = address.partition("/")
    if not slash or not dataset or not split or "/" in split or "\\" in split or ".." in split:
        raise DatasetError(f"{address!r} is not a valid split address; write DATASET/SPLIT, for example refcoco/testA")
    return dataset, split


def read_manifest(dataset: str) -> Manifest:
    """The manifest of a built dataset.

    Raises:
        DatasetError: the dataset is not built, or its manifest is damaged.
    """
    path = dataset_folder(dataset) / MANIFEST_FILE
    again = f"run `refbench build {dataset}`"
    if not path.exists():
        raise DatasetError(f"{dataset} has not been built ({path} does not exist); {again}")
    return read_record(path, Manifest, DatasetError, f"{again} again")


def split_path(address: str) -> Path:
    """The Parquet file of a built split; the error lists the splits that exist."""
    dataset, split = parse_address(address)
    manifest = read_manifest(dataset)
    path = dataset_folder(dataset) / f"{split}.parquet"
    if split not in manifest.splits or not path.exists():
        there = ", ".join(sorted(manifest.splits)) or "none"
        raise DatasetError(f"{dataset} has no split {split!r} in the local build; its splits: {there}")
    return path


def split_fingerprint(address: str) -> str:
    """The sha256 of the canonical content of a split; image files and details of Parquet are ignored."""
    dataset, split = parse_address(address)

    def read() -> str:
        split_path(address)
        return read_manifest(dataset).splits[split].fingerprint

    return of_one_build(dataset, read)


def of_one_build(dataset: str, read: Callable[[], Value]) -> Value:
    """The result of `read`, which reads files of one dataset: all of them are of the same build.

    If the dataset is built again meanwhile, they are read again.

    Raises:
        DatasetError: the dataset is built again all the time. Exceptions of `read` are raised here.
    """
    for _ in range(TRIES):
        before = _build(dataset)
        try:
            value = read()
        except DatasetError:
            # A file of another build than the manifest may be missing, or may not match.
            if _build(dataset) == before is not None:
                raise
            if before is None and _build(dataset) is None:
                raise
            continue
        if _build(dataset) == before:
            return value
    raise DatasetError(f"{dataset} is being built again; wait until it is finished")


def _build(dataset: str) -> tuple[int, int, int] | None:
    """Identifies the folder that holds a dataset now; None if there is none."""
    try:
        found = (dataset_folder(dataset) / MANIFEST_FILE).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
