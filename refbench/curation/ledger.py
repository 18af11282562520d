"""The ledger, which has one row for each mask and each expression of the source split, and the code that applies it.

Applying a ledger needs only the source split and the ledger: no model, images, network or random numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from refbench._version import __version__
from refbench.curation.items import ImageItems, mask_id_of
from refbench.curation.recipe import FIGURES
from refbench.errors import DatasetError, MaskError, summarise_problems
from refbench.masks.mask import Mask
from refbench.records import Action, AnnotatedObject, Cause, Decision, Sample
from refbench.storage.files import home, read_table, write_table
from refbench.storage.manifest import dataset_folder

LEDGER_FILE = "ledger.parquet"
LAYOUT = 1
KEPT, CHANGED, DROPPED = "kept", "changed", "dropped"
MASK, EXPRESSION = "mask", "expression"
SCORES = ("expected_boundary_iou", "probably_better", "source_iou", *FIGURES)
SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("item_id", pa.string()),
        ("image_id", pa.string()),
        ("action", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("refiner", pa.string()),
        ("weights_sha256", pa.string()),
        ("reviewer", pa.string()),
        ("time", pa.string()),
        ("source_sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("counts", pa.string()),
        *((name, pa.float64()) for name in SCORES),
    ]
)
TEXTS = tuple(field.name for field in SCHEMA if field.type == pa.string() and field.name != "counts")
_TAG = "curated"


@dataclass(frozen=True, slots=True)
class Row:
    """The decision about one item of the source. `mask` is the new mask if the action is "changed", otherwise None."""

    item: str
    item_id: str
    image_id: str
    action: str
    stage: str
    reason: str
    source_sha256: str
    refiner: str = ""
    weights_sha256: str = ""
    reviewer: str = ""
    time: str = ""
    mask: Mask | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows of a ledger, the address and fingerprint of its source, and the name and sha256 of its recipe.

    `edited` is true if the rows of the file are not those that refbench wrote.
    """

    address: str
    fingerprint: str
    recipe: str
    recipe_sha256: str
    rows: tuple[Row, ...]
    edited: bool = False

    def by_id(self) -> dict[str, Row]:
        return {row.item_id: row for row in self.rows}


