"""`refbench compare`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import click

from refbench.cli.completion import splits
from refbench.cli.output import ConsoleProgress, Points, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.errors import DatasetError
from refbench.reports import comparison
from refbench.reports.comparison import DEFAULT_MARGIN, Comparison, Difference, SliceDifference
from refbench.reports.diagnosis import slice_differences
from refbench.reports.pages import write_comparison

SIGNIFICANCE = 0.05


@click.command()
@click.argument("run_a", metavar="A", type=FilePath(exists=True))
@click.argument("run_b", metavar="B", type=FilePath(exists=True))
@click.option(
    "--dataset",
    metavar="DATASET/SPLIT",
    shell_complete=splits,
    help="Split of A and B, if one of them is a predictions file.",
)
@click.option(
    "--margin",
    type=Points(positive=True),
    default=DEFAULT_MARGIN,
    show_default=True,
    help="Two runs count as equivalent if they differ by less than this many points.",
)
@click.option(
    "--page",
    type=FilePath(dir_okay=False),
    help="Write an HTML page that shows the masks of both runs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(run_a: Path, run_b: Path, dataset: str | None, margin: float, page: Path | None, as_json: bool) -> None:
    """Compare two runs: paired differences, slices, changed samples.

    A and B are run folders, scores.parquet files or predictions of the same split. Differences are B minus A, in
    percentage points, with 95 % confidence intervals and p-values from a permutation test. Both the intervals
    and the test resample whole images.

    \b
    Example:
      refbench compare ~/.refbench/runs/tiny/scenes-test ~/.refbench/runs/mine/scenes-test
      refbench compare old new --margin 0.3 --page compare.html
      refbench compare old.jsonl ~/.refbench/runs/mine/refcoco-val --dataset refcoco/val
    """
    with ConsoleProgress() as progress:
        found = comparison.compare(run_a, run_b, margin, dataset=dataset, progress=progress)
    try:
        slices = slice_differences(found)
    except DatasetError as error:
        slices = []
        remark(f"no slices: {error}")
    if page is not None:
        remark(f"the page is {write_comparison(found, slices, page)}")
    if as_json:
        print_json(_json_of(found, slices))
        return
    rows = [[d.metric, *_cells(d), f"{d.p_value:.4f}", _verdict(d)] for d in found.metrics]
    title = f"{found.address}, {found.samples} samples, {found.images} images\nA: {run_a}\nB: {run_b}"
    print_table(title, ["metric", "A", "B", "difference", "95 % interval", "p", ""], rows)
    if slices:
        lines = [[s.dimension, s.label, str(s.samples), *_cells(s.mean_iou), f"{s.p_adjusted:.4f}"] for s in slices]
        columns = ["slice", "label", "samples", "A", "B", "difference", "95 % interval", "p, corrected"]
        print_table("mean IoU of slices (p corrected by Holm's method for their number)", columns, lines)
    changed = [
        [c.sample_id, f"{c.first_iou:.1f}", f"{c.second_iou:.1f}", f"{c.difference:+.1f}"] for c in found.changed
    ]
    print_table("samples that changed most", ["sample", "A", "B", "difference"], changed)


def _cells(d: Difference) -> list[str]:
    return [f"{d.first:.2f}", f"{d.second:.2f}", f"{d.difference:+.2f}", f"[{d.low:+.2f}, {d.high:+.2f}]"]


def _verdict(d: Difference) -> str:
    """The verdict of a comparison as text."""
    if d.p_value <= SIGNIFICANCE:
        return "better" if d.difference > 0 else "worse" if d.difference < 0 else ""
    if d.p_equivalent < SIGNIFICANCE:
        return "equivalent"
    return "cannot tell" if math.isnan(d.detectable) else f"cannot tell; {d.detectable:.2f} would likely show"


def _json_of(found: Comparison, slices: list[SliceDifference]) -> dict[str, Any]:
    return {
        "dataset": found.address,
        "fingerprint": found.first.fingerprint or found.second.fingerprint,
        "samples": found.samples,
        "images": found.images,
        "margin": found.margin,
        "metrics": {d.metric: {k: v for k, v in dataclasses.asdict(d).items() if k != "metric"} for d in found.metrics},
        "slices": [dataclasses.asdict(s) for s in slices],
        "changed": [dataclasses.asdict(c) for c in found.changed],
    }
