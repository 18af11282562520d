"""Any dataset, from an export of refbench: the same samples, objects and fingerprint again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refbench.builders.base import Built, Source, Sources, samples_fingerprint, source_of
from refbench.builders.coco import read_box, read_segmentation
from refbench.errors import DatasetError, MaskError
from refbench.images import Photographs
from refbench.progress import Progress
from refbench.records import AnnotatedObject, Sample
from refbench.storage import (
    EXPORT_FILE,
    EXPORT_LAYOUT,
    OBJECT_SCHEMA,
    SAMPLE_SCHEMA,
    file_sha256,
    objects_of_table,
    read_json,
    samples_of_table,
)

NEEDED = ("format", "dataset", "split", "fingerprint", "builder", "files")


def is_export(path: Path | None) -> bool:
    return path is not None and path.is_dir() and (path / EXPORT_FILE).is_file()


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read an export back; see `refbench.builders.base.Builder`.

    Raises:
        DatasetError: it is of another dataset, incomplete, or was changed after it was written.
    """
    root = sources.annotations or Path()
    about = read_json(root / EXPORT_FILE)
    if not isinstance(about, dict) or any(k not in about for k in NEEDED) or about.get("layout") != EXPORT_LAYOUT:
        raise DatasetError(f"{root / EXPORT_FILE} does not describe an export that this version of refbench reads")
    if about["dataset"] != dataset:
        raise DatasetError(f"{root} is an export of {about['dataset']}, not of {dataset}")
    split = str(about["split"])
    if not split or split.startswith(".") or "/" in split or "\\" in split or split in ("objects", "manifest"):
        raise DatasetError(f"{root / EXPORT_FILE}: {split!r} is no name of a split")
    _check_files(root, about["files"])
    reader = READERS.get(about["format"])
    if reader is None:
        raise DatasetError(f"{root / EXPORT_FILE}: the form {about['format']!r} is unknown")
    try:
        samples, objects = reader(root, split)
    except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{root} is a damaged export ({type(error).__name__}: {error}); export it again") from None
    samples = _with_images(samples, sources)
    if samples_fingerprint(samples) != about["fingerprint"]:
        raise DatasetError(
            f"{root} does not hold what {EXPORT_FILE} says: the fingerprint differs, so a file was changed; "
            "export it again"
        )
    progress("samples", len(samples), len(samples))
    builder = about["builder"]
    return Built(
        str(builder.get("name")), int(builder.get("version", 0)), {split: samples}, objects,
        [_source(root, name) for name in about["files"]], str(about.get("licence", "")),
        [f"read from an export ({about['format']})"], str(about.get("image_ids")), str(about.get("annotation_ids")),
    )  # fmt: skip


def _check_files(root: Path, files: Any) -> None:
    if not isinstance(files, Mapping) or not files:
        raise DatasetError(f"{root / EXPORT_FILE} lists no files")
    for name, digest in files.items():
        path = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.resolve().is_relative_to(root.resolve()):
            raise DatasetError(f"{root / EXPORT_FILE} names {name!r}, which is outside its folder")
        if not path.is_file():
            raise DatasetError(f"{path} is missing; copy the export again")
        if path.suffix != ".md" and file_sha256(path) != digest:
            raise DatasetError(f"{path} is not the file that was exported (its sha256 differs); copy it again")


def _source(root: Path, name: str) -> Source:
    found = source_of(root / name)
    return Source(name, found.sha256, found.bytes)


def _with_images(samples: list[Sample], sources: Sources) -> list[Sample]:
    """`image_path` holds the bare file name so far; with --images it becomes the photograph's place."""
    if sources.images is None:
        return [_moved(s, "") for s in samples]
    photographs = Photographs(sources.images)
    places: dict[str, str] = {}
    for s in samples:
        if s.image_path not in places:
            places[s.image_path] = photographs.find(s.image_path, s.height, s.width)
    return [_moved(s, places[s.image_path]) for s in samples]


def _moved(sample: Sample, path: str) -> Sample:
    return Sample(**{name: getattr(sample, name) for name in Sample.__slots__ if name != "image_path"}, image_path=path)


def _samples(table: pa.Table, path: Path) -> list[Sample]:
    names = [str(n or "") for n in table["image_file"].to_pylist()]
    table = table.append_column("image_path", pa.array(names, pa.string())).select(SAMPLE_SCHEMA.names)
    # Not below any folder yet: `_with_images` wants the bare names.
    found = samples_of_table(table.cast(SAMPLE_SCHEMA), path)
    return [_moved(s, n) for s, n in zip(found, names, strict=True)]


def _objects(table: pa.Table, path: Path) -> list[AnnotatedObject]:
    return objects_of_table(table.select(OBJECT_SCHEMA.names).cast(OBJECT_SCHEMA), path)


def _read_parquet(samples: Path, objects: Path) -> tuple[list[Sample], list[AnnotatedObject]]:
    wanted = [n for n in SAMPLE_SCHEMA.names if n != "image_path"]
    table = pq.ParquetFile(samples).read(columns=[*wanted, "image_file"])
    return _samples(table, samples), _objects(pq.ParquetFile(objects).read(), objects)


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
            except ValueError as error:
                raise DatasetError(f"{path}, line {number}: no valid JSON ({error})") from None
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
