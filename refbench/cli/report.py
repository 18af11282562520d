"""`refbench report`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.output import print_json, remark
from refbench.cli.paths import FilePath
from refbench.reports.pages import write_report


@click.command()
@click.argument("run", type=FilePath(exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the path of the report as JSON.")
def report(run: Path, as_json: bool) -> None:
    """Write report.html for a run, with metrics and overlays.

    The run must be scored first. The page is a single file that contains the images.

    \b
    Example:
      refbench report ~/.refbench/runs/tiny/scenes-test
    """
    path = write_report(run)
    if as_json:
        print_json({"report": str(path)})
    else:
        remark("open it in a browser:")
        click.echo(str(path))
