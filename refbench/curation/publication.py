"""`refbench curate export`: writes a curated split in the format of `moondream/refcoco-m`, with card, ledger and
contact sheets.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from refbench._version import __version__
from refbench.curation.differences import Diff, MaskChange, diff
from refbench.curation.folder import load_items
from refbench.curation.items import ImageItems, TargetMask, evenly
from refbench.curation.ledger import LEDGER_FILE, Ledger, read_ledger
from refbench.datasets.builders.categories import SUPERCATEGORIES
from refbench.errors import DatasetError
from refbench.reports.overlays import PREDICTION_RGB, TARGET_RGB, Layer, box_around, contact_sheet, overlay, picture_of
from refbench.storage.escaping import code, markdown
from refbench.storage.files import UMASK, atomic_file
from refbench.storage.images import image_bytes
from refbench.storage.manifest import dataset_folder, parse_address, read_manifest, split_fingerprint
from refbench.storage.progress import Progress, silent

IMAGE_ROWS = 50
# Large enough to judge an outline by.
SHEET_CELLS, SHEET_COLUMNS, CELL_PX = 36, 3, 320
_CARDS = Environment(
    loader=PackageLoader("refbench.curation"), autoescape=False, undefined=StrictUndefined, keep_trailing_newline=True
)
_CARDS.filters |= {"markdown": markdown, "code": code}
# The names that the published set gives its splits.
SPLIT_NAMES = {"val": "validation"}
_MASK = pa.struct([("counts", pa.string()), ("size", pa.list_(pa.int32()))])
_SAMPLE = pa.struct(
    [
        ("id", pa.int64()),
        ("image_id", pa.int64()),
        ("category", pa.string()),
        ("supercategory", pa.string()),
        ("label", pa.string()),
        ("sentences", pa.list_(pa.string())),
        ("bbox", pa.list_(pa.float32())),
        ("mask", _MASK),
    ]
)
_FEATURES = {
    "image": {"_type": "Image"},
    "image_id": {"dtype": "int64", "_type": "Value"},
    "file_name": {"dtype": "string", "_type": "Value"},
    "samples": {
        "feature": {
            **{k: {"dtype": t, "_type": "Value"} for k, t in (("id", "int64"), ("image_id", "int64"))},
            **{k: {"dtype": "string", "_type": "Value"} for k in ("category", "supercategory", "label")},
            "sentences": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
            "bbox": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"},
            "mask": {
                "counts": {"dtype": "string", "_type": "Value"},
                "size": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"},
            },
        },
        "_type": "List",
    },
}
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("samples", pa.list_(_SAMPLE)),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


def export_curated(address: str, out: Path, progress: Progress = silent) -> list[Path]:
    """Write a curated split to the new folder `out`; returns the files.

    Each image is one Parquet row with its bytes and the features of `moondream/refcoco-m`. The folder also contains
    README.md with counts, ledger.parquet, and contact sheets of masks before and after. If some ids are not numbers,
    all ids are replaced by 1, 2, 3, ... in their order.

    Raises:
        DatasetError: the split was not made from a ledger, its source is not built any more, it has no images, or `out`
            is not empty.
    """
    dataset, split = parse_address(address)
    ledger_path = dataset_folder(dataset) / LEDGER_FILE
    if not ledger_path.is_file():
        raise DatasetError(
            f"{address} was not made by `refbench curate apply`; use `refbench export`, which works for any split"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} already exists and is not empty; choose a new folder for the export")
    images = load_items(address)
    if not all(i.image_path for i in images):
        raise DatasetError(
            f"{address} has no images because its source was built without them; build the source with "
            "--images, then apply the ledger again"
        )
    ledger = read_ledger(ledger_path)
    if split_fingerprint(ledger.address) != ledger.fingerprint:
        raise DatasetError(f"{address} was made from an earlier build of {ledger.address}; apply the ledger again")
    changes = diff(ledger.address, address)
    published = SPLIT_NAMES.get(split, split)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        data = staging / "data" / f"{published}-00000-of-00001.parquet"
        _write_rows(data, images, progress)
        shutil.copyfile(ledger_path, staging / LEDGER_FILE)
        sheets = _sheets(ledger.address, changes.masks, staging)
        card = staging / "README.md"
        card.write_text(_card(address, published, images, ledger, changes, sheets), encoding="utf-8")
        files = [data, staging / LEDGER_FILE, *sheets, card]
        staging.chmod(0o777 & ~UMASK)
        if out.exists():
            out.rmdir()  # it is empty
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [out / f.relative_to(staging) for f in files]


def _card(
    address: str,
    published: str,
    images: Sequence[ImageItems],
    ledger: Ledger,
    changes: Diff,
    sheets: Sequence[Path],
) -> str:
    """README.md of an export; `published` is the name of the split in the export."""
    return _CARDS.get_template("curated_card.md.j2").render(
        address=address,
        split=published,
        manifest=read_manifest(parse_address(address)[0]),
        ledger=ledger,
        fingerprint=split_fingerprint(address),
        images=len(images),
        masks=sum(len(i.masks) for i in images),
        expressions=sum(len(i.samples) for i in images),
        no_target=sum(s.no_target for i in images for s in i.samples),
        kinds=changes.kinds(),
        words=changes.expressions,
        reasons=_reasons(ledger.rows),
        sheets=[p.name for p in sheets],
        version=__version__,
    )


def _write_rows(path: Path, images: Sequence[ImageItems], progress: Progress) -> None:
    image_numbers = _numbers([i.image_id for i in images])
    mask_numbers = _numbers([_own_id(t) for i in images for t in i.masks])
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(images), IMAGE_ROWS):
            rows = []
            for image in images[start : start + IMAGE_ROWS]:
                number, name = image_numbers[image.image_id], Path(image.image_path).name
                content = image_bytes(image.image_path, image.height, image.width)
                samples = [_sample(t, number, mask_numbers[_own_id(t)]) for t in image.masks]
                picture = {"bytes": content, "path": name}
                rows.append({"image": picture, "image_id": number, "file_name": name, "samples": samples})
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            progress("images", start + len(rows), len(images))


def _own_id(target: TargetMask) -> str:
    """The id of a mask without its dataset and split."""
    return target.mask_id.split("/", 2)[2]


def _sample(target: TargetMask, image_number: int, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_number,
        "category": target.category,
        "supercategory": SUPERCATEGORIES.get(target.category, ""),
        "label": target.category,
        "sentences": [s.expression for s in target.samples],
        "bbox": list(target.mask.box_xywh),
        "mask": {"counts": target.mask.counts.decode("ascii"), "size": list(target.mask.size)},
    }


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """The ids themselves if all are numbers, otherwise 1, 2, 3 in order."""
    if all(n.isascii() and n.isdecimal() and len(n) < 19 for n in names) and len({int(n) for n in names}) == len(names):
        return {n: int(n) for n in names}
    return {n: k + 1 for k, n in enumerate(dict.fromkeys(names))}


def _reasons(rows: Sequence[Any]) -> list[tuple[str, str, str, int]]:
    """(item, action, reason, count), most frequent first."""
    counts = Counter((r.item, r.action, f"{r.stage}: {_rule(r.reason)}") for r in rows)
    return [(*key, n) for key, n in sorted(counts.items(), key=lambda pair: (pair[0][0], -pair[1], pair[0]))]


def _rule(reason: str) -> str:
    """A reason without its numbers and names, so that equal reasons can be counted."""
    return reason.partition(" (")[0].partition(": ")[0]


def _sheets(source: str, changes: Sequence[MaskChange], out: Path) -> list[Path]:
    images = {i.image_id: i for i in load_items(source)}
    groups: Mapping[str, list[MaskChange]] = {
        "changed": sorted(
            (c for c in changes if c.first and c.second and c.kind != "same"), key=lambda c: c.boundary_iou
        ),
        "kept": [c for c in changes if c.kind == "same"],
        "dropped": [c for c in changes if c.kind == "dropped"],
    }
    written = []
    for name, some in groups.items():
        cells = list(_cells(evenly(some, SHEET_CELLS), images))
        if cells:
            path = out / "sheets" / f"{name}.jpg"
            contact_sheet(cells, SHEET_COLUMNS, path)
            written.append(path)
    return written


def _cells(changes: Sequence[MaskChange], images: Mapping[str, Any]) -> Iterator[tuple[list[Any], str]]:
    for change in changes:
        image = images[change.image_id]
        before = change.first
        if before is None:
            continue
        picture = picture_of(image.image_path, image.height, image.width)
        box = box_around(before.union(change.second) if change.second else before)
        pictures = [overlay(picture, [Layer(before, TARGET_RGB)], CELL_PX, box)]
        if change.second is not None and change.second != before:
            pictures.append(overlay(picture, [Layer(change.second, PREDICTION_RGB)], CELL_PX, box))
        told = "" if change.kind in ("dropped", "same") else f", boundary IoU {change.boundary_iou:.2f}"
        yield pictures, f"{change.item} {change.kind}{told}"
