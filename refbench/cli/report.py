"""`refbench report`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.completion import runs, splits
from refbench.cli.output import ConsoleProgress, print_json, remark
from refbench.cli.paths import FilePath
from refbench.reports.pages import write_report


@click.command()
@click.argument("source", metavar="RUN|PREDICTIONS", shell_complete=runs, type=FilePath(exists=True))
@click.option(
    "--dataset",
    metavar="DATASET/SPLIT",
    shell_complete=splits,
    help="Split of the predictions, if the source is a predictions file.",
)
@click.option(
    "--out",
    type=FilePath(dir_okay=False),
    help="File of the report.  [default: report.html in the run folder, NAME.report.html beside a predictions file]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the path of the report as JSON.")
def report(source: Path, dataset: str | None, out: Path | None, as_json: bool) -> None:
    """Write an HTML report for a run or a predictions file, with metrics and overlays.

    The report is a single file that contains the images. It shows the metrics of all protocols that the run was scored
    with. `refbench site build` makes pages on which every sample can be opened.

    \b
    Example:
      refbench report ~/.refbench/runs/tiny/scenes-test
      refbench report predictions.jsonl --dataset refcoco/testA
    """
    with ConsoleProgress() as progress:
        path = write_report(source, dataset, out=out, progress=progress)
    if as_json:
        print_json({"report": str(path)})
    else:
        remark("open it in a browser:")
        click.echo(str(path))
