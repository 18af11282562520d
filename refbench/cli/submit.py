"""`refbench submit`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.output import print_json, remark
from refbench.cli.paths import FilePath
from refbench.reports import submission


@click.command()
@click.argument("run", type=FilePath(exists=True, file_okay=False))
@click.option("--out", type=FilePath(), required=True, help="Folder with the runs of the leaderboard.")
@click.option("--predictions-url", "url", default="", help="Address of the predictions, instead of a copy of them.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def submit(run: Path, out: Path, url: str, as_json: bool) -> None:
    """Check a scored run, and write it as a submission to a leaderboard.

    The figures are computed again from the predictions; a run with other figures is refused. The submission contains
    run.json, summary.json, scores.parquet, the predictions and a README with the command that verifies it. Commit it to
    the repository of the leaderboard and open a pull request.

    \b
    Example:
      refbench submit ~/.refbench/runs/mine/refcoco-val --out leaderboards/runs
      refbench submit RUN --out runs --predictions-url https://example.org/predictions.zip
    """
    made = submission.submit(run, out, url=url)
    if as_json:
        print_json(
            {
                "folder": str(made.folder),
                "verify": made.command,
                "protocols": {v.protocol: str(v.status) for v in made.verdicts},
            }
        )
        return
    click.echo(str(made.folder))
    remark(f"reviewers verify it, in the folder of the runs, with: {made.command}")
