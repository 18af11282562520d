"""`refbench demo`."""

from __future__ import annotations

import click

from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.reports.demo import DemoRun, run_demo
from refbench.reports.leaderboard import format_interval, ranked

SHOWN = {
    "cumulative_iou": "cIoU",
    "mean_iou": "mIoU",
    "precision_at_0.5": "P@0.5",
    "mean_boundary_iou": "boundary IoU",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def demo(as_json: bool) -> None:
    """Build, run, score and rank once, without downloads.

    Renders `scenes`, builds `snapshots` from sample images of installed packages, and runs five adapters: three simple
    baselines, `noisy-oracle`, and the small network `tiny`. Then ranks them. If you call it again, the models are not
    run again.

    \b
    Example:
      refbench demo
    """
    with ConsoleProgress() as progress:
        result = run_demo(progress, remark)
    if as_json:
        print_json(_as_json(result))
        return
    for address, rows in result.rows.items():
        lines = [
            [r.adapter, *(format_interval(r.metrics[m]) for m in SHOWN), str(r.samples), str(r.failures)]
            for r in ranked(rows)
        ]
        title = f"{address}: % [95 % interval by image], protocol refbench"
        print_table(title, ["system", *SHOWN.values(), "samples", "failures"], lines)
        click.echo()
    remark(f"tables: {result.tables}\nsite:   {result.page.as_uri()}\n{result.seconds:.0f} s")


def _as_json(result: DemoRun) -> dict[str, object]:
    return {
        "seconds": round(result.seconds, 1),
        "page": str(result.page),
        "tables": str(result.tables),
        "results": {
            address: {r.adapter: {m: v.value for m, v in r.metrics.items()} for r in ranked(rows)}
            for address, rows in result.rows.items()
        },
    }
