"""Files and folders: where datasets live, how rows become Parquet, and how nothing is ever half written."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refbench.errors import DatasetError, MaskError, RefbenchError, RunError
from refbench.mask import Mask
from refbench.records import AnnotatedObject, Instance, Prediction, Sample

_POLYGONS = pa.list_(pa.list_(pa.float64()))
SAMPLE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("image_id", pa.string()),
        ("image_path", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("expression", pa.string()),
        ("raw_expression", pa.string()),
        ("ref_id", pa.string()),
        ("sent_id", pa.string()),
        ("ann_ids", pa.list_(pa.string())),
        ("category", pa.string()),
        ("target_counts", pa.string()),
        ("no_target", pa.bool_()),
        ("polygons", _POLYGONS),
        ("box_xywh", pa.list_(pa.float64(), 4)),
        ("tags", pa.list_(pa.string())),
    ]
)
OBJECT_SCHEMA = pa.schema(
    [
        ("ann_id", pa.string()),
        ("image_id", pa.string()),
        ("category", pa.string()),
        ("crowd", pa.bool_()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("counts", pa.string()),
        ("polygons", _POLYGONS),
        ("box_xywh", pa.list_(pa.float64(), 4)),
    ]
)
PREDICTION_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("counts", pa.string()),
        ("score", pa.float64()),
        ("no_target", pa.bool_()),
        ("instances", pa.list_(pa.struct([("counts", pa.string()), ("score", pa.float64())]))),
        ("error", pa.string()),
    ]
)


def home() -> Path:
    """`$REFBENCH_HOME`, by default `~/.refbench`."""
    return Path(os.environ.get("REFBENCH_HOME") or Path.home() / ".refbench").expanduser()


def project_data(name: str) -> Path:
    """The folder `datasets` or `leaderboards`: packaged with refbench, or beside it in a checkout."""
    packaged = Path(__file__).parent / "data" / name
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / name


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes its place, synced, or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; free space, or choose another folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; what was finished before is intact: "
            "free space or permissions, then run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, wanted: type[RefbenchError] = DatasetError) -> Any:
    """Parse a JSON file; errors name the file and the place in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise wanted(f"{path} does not exist") from None
    except OSError as error:
        raise wanted(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise wanted(f"{path} is not UTF-8 text, so it is no JSON file") from None
    except json.JSONDecodeError as error:
        raise wanted(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "if it was cut short, copy it again"
        ) from None
    except ValueError as error:
        raise wanted(f"{path} holds a number that cannot be read ({error})") from None
    except RecursionError:
        raise wanted(f"{path} nests too deeply to be an annotation file") from None


def write_table(path: Path, table: pa.Table) -> None:
    """One Parquet file, written atomically; its bytes depend on the table and the pyarrow version only."""
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(path).read(columns=list(columns) if columns else None)
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except (OSError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DatasetError(f"{path} is not a readable Parquet file ({error}); build or run it again") from None


def samples_table(samples: Sequence[Sample]) -> pa.Table:
    rows = {
        "sample_id": [s.sample_id for s in samples],
        "image_id": [s.image_id for s in samples],
        "image_path": [s.image_path for s in samples],
        "height": [s.height for s in samples],
        "width": [s.width for s in samples],
        "expression": [s.expression for s in samples],
        "raw_expression": [s.raw_expression for s in samples],
        "ref_id": [s.ref_id for s in samples],
        "sent_id": [s.sent_id for s in samples],
        "ann_ids": [list(s.ann_ids) for s in samples],
        "category": [s.category for s in samples],
        "target_counts": [s.target.counts.decode("ascii") for s in samples],
        "no_target": [s.no_target for s in samples],
        "polygons": [[list(p) for p in s.polygons] for s in samples],
        "box_xywh": [list(s.box_xywh) for s in samples],
        "tags": [list(s.tags) for s in samples],
    }
    return pa.table(rows, schema=SAMPLE_SCHEMA)


def objects_table(objects: Sequence[AnnotatedObject]) -> pa.Table:
    rows = {
        "ann_id": [o.ann_id for o in objects],
        "image_id": [o.image_id for o in objects],
        "category": [o.category for o in objects],
        "crowd": [o.crowd for o in objects],
        "height": [o.mask.height for o in objects],
        "width": [o.mask.width for o in objects],
        "counts": [o.mask.counts.decode("ascii") for o in objects],
        "polygons": [[list(p) for p in o.polygons] for o in objects],
        "box_xywh": [list(o.box_xywh) for o in objects],
    }
    return pa.table(rows, schema=OBJECT_SCHEMA)


def predictions_table(predictions: Sequence[Prediction]) -> pa.Table:
    rows = {
        "sample_id": [p.sample_id for p in predictions],
        "height": [p.mask.height for p in predictions],
        "width": [p.mask.width for p in predictions],
        "counts": [p.mask.counts.decode("ascii") for p in predictions],
        "score": [p.score for p in predictions],
        "no_target": [p.no_target for p in predictions],
        "instances": [
            [{"counts": i.mask.counts.decode("ascii"), "score": i.score} for i in p.instances] for p in predictions
        ],
        "error": [p.error for p in predictions],
    }
    return pa.table(rows, schema=PREDICTION_SCHEMA)


def predictions_from_table(table: pa.Table) -> list[Prediction]:
    out = []
    for row in table.to_pylist():
        size = row["height"], row["width"]
        instances = tuple(
            Instance(Mask(*size, i["counts"].encode("ascii")), i["score"]) for i in row["instances"] or ()
        )
        mask = Mask(*size, row["counts"].encode("ascii"))
        out.append(Prediction(row["sample_id"], mask, row["score"], row["no_target"], instances, row["error"]))
    return out


def dataset_folder(dataset: str) -> Path:
    if not dataset or "/" in dataset or "\\" in dataset or dataset.startswith("."):
        raise DatasetError(f"{dataset!r} is no dataset name; `refbench list datasets` shows the names")
    return home() / "datasets" / dataset


def parse_address(address: str) -> tuple[str, str]:
    """`refcoco/testA` -> ("refcoco", "testA")."""
    dataset, slash, split = address.partition("/")
    if not slash or not dataset or not split or "/" in split or "\\" in split or ".." in split:
        raise DatasetError(f"{address!r} is no split; write DATASET/SPLIT, for example refcoco/testA")
    return dataset, split


def read_manifest(dataset: str) -> dict[str, Any]:
    path = dataset_folder(dataset) / "manifest.json"
    if not path.exists():
        raise DatasetError(f"{dataset} is not built here ({path} does not exist); run `refbench build {dataset}`")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("splits"), dict):
        raise DatasetError(f"{path} is no manifest of refbench; run `refbench build {dataset}` again")
    return manifest


def split_path(address: str) -> Path:
    """The Parquet file of a built split, or an error that says what there is."""
    dataset, split = parse_address(address)
    manifest = read_manifest(dataset)
    path = dataset_folder(dataset) / f"{split}.parquet"
    if split not in manifest["splits"] or not path.exists():
        there = ", ".join(sorted(manifest["splits"])) or "none"
        raise DatasetError(f"{dataset} has no split {split!r} here; built: {there}")
    return path


def split_fingerprint(address: str) -> str:
    """sha256 over the canonical content of a split; image files and Parquet details don't count."""
    dataset, split = parse_address(address)
    split_path(address)
    return str(read_manifest(dataset)["splits"][split]["fingerprint"])


def load_samples(address: str) -> list[Sample]:
    """All samples of a built split, in order, e.g. `load_samples("refcoco/testA")`.

    Raises:
        DatasetError: the dataset or split is not built (`refbench build`), or its file is damaged.
    """
    path = split_path(address)
    return [sample_from_row(row, path) for row in read_table(path).to_pylist()]


def sample_from_row(row: dict[str, Any], path: Path) -> Sample:
    """A Sample from a row of a split's Parquet file; `path` is that file, for image paths and errors."""
    try:
        target = Mask(row["height"], row["width"], row["target_counts"].encode("ascii"))
    except MaskError as error:
        raise DatasetError(f"{path}, sample {row['sample_id']}: {error}; build the dataset again") from None
    image_path = row["image_path"]
    return Sample(
        sample_id=row["sample_id"],
        image_id=row["image_id"],
        image_path=str(path.parent / image_path) if image_path else "",
        height=row["height"],
        width=row["width"],
        expression=row["expression"],
        raw_expression=row["raw_expression"],
        ref_id=row["ref_id"],
        sent_id=row["sent_id"],
        ann_ids=tuple(row["ann_ids"]),
        category=row["category"],
        target=target,
        no_target=row["no_target"],
        polygons=tuple(tuple(p) for p in row["polygons"]),
        box_xywh=tuple(row["box_xywh"]),
        tags=tuple(row["tags"]),
    )


def load_objects(dataset: str) -> list[AnnotatedObject]:
    """Every annotated instance of the dataset's images, the targets among them."""
    read_manifest(dataset)
    table = read_table(dataset_folder(dataset) / "objects.parquet")
    return [
        AnnotatedObject(
            ann_id=row["ann_id"],
            image_id=row["image_id"],
            category=row["category"],
            crowd=row["crowd"],
            mask=Mask(row["height"], row["width"], row["counts"].encode("ascii")),
            polygons=tuple(tuple(p) for p in row["polygons"]),
            box_xywh=tuple(row["box_xywh"]),
        )
        for row in table.to_pylist()
    ]


def path_sha256(path: Path) -> str:
    """sha256 of a file, or of the names and contents of all files below a folder."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    lines = [f"{p.relative_to(path).as_posix()} {file_sha256(p)}" for p in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
