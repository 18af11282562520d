"""`refbench export`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.datasets.exporters import WRITERS
from refbench.datasets.exporters import export as export_split


@click.command()
@click.argument("address", metavar="DATASET/SPLIT")
@click.option("--format", "form", type=click.Choice(list(WRITERS)), required=True, help="Format to write.")
@click.option("--out", type=FilePath(), required=True, help="A new folder.")
@click.option(
    "--with-images",
    is_flag=True,
    help="Only with --format hf: include the images in the table. Check their licences first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the list of files as JSON.")
def export(address: str, form: str, out: Path, with_images: bool, as_json: bool) -> None:
    """Export a split for other programs: hf, coco, jsonl, croissant.

    hf: a folder for datasets.load_dataset, with typed features and a card. coco: one JSON file for pycocotools and
    similar programs. jsonl: one JSON object per line. croissant: metadata and Parquet files. Every export is complete:
    `refbench build DATASET --annotations OUT` reads it and gives the same fingerprint.

    \b
    Example:
      refbench export refcoco/val --format hf --out refcoco-val
      refbench export lvis/val-category --format coco --out lvis-coco
    """
    with ConsoleProgress() as progress:
        files = export_split(address, form, out, with_images, progress)
    if as_json:
        print_json({"dataset": address, "format": form, "files": [str(f) for f in files]})
        return
    print_table("", ["file", "bytes"], [[str(f), str(f.stat().st_size)] for f in files])
    remark(f"{address} is in {out}")
