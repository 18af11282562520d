"""Rebuilds any dataset from a refbench export, with the same samples, objects and fingerprint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refbench.datasets.builders.base import NO_IMAGES, Built, Sources, samples_fingerprint, source_of
from refbench.datasets.builders.coco import read_segmentation
from refbench.datasets.builders.tables import unpack_images
from refbench.errors import DatasetError, MaskError
from refbench.records import AnnotatedObject, Sample
from refbench.storage.coco_rows import is_id, is_text, read_box
from refbench.storage.files import file_sha256, read_json, read_table
from refbench.storage.images import Photographs, is_plain_name
from refbench.storage.manifest import Source
from refbench.storage.progress import Progress
from refbench.storage.samples import (
    EXPORT_FILE,
    EXPORT_LAYOUT,
    OBJECT_SCHEMA,
    SAMPLE_SCHEMA,
    objects_of_table,
    samples_of_table,
)

MAX_PATH_LENGTH = 300


def is_export(path: Path | None) -> bool:
    return path is not None and path.is_dir() and (path / EXPORT_FILE).is_file()


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read an export; see `refbench.datasets.builders.base.Builder`.

    Raises:
        DatasetError: the export is for another dataset, is incomplete, or was changed after it was written.
    """
    root = sources.annotations or Path()
    about = _read_about(root / EXPORT_FILE)
    if about["dataset"] != dataset:
        raise DatasetError(f"{root} is an export of {about['dataset']}, not of {dataset}")
    split = about["split"]
    if not is_plain_name(split) or split in ("objects", "manifest"):
        raise DatasetError(f"{root / EXPORT_FILE}: {split!r} is not a valid split name")
    _check_files(root, about["files"])
    reader = READERS.get(about["format"])
    if reader is None:
        raise DatasetError(f"{root / EXPORT_FILE}: unknown format {about['format']!r}")
    try:
        samples, objects = reader(root, split)
    except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"{root} is a damaged export ({type(error).__name__}: {error}); export the dataset again"
        ) from None
    notes = [f"read from an export ({about['format']})"]
    samples = _with_images(samples, root, about["files"], sources, folder)
    if not any(s.image_path for s in samples):
        notes.append(NO_IMAGES)
    if samples_fingerprint(samples) != about["fingerprint"]:
        raise DatasetError(
            f"{root} does not match its {EXPORT_FILE}: the fingerprints differ, so a file was changed; export "
            "the dataset again"
        )
    progress("samples", len(samples), len(samples))
    builder = about["builder"]
    return Built(
        builder["name"], builder["version"], {split: samples}, objects, [_source(root, n) for n in about["files"]],
        about["licence"], notes, about["image_ids"], about["annotation_ids"],
        builder.get("options", {}),
    )  # fmt: skip


def _read_about(path: Path) -> dict[str, Any]:
    """Read the description of an export and check the type of every value."""
    about = read_json(path)
    texts = ("format", "dataset", "split", "fingerprint", "licence", "image_ids", "annotation_ids")
    builder = about.get("builder") if isinstance(about, dict) else None
    files = about.get("files") if isinstance(about, dict) else None
    if (
        not isinstance(about, dict)
        or about.get("layout") != EXPORT_LAYOUT
        or not all(is_text(about.get(k)) for k in texts)
        or not isinstance(builder, dict)
        or not is_text(builder.get("name"))
        or not is_id(builder.get("version"))
        or not isinstance(builder.get("options", {}), dict)
        or not isinstance(files, dict)
        or not all(is_text(k) and is_text(v) for k, v in files.items())
    ):
        raise DatasetError(f"{path} is not an export description that this version of refbench can read")
    for key, value in builder.get("options", {}).items():
        if not is_text(key) or not (is_text(value) or value is None or isinstance(value, (bool, int, float))):
            raise DatasetError(f"{path}: the builder option {key!r} must be a string, number or boolean")
    return about


def _check_files(root: Path, files: Mapping[str, str]) -> None:
    if not files:
        raise DatasetError(f"{root / EXPORT_FILE} lists no files")
    for name, digest in files.items():
        parts = Path(name).parts
        if "\0" in name or len(name) > MAX_PATH_LENGTH or Path(name).is_absolute() or ".." in parts:
            raise DatasetError(f"{root / EXPORT_FILE} lists {name!r}, which is outside the folder of the export")
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise DatasetError(f"{path} is a symbolic link to a place outside the folder of the export")
        if not path.is_file():
            raise DatasetError(f"{path} is missing; copy the export again")
        if path.suffix != ".md" and file_sha256(path) != digest:
            raise DatasetError(f"{path} is not the file that was exported, because its sha256 differs; copy it again")


