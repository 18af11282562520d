"""`refbench weights`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from refbench.cli.output import print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.storage import weights as storage


@click.group()
def weights() -> None:
    """Add or list weights of the networks that curation uses.

    The files are stored by their sha256 in $REFBENCH_HOME/weights. To use weights in a recipe, set the options of a
    refiner: options = { weights = "NAME" }.

    \b
    Example:
      refbench weights add isnet isnet.onnx --note "IS-Net, MIT"
      refbench weights list
    """


@weights.command()
@click.argument("name")
@click.argument("file", type=FilePath(exists=True, dir_okay=False, path_type=Path))
@click.option("--note", default="", help="Where the weights come from, and their licence.")
@click.option("--json", "as_json", is_flag=True, help="Print the entry as JSON.")
def add(name: str, file: Path, note: str, as_json: bool) -> None:
    """Copy FILE to $REFBENCH_HOME/weights under the name NAME.

    \b
    Example:
      refbench weights add isnet isnet.onnx --note "IS-Net, MIT"
    """
    found = storage.add_weights(name, file, note)
    if as_json:
        print_json(_json_of(found))
    else:
        remark(f"{name}: {found.bytes / 1e6:.1f} MB, sha256 {found.sha256}")
        click.echo(found.path)


@weights.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the weights that have been added.

    \b
    Example:
      refbench weights list
    """
    found = storage.list_weights()
    if as_json:
        print_json({"weights": [_json_of(w) for w in found]})
    else:
        rows = [[w.name, f"{w.bytes / 1e6:.1f}", w.sha256[:12], w.note] for w in found]
        print_table("", ["weights", "MB", "sha256", "note"], rows)


def _json_of(found: storage.Weights) -> dict[str, object]:
    return {**dataclasses.asdict(found), "path": str(found.path)}
