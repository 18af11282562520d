"""The tables of a curation folder: findings, proposals and decisions, with one record per row."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from refbench.curation.ledger import EXPRESSION, MASK
from refbench.errors import RefbenchError, RunError
from refbench.masks.mask import Mask
from refbench.records import Action, Cause, Decision, Finding, Proposal
from refbench.storage.files import read_table, write_table

FINDINGS_FILE = "findings.parquet"
DECISIONS_FILE = "decisions.parquet"
_FINDING_SCHEMA = pa.schema(
    [
        ("check", pa.string()),
        ("severity", pa.string()),
        ("subject", pa.string()),
        ("item_id", pa.string()),
        ("image_id", pa.string()),
        ("message", pa.string()),
        ("value", pa.float64()),
    ]
)
_PROPOSAL_SCHEMA = pa.schema(
    [
        ("mask_id", pa.string()),
        ("refiner", pa.string()),
        ("variant", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("counts", pa.string()),
        ("confidence", pa.float64()),
        ("misfit_px", pa.float64()),
        ("source_misfit_px", pa.float64()),
        ("error", pa.string()),
    ]
)
_DECISION_SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("item_id", pa.string()),
        ("action", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("refiner", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("counts", pa.string()),
        ("scores", pa.string()),
        ("cause", pa.string()),
    ]
)
# Files of versions before 0.1 lack it.
_NEW_COLUMNS = {"cause"}


def read_findings(folder: Path) -> list[Finding]:
    """The findings of a folder; empty if the audit has not been run."""
    path = folder / FINDINGS_FILE
    if not path.is_file():
        return []
    rows = _rows(path, _FINDING_SCHEMA)
    return [Finding(**{**row, "value": math.nan if row["value"] is None else row["value"]}) for row in rows]


def audited_checks(folder: Path) -> tuple[str, ...]:
    """The checks that have been run on the whole split; empty if the audit was not completed."""
    path = folder / FINDINGS_FILE
    if not path.is_file():
        return ()
    try:
        return tuple(map(str, json.loads((read_table(path).schema.metadata or {})[b"checks"])))
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{path} does not list the checks that were run; run `refbench curate audit` again") from None


def _rows(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows of a table with this schema."""
    table = read_table(path, whole=True)
    for field in schema:
        if field.name in _NEW_COLUMNS and field.name not in table.column_names:
            continue
        if field.name not in table.column_names or table.schema.field(field.name).type != field.type:
            raise RunError(
                f"{path} is damaged: the column {field.name} of type {field.type} is missing; create the file again"
            )
        if field.type == pa.string() and table[field.name].null_count:
            raise RunError(f"{path} is damaged: the column {field.name} has missing values; create the file again")
    found: list[dict[str, Any]] = table.select([n for n in schema.names if n in table.column_names]).to_pylist()
    return found


def proposals_table(proposals: Sequence[Proposal]) -> pa.Table:
    rows = [
        {
            **{n: getattr(p, n) for n in Proposal.__slots__ if n != "mask"},
            "height": p.mask.height,
            "width": p.mask.width,
            "counts": p.mask.counts.decode("ascii"),
        }
        for p in proposals
    ]
    return pa.Table.from_pylist(rows, _PROPOSAL_SCHEMA)


def read_shard(path: Path) -> list[Proposal]:
    """The proposals of one shard of one refiner."""
    try:
        rows = _rows(path, _PROPOSAL_SCHEMA)
        masks = Mask.from_codes(
            [r["counts"].encode("ascii") for r in rows], [r["height"] for r in rows], [r["width"] for r in rows]
        )
    except (KeyError, RefbenchError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it and run `refbench curate propose` again") from None
    return [
        Proposal(**{name: row[name] for name in Proposal.__slots__ if name != "mask"}, mask=mask)
        for row, mask in zip(rows, masks, strict=True)
    ]


def write_findings(folder: Path, findings: Sequence[Finding], checks: Sequence[str]) -> None:
    """Write the findings of an audit; `checks` are those that have been run on the whole split."""
    rows = [{**dataclasses.asdict(f), "value": None if math.isnan(f.value) else float(f.value)} for f in findings]
    table = pa.Table.from_pylist(rows, _FINDING_SCHEMA.with_metadata({"checks": json.dumps(list(checks))}))
    write_table(folder / FINDINGS_FILE, table)


def write_decisions(folder: Path, masks: Mapping[str, Decision], expressions: Mapping[str, Decision]) -> None:
    """Write the decisions of a recipe about all masks and expressions."""
    rows = []
    for item, decisions in ((MASK, masks), (EXPRESSION, expressions)):
        for d in decisions.values():
            mask = d.mask
            rows.append(
                {
                    "item": item, "item_id": d.item_id, "action": d.action, "stage": d.stage, "reason": d.reason,
                    "refiner": d.refiner,
                    "height": mask.height if mask else None, "width": mask.width if mask else None,
                    "counts": mask.counts.decode("ascii") if mask else "",
                    "scores": json.dumps(d.scores, sort_keys=True), "cause": d.cause,
                }
            )  # fmt: skip
    write_table(folder / DECISIONS_FILE, pa.Table.from_pylist(rows, _DECISION_SCHEMA))


def read_decisions(folder: Path) -> tuple[dict[str, Decision], dict[str, Decision]]:
    """The decisions of the recipe, without the answers of reviewers: one dict for masks and one for expressions, both
    by item id.

    Raises:
        RunError: there are no decisions yet, or the file is damaged.
    """
    path = folder / DECISIONS_FILE
    if not path.is_file():
        raise RunError(f"{folder} contains no decisions; run `refbench curate decide {folder}` first")
    out: dict[str, dict[str, Decision]] = {MASK: {}, EXPRESSION: {}}
    for number, row in enumerate(_rows(path, _DECISION_SCHEMA)):
        try:
            out[row["item"]][row["item_id"]] = _decision(row)
        except (KeyError, RefbenchError, TypeError, ValueError) as error:
            raise RunError(
                f"{path} is damaged: row {number} ({row['item_id']}) is not a decision ({error}); run "
                f"`refbench curate decide {folder}` again"
            ) from None
    return out[MASK], out[EXPRESSION]


def _decision(row: Mapping[str, Any]) -> Decision:
    scores = json.loads(row["scores"])
    if not isinstance(scores, dict) or not all(isinstance(v, float | int) for v in scores.values()):
        raise ValueError("its scores are not numbers")
    mask = Mask(row["height"], row["width"], row["counts"].encode("ascii")) if row["counts"] else None
    return Decision(
        row["item_id"], Action(row["action"]), row["stage"], row["reason"], mask, row["refiner"], scores,
        cause=Cause(row.get("cause", "")),
    )  # fmt: skip
