"""`refbench curate decide`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.completion import curations
from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import decisions


@click.command()
@click.argument("folder", metavar="DIR", shell_complete=curations, type=FilePath())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def decide(folder: Path, as_json: bool) -> None:
    """Decide with the recipe what to keep, change, drop or review.

    Writes the ledger. Answers and edits from people take precedence over the recipe. The setting `undecided` of the
    recipe states what happens to items that still need an answer.

    \b
    Example:
      refbench curate decide ~/.refbench/curation/refcoco-val
    """
    with ConsoleProgress() as progress:
        done = decisions.decide(folder, progress=progress)
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "masks": dict(done.masks),
                "expressions": dict(done.expressions),
                "waiting": done.waiting,
                "reviewed": done.reviewed,
                "edits": done.edits,
                "ledger": str(done.ledger),
            }
        )
        return
    rows = [["masks", k, str(n)] for k, n in done.masks.items()]
    rows += [["expressions", k, str(n)] for k, n in done.expressions.items()]
    print_table("", ["items", "action (stage)", "count"], rows)
    if done.waiting:
        remark(f"{done.waiting} items wait for a person: refbench curate review {folder}")
    remark(f"the ledger is {done.ledger}")
