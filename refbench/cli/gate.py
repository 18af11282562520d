"""`refbench gate`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.completion import splits
from refbench.cli.output import ConsoleProgress, Points, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.reports import gating
from refbench.reports.gating import DEFAULT_MARGINS, to_json, to_junit, to_markdown
from refbench.scoring.protocols.exact import REFBENCH
from refbench.storage.files import atomic_file

DEFAULT_MARGIN = 0.5


@click.command()
@click.argument("run", type=FilePath())
@click.option("--baseline", type=FilePath(), required=True, help="Run or predictions to use as the baseline.")
@click.option("--dataset", metavar="DATASET/SPLIT", shell_complete=splits, help="Split of predictions files.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(list(REFBENCH.metrics)),
    help=f"Metric to check; repeatable.  [default: {', '.join(DEFAULT_MARGINS)}]",
)
@click.option(
    "--margin",
    "margins",
    multiple=True,
    type=Points(),
    help="Number of points that a metric may lose: one value for all metrics, or one value per metric in "
    "the order of the metrics.  [default: 0.5]",
)
@click.option("--junit", type=FilePath(dir_okay=False), help="Write a JUnit XML report to this file.")
@click.option("--markdown", type=FilePath(dir_okay=False), help="Write a Markdown summary to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def gate(
    context: click.Context,
    run: Path,
    baseline: Path,
    dataset: str | None,
    metrics: tuple[str, ...],
    margins: tuple[float, ...],
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Exit with code 1 if a run is significantly worse than a baseline.

    RUN and the baseline are run folders, scores.parquet files or predictions. For scored folders, the command needs
    neither the dataset nor PyTorch.

    The gate fails if the samples differ from those of the baseline, or if a sample fails that did not fail in the
    baseline. It also fails if a metric is worse by more than its margin and a permutation test finds the difference
    significant (p <= 0.05). With fewer than 6 images, the test cannot be significant, so only the margin counts. If a
    file is damaged or belongs to another split, the exit code is 3.

    \b
    Example:
      refbench gate runs/new --baseline runs/released
      refbench gate runs/new --baseline runs/released --metric mean_iou --margin 0.3 --junit gate.xml
      refbench gate new/scores.parquet --baseline old/scores.parquet --markdown "$GITHUB_STEP_SUMMARY"
    """
    names = metrics or tuple(DEFAULT_MARGINS)
    if len(set(names)) != len(names):
        raise click.UsageError("a metric is given twice; give each metric once")
    if len(margins) > 1 and len(margins) != len(names):
        raise click.UsageError(
            f"got {len(margins)} margins for {len(names)} metrics; give one margin for all metrics, or one for each"
        )
    each = margins if len(margins) > 1 else (margins or (DEFAULT_MARGIN,)) * len(names)
    with ConsoleProgress() as progress:
        margin_of = dict(zip(names, each, strict=True))
        result = gating.gate(run, baseline, margin_of, dataset=dataset, progress=progress)
    for path, text in ((junit, to_junit), (markdown, to_markdown)):
        if path is not None:
            with atomic_file(path) as temporary:
                temporary.write_text(text(result), encoding="utf-8")
    if as_json:
        print_json(to_json(result))
    else:
        title = f"{result.baseline.address}: {run} against {baseline}"
        print_table(title, ["check", "verdict", "detail"], [[c.name, c.verdict, c.detail] for c in result.checks])
        remark(f"the gate {'passes' if result.holds else 'fails'}")
    context.exit(0 if result.holds else 1)
