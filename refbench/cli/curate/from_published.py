"""`refbench curate from-published`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.output import print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import published
from refbench.curation.ledger import write_ledger


@click.command("from-published")
@click.argument("source", metavar="SOURCE")
@click.argument("cleaned", metavar="CLEANED")
@click.option("--out", type=FilePath(), default="ledger.parquet", show_default=True, help="The ledger to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def from_published(source: str, cleaned: str, out: Path, as_json: bool) -> None:
    """Write the ledger that turns a split into its published cleaned version.

    The ledger states which masks and expressions of the split were kept, changed and dropped in the published version.
    `refbench curate apply` makes the cleaned split from this ledger, and `compare-recipes` compares it with your own
    ledger.

    \b
    Example:
      refbench curate from-published refcoco/val refcoco-m/val --out refcoco-m.parquet
      refbench curate compare-recipes refcoco-m.parquet ~/.refbench/curation/refcoco-val
    """
    found = published.from_published(source, cleaned)
    write_ledger(out, found.ledger)
    if as_json:
        print_json({"ledger": str(out), "masks": dict(found.masks), "expressions": dict(found.expressions)})
        return
    for name, counts in (("masks", found.masks), ("expressions", found.expressions)):
        total = sum(counts.values())
        rows = [[k, str(n), f"{n / total:.1%}"] for k, n in counts.items() if total]
        print_table(name, ["in the cleaned split", name, "share"], rows)
    remark(f"{out} is written")
