"""`refbench curate diff`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click

from refbench.cli.output import estimate_cells, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import differences

STEPS = {"first": "all of A", "left": "A, only the expressions of B", "second": "B"}


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=FilePath(),
    help="Folder of a run on the first split; the run is then also scored on the second split. Repeatable.",
)
@click.option("--csv", type=FilePath(), help="Write a CSV file with one row per mask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(first: str, second: str, runs: tuple[Path, ...], csv: Path | None, as_json: bool) -> None:
    """Compare two versions of a split, mask by mask, and how they rank runs.

    Each run is scored three times: on all of A, on the masks of A for the expressions that are also in B, and on the
    masks of B. The difference between the first and the second score is due to the choice of expressions; the
    difference between the second and the third is due to the new masks.

    \b
    Example:
      refbench curate diff refcoco/val refcoco-cleaned/val
      refbench curate diff scenes-hurried/val cleaned/val --run RUN_1 --run RUN_2 --json
    """
    found = differences.diff(first, second, runs)
    if csv is not None:
        differences.changes_table(found).to_csv(csv, index=False)
    if as_json:
        print_json(
            {
                "first": first,
                "second": second,
                "masks": found.kinds(),
                "expressions": dict(found.expressions),
                "runs": [dataclasses.asdict(r) for r in found.runs],
                "rankings": {
                    metric: {step: found.ranking(step, metric) for step in STEPS} for metric in differences.HEADLINES
                } if found.runs else {},
                "kendall_tau": {
                    metric: {k: None if math.isnan(v) else v for k, v in dataclasses.asdict(e).items()}
                    for metric, e in found.stability.items()
                },
            }
        )  # fmt: skip
        return
    print_table("masks", ["change", "how many"], [[k, str(n)] for k, n in found.kinds().items()])
    print_table("expressions", ["change", "how many"], [[k, str(n)] for k, n in found.expressions.items()])
    if not found.runs:
        remark("pass --run to see what this does to a ranking")
        return
    for step, title in STEPS.items():
        ordered = sorted(found.runs, key=lambda r: -getattr(r, step)["cumulative_iou"].value)
        rows = [[r.name, *estimate_cells(getattr(r, step), differences.HEADLINES)] for r in ordered]
        print_table(title, ["run", "cIoU", "mIoU", "boundary IoU"], rows)
    if found.stability:
        taus = [[m, f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"] for m, e in found.stability.items()]
        print_table("how well the two rankings agree", ["metric", "Kendall's tau [95 % interval]"], taus)
    same = found.ranking("first", "cumulative_iou") == found.ranking("second", "cumulative_iou")
    remark(f"the ranking by cIoU is {'the same' if same else 'another one'} on {second}")
