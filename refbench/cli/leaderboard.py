"""`refbench leaderboard`."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import click

from refbench.cli.completion import splits
from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.reports.leaderboard import build_tables, format_interval, read_rows
from refbench.reports.published import UNKNOWN, read_published
from refbench.reports.recomputation import Status, verify_folders
from refbench.reports.standings import Standing, standings_of
from refbench.storage.files import home, project_data

TERMINAL_METRICS = 3


@click.group()
def leaderboard() -> None:
    """Show published results beside your own, build the leaderboard tables, and verify scored runs.

    \b
    Example:
      refbench leaderboard show refcoco/val --with predictions.jsonl
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
@click.argument("address", metavar="DATASET/SPLIT", shell_complete=splits)
@click.option("--protocol", metavar="NAME", help="Only the results under this protocol.")
@click.option(
    "--with",
    "sources",
    metavar="SOURCE",
    multiple=True,
    type=FilePath(exists=True),
    help="Run folder, scored folder or predictions to compare with the published results; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(address: str, protocol: str | None, sources: tuple[Path, ...], as_json: bool) -> None:
    """Show the published results of a split, with your own beside them.

    Papers compute their figures in different ways. Therefore there is one table for each protocol, and --with scores
    your predictions under every protocol that has published results. Figures of different tables are not comparable.

    \b
    Example:
      refbench leaderboard show refcoco/val
      refbench leaderboard show refcoco/val --with predictions.jsonl
      refbench leaderboard show refcoco/testA --protocol lavt-480 --with ~/.refbench/runs/mine/refcoco-testA
    """
    with ConsoleProgress() as progress:
        found = standings_of(address, sources, protocol, progress, remark)
    if as_json:
        print_json({"dataset": address, "protocols": {s.protocol: _json_of(s) for s in found}})
        return
    for standing in found:
        _print_standing(address, standing)


def _json_of(standing: Standing) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "used_by": list(standing.used_by),
        "headline": standing.headline,
        "published": [dataclasses.asdict(row) for row in standing.published],
        "measured": [
            {
                "name": row.name,
                "source": str(row.source),
                "metrics": {
                    m: {"value": number(e.value), "low": number(e.low), "high": number(e.high)}
                    for m, e in row.metrics.items()
                },
                "samples": row.samples,
                "failures": row.failures,
                "missing": row.missing,
            }
            for row in standing.measured
        ],
    }


def _print_standing(address: str, standing: Standing) -> None:
    if standing.protocol == UNKNOWN:
        title = f"{address}, protocol not known: these figures are not comparable with each other"
        figures = [
            [row.system, row.variant, metric, f"{value:g}", row.evidence, row.source]
            for row in standing.published
            for metric, value in row.metrics.items()
        ]
        _print_with_sources(title, ["system", "variant", "metric as printed", "%", "evidence", "source"], figures)
        return
    # A terminal has no room for all thresholds of precision.
    metrics = standing.metrics[:TERMINAL_METRICS] if sys.stdout.isatty() else standing.metrics
    lines: list[tuple[float, list[str]]] = []
    for mine in standing.measured:
        cells = [format_interval(mine.metrics[m]) if m in mine.metrics else "" for m in metrics]
        lines.append((mine.metrics[standing.headline].value, [mine.name, "", *cells, "measured", str(mine.source)]))
    for row in standing.published:
        cells = [f"{row.metrics[m]:g}" if m in row.metrics else "" for m in metrics]
        value = row.metrics.get(standing.headline, -math.inf)
        lines.append((value, [row.system, row.variant, *cells, row.evidence, row.source]))
    lines.sort(key=lambda line: -line[0] if not math.isnan(line[0]) else math.inf)
    whose = f", the rule of {', '.join(standing.used_by)}" if standing.used_by else ""
    title = "\n".join([f"{address}, protocol {standing.protocol}{whose}", *standing.sentences()])
    columns = ["system", "variant", *metrics, "evidence", "source"]
    _print_with_sources(title, columns, [cells for _, cells in lines])
    if left := standing.metrics[len(metrics) :]:
        remark(f"not shown: {', '.join(left)}; use --json")


def _print_with_sources(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table whose last column is a source. In a terminal, long sources stand below it, by number."""
    if not sys.stdout.isatty():
        print_table(title, columns, rows)
        return
    numbers = {source: f"[{k}]" for k, source in enumerate(dict.fromkeys(row[-1] for row in rows), start=1)}
    print_table(title, columns, [[*row[:-1], numbers[row[-1]]] for row in rows])
    for source, number in numbers.items():
        click.echo(f"  {number} {source}")
    click.echo()


@leaderboard.command()
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=FilePath(exists=True, file_okay=False))
@click.option("--strict", is_flag=True, help="Also exit with code 1 if the figures of a run cannot be computed here.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
@click.pass_context
def verify(context: click.Context, folders: tuple[Path, ...], strict: bool, as_json: bool) -> None:
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
    failing = (Status.REFUSED, Status.ELSEWHERE) if strict else (Status.REFUSED,)
    context.exit(1 if any(v.status in failing for v in verdicts) else 0)
