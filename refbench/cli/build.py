"""`refbench build`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.builders.base import Sources, build_dataset
from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.plugins import load
from refbench.storage import dataset_folder


@click.command()
@click.argument("dataset")
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    help="Folder of the original layout, or the annotation file itself.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder with the photographs.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def build(dataset: str, annotations: Path | None, images: Path | None, as_json: bool) -> None:
    """Build a dataset from its original files, or render it.

    Every split that the files hold is built, under $REFBENCH_HOME/datasets. Building twice gives the same
    fingerprint. A row that cannot be used is reported with its position, and nothing is written.

    \b
    Example:
      refbench build scenes
      refbench build refcoco --annotations refer/data --images coco/train2014
      refbench build refcocog-umd --annotations "refer/data/refcocog/refs(umd).p" --json
    """
    builder = load("builders", dataset)
    for path in (annotations, images):
        if path is not None and not path.exists():
            raise click.BadParameter(f"{path} does not exist")
    with ConsoleProgress() as progress:
        manifest = build_dataset(dataset, builder, Sources(annotations, images), progress)
    if as_json:
        print_json(manifest)
        return
    rows = [
        [split, str(s["images"]), str(s["refs"]), str(s["expressions"]), s["fingerprint"][:12]]
        for split, s in manifest["splits"].items()
    ]
    print_table(dataset, ["split", "images", "refs", "expressions", "fingerprint"], rows)
    for note in manifest["notes"][:10]:
        remark(f"note: {note}")
    if len(manifest["notes"]) > 10:
        remark(f"and {len(manifest['notes']) - 10} more notes in the manifest")
    remark(f"{dataset} is in {dataset_folder(dataset)}, fingerprint {manifest['fingerprint']}")
