"""`refbench export`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from refbench.cli.completion import splits
from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.datasets.exporters import WRITERS
from refbench.datasets.exporters import export as export_split
from refbench.plugins.loading import load_attribute
from refbench.reports.hub_results import export_results, write_benchmark
from refbench.storage.manifest import parse_address

HF_EVAL = "hf-eval"
LEDGER_NAME = "ledger.parquet"


@click.command()
@click.argument("address", metavar="DATASET/SPLIT|RUN", shell_complete=splits)
@click.option("--format", "form", type=click.Choice([*WRITERS, HF_EVAL]), required=True, help="Format to write.")
@click.option("--out", type=FilePath(), required=True, help="A new folder.")
@click.option(
    "--with-images",
    is_flag=True,
    help="Only with --format hf: include the images in the table. Check their licences first.",
)
@click.option("--hub-dataset", metavar="OWNER/NAME", help="Only with --format hf-eval: the dataset on the Hub.")
@click.option("--source-url", default="", help="Only with --format hf-eval: address of the run or its predictions.")
@click.option("--ledger", type=FilePath(exists=True, dir_okay=False), help="Only with --format hf: ledger to include.")
@click.option(
    "--push", metavar="OWNER/NAME", help="Only with --format hf: upload the export to this dataset of the Hub."
)
@click.option("--json", "as_json", is_flag=True, help="Print the list of files as JSON.")
def export(
    address: str,
    form: str,
    out: Path,
    with_images: bool,
    hub_dataset: str | None,
    source_url: str,
    ledger: Path | None,
    push: str | None,
    as_json: bool,
) -> None:
    """Export a split or the results of a run for other programs: hf, coco, jsonl, croissant, hf-eval.

    hf: a folder for datasets.load_dataset, with typed features, a card, and eval.yaml, which registers it as a
    benchmark of the Hub. coco: one JSON file for pycocotools and
    similar programs. jsonl: one JSON object per line. croissant: metadata and Parquet files. Every export is complete:
    `refbench build DATASET --annotations OUT` reads it and gives the same fingerprint.

    hf-eval: the results of a scored run as .eval_results/*.yaml for the repository of the model on the Hub, and as
    model-index metadata for its card.

    \b
    Example:
      refbench export refcoco/val --format hf --out refcoco-val
      refbench export lvis/val-category --format coco --out lvis-coco
      refbench export cleaned/val --format hf --ledger ledger.parquet --push OWNER/NAME --out cleaned
      refbench export RUN --format hf-eval --hub-dataset moondream/refcoco-m --out results
    """
    if form == HF_EVAL:
        if hub_dataset is None:
            raise click.UsageError("--format hf-eval needs --hub-dataset OWNER/NAME")
        if ledger is not None or push is not None or with_images:
            raise click.UsageError("--ledger, --push and --with-images are only for --format hf")
        files = export_results(Path(address), out, hub_dataset, source_url=source_url)
        if as_json:
            print_json({"run": address, "format": form, "files": [str(f) for f in files]})
        else:
            print_table("", ["file", "bytes"], [[str(f), str(f.stat().st_size)] for f in files])
        return
    if form != "hf" and (ledger is not None or push is not None):
        raise click.UsageError("--ledger and --push are only for --format hf")
    if hub_dataset is not None or source_url:
        raise click.UsageError("--hub-dataset and --source-url are only for --format hf-eval")
    with ConsoleProgress() as progress:
        files = export_split(address, form, out, with_images, progress)
    if form == "hf":
        dataset, split = parse_address(address)
        files.append(write_benchmark(out, dataset, f"{address}: referring image segmentation, by refbench", [split]))
        if ledger is not None:
            files.append(Path(shutil.copyfile(ledger, out / LEDGER_NAME)))
    commit = "" if push is None else load_attribute("refbench.datasets.hub:push")(out, push, f"Add {address}")
    if as_json:
        pushed = {"commit": commit} if commit else {}
        print_json({"dataset": address, "format": form, "files": [str(f) for f in files], **pushed})
        return
    print_table("", ["file", "bytes"], [[str(f), str(f.stat().st_size)] for f in files])
    remark(f"{address} is in {out}")
    if commit:
        click.echo(commit)
