"""`refbench export`: writes a built split in formats of other programs, from which it can also be built again.

Every export is a folder with `refbench.json`, which describes it; `refbench build DATASET --annotations FOLDER` reads
it and gives the same fingerprint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader

from refbench._version import __version__
from refbench.datasets.catalogue import home_page
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.records import AnnotatedObject, Sample
from refbench.storage.escaping import markdown
from refbench.storage.files import BATCH_ROWS, atomic_file, file_sha256, project_data, write_json
from refbench.storage.images import image_bytes
from refbench.storage.manifest import Manifest, parse_address, read_manifest, split_fingerprint
from refbench.storage.progress import Progress, silent
from refbench.storage.samples import (
    EXPORT_FILE,
    EXPORT_LAYOUT,
    load_objects,
    load_samples,
    objects_table,
    samples_table,
)

IMAGE_ROWS = 200


@dataclass(frozen=True, slots=True)
class _Split:
    """The content of an export: the samples of a split, and the objects of their images."""

    address: str
    samples: list[Sample]
    objects: list[AnnotatedObject]
    manifest: Manifest

    @property
    def dataset(self) -> str:
        return parse_address(self.address)[0]

    @property
    def split(self) -> str:
        return parse_address(self.address)[1]


def export(
    address: str, form: str, out: Path | str, with_images: bool = False, progress: Progress = silent
) -> list[Path]:
    """Write the split `address` to the new folder `out`; returns the files.

    Args:
        form: `hf` (a folder that `datasets.load_dataset` reads), `coco` (one JSON file for pycocotools and similar
            programs), `jsonl` (one object per line) or `croissant` (metadata and Parquet files).
        with_images: `hf` only: include the images in the table, repeated for each expression.

    Raises:
        DatasetError: the split is not built, `out` is not empty, or the requested images are missing.

    Example:
        >>> import tempfile
        >>> from refbench import export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print([path.name for path in export("snapshots/test", "coco", f"{folder}/out")])
        ['test.json', 'refbench.json']
    """
    out = Path(out)
    if form not in WRITERS:
        raise DatasetError(f"{form!r} is not a supported format; choose from {', '.join(WRITERS)}")
    if with_images and form != "hf":
        raise DatasetError("--with-images works only with --format hf")
    samples = load_samples(address)
    if with_images and not all(s.image_path for s in samples):
        raise DatasetError(f"{address} was built without images; build it with --images, or remove --with-images")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} already exists and is not empty; choose a new folder for the export")
    dataset = parse_address(address)[0]
    images = {s.image_id for s in samples}
    objects = [o for o in load_objects(dataset) if o.image_id in images]
    split = _Split(address, samples, objects, read_manifest(dataset))
    out.mkdir(parents=True, exist_ok=True)
    files = WRITERS[form](split, out, with_images, progress)
    # Written last, so that a folder without this file is an incomplete export.
    described = _description(split, form, files, out)
    write_json(out / EXPORT_FILE, described)
    return [*files, out / EXPORT_FILE]


def _description(split: _Split, form: str, files: Iterable[Path], out: Path) -> dict[str, Any]:
    manifest = split.manifest
    return {
        "layout": EXPORT_LAYOUT,
        "format": form,
        "dataset": split.dataset,
        "split": split.split,
        "fingerprint": split_fingerprint(split.address),
        "builder": dataclasses.asdict(manifest.builder),
        "refbench_version": __version__,
        "licence": manifest.licence,
        "image_ids": manifest.image_ids,
        "annotation_ids": manifest.annotation_ids,
        "sources": [dataclasses.asdict(s) for s in manifest.sources],
        "files": {p.relative_to(out).as_posix(): file_sha256(p) for p in files},
    }


def _write_hf(split: _Split, out: Path, with_images: bool, progress: Progress) -> list[Path]:
    data = out / "data" / f"{split.split}-00000-of-00001.parquet"
    objects = out / "objects" / f"{split.split}-00000-of-00001.parquet"
    _write_parquet(data, _sample_tables(split.samples, with_images, progress))
    _write_parquet(objects, _object_tables(split.objects))
    card = _render("dataset_card.md.j2", split, with_images=with_images, categories=sorted(_categories(split)))
    (out / "README.md").write_text(card, encoding="utf-8")
    return [data, objects, out / "README.md"]


def _write_jsonl(split: _Split, out: Path, with_images: bool, progress: Progress) -> list[Path]:
    samples, objects = out / "samples.jsonl", out / "objects.jsonl"
    _write_lines(samples, _sample_tables(split.samples, False, progress))
    _write_lines(objects, _object_tables(split.objects))
    return [samples, objects]


def _write_coco(split: _Split, out: Path, with_images: bool, progress: Progress) -> list[Path]:
    """Write the images, all annotated objects and their classes under the keys of COCO.

    COCO has no key for expressions. They are under `samples`, which COCO readers ignore.
    """
    path = out / f"{split.split}.json"
    image_numbers = _numbers({s.image_id: None for s in split.samples})
    names = sorted(_categories(split))
    category_numbers = {name: k + 1 for k, name in enumerate(names)}
    annotation_numbers = _numbers({o.ann_id: None for o in split.objects})
    first = {s.image_id: s for s in reversed(split.samples)}
    images = [
        {"id": number, "source_id": i, "file_name": _file_name(first[i]), "height": first[i].height,
         "width": first[i].width}
        for i, number in image_numbers.items()
    ]  # fmt: skip
    annotations = [
        _coco_annotation(o, annotation_numbers[o.ann_id], image_numbers[o.image_id], category_numbers[o.category])
        for o in split.objects
    ]
    rows = [row for table in _sample_tables(split.samples, False, progress) for row in table.to_pylist()]
    content = {
        "info": {"description": f"{split.address}, exported by refbench {__version__}"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category_numbers[n], "name": n, "supercategory": ""} for n in names],
        "samples": rows,
    }
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)
    return [path]


def _coco_annotation(found: AnnotatedObject, number: int, image: int, category: int) -> dict[str, Any]:
    polygons = [list(p) for p in found.polygons]
    # Polygons if they give exactly the mask, else RLE (holes, crowds, masks without polygons).
    by_polygons = polygons and not found.crowd and Mask.from_polygons(polygons, *found.mask.size) == found.mask
    code = {"size": list(found.mask.size), "counts": found.mask.counts.decode("ascii")}
    row = {
        "id": number,
        "source_id": found.ann_id,
        "image_id": image,
        "category_id": category,
        "segmentation": polygons if by_polygons else code,
        "area": found.mask.area,
        "bbox": list(found.box_xywh),
        "iscrowd": int(found.crowd),
    }
    return row if by_polygons or not polygons else {**row, "polygons": polygons}


def _write_croissant(split: _Split, out: Path, with_images: bool, progress: Progress) -> list[Path]:
    data, objects = out / "data" / f"{split.split}.parquet", out / "data" / f"{split.split}-objects.parquet"
    _write_parquet(data, _sample_tables(split.samples, False, progress))
    _write_parquet(objects, _object_tables(split.objects))
    path = out / "croissant.json"
    write_json(path, _croissant(split, {"samples": data, "objects": objects}, out))
    return [data, objects, path]


def _croissant(split: _Split, tables: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Metadata in the format Croissant 1.0 (docs.mlcommons.org/croissant), which describes the Parquet files."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": f"{name}-file",
            "name": path.name,
            "contentUrl": path.relative_to(out).as_posix(),
            "encodingFormat": "application/x-parquet",
            "sha256": file_sha256(path),
        }
        for name, path in tables.items()
    ]
    records = [
        {
            "@type": "cr:RecordSet",
            "@id": name,
            "name": name,
            "field": [_croissant_field(name, field) for field in pq.read_schema(path) if _croissant_type(field.type)],
        }
        for name, path in tables.items()
    ]
    return {
        "@context": CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"{split.dataset}-{split.split}".replace("+", "plus"),
        "description": f"{split.address} of refbench: expressions, and the mask that each means.",
        "version": "1.0.0",
        "license": split.manifest.licence or "unknown",
        **({"url": url} if (url := home_page(split.dataset)) else {}),
        "datePublished": date.today().isoformat(),
        "citeAs": f"fingerprint {split_fingerprint(split.address)}",
        "distribution": files,
        "recordSet": records,
    }


def _croissant_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        # Lists of lists (the polygons) have no place in Croissant 1.0; the files hold them.
        return "" if pa.types.is_list(kind.value_type) else _croissant_type(kind.value_type)
    for test, name in CROISSANT_TYPES:
        if test(kind):
            return name
    return ""


def _croissant_field(record: str, field: pa.Field) -> dict[str, Any]:
    row: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{record}/{field.name}",
        "name": field.name,
        "description": DESCRIPTIONS.get(field.name, field.name),
        "dataType": _croissant_type(field.type),
        "source": {"fileObject": {"@id": f"{record}-file"}, "extract": {"column": field.name}},
    }
    if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type):
        row["repeated"] = True
    return row


def _categories(split: _Split) -> set[str]:
    return {o.category for o in split.objects}


def _numbers(names: Iterable[str]) -> dict[str, int]:
    """Integer ids, as COCO requires: the ids themselves if all are integers, otherwise 1, 2, 3 in order."""
    listed = list(names)
    if all(n.isascii() and n.isdecimal() and str(int(n)) == n and n != "0" for n in listed):
        return {n: int(n) for n in listed}
    return {n: k + 1 for k, n in enumerate(listed)}


def _file_name(sample: Sample) -> str:
    return Path(sample.image_path).name if sample.image_path else ""


def _sample_tables(samples: list[Sample], with_images: bool, progress: Progress) -> Iterable[pa.Table]:
    """Tables without `image_path`, which is valid only on one machine.

    Instead, the tables contain the file name of the image and, if requested, its bytes.
    """
    step = IMAGE_ROWS if with_images else BATCH_ROWS
    for start in range(0, max(len(samples), 1), step):
        some = samples[start : start + step]
        table = samples_table(some).drop_columns(["image_path"])
        table = table.append_column("image_file", pa.array([_file_name(s) for s in some], pa.string()))
        if with_images:
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            cells = [{"bytes": _image_bytes(s), "path": _file_name(s)} for s in some]
            table = table.append_column("image", pa.array(cells, kind))
        progress("samples", min(start + step, len(samples)), len(samples))
        yield table


def _object_tables(objects: list[AnnotatedObject]) -> Iterable[pa.Table]:
    for start in range(0, max(len(objects), 1), BATCH_ROWS):
        yield objects_table(objects[start : start + BATCH_ROWS])


def _image_bytes(sample: Sample) -> bytes:
    try:
        return image_bytes(sample.image_path, sample.height, sample.width)
    except DatasetError as error:
        raise DatasetError(f"{error}; build {sample.dataset} again") from None


def _write_parquet(path: Path, tables: Iterable[pa.Table]) -> None:
    writer = None
    with atomic_file(path) as temporary:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(
                    temporary, table.schema.with_metadata(_features(table.schema)), compression="zstd"
                )
            writer.write_table(table.cast(writer.schema))
        if writer is not None:
            writer.close()


def _features(schema: pa.Schema) -> dict[str, str]:
    """Schema metadata under the key `huggingface`, which tells the library `datasets` the types of the columns."""
    features = {field.name: _feature(field.name, field.type) for field in schema}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def _feature(name: str, kind: pa.DataType) -> dict[str, Any]:
    if name == "image":
        return {"_type": "Image"}
    if pa.types.is_fixed_size_list(kind):
        return {"_type": "List", "feature": _feature("", kind.value_type), "length": kind.list_size}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature("", kind.value_type)}
    return {"_type": "Value", "dtype": {"double": "float64"}.get(str(kind), str(kind))}


def _write_lines(path: Path, tables: Iterable[pa.Table]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _render(template: str, split: _Split, **values: Any) -> str:
    environment = Environment(loader=PackageLoader("refbench.datasets"), autoescape=False, keep_trailing_newline=True)
    environment.filters["markdown"] = markdown
    card = project_data("datasets") / split.dataset / "card.md"
    about = card.read_text(encoding="utf-8") if card.is_file() else f"# {split.dataset}\n"
    return environment.get_template(template).render(
        split=split, about=about, fingerprint=split_fingerprint(split.address),
        version=__version__, descriptions=DESCRIPTIONS, **values,
    )  # fmt: skip


WRITERS: dict[str, Callable[[_Split, Path, bool, Progress], list[Path]]] = {
    "hf": _write_hf,
    "coco": _write_coco,
    "jsonl": _write_jsonl,
    "croissant": _write_croissant,
}
DESCRIPTIONS = {
    "sample_id": "dataset/split/ref_id/sent_id",
    "image_id": "number of the image in its source",
    "height": "of the image, pixels",
    "width": "of the image, pixels",
    "expression": "the referring expression",
    "raw_expression": "the text as it was collected",
    "ref_id": "expressions of one ref have the same target",
    "sent_id": "number of the expression",
    "ann_ids": "annotations that make up the target",
    "category": "class of the target",
    "target_counts": "the mask as a compressed COCO run-length code, column-major, of height x width pixels",
    "counts": "the mask as a compressed COCO run-length code, column-major, of height x width pixels",
    "no_target": "true if the expression has no target in the image",
    "polygons": "source polygons [x1, y1, x2, y2, ...] in pixels",
    "box_xywh": "[left, top, width, height] in pixels",
    "tags": "remarks of the builder",
    "image_file": "file name of the image",
    "image": "the image itself",
    "ann_id": "number of the annotation in its source",
    "crowd": "true for a crowd annotation",
}
CROISSANT_TYPES: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_string, "sc:Text"),
    (pa.types.is_boolean, "sc:Boolean"),
    (pa.types.is_integer, "sc:Integer"),
    (pa.types.is_floating, "sc:Float"),
)
CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
