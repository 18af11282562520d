"""`refbench score`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from refbench import scorer
from refbench.cli.output import ConsoleProgress, estimate_cells, print_json, print_table, remark
from refbench.plugins import available, load
from refbench.protocols.average_precision import LVIS_AP, DetectionProtocol, has_lvis_fields, score_detections
from refbench.protocols.base import Protocol


@click.command()
@click.argument("source", metavar="RUN|PREDICTIONS", type=click.Path(path_type=Path))
@click.option("--dataset", metavar="DATASET/SPLIT", help="The split that a predictions file answers.")
@click.option(
    "--ground-truth",
    type=click.Path(path_type=Path),
    help="A COCO or LVIS annotation file: the predictions are COCO results, scored by AP.",
)
@click.option("--protocol", "protocols", multiple=True, metavar="NAME|all", help="Repeatable.  [default: refbench]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for scores.parquet and summary.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def score(
    source: Path,
    dataset: str | None,
    ground_truth: Path | None,
    protocols: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Score a run folder or a predictions file.

    Predictions: JSON lines {"sample_id", "size": [h, w], "counts": compressed RLE}, COCO results JSON, a
    folder of PNG masks named by sample, or NPZ. A missing sample counts as a failure.

    \b
    Example:
      refbench score ~/.refbench/runs/tiny/scenes-test
      refbench score predictions.jsonl --dataset refcoco/testA --json
      refbench score results.json --ground-truth instances_val2017.json --protocol coco-ap --protocol boundary-ap
    """
    if ground_truth is not None:
        if dataset is not None or out is not None:
            raise click.UsageError("--ground-truth scores COCO files alone; leave --dataset and --out out")
        _score_detections(source, ground_truth, protocols, as_json)
        return
    names = _names(protocols, Protocol) if "all" in protocols else list(protocols) or ["refbench"]
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
                        "caveats": list(load("protocols", name).caveats),
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
        for caveat in load("protocols", name).caveats:
            remark(f"{name}: {caveat}")
    if scored.folder is not None:
        remark(f"scores.parquet and summary.json are in {scored.folder}")


def _names(protocols: tuple[str, ...], kind: type) -> list[str]:
    """All protocols of a kind for `all`, else those that were asked for."""
    if "all" not in protocols:
        return list(protocols)
    return [name for name in available("protocols") if isinstance(load("protocols", name), kind)]


def _score_detections(results: Path, ground_truth: Path, protocols: tuple[str, ...], as_json: bool) -> None:
    names = _names(protocols, DetectionProtocol) or ["coco-ap"]
    rules = [load("protocols", name) for name in names]
    for rule in rules:
        if not isinstance(rule, DetectionProtocol):
            raise click.UsageError(
                f"{rule.name} scores expressions of a split: pass --dataset instead of --ground-truth"
            )
    if "all" in protocols and not has_lvis_fields(ground_truth):
        rules = [rule for rule in rules if rule is not LVIS_AP]
        remark("lvis-ap is left out: the annotation file has no neg_category_ids")
    metrics = score_detections(ground_truth, results, rules)
    if as_json:
        # JSON has no NaN: null says that the annotation file has nothing to find there.
        print_json(
            {
                "ground_truth": str(ground_truth),
                "protocols": {
                    name: {"metrics": {m: None if math.isnan(v) else v for m, v in values.items()}}
                    for name, values in metrics.items()
                },
            }
        )
        return
    for name, values in metrics.items():
        print_table(f"{results.name}, protocol {name}", ["metric", "%"], [[m, f"{v:.2f}"] for m, v in values.items()])
