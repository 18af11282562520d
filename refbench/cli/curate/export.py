"""`refbench curate export`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.completion import splits
from refbench.cli.output import ConsoleProgress, print_json, remark
from refbench.cli.paths import FilePath
from refbench.curation.publication import export_curated


@click.command()
@click.argument("address", metavar="DATASET/SPLIT", shell_complete=splits)
@click.option("--out", type=FilePath(), required=True, help="New folder.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(address: str, out: Path, as_json: bool) -> None:
    """Export a curated split in the format of moondream/refcoco-m.

    Writes Parquet files with the images, a dataset card with counts, the ledger, and contact sheets that show masks
    before and after.

    \b
    Example:
      refbench curate export refcoco-cleaned/val --out cleaned
      python -c "import datasets; print(datasets.load_dataset('cleaned'))"
    """
    with ConsoleProgress() as progress:
        files = export_curated(address, out, progress)
    if as_json:
        print_json({"folder": str(out), "files": [str(f.relative_to(out)) for f in files]})
    else:
        remark(f"{len(files)} files are in {out}; look at its README.md and sheets/")