def _source(root: Path, name: str) -> Source:
    found = source_of(root / name)
    return Source(name, found.sha256, found.bytes)


def _with_images(
    samples: list[Sample], root: Path, files: Iterable[str], sources: Sources, folder: Path
) -> list[Sample]:
    """Replace the bare file name in `image_path` by the path of the image.

    The images are taken from --images if it is given, otherwise from the export if it contains them.
    """
    places = {"": ""}
    if sources.images is not None:
        photographs = Photographs(sources.images)
        for s in samples:
            if not s.image_path:
                raise DatasetError(f"{root} lists no images because it was built without images; remove --images")
            if s.image_path not in places:
                places[s.image_path] = photographs.find(s.image_path, s.height, s.width)
    else:
        tables = [root / name for name in files if name.startswith("data/") and name.endswith(".parquet")]
        if any("image" in pq.read_schema(table).names for table in tables):
            places |= unpack_images(tables, {s.image_path for s in samples}, folder)
    return [_moved(s, places.get(s.image_path, "")) for s in samples]


def _moved(sample: Sample, path: str) -> Sample:
    return dataclasses.replace(sample, image_path=path)


def _samples(table: pa.Table, path: Path) -> list[Sample]:
    names = [str(n or "") for n in table["image_file"].to_pylist()]
    table = table.append_column("image_path", pa.array(names, pa.string())).select(SAMPLE_SCHEMA.names)
    # `samples_of_table` makes names into paths; `_with_images` needs the bare names.
    found = samples_of_table(table.cast(SAMPLE_SCHEMA), path)
    return [_moved(s, n) for s, n in zip(found, names, strict=True)]


def _objects(table: pa.Table, path: Path) -> list[AnnotatedObject]:
    return objects_of_table(table.select(OBJECT_SCHEMA.names).cast(OBJECT_SCHEMA), path)


def _read_parquet(samples: Path, objects: Path) -> tuple[list[Sample], list[AnnotatedObject]]:
    wanted = [n for n in SAMPLE_SCHEMA.names if n != "image_path"]
    return _samples(read_table(samples, [*wanted, "image_file"]), samples), _objects(read_table(objects), objects)


def _read_hf(root: Path, split: str) -> tuple[list[Sample], list[AnnotatedObject]]:
    name = f"{split}-00000-of-00001.parquet"
    return _read_parquet(root / "data" / name, root / "objects" / name)


def _read_croissant(root: Path, split: str) -> tuple[list[Sample], list[AnnotatedObject]]:
    return _read_parquet(root / "data" / f"{split}.parquet", root / "data" / f"{split}-objects.parquet")


def _read_jsonl(root: Path, split: str) -> tuple[list[Sample], list[AnnotatedObject]]:
    samples, objects = _lines(root / "samples.jsonl"), _lines(root / "objects.jsonl")
    return _samples_of_rows(samples, root / "samples.jsonl"), _objects(
        pa.Table.from_pylist(objects, OBJECT_SCHEMA), root / "objects.jsonl"
    )


def _samples_of_rows(rows: list[dict[str, Any]], path: Path) -> list[Sample]:
    schema = SAMPLE_SCHEMA.append(pa.field("image_file", pa.string()))
    return _samples(pa.Table.from_pylist(rows, schema).drop_columns(["image_path"]), path)


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{path}, line {number}: invalid JSON ({error})") from None
    return rows


def _read_coco(root: Path, split: str) -> tuple[list[Sample], list[AnnotatedObject]]:
    path = root / f"{split}.json"
    content = read_json(path)
    images = {row["id"]: row for row in content["images"]}
    categories = {row["id"]: row["name"] for row in content["categories"]}
    objects = []
    for k, row in enumerate(content["annotations"]):
        image = images[row["image_id"]]
        try:
            mask, polygons = read_segmentation(row["segmentation"], image["height"], image["width"])
            box = read_box(row["bbox"], mask)
        except MaskError as error:
            raise DatasetError(f"{path} annotations[{k}]: {error}") from None
        if "polygons" in row:
            polygons = tuple(tuple(float(v) for v in p) for p in row["polygons"])
        objects.append(
            AnnotatedObject(
                str(row["source_id"]), str(image["source_id"]), str(categories[row["category_id"]]),
                bool(row["iscrowd"]), mask, polygons, box,
            )
        )  # fmt: skip
    return _samples_of_rows(content["samples"], path), objects


READERS = {"hf": _read_hf, "jsonl": _read_jsonl, "coco": _read_coco, "croissant": _read_croissant}
