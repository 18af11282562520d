"""`refbench score`."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import click

from refbench.cli.completion import plugins, runs, splits
from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.errors import PredictionError
from refbench.plugins.loading import available, load
from refbench.scoring import scorer
from refbench.scoring.detections import Written, write_detections
from refbench.scoring.protocols.average_precision import DetectionProtocol, Evaluation, score_detections
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.protocols.coco_files import read_annotations
from refbench.scoring.protocols.explain import Walk
from refbench.scoring.protocols.sginw import SetsProtocol
from refbench.scoring.scorer import ALL, Scored
from refbench.scoring.statistics.bootstrap import BCA, PERCENTILE

SHOWN = Decimal("0.0001")


@click.command()
@click.argument("source", metavar="RUN|PREDICTIONS", shell_complete=runs, type=FilePath())
@click.option(
    "--dataset",
    metavar="DATASET/SPLIT",
    shell_complete=splits,
    help="Split of the predictions, if the source is a predictions file.",
)
@click.option(
    "--ground-truth",
    "ground_truths",
    type=FilePath(),
    multiple=True,
    help="Annotation file in the format of COCO, LVIS or SA-Co, for predictions that are COCO results. For SA-Co, "
    "repeat the option for each annotator. For SGinW, pass the folder of the release.",
)
@click.option(
    "--protocol",
    "protocols",
    shell_complete=plugins("protocols"),
    multiple=True,
    metavar="NAME|all",
    help="Protocol to use for scoring; repeatable.  [default: refbench]",
)
@click.option(
    "--explain",
    nargs=2,
    metavar="A B",
    help="Explain the difference between two protocols, one choice at a time. Write NAME or NAME:METRIC.",
)
@click.option("--out", type=FilePath(), help="Output folder for scores.parquet and summary.json.")
@click.option(
    "--interval",
    type=click.Choice([PERCENTILE, BCA]),
    default=PERCENTILE,
    show_default=True,
    help="How intervals are computed.",
)
@click.option("--full", is_flag=True, help="With --protocol all: print every metric, not only the headline of each.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def score(
    source: Path,
    dataset: str | None,
    ground_truths: tuple[Path, ...],
    protocols: tuple[str, ...],
    explain: tuple[str, str] | None,
    out: Path | None,
    interval: str,
    full: bool,
    as_json: bool,
) -> None:
    """Score a run folder or a predictions file.

    Accepted predictions: JSON lines {"sample_id", "size": [h, w], "counts": compressed RLE}, COCO results as JSON, a
    folder of PNG masks named after the samples (black is background), or NPZ. A missing sample counts as a failure.

    \b
    Example:
      refbench score ~/.refbench/runs/tiny/scenes-test
      refbench score predictions.jsonl --dataset refcoco/testA --protocol all --json
      refbench score predictions.jsonl --dataset refcoco/testA --protocol 'boundary-iou(0.005,0.02)'
      refbench score predictions.jsonl --dataset refcoco/testA --explain lavt-480 cris
      refbench score results.json --ground-truth instances_val2017.json --protocol coco-ap --protocol boundary-ap
      refbench score submission.zip --ground-truth seginw --protocol sginw
      refbench score results.json --ground-truth a.json --ground-truth b.json --protocol sa-co
      refbench score ~/.refbench/runs/mine/sginw-Phones-valid --ground-truth _annotations_min1cat.coco.json
    """
    if ground_truths:
        if dataset is not None or out is not None or explain is not None:
            raise click.UsageError(
                "--ground-truth is for COCO files, so --dataset, --explain and --out are not allowed"
            )
        _score_detections(source, ground_truths, protocols, as_json)
        return
    if explain is not None:
        if protocols or out is not None:
            raise click.UsageError("--explain already names two protocols; remove --protocol and --out")
        with ConsoleProgress() as progress:
            address, walk = scorer.explain(source, dataset, *explain, progress=progress)
        _show_walk(address, walk, as_json)
        return
    with ConsoleProgress() as progress:
        scored = scorer.score(
            source, dataset, protocols=protocols or ("refbench",), out=out, interval=interval, progress=progress
        )
    if as_json:
        print_json(_json_of(scored))
    else:
        _show(scored, headlines=ALL in protocols and not full)


def _json_of(scored: Scored) -> dict[str, Any]:
    return {
        "dataset": scored.address,
        "fingerprint": scored.fingerprint,
        "missing": scored.missing,
        "protocols": {
            name: {
                "metrics": {m: _number(e.value) for m, e in summary.metrics.items()},
                "intervals": {m: [_number(e.low), _number(e.high)] for m, e in summary.metrics.items()},
                "samples": summary.samples,
                "failures": summary.failures,
                "caveats": [*load("protocols", name).caveats, *summary.notes],
            }
            for name, summary in scored.summaries.items()
        },
        "left_out": scored.left_out,
        "notes": list(scored.notes),
    }


def _number(value: float) -> float | None:
    # JSON has no NaN: null says that the original leaves the metric without a value.
    return None if math.isnan(value) else value


def _show(scored: Scored, headlines: bool) -> None:
    """Print the metrics; with `headlines`, only the one that papers quote of each protocol."""
    whole = next(iter(scored.summaries.values()))
    rows = []
    for name, summary in scored.summaries.items():
        headline = load("protocols", name).headline
        for metric, e in summary.metrics.items():
            if headlines and metric != headline:
                continue
            interval = f"[{e.low:.2f}, {e.high:.2f}]"
            rows.append([name, metric, f"{e.value:.2f}", interval, str(summary.samples)])
    missing = f" ({scored.missing} of them without a prediction)" if scored.missing else ""
    title = f"{scored.address}: {len(scored.scores)} samples, {whole.failures} failed{missing}"
    print_table(title, ["protocol", "metric", "%", "95 % interval", "samples"], rows)
    for note in scored.notes:
        remark(note)
    if headlines:
        remark("these are the headlines; --full prints every metric and what the protocols leave out")
    said: dict[str, list[str]] = {}
    for name, summary in scored.summaries.items():
        for caveat in (*load("protocols", name).caveats, *summary.notes):
            said.setdefault(caveat, []).append(name)
    if not headlines:
        for caveat, names in said.items():
            remark(f"{', '.join(names)}: {caveat}")
        for name, reason in scored.left_out.items():
            remark(f"{name} is left out: it {reason}")
    if scored.folder is not None:
        remark(f"scores.parquet and summary.json are in {scored.folder}")


def _show_walk(address: str, walk: Walk, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "dataset": address,
                "explain": {
                    "from": {"protocol": walk.first, "metric": walk.first_metric, "value": float(walk.start)},
                    "steps": [
                        {
                            "choice": s.choice,
                            "from": s.before,
                            "to": s.after,
                            "value": float(s.value),
                            "difference": float(s.difference),
                        }
                        for s in walk.steps
                    ],
                    "to": {"protocol": walk.second, "metric": walk.second_metric, "value": float(walk.end)},
                    "not_replayed": [{"choice": c, "from": a, "to": b} for c, a, b in walk.not_replayed],
                },
            }
        )
        return
    shown = [value.quantize(SHOWN) for value in (walk.start, *(s.value for s in walk.steps))]
    rows = [[walk.first, walk.first_metric, "", str(shown[0]), ""]]
    # Differences of the figures that are shown, so that they add up as they stand.
    for step, (before, after) in zip(walk.steps, itertools.pairwise(shown), strict=True):
        rows.append([step.choice, step.before, step.after, str(after), f"{after - before:+}"])
    rows.append([walk.second, "", walk.second_metric, str(shown[-1]), f"{shown[-1] - shown[0]:+}"])
    print_table(f"{address}: from {walk.first} to {walk.second}", ["choice", "from", "to", "%", "difference"], rows)
    for choice, ours, theirs in walk.not_replayed:
        remark(f"{choice} differs too, which stored masks cannot replay: {ours} / {theirs}")


def _score_detections(
    results: Path, ground_truths: tuple[Path, ...], protocols: tuple[str, ...], as_json: bool
) -> None:
    if ground_truths[0].is_dir():
        found, missing = _score_sets(results, ground_truths, protocols)
    else:
        found, missing = _score_files(results, ground_truths, protocols), []
    for name, evaluation in found.items():
        for caveat in (*load("protocols", name).caveats, *evaluation.notes):
            remark(f"{name}: {caveat}")
    if as_json:
        print_json(
            {
                "ground_truth": str(ground_truths[0]) if len(ground_truths) == 1 else [str(p) for p in ground_truths],
                "protocols": {
                    name: {
                        "metrics": {m: _number(v) for m, v in evaluation.metrics.items()},
                        "caveats": [*load("protocols", name).caveats, *evaluation.notes],
                    }
                    for name, evaluation in found.items()
                },
            }
            | ({"missing": missing} if ground_truths[0].is_dir() else {})
        )
        return
    for name, evaluation in found.items():
        rows = [[m, "-" if math.isnan(v) else f"{v:.2f}"] for m, v in evaluation.metrics.items()]
        print_table(f"{results.name}, protocol {name}", ["metric", "%"], rows)


def _score_files(results: Path, ground_truths: tuple[Path, ...], protocols: tuple[str, ...]) -> dict[str, Evaluation]:
    rules = _rules(protocols or ("coco-ap",), DetectionProtocol)
    truths = [read_annotations(path) for path in ground_truths]
    written = write_detections(results, truths[0]) if (results / "run.json").is_file() else None
    if ALL in protocols:
        rules = [rule for rule in rules if rule.annotators or len(truths) == 1]
        for rule in [rule for rule in rules if not rule.fits(truths[0])]:
            rules.remove(rule)
            remark(f"{rule.name} is left out: the annotation file has no {rule.image_field}")
    for rule in rules:
        if len(truths) > 1 and not rule.annotators:
            raise click.UsageError(f"{rule.name} takes one annotation file with --ground-truth, got {len(truths)}")
    if written is not None:
        results = written.path
        remark(f"the instances of the run are in {results}")
        _tell_gaps(written, rules)
    return score_detections(truths, results, rules)


def _tell_gaps(written: Written, rules: list[DetectionProtocol]) -> None:
    """Report samples without a prediction; raise PredictionError if a protocol would score them as empty
    predictions.
    """
    gaps = written.gaps()
    deceived = [rule.name for rule in rules if rule.silence_counts]
    if gaps and deceived:
        raise PredictionError(
            f"{gaps}. {deceived[0]} would count these samples as predictions of no target. Run the whole split "
            "without failures; if these samples should count as predictions of no target, score the file "
            f"{written.path}"
        )
    if gaps:
        remark(f"{gaps}; they count as nothing found")


def _score_sets(
    results: Path, ground_truths: tuple[Path, ...], protocols: tuple[str, ...]
) -> tuple[dict[str, Evaluation], list[str]]:
    if len(ground_truths) > 1:
        raise click.UsageError(
            "pass --ground-truth once, with the folder that contains the annotation files of all sets"
        )
    (rule,) = _rules(protocols or ("sginw",), SetsProtocol)
    with ConsoleProgress() as progress:
        evaluation, missing = rule.evaluate(ground_truths[0], results, progress)
    if missing:
        remark(f"{len(missing)} sets are missing, and not in the mean: {', '.join(missing)}")
    return {rule.name: evaluation}, missing


Rule = TypeVar("Rule", DetectionProtocol, SetsProtocol)


def _rules(names: tuple[str, ...], kind: type[Rule]) -> list[Rule]:
    """The protocols with these names, without duplicates; for "all", every protocol of the type `kind`."""
    every = [load("protocols", name) for name in (available("protocols") if ALL in names else names)]
    rules = []
    for rule in {rule.name: rule for rule in every}.values():
        if isinstance(rule, kind):
            rules.append(rule)
        elif ALL in names:
            continue
        elif isinstance(rule, Protocol):
            raise click.UsageError(
                f"{rule.name} scores the expressions of a split; pass --dataset instead of --ground-truth"
            )
        else:
            wanted = "the folder that holds all sets" if isinstance(rule, SetsProtocol) else "one annotation file"
            raise click.UsageError(f"{rule.name} needs {wanted} as --ground-truth")
    return rules
