"""The ledger: one row for each mask and each expression of the source split, and for what was added to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
from refbench.records import Action, Cause, Decision
from refbench.storage.files import read_table, write_table

LEDGER_FILE = "ledger.parquet"
# Layout 2 has the columns of edits; a ledger without edits has layout 1.
LAYOUT, LAYOUT_WITH_EDITS = 1, 2
KEPT, CHANGED, DROPPED = "kept", "changed", "dropped"
# Actions of edits, see `curation.edits`.
REPLACED, MERGED, SPLIT, CROWD, ADDED, MOVED = "replaced", "merged", "split", "crowd", "added", "moved"
MASK, EXPRESSION = "mask", "expression"
ACTIONS = {
    MASK: (KEPT, CHANGED, DROPPED, REPLACED, MERGED, SPLIT, CROWD, ADDED),
    EXPRESSION: (KEPT, DROPPED, MOVED, ADDED),
}
# Rows of masks with these actions contain a mask; the others do not.
WITH_MASK = (CHANGED, REPLACED, SPLIT, ADDED)
# No expression can refer to such a mask after the ledger is applied.
GONE = (DROPPED, MERGED, CROWD)
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
EDIT_TEXTS = ("into", "category", "expression")
SCHEMA_WITH_EDITS = pa.schema([*SCHEMA, *((name, pa.string()) for name in EDIT_TEXTS)])
TEXTS = tuple(field.name for field in SCHEMA if field.type == pa.string() and field.name != "counts")


@dataclass(frozen=True, slots=True)
class Row:
    """The decision about one item of the source, or an item that was added.

    `mask` is the new mask if the action is one of WITH_MASK, otherwise None. `into` is the id of the mask into which a
    mask was merged, or to which an expression was moved or added. `category` belongs to an added mask, `expression` is
    the text of an added expression.
    """

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
    into: str = ""
    category: str = ""
    expression: str = ""


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
        "layout": LAYOUT if table.schema.equals(SCHEMA) else LAYOUT_WITH_EDITS,
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
    if len(set(table.column_names)) < len(table.column_names):
        raise DatasetError(f"{path} is not a ledger that refbench wrote: a column occurs twice")
    schema = SCHEMA if about["layout"] == LAYOUT else SCHEMA_WITH_EDITS
    missing = [f.name for f in schema if f.name not in table.column_names or table.schema.field(f.name).type != f.type]
    if missing:
        raise DatasetError(
            f"{path} is not a ledger that refbench wrote: the column {missing[0]} is missing or has another type"
        )
    table = table.select(schema.names)
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
    problems += _wrong_links(rows)
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


def _wrong_links(rows: Sequence[Row]) -> list[str]:
    """The rows whose `into` is not a mask to which expressions can refer."""
    masks = {row.item_id: row for row in rows if row.item == MASK}
    out = []
    for row in rows:
        if not row.into:
            continue
        target = masks.get(row.into)
        if target is None or target.action in GONE or target.image_id != row.image_id:
            out.append(f"{row.item_id} refers to {row.into}, which is not a remaining mask of its image")
    return out


def _about(table: pa.Table, path: Path) -> dict[str, Any]:
    try:
        about = json.loads((table.schema.metadata or {})[b"refbench"])
        texts = ("source", "fingerprint", "recipe", "recipe_sha256", "rows_sha256")
        if about["layout"] not in (LAYOUT, LAYOUT_WITH_EDITS) or not all(isinstance(about[k], str) for k in texts):
            raise DatasetError(f"{path} was written by an incompatible version of refbench")
    except (KeyError, TypeError, ValueError, RecursionError):
        raise DatasetError(
            f"{path} does not name its source split, so it is not a complete ledger; if another program rewrote "
            "the file, it must preserve the metadata of the Parquet schema"
        ) from None
    found: dict[str, Any] = about
    return found


def _row(content: Mapping[str, Any]) -> Row:
    texts = (*TEXTS, *(name for name in EDIT_TEXTS if name in content))
    if any(content[name] is None for name in texts):
        raise DatasetError("a text is missing")
    if content["item"] not in (MASK, EXPRESSION):
        raise DatasetError(f"an item must be a {MASK} or an {EXPRESSION}, got {content['item']!r}")
    item, action = content["item"], content["action"]
    if action not in ACTIONS[item]:
        raise DatasetError(f"the action for a {item} must be one of {', '.join(ACTIONS[item])}, got {action!r}")
    if (action in (MERGED, MOVED) or (item, action) == (EXPRESSION, ADDED)) != bool(content.get("into")):
        raise DatasetError(
            f"the action is `{action}`, so `into` must {'' if not content.get('into') else 'not '}be set"
        )
    if (item, action) == (EXPRESSION, ADDED) and not content["expression"].strip():
        raise DatasetError("the added expression is empty")
    mask = None
    if item == MASK and action in WITH_MASK:
        if content["height"] is None or content["width"] is None or not content["counts"]:
            raise DatasetError(f"the action is `{action}`, but the row contains no mask")
        mask = Mask(content["height"], content["width"], content["counts"].encode("ascii", "replace"))
        if mask.area == 0:
            raise DatasetError("the new mask is empty; use the action `dropped` instead")
    return Row(
        **{name: content[name] for name in texts},
        mask=mask,
        scores={name: content[name] for name in SCORES if content[name] is not None},
    )


def _table(rows: Sequence[Row]) -> pa.Table:
    schema = SCHEMA_WITH_EDITS if any(getattr(r, n) for r in rows for n in EDIT_TEXTS) else SCHEMA

    def of(row: Row) -> dict[str, Any]:
        mask = row.mask
        texts = {n: getattr(row, n) for n in Row.__slots__ if n not in ("mask", "scores")}
        size: dict[str, Any] = {"height": None, "width": None, "counts": ""}
        if mask is not None:
            size = {"height": mask.height, "width": mask.width, "counts": mask.counts.decode("ascii")}
        return {**texts, **size, **{name: row.scores.get(name) for name in SCORES}}

    return pa.Table.from_pylist([of(row) for row in rows], schema)


def _rows_sha256(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for row in table.to_pylist():
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
