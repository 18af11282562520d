"""`refbench build`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from refbench.cli.completion import plugins
from refbench.cli.output import ConsoleProgress, parse_options, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.datasets import building
from refbench.datasets.builders import exported
from refbench.datasets.building import HUB
from refbench.datasets.catalogue import HubSource
from refbench.datasets.verification import DIFFERS, state_of
from refbench.storage.manifest import Manifest, dataset_folder


@click.command()
@click.argument("dataset", shell_complete=plugins("builders"))
@click.option(
    "--annotations",
    type=FilePath(),
    help="Path of the annotations: folder of the original release, annotation file, Parquet files of the "
    "hub, or export.",
)
@click.option(
    "--images",
    help="Folder or zip file with the images (a zip file is read without unpacking), or `hub` to download them.",
)
@click.option(
    "--from",
    "origin",
    type=click.Choice(["files", HUB]),
    default="files",
    help="Read the files from --annotations, or download the dataset from the Hugging Face hub.",
)
@click.option("--split", "splits", multiple=True, metavar="NAME", help="Build only this split; repeatable.")
@click.option("--sources", type=FilePath(), help="Your own sources.toml, for example with a mirror.")
@click.option("--offline", is_flag=True, help="Download nothing; use the files that were downloaded earlier.")
@click.option("--yes", is_flag=True, help="Download without asking.")
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="Set an option of the builder; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def build(
    dataset: str,
    annotations: Path | None,
    images: str | None,
    origin: str,
    sources: Path | None,
    offline: bool,
    yes: bool,
    options: tuple[str, ...],
    splits: tuple[str, ...],
    as_json: bool,
) -> None:
    """Build a dataset from its original files or from the Hugging Face hub.

    All splits in the files are built and written to $REFBENCH_HOME/datasets. Two builds from the same files have the
    same fingerprint. Invalid rows are reported with their positions, and then nothing is written. Before a download,
    the command shows size, licence and source, and asks for confirmation. An interrupted download can be resumed.

    \b
    Options (-o): grefcoco crowd=skip|use; lvis negatives=true|false, not_exhaustive=drop|keep

    \b
    Example:
      refbench build scenes
      refbench build refcoco --annotations refer/data --images coco/train2014.zip
      refbench build refcoco --from hub
      refbench build grefcoco --annotations grefs --images hub --split val --split testA --split testB
      refbench build lvis --annotations lvis_v1_val.json --images coco -o negatives=true
      refbench build refcocog-umd --annotations "refer/data/refcocog/refs(umd).p" --json
    """
    for path in (annotations, None if images in (None, HUB) else Path(images or ""), sources):
        if path is not None and not path.exists():
            raise click.BadParameter(f"{path} does not exist")
    _check_origin(origin, images, annotations, downloads=sources is not None or offline or yes)
    if exported.is_export(annotations) and options:
        raise click.UsageError(
            "a dataset that is built from an export takes no -o options, because the export contains its own "
            "builder options"
        )
    with ConsoleProgress() as progress:
        manifest = building.build(
            dataset,
            HUB if origin == HUB else annotations,
            images,
            splits=splits,
            options=parse_options(options),
            sources=sources,
            offline=offline,
            ask=lambda source: _ask(source, offline, yes, progress),
            progress=progress,
        )
    if as_json:
        print_json(manifest.to_json())
    else:
        _show(dataset, manifest)


def _check_origin(origin: str, images: str | None, annotations: Path | None, downloads: bool) -> None:
    if origin == HUB and annotations is not None:
        raise click.UsageError("--from hub downloads the annotations; remove --annotations")
    if origin != HUB and images != HUB and downloads:
        raise click.UsageError("--sources, --offline and --yes affect downloads only; add --from hub or --images hub")


def _show(dataset: str, manifest: Manifest) -> None:
    rows = [
        [split, str(s.images), str(s.refs), str(s.expressions), s.fingerprint[:12]]
        for split, s in manifest.splits.items()
    ]
    print_table(dataset, ["split", "images", "refs", "expressions", "fingerprint"], rows)
    for note in manifest.notes[:10]:
        remark(f"note: {note}")
    if len(manifest.notes) > 10:
        remark(f"and {len(manifest.notes) - 10} more notes in the manifest")
    remark(f"{dataset} is in {dataset_folder(dataset)}, fingerprint {manifest.fingerprint}")
    state = state_of(dataset)
    if state == DIFFERS:
        remark(f"its counts are not the published ones: `refbench verify {dataset}` shows where")


def _ask(source: HubSource, offline: bool, yes: bool, progress: ConsoleProgress) -> None:
    """Show what is downloaded, and ask if somebody is there to answer."""
    remark(f"{'from what was downloaded before' if offline else 'download'}: {source.describe()}")
    if not (offline or yes) and sys.stdin.isatty() and sys.stderr.isatty():
        progress.pause()
        click.confirm("Download what is not here yet?", abort=True, err=True)
