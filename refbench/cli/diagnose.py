"""`refbench diagnose`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import click

from refbench.cli.completion import runs, splits
from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.reports import diagnosis
from refbench.reports.diagnosis import ERRORS_FILE, Diagnosis
from refbench.reports.error_kinds import KINDS, MEANING


@click.command()
@click.argument("source", metavar="RUN|PREDICTIONS", shell_complete=runs, type=FilePath())
@click.option(
    "--dataset",
    metavar="DATASET/SPLIT",
    shell_complete=splits,
    help="Split of the predictions, if the source is a predictions file.",
)
@click.option("--out", type=FilePath(), help=f"Folder for {ERRORS_FILE}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose(source: Path, dataset: str | None, out: Path | None, as_json: bool) -> None:
    """Show what kinds of errors a run makes, and on which samples.

    Every wrong pixel is assigned to one kind of error, so the sum over all kinds is 100 minus cIoU or mIoU.
    errors.parquet states, for each sample, the kind of error that costs the most. Slices group the samples by their
    words, their targets and their surroundings.

    \b
    Example:
      refbench diagnose ~/.refbench/runs/tiny/scenes-test
      refbench diagnose predictions.jsonl --dataset refcoco/testA --json
    """
    with ConsoleProgress() as progress:
        found = diagnosis.diagnose(source, dataset, out=out, progress=progress)
    if as_json:
        print_json(_json_of(found))
        return
    rows = [
        [x.kind, MEANING[x.kind], str(x.samples), f"{x.cumulative_iou:.2f}", f"{x.mean_iou:.2f}"] for x in found.losses
    ]
    right = len(found.scores) - sum(x.samples for x in found.losses)
    kept = found.metrics
    rows.append(["right", "what is left", str(right), f"{kept['cumulative_iou']:.2f}", f"{kept['mean_iou']:.2f}"])
    print_table(f"{found.address}: where the points go", ["kind", "what it is", "samples", "cIoU", "mIoU"], rows)
    lines = []
    for part in found.slices:
        values = [f"{e.value:.1f} [{e.low:.1f}, {e.high:.1f}]" for e in part.metrics.values()]
        worst = max(KINDS, key=lambda kind: part.losses[kind])
        told = f"{worst} {part.losses[worst]:.1f}" if part.losses[worst] > 0 else ""
        lines.append([part.dimension, part.label, str(part.samples), *values, told])
    print_table("slices", ["slice", "label", "samples", "cIoU", "mIoU", "costs most mIoU"], lines)
    for metric, by_correlation in found.detectable.items():
        if any(math.isnan(v) for v in by_correlation.values()):
            continue  # with a single image, no difference can be estimated
        told = ", ".join(f"{v:.2f} points at a correlation of {c:g}" for c, v in by_correlation.items())
        remark(f"the smallest difference in {metric} that this split is likely to show: {told}")
    if found.folder is not None:
        remark(f"{ERRORS_FILE}, one row per sample, is in {found.folder}")


def _json_of(found: Diagnosis) -> dict[str, Any]:
    return {
        "dataset": found.address,
        "fingerprint": found.fingerprint,
        "samples": len(found.scores),
        "metrics": found.metrics,
        "losses": {x.kind: {k: v for k, v in dataclasses.asdict(x).items() if k != "kind"} for x in found.losses},
        "slices": [dataclasses.asdict(part) for part in found.slices],
        "smallest_detectable": {m: {f"{c:g}": v for c, v in by.items()} for m, by in found.detectable.items()},
    }
