"""`refbench curate apply`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.completion import splits
from refbench.cli.output import print_json, print_table
from refbench.cli.paths import FilePath
from refbench.curation import revision


@click.command()
@click.argument("address", metavar="DATASET/SPLIT", shell_complete=splits)
@click.argument("ledger", metavar="LEDGER", type=FilePath())
@click.option(
    "--as", "name", default="", metavar="DATASET", help="Name of the new dataset.  [default: DATASET-curated]"
)
@click.option(
    "--accept-edits", is_flag=True, help="Accept a ledger that was edited by hand; the manifest records this."
)
@click.option(
    "--replace",
    is_flag=True,
    help="Replace an existing dataset of the same name even if it was made from another source.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def apply(address: str, ledger: Path, name: str, accept_edits: bool, replace: bool, as_json: bool) -> None:
    """Make the cleaned version of a dataset from its source and a ledger.

    This needs no model, no images and no network. The result is always the same, byte for byte.

    \b
    Example:
      refbench curate apply refcoco/val ledger.parquet --as refcoco-cleaned
      refbench run tiny refcoco-cleaned/val
    """
    manifest = revision.apply(address, ledger, name, accept_edits=accept_edits, replace=replace)
    if as_json:
        print_json(manifest.to_json())
        return
    rows = [
        [
            f"{manifest.dataset}/{split}",
            str(s.images),
            str(s.refs),
            str(s.expressions),
            s.fingerprint[:12],
        ]
        for split, s in manifest.splits.items()
    ]
    print_table("", ["split", "images", "refs", "expressions", "fingerprint"], rows)
