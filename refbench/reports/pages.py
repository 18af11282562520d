"""HTML pages in one file: a report of one run with overlays, and a comparison of two runs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray

from refbench._version import __version__
from refbench.errors import DatasetError, RunError
from refbench.records import Prediction, Sample
from refbench.reports.comparison import Comparison, SliceDifference
from refbench.reports.diagnosis import Loss, SliceScore, diagnose
from refbench.reports.leaderboard import SHORT_NAMES, format_interval
from refbench.reports.overlays import PREDICTION_RGB, TARGET_RGB, Layer, data_uri, overlay, picture_of
from refbench.runs.folder import RunFolder
from refbench.scoring.counts import SCORES_FILE
from refbench.scoring.protocols.exact import sample_boundary_iou, sample_iou
from refbench.scoring.results import Result
from refbench.scoring.sources import has_predictions, name_of, predictions_of, result_of
from refbench.scoring.statistics.power import SIGNIFICANCE
from refbench.storage.files import atomic_file
from refbench.storage.progress import Progress, silent
from refbench.storage.samples import load_samples

SHOWN_PER_GROUP = 12
THUMBNAIL_PX = 360

_PAGES = Environment(
    loader=PackageLoader("refbench.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def write_report(
    source: Path, dataset: str | None = None, *, out: Path | None = None, progress: Progress = silent
) -> Path:
    """Write a report about a run or a predictions file; returns its path.

    Args:
        source: a run folder, or a file or folder of predictions. If it is not scored, it is scored under the protocol
            `refbench`.
        dataset: the split of the predictions, for example "refcoco/val"; not needed for a run folder.
        out: file of the report; by default `report.html` in the run folder, and `<name>.report.html` beside a
            predictions file.

    Raises:
        RunError: the folder contains no predictions, or is damaged.
        PredictionError: the predictions do not match the split, or their split is not given.
    """
    source = source.resolve()
    run = RunFolder(source)
    if run.is_there:
        run.check_complete()
    elif not has_predictions(source):
        raise RunError(f"{source} contains scores without predictions; a report needs the predictions")
    result = result_of(source, dataset, progress)
    if result.scores is None:
        raise RunError(f"{source} has no {SCORES_FILE}; run `refbench score {source}` again")
    out = out or (source / "report.html" if run.is_there else source.with_name(f"{source.name}.report.html"))
    scores = result.scores
    # The report must not change a folder of predictions, so errors.parquet is written to run folders only.
    diagnosis = diagnose(source, None if run.is_there else result.address, progress=progress)
    # In the order of the rows, which another program may have changed.
    by_id = {s.sample_id: s for s in load_samples(result.address, scores.sample_ids())}
    samples = [by_id[sample_id] for sample_id in scores.sample_ids()]
    iou, boundary_iou = sample_iou(scores), sample_boundary_iou(scores)
    groups = _choose(iou, scores.no_target, scores.failed)
    chosen = {samples[row].sample_id for rows in groups.values() for row in rows}
    predictions = _read_predictions(result, chosen)
    figures: dict[str, list[dict[str, Any]]] = {}
    for title, rows in groups.items():
        figures[title] = [
            {
                "picture": _overlay(samples[row], predictions.get(samples[row].sample_id)),
                "expression": samples[row].expression,
                "sample_id": samples[row].sample_id,
                "iou": f"{100 * iou[row]:.1f}",
                "boundary_iou": f"{100 * boundary_iou[row]:.1f}",
                "error": getattr(predictions.get(samples[row].sample_id), "error", "") or "",
            }
            for row in rows
        ]
    page = _PAGES.get_template("report.html.j2").render(
        name=_system(result),
        info=result.run,
        result=result,
        metrics=[
            (protocol, SHORT_NAMES.get(name, name), *map(_percent, (e.value, e.low, e.high)))
            for protocol, summary in result.summaries.items()
            for name, e in summary.metrics.items()
        ],
        caveats=[(protocol, c) for protocol, summary in result.summaries.items() for c in summary.notes],
        histogram=_histogram(iou, boundary_iou),
        losses=_losses_chart(diagnosis.losses),
        slices=_slice_rows(diagnosis.slices),
        figures=figures,
        version=__version__,
    )
    return _write(out, page)


def _percent(value: float) -> str:
    """Two decimals; a dash if the protocol leaves the metric undefined."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def write_comparison(found: Comparison, slices: Sequence[SliceDifference], path: Path) -> Path:
    """Write a page about two runs: differences, slices, and the samples that changed most, with the masks of both runs.

    Masks are shown if both run folders contain their predictions and the split is built.
    """
    figures = []
    names = {c.sample_id for c in found.changed}
    try:
        samples = {s.sample_id: s for s in load_samples(found.address, names)} if names else {}
    except DatasetError:
        samples = {}
    both = [_read_predictions(result, names) for result in (found.first, found.second)] if samples else [{}, {}]
    for change in found.changed:
        sample = samples.get(change.sample_id)
        pictures = [_overlay(sample, masks[change.sample_id]) for masks in both if sample and change.sample_id in masks]
        expression = sample.expression if sample else ""
        figures.append({"change": change, "expression": expression, "pictures": pictures})
    page = _PAGES.get_template("comparison.html.j2").render(
        found=found,
        names=[_system(found.first), _system(found.second)],
        metrics=[(SHORT_NAMES.get(d.metric, d.metric), d) for d in found.metrics],
        forest=_forest(slices),
        slices=slices,
        figures=figures,
        version=__version__,
    )
    return _write(path, page)


