"""`refbench score`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench import scorer
from refbench.cli.output import ConsoleProgress, estimate_cells, print_json, print_table, remark
from refbench.plugins import available


@click.command()
@click.argument("source", metavar="RUN|PREDICTIONS", type=click.Path(path_type=Path))
@click.option("--dataset", metavar="DATASET/SPLIT", help="The split that a predictions file answers.")
@click.option("--protocol", "protocols", multiple=True, metavar="NAME|all", help="Repeatable.  [default: refbench]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for scores.parquet and summary.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def score(source: Path, dataset: str | None, protocols: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Score a run folder or a predictions file.

    Predictions: JSON lines {"sample_id", "size": [h, w], "counts": compressed RLE}, COCO results JSON, a
    folder of PNG masks named by sample, or NPZ. A missing sample counts as a failure.

    \b
    Example:
      refbench score ~/.refbench/runs/tiny/scenes-test
      refbench score predictions.jsonl --dataset refcoco/testA --json
    """
    names = list(available("protocols")) if "all" in protocols else list(protocols) or ["refbench"]
    with ConsoleProgress() as progress:
        scored = scorer.score(source, dataset, protocols=names, out=out, progress=progress)
    if as_json:
        print_json(
            {
                "dataset": scored.address,
                "fingerprint": scored.fingerprint,
                "protocols": {
                    name: {
                        "metrics": {m: e.value for m, e in summary.metrics.items()},
                        "intervals": {m: [e.low, e.high] for m, e in summary.metrics.items()},
                        "samples": summary.samples,
                        "failures": summary.failures,
                    }
                    for name, summary in scored.summaries.items()
                },
            }
        )
        return
    for name, summary in scored.summaries.items():
        title = f"{scored.address}, protocol {name}: {summary.samples} samples, {summary.failures} failed"
        cells = estimate_cells(summary.metrics, list(summary.metrics))
        rows = [[metric, cell] for metric, cell in zip(summary.metrics, cells, strict=True)]
        print_table(title, ["metric", "% [95 % interval]"], rows)
    if scored.folder is not None:
        remark(f"scores.parquet and summary.json are in {scored.folder}")
