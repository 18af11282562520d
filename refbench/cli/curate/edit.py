"""`refbench curate edit`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from refbench.cli.completion import curations
from refbench.cli.output import print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import decisions, edits
from refbench.curation.folder import open_curation
from refbench.curation.tables import DECISIONS_FILE


@click.command()
@click.argument("folder", metavar="DIR", shell_complete=curations, type=FilePath())
@click.argument("files", metavar="FILE...", type=FilePath(), nargs=-1, required=True)
@click.option("--reviewer", default="", help="Name of the person who made the edits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def edit(folder: Path, files: tuple[Path, ...], reviewer: str, as_json: bool) -> None:
    """Merge, split, add or replace masks, or mark them as crowds.

    Each line of a FILE is one edit, a JSON object. The edits of all FILEs become the edits of the curation and replace
    its earlier ones. They take precedence over the recipe and over the review page. If the masks were decided already,
    the ledger is written again.

    \b
    Lines:
      {"edit": "merge", "masks": [ID, ID], "reason": "one bus behind a pole"}
      {"edit": "split", "mask": ID, "parts": [RLE, RLE], "expressions": {SAMPLE_ID: 2}}
      {"edit": "add", "image": IMAGE_ID, "mask": RLE, "category": "dog", "expressions": ["the dog"]}
      {"edit": "replace", "mask": ID, "by": "lvis/1234"}
      {"edit": "crowd", "mask": ID}

    \b
    Example:
      refbench curate edit ~/.refbench/curation/refcoco-val edits.jsonl --reviewer anna
    """
    open_curation(folder)
    read = [found for file in files for found in edits.read_edits(file)]
    written = edits.write_edits(folder, read, reviewer)
    decided = decisions.settle_ledger(folder) if (folder / DECISIONS_FILE).is_file() else None
    counts = Counter(str(found.__struct_config__.tag) for found in written)
    if as_json:
        ledger = None if decided is None else str(decided.ledger)
        print_json({"folder": str(folder), "edits": dict(counts), "ledger": ledger})
        return
    print_table("", ["edit", "count"], [[kind, str(n)] for kind, n in sorted(counts.items())])
    if decided is None:
        remark(f"the edits are stored; write the ledger with: refbench curate decide {folder}")
    else:
        remark(f"the ledger is {decided.ledger}")