def _system(result: Result) -> str:
    return result.run.adapter if result.run else name_of(result.folder)


def _forest(slices: Sequence[SliceDifference]) -> str:
    """A plot of the difference and its interval in each slice, one row per slice; "" if there are no slices."""
    if not slices:
        return ""
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.21 * len(slices)), layout="constrained")
    places = range(len(slices), 0, -1)
    for place, s in zip(places, slices, strict=True):
        d = s.mean_iou
        color = "#868e96" if s.p_adjusted > SIGNIFICANCE else "#2b8a3e" if d.difference > 0 else "#c92a2a"
        axes.plot([d.low, d.high], [place, place], color=color, linewidth=1.6)
        axes.plot([d.difference], [place], "o", color=color, markersize=4)
    axes.axvline(0, color="#212529", linewidth=0.8)
    axes.set_yticks(list(places), [f"{s.dimension}: {s.label} ({s.samples})" for s in slices], fontsize=8)
    axes.set(xlabel="difference in mean IoU, points", ylim=(0.3, len(slices) + 0.7))
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _figure_uri(figure)


def _choose(iou: NDArray[np.float64], no_target: Any, failed: Any) -> dict[str, list[int]]:
    """Rows to show: failures, the worst, the middle and the best samples with a target, and samples without target."""
    order = np.argsort(iou, kind="stable")
    with_target = [int(k) for k in order if not no_target[k] and not failed[k]]
    without = [int(k) for k in order if no_target[k] and not failed[k] and iou[k] < 1]
    groups = {"Failed": [int(k) for k in np.flatnonzero(failed)][:SHOWN_PER_GROUP]}
    n = SHOWN_PER_GROUP
    if len(with_target) <= 3 * n:
        groups["All, worst first"] = with_target
    else:
        middle = len(with_target) // 2
        groups["Worst"] = with_target[:n]
        groups["Middle"] = with_target[middle - n // 2 : middle + n // 2]
        groups["Best"] = with_target[-n:][::-1]
    groups["No target, but prediction not empty"] = without[:n]
    return {title: rows for title, rows in groups.items() if rows}


def _read_predictions(result: Result, wanted: set[str]) -> dict[str, Prediction]:
    """The predictions of the samples `wanted`; empty if the folder contains only scores."""
    return {p.sample_id: p for p in predictions_of(result.folder, result.address, wanted)}


def _slice_rows(slices: Sequence[SliceScore]) -> list[tuple[str, str, int, str]]:
    """(dimension, label, samples, mean IoU with its interval)."""
    rows = []
    for part in slices:
        e = part.metrics["mean_iou"]
        rows.append((part.dimension, part.label, part.samples, format_interval(e)))
    return rows


def _overlay(sample: Sample, prediction: Prediction | None) -> str:
    """A data URI of the image, with the target outlined in green and the prediction filled and outlined in pink."""
    layers = [Layer(prediction.mask, PREDICTION_RGB, filled=True)] if prediction is not None else []
    layers.append(Layer(sample.target, TARGET_RGB, thick=True))
    picture = picture_of(sample.image_path, sample.height, sample.width)
    return data_uri(overlay(picture, layers, THUMBNAIL_PX), "JPEG")


def _histogram(iou: NDArray[np.float64], boundary_iou: NDArray[np.float64]) -> str:
    figure, axes = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
    bins = [k / 20 for k in range(21)]
    axes.hist(iou, bins=bins, color="#3566c0", label="IoU")
    axes.hist(boundary_iou, bins=bins, histtype="step", color="#d6336c", linewidth=1.6, label="boundary IoU")
    axes.set(xlabel="of a sample", ylabel="samples", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _figure_uri(figure)


def _losses_chart(losses: Sequence[Loss]) -> str:
    """A bar chart of what each kind of error costs."""
    shown = [x for x in losses if x.samples]
    figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.34 * max(len(shown), 1)), layout="constrained")
    places = np.arange(len(shown), 0, -1)
    axes.barh(places + 0.19, [x.mean_iou for x in shown], 0.36, color="#3566c0", label="points of mIoU")
    axes.barh(places - 0.19, [x.cumulative_iou for x in shown], 0.36, color="#d6336c", label="points of cIoU")
    axes.set_yticks(places, [f"{x.kind.replace('_', ' ')} ({x.samples})" for x in shown])
    axes.set(xlabel="points lost")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _figure_uri(figure)


def _figure_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _write(path: Path, text: str) -> Path:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