def mask_sha256(mask: Mask) -> str:
    return hashlib.sha256(f"{mask.height} {mask.width} ".encode() + mask.counts).hexdigest()


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def rows_of(
    images: Iterable[ImageItems],
    masks: Mapping[str, Decision],
    expressions: Mapping[str, Decision],
    weights: Mapping[str, str],
) -> list[Row]:
    """The rows of a ledger, image by image: first masks, then expressions; expressions of a dropped mask are dropped
    too.

    `masks` and `expressions` map the id of every item to its decision; the action "review" must be replaced before the
    call. `weights` maps refiners to the sha256 of their weights.
    """
    actions = {Action.KEEP: KEPT, Action.CHANGE: CHANGED, Action.DROP: DROPPED}
    out = []
    for image in images:
        for target in image.masks:
            d = masks[target.mask_id]
            out.append(
                Row(
                    MASK, target.mask_id, image.image_id, actions[d.action], d.stage, d.reason,
                    mask_sha256(target.mask), d.refiner, weights.get(d.refiner, ""), d.reviewer, d.time,
                    d.mask if d.action == Action.CHANGE else None, d.scores,
                )
            )  # fmt: skip
        for sample in image.samples:
            d = expressions[sample.sample_id]
            mask_id = mask_id_of(sample)
            if d.action != Action.DROP and not sample.no_target and masks[mask_id].action == Action.DROP:
                d = Decision(sample.sample_id, Action.DROP, MASK, "its mask is dropped", cause=Cause.MASK_DROPPED)
            out.append(
                Row(
                    EXPRESSION, sample.sample_id, image.image_id, actions[d.action], d.stage, d.reason,
                    text_sha256(sample.expression), reviewer=d.reviewer, time=d.time,
                )
            )  # fmt: skip
    return out


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Write a ledger; its bytes depend only on its content and on the versions of refbench and pyarrow."""
    table = _table(ledger.rows)
    about = {
        "layout": LAYOUT,
        "source": ledger.address,
        "fingerprint": ledger.fingerprint,
        "recipe": ledger.recipe,
        "recipe_sha256": ledger.recipe_sha256,
        "refbench_version": __version__,
        "rows_sha256": _rows_sha256(table),
    }
    write_table(path, table.replace_schema_metadata({"refbench": json.dumps(about, sort_keys=True)}))


def read_ledger(path: Path) -> Ledger:
    """Read a ledger and check every value.

    Raises:
        DatasetError: the file is not Parquet or not a ledger, or some of its rows are invalid; the message names the
            rows.
    """
    if path.is_dir():
        path = path / LEDGER_FILE
    table = read_table(path, whole=True)
    about = _about(table, path)
    missing = [f.name for f in SCHEMA if f.name not in table.column_names or table.schema.field(f.name).type != f.type]
    if missing:
        raise DatasetError(
            f"{path} is not a ledger that refbench wrote: the column {missing[0]} is missing or has another type"
        )
    table = table.select(SCHEMA.names)
    rows, problems = [], []
    for k, content in enumerate(table.to_pylist()):
        try:
            rows.append(_row(content))
        except (DatasetError, MaskError) as error:
            problems.append(f"row {k} ({content['item_id']}): {error}")
    ids = [row.item_id for row in rows]
    problems += (
        [f"{i} occurs twice" for i in sorted({i for i in ids if ids.count(i) > 1})] if len(set(ids)) < len(ids) else []
    )
    if problems:
        raise DatasetError(
            f"{path} cannot be applied because {len(problems)} of its rows are invalid.\n"
            f"{summarise_problems(problems)}\n"
            "Get the ledger again, or write it again with `refbench curate decide`."
        )
    return Ledger(
        about["source"], about["fingerprint"], about["recipe"], about["recipe_sha256"], tuple(rows),
        edited=_rows_sha256(table) != about["rows_sha256"],
    )  # fmt: skip


def _about(table: pa.Table, path: Path) -> dict[str, str]:
    try:
        about = json.loads((table.schema.metadata or {})[b"refbench"])
        texts = ("source", "fingerprint", "recipe", "recipe_sha256", "rows_sha256")
        if about["layout"] != LAYOUT or not all(isinstance(about[k], str) for k in texts):
            raise DatasetError(f"{path} was written by an incompatible version of refbench")
    except (KeyError, TypeError, ValueError):
        raise DatasetError(
            f"{path} does not name its source split, so it is not a complete ledger; if another program rewrote "
            "the file, it must preserve the metadata of the Parquet schema"
        ) from None
    found: dict[str, str] = about
    return found


def _row(content: Mapping[str, Any]) -> Row:
    texts = (
        "item",
        "item_id",
        "image_id",
        "action",
        "stage",
        "reason",
        "refiner",
        "weights_sha256",
        "reviewer",
        "time",
    )
    if any(content[name] is None for name in (*texts, "source_sha256")):
        raise DatasetError("a text is missing")
    if content["item"] not in (MASK, EXPRESSION):
        raise DatasetError(f"an item must be a {MASK} or an {EXPRESSION}, got {content['item']!r}")
    allowed = (KEPT, CHANGED, DROPPED) if content["item"] == MASK else (KEPT, DROPPED)
    if content["action"] not in allowed:
        raise DatasetError(
            f"the action for a {content['item']} must be one of {', '.join(allowed)}, got {content['action']!r}"
        )
    mask = None
    if content["action"] == CHANGED:
        if content["height"] is None or content["width"] is None or not content["counts"]:
            raise DatasetError("the action is `changed`, but the row contains no mask")
        mask = Mask(content["height"], content["width"], content["counts"].encode("ascii", "replace"))
        if mask.area == 0:
            raise DatasetError("the new mask is empty; use the action `dropped` instead")
    return Row(
        **{name: content[name] for name in TEXTS},
        mask=mask,
        scores={name: content[name] for name in SCORES if content[name] is not None},
    )


def _table(rows: Sequence[Row]) -> pa.Table:
    def of(row: Row) -> dict[str, Any]:
        mask = row.mask
        texts = {n: getattr(row, n) for n in Row.__slots__ if n not in ("mask", "scores")}
        size: dict[str, Any] = {"height": None, "width": None, "counts": ""}
        if mask is not None:
            size = {"height": mask.height, "width": mask.width, "counts": mask.counts.decode("ascii")}
        return {**texts, **size, **{name: row.scores.get(name) for name in SCORES}}

    return pa.Table.from_pylist([of(row) for row in rows], SCHEMA)


def _rows_sha256(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for row in table.select(SCHEMA.names).to_pylist():
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def apply_ledger(
    samples: Sequence[Sample], objects: Sequence[AnnotatedObject], ledger: Ledger, dataset: str, where: str
) -> tuple[list[Sample], list[AnnotatedObject]]:
    """The split and the objects that result from applying a ledger to its source, under the name `dataset`.

    A changed mask gets a new box and loses its polygons; its samples get the tag `curated`. In the remaining images,
    all annotated objects are kept, because they are needed as distractors. If the new mask of an object is known, it
    replaces the old mask.

    Raises:
        DatasetError: the ledger is for another source, because items are missing, unknown or different. `where` names
            the ledger in the message.
    """
    rows = ledger.by_id()
    _check_items(samples, rows, ledger, where)
    kept = []
    for sample in samples:
        if rows[sample.sample_id].action == DROPPED:
            continue
        mask_row = None if sample.no_target else rows[mask_id_of(sample)]
        if mask_row is not None and mask_row.action == DROPPED:
            continue
        kept.append(_moved(_changed(sample, mask_row.mask if mask_row else None), dataset))
    images = {s.image_id for s in kept}
    new = {s.ann_ids[0]: rows[mask_id_of(s)].mask for s in samples if not s.no_target and len(s.ann_ids) == 1}
    left = []
    for found in objects:
        if found.image_id in images:
            mask = new.get(found.ann_id)
            left.append(
                found if mask is None else dataclasses.replace(found, mask=mask, polygons=(), box_xywh=mask.box_xywh)
            )
    return kept, left


def _changed(sample: Sample, mask: Mask | None) -> Sample:
    if mask is None:
        return sample
    return dataclasses.replace(
        sample, target=mask, polygons=(), box_xywh=mask.box_xywh, tags=tuple(dict.fromkeys((*sample.tags, _TAG)))
    )


def _moved(sample: Sample, dataset: str) -> Sample:
    """Put the name of the new dataset into a sample.

    An image path inside the home folder becomes relative to it, so that the home folder can be moved.
    """
    path = sample.image_path
    inside = home().resolve() / "datasets"
    if path and Path(path).resolve().is_relative_to(inside):
        path = Path(os.path.relpath(Path(path).resolve(), dataset_folder(dataset).resolve())).as_posix()
    rest = sample.sample_id.split("/", 1)[1]
    return dataclasses.replace(sample, sample_id=f"{dataset}/{rest}", image_path=path)


def _check_items(samples: Sequence[Sample], rows: Mapping[str, Row], ledger: Ledger, where: str) -> None:
    problems = []
    expected: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for sample in samples:
        expected[sample.sample_id] = text_sha256(sample.expression)
        if not sample.no_target and (mask_id := mask_id_of(sample)) not in expected:
            expected[mask_id] = mask_sha256(sample.target)
            sizes[mask_id] = sample.target.size
    for item_id, digest in expected.items():
        row = rows.get(item_id)
        kind = MASK if item_id in sizes else EXPRESSION
        if row is not None and row.item != kind:
            problems.append(f"{item_id} is a row about a {row.item}, it is a {kind}")
        elif row is None:
            problems.append(f"{item_id} of the source is not in the ledger")
        elif row.source_sha256 != digest:
            problems.append(f"{item_id} has changed since the ledger was written")
        elif row.mask is not None and row.mask.size != sizes[item_id]:
            problems.append(f"{item_id}: its new mask is {row.mask.size}, the image {sizes[item_id]}")
    problems += [f"{item_id} is not in the source" for item_id in rows if item_id not in expected]
    if problems:
        raise DatasetError(
            f"{where} belongs to another build of {ledger.address}: {len(problems)} items differ.\n"
            f"{summarise_problems(problems)}\n"
            f"Build the version that the ledger was made for (fingerprint {ledger.fingerprint[:12]}...)."
        )
