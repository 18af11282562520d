"""`refbench leaderboard`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.output import print_json, remark
from refbench.reports.leaderboard import build_tables, read_published, read_rows
from refbench.storage.files import home, project_data


@click.group()
def leaderboard() -> None:
    """Build the leaderboard tables.

    \b
    Example:
      refbench leaderboard build --out tables
    """


@leaderboard.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the tables.  [default: leaderboards/tables in a checkout]",
)
@click.option(
    "--runs",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with scored runs; repeatable.  [default: leaderboards/runs in a checkout, otherwise "
    "$REFBENCH_HOME/runs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the list of written files as JSON.")
def build(out: Path | None, folders: tuple[Path, ...], as_json: bool) -> None:
    """Write tables of scored runs and published results, as Markdown and CSV.

    \b
    Example:
      refbench leaderboard build
      refbench leaderboard build --runs ~/.refbench/runs --out tables
    """
    place = project_data("leaderboards")
    # An installed refbench (not a checkout) contains no runs; then the runs of the user are taken.
    in_checkout = (place / "runs").is_dir()
    if not folders:
        folders = (place / "runs" if in_checkout else home() / "runs",)
    out = out or (place / "tables" if in_checkout else home() / "leaderboard")
    rows = read_rows(folders)
    unscored = sum(not p.with_name("summary.json").is_file() for f in folders for p in f.rglob("run.json"))
    if unscored:
        remark(f"{unscored} runs are left out because they are not scored; run `refbench score` on them")
    published = read_published(place / "published")
    files = build_tables(rows, published, out)
    if as_json:
        print_json({"runs": len(rows), "published": len(published), "files": [str(f) for f in files]})
        return
    remark(f"{len(rows)} scored runs of {', '.join(map(str, folders))}, {len(published)} published results")
    for file in files:
        click.echo(str(file))
