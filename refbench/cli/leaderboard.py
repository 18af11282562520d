"""`refbench leaderboard`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.reports.leaderboard import build_tables, read_published, read_rows
from refbench.reports.recomputation import Status, verify_folders
from refbench.storage.files import home, project_data


@click.group()
def leaderboard() -> None:
    """Build the leaderboard tables, and verify scored runs.

    \b
    Example:
      refbench leaderboard verify ~/.refbench/runs
      refbench leaderboard build --out tables
    """


@leaderboard.command()
@click.option(
    "--out",
    type=FilePath(),
    help="Folder for the tables.  [default: $REFBENCH_HOME/leaderboard]",
)
@click.option(
    "--runs",
    "folders",
    multiple=True,
    type=FilePath(exists=True, file_okay=False),
    help="Folder with scored runs; repeatable.  [default: leaderboards/runs in a checkout, otherwise "
    "$REFBENCH_HOME/runs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the list of written files as JSON.")
def build(out: Path | None, folders: tuple[Path, ...], as_json: bool) -> None:
    """Write tables of scored runs and published results, as Markdown and CSV.

    The figures of each run are computed again from its predictions. Only runs whose figures are the same get a rank
    (see `refbench leaderboard verify`).

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
    # Not a folder that git tracks: whoever wants to change the tables of the project names them.
    out = out or home() / "leaderboard"
    with ConsoleProgress() as progress:
        rows = read_rows(folders, progress, remark)
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


@leaderboard.command()
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=FilePath(exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
@click.pass_context
def verify(context: click.Context, folders: tuple[Path, ...], as_json: bool) -> None:
    """Compute the figures of scored runs again, from their predictions and the local build of the dataset.

    Every run in FOLDER and its subfolders is checked under each protocol in its summary.json; by default, the runs in
    $REFBENCH_HOME/runs. Nothing is changed.

    \b
    verified          the same figures
    scored elsewhere  predictions, dataset or protocol are not here, so the figures cannot be checked
    refused           other figures, or a folder that contradicts itself

    Verified means that the predictions give these figures. It does not mean that the named model made the predictions.
    The exit code is 1 if a run is refused.

    \b
    Example:
      refbench leaderboard verify
      refbench leaderboard verify downloaded/runs --json
    """
    with ConsoleProgress() as progress:
        places = folders or (home() / "runs",)
        found = verify_folders(places, progress)
    if not found:
        remark(f"there is no scored run in {', '.join(map(str, places))}; run `refbench score` first")
    verdicts = [v for group in found.values() for v in group]
    if as_json:
        print_json(
            [
                {
                    "folder": str(v.folder),
                    "split": v.address,
                    "protocol": v.protocol,
                    "status": str(v.status),
                    "reason": v.reason,
                }
                for v in verdicts
            ]
        )
    else:
        rows = [[str(v.folder), v.address, v.protocol, str(v.status), v.reason] for v in verdicts]
        print_table("scored runs", ["folder", "split", "protocol", "status", "reason"], rows)
    context.exit(1 if any(v.status is Status.REFUSED for v in verdicts) else 0)
