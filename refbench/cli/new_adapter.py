"""`refbench new-adapter`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.adapters import templates
from refbench.cli.output import print_json, remark
from refbench.cli.paths import FilePath


@click.command(name="new-adapter")
@click.argument("name")
@click.option("--worker", is_flag=True, help="Create a worker, which runs in its own environment.")
@click.option(
    "--out",
    type=FilePath(file_okay=False),
    default=".",
    help="Output folder.  [default: the current folder]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new_adapter(name: str, worker: bool, out: Path, as_json: bool) -> None:
    """Create the files of a new adapter or worker.

    The new adapter already works, with a model that marks bright pixels. Replace the parts that load the model and
    compute masks. Existing files are never overwritten.

    \b
    Example:
      refbench new-adapter mine
      refbench new-adapter mine --worker
    """
    made = templates.write_worker(name, out) if worker else templates.write_adapter(name, out)
    if as_json:
        print_json({"files": [str(f) for f in made.files], "try": made.commands})
        return
    for file in made.files:
        click.echo(str(file))
    remark("try it:")
    for command in made.commands:
        remark(f"  {command}")
