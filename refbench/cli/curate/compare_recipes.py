"""`refbench curate compare-recipes`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from refbench.cli.output import print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import ledger_differences


@click.command("compare-recipes")
@click.argument("first", metavar="A", type=FilePath())
@click.argument("second", metavar="B", type=FilePath())
@click.option("--csv", type=FilePath(), help="Write a CSV file with one row per mask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_recipes(first: Path, second: Path, csv: Path | None, as_json: bool) -> None:
    """Compare two ledgers of one split and show where they differ.

    A and B are ledger files or curation folders. One of them can be the ledger of a published split (see
    `from-published`).

    \b
    Example:
      refbench curate compare-recipes refcoco-m.parquet ~/.refbench/curation/refcoco-val --csv masks.csv
    """
    found = ledger_differences.compare_ledgers(first, second)
    if csv is not None:
        ledger_differences.differences_table(found).to_csv(csv, index=False)
    tables = {"masks": found.masks_by_action, "expressions": found.expressions_by_action}
    if as_json:
        counts = {
            name: [{"first": a, "second": b, "items": n} for (a, b), n in sorted(table.items())]
            for name, table in tables.items()
        }
        print_json({"source": found.source, **counts, "mean_boundary_iou": found.mean_boundary_iou})
        return
    for name, table in tables.items():
        total = sum(table.values())
        rows = [[a, b, str(n), f"{n / total:.1%}"] for (a, b), n in sorted(table.items())]
        print_table(name, [f"A: {first.name}", f"B: {second.name}", name, "share"], rows)
        alike = sum(n for (a, b), n in table.items() if a == b)
        remark(f"A and B decide alike on {alike} of {total} {name}")
    if not math.isnan(found.mean_boundary_iou):
        remark(f"where both accept a mask and one changes it, their boundary IoU is {found.mean_boundary_iou:.3f}")
