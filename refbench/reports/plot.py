"""Plots of runs and splits with matplotlib, at the width of a column of a paper.

Every function takes `ax` (a new figure by default) and returns the axes. The colours can be told apart with any colour
vision. `save` writes vector files with text as text.

Sources are what `samples_frame` takes, or the DataFrame that it returned.

Example:
    >>> from refbench import plot, run
    >>> ax = plot.iou_histogram(run("noisy-oracle", "snapshots/test").folder)
    >>> ax.get_xlabel()
    'IoU (%)'
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from refbench.errors import DatasetError, PredictionError, RunError
from refbench.masks.conversion import mask_of
from refbench.masks.mask import Mask
from refbench.records import Sample
from refbench.reports.error_kinds import KINDS, loss_shares
from refbench.reports.frames import protocols_frame, samples_frame
from refbench.reports.overlays import box_around, picture_of
from refbench.reports.published import UNKNOWN, published_on
from refbench.reports.slices import LEAST_SAMPLES, label_order
from refbench.scoring.sources import name_of
from refbench.scoring.statistics.bootstrap import image_codes, intervals, sums_by_image

# A column of a two-column paper.
COLUMN_WIDTH_IN, HEIGHT_IN = 3.3, 2.4
# Okabe and Ito, "Color Universal Design", 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
TARGET, PREDICTION = COLOURS[2], COLOURS[1]
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}
DIMENSIONS = ("words", "target_size", "position_words", "relation_words", "at_the_border", "look_alikes")
_SHORT = {"ciou": "cIoU", "miou": "mIoU"}
_ARXIV = re.compile(r"arXiv[: ](\d\d)(\d\d)\.\d{4,5}")
_DAY = re.compile(r"\b(20\d\d)-(\d\d)-\d\d\b")
_CONFERENCE = re.compile(r"\([A-Z][A-Za-z ]+ (20\d\d)\)")


@contextmanager
def _drawn_on(ax: Axes | None, rows: int = 0) -> Iterator[Axes]:
    """The axes to draw on; `rows` is the number of labelled rows of a chart, which needs height."""
    with plt.rc_context(STYLE):
        if ax is None:
            height = HEIGHT_IN if not rows else 0.5 + 0.17 * rows
            _, ax = plt.subplots(figsize=(COLUMN_WIDTH_IN, height), layout="constrained")
        yield ax


def save(ax: Axes, path: Path | str) -> Path:
    """Write the figure of the axes. PDF and SVG keep text as text, and equal figures give equal files.

    Args:
        path: ends with .pdf, .svg, .png or another format of matplotlib.
    """
    path = Path(path)
    dates: dict[str, Any] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix.lower(), {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "refbench"}):
        ax.get_figure(root=True).savefig(path, dpi=300, metadata=dates)  # type: ignore[union-attr]
    return path


def precision_curve(
    *sources: Any, dataset: str | None = None, names: Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """The share of samples whose IoU reaches a threshold, for all thresholds, with 95 % bands over the images.

    Args:
        sources: one or more runs or predictions.
        dataset: the split of predictions that do not state it.
        names: one name per source, for the legend.

    Example:
        >>> from refbench import plot, run
        >>> ax = plot.precision_curve(run("noisy-oracle", "snapshots/test").folder)
        >>> ax.get_ylabel()
        'samples (%)'
    """
    thresholds = np.linspace(0, 1, 101)
    frames = _frames(sources, dataset)
    with _drawn_on(ax) as drawn:
        for k, (frame, name) in enumerate(zip(frames, _names(sources, names), strict=True)):
            reached = (frame["iou"].to_numpy() >= thresholds[:, None]).astype(float)
            value, low, high = _means(reached, frame)
            colour = COLOURS[k % len(COLOURS)]
            drawn.plot(100 * thresholds, 100 * value, color=colour, label=name)
            drawn.fill_between(100 * thresholds, 100 * low, 100 * high, color=colour, alpha=0.2, linewidth=0)
        drawn.set(xlabel="IoU threshold (%)", ylabel="samples (%)", xlim=(0, 100), ylim=(0, 100))
        _legend(drawn, len(sources))
    return drawn


def iou_histogram(
    *sources: Any, dataset: str | None = None, names: Sequence[str] = (), bins: int = 20, ax: Axes | None = None
) -> Axes:
    """The distribution of IoU over samples, with 95 % intervals over the images.

    Args:
        sources: as for `precision_curve`.
        dataset: as for `precision_curve`.
        names: as for `precision_curve`.
        bins: number of bins between 0 and 100 %.
    """
    edges = np.linspace(0, 1, bins + 1)
    frames = _frames(sources, dataset)
    with _drawn_on(ax) as drawn:
        for k, (frame, name) in enumerate(zip(frames, _names(sources, names), strict=True)):
            place = np.minimum(np.digitize(frame["iou"], edges) - 1, bins - 1)
            value, low, high = _means((place == np.arange(bins)[:, None]).astype(float), frame)
            centres = 100 * (edges[:-1] + edges[1:]) / 2 + (k - (len(frames) - 1) / 2) * 30 / bins
            colour = COLOURS[k % len(COLOURS)]
            drawn.stairs(100 * value, 100 * edges, color=colour, fill=len(frames) == 1, alpha=0.5, label=name)
            drawn.errorbar(
                centres, 100 * value, 100 * _spread(value, low, high), fmt="none", color=colour, elinewidth=0.8
            )
        drawn.set(xlabel="IoU (%)", ylabel="samples (%)", xlim=(0, 100))
        drawn.set_ylim(bottom=0)
        _legend(drawn, len(sources))
    return drawn


def errors(*sources: Any, dataset: str | None = None, names: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """The points of mean IoU that each kind of error costs, with 95 % intervals; see `refbench diagnose`.

    Args:
        sources: as for `precision_curve`, but with predictions, not only scores.
        dataset: as for `precision_curve`.
        names: as for `precision_curve`.
    """
    frames = _frames(sources, dataset, errors=True)
    with _drawn_on(ax, rows=len(KINDS) * max(1, len(frames))) as drawn:
        size = 0.8 / len(frames)
        for k, (frame, name) in enumerate(zip(frames, _names(sources, names), strict=True)):
            if "error" not in frame:
                raise PredictionError(f"{name} has no predictions, so its errors are not known; pass the predictions")
            pixels = frame[[f"{kind}_px" for kind in KINDS]].to_numpy()
            shares = loss_shares(pixels, frame["union"].to_numpy(), frame["failed"].to_numpy())
            value, low, high = _means(shares.T, frame)
            places = np.arange(len(KINDS)) + (k - (len(frames) - 1) / 2) * size
            drawn.barh(
                places, 100 * value, size, xerr=100 * _spread(value, low, high), color=COLOURS[k % len(COLOURS)],
                label=name, error_kw={"elinewidth": 0.8},
            )  # fmt: skip
        drawn.set_yticks(range(len(KINDS)), [kind.replace("_", " ") for kind in KINDS])
        drawn.invert_yaxis()
        drawn.set(xlabel="cost in mean IoU (points)")
        drawn.set_xlim(left=0)
        _legend(drawn, len(sources))
    return drawn


def slices(
    *sources: Any,
    dataset: str | None = None,
    names: Sequence[str] = (),
    dimensions: Sequence[str] = DIMENSIONS,
    ax: Axes | None = None,
) -> Axes:
    """Mean IoU in slices of the split, with 95 % intervals over the images.

    Args:
        sources: as for `precision_curve`.
        dataset: as for `precision_curve`.
        names: as for `precision_curve`.
        dimensions: columns of `samples_frame`; slices of fewer than ten samples are left out.
    """
    frames = _frames(sources, dataset)
    found = [
        (dimension, label)
        for dimension in dimensions
        if dimension in frames[0]
        for label, n in sorted(frames[0][dimension].value_counts().items(), key=lambda item: label_order(str(item[0])))
        if n >= LEAST_SAMPLES and label
    ]
    if not found:
        raise RunError(f"no slice of {', '.join(dimensions)} has at least {LEAST_SAMPLES} samples")
    with _drawn_on(ax, rows=len(found)) as drawn:
        for k, (frame, name) in enumerate(zip(frames, _names(sources, names), strict=True)):
            values = []
            for dimension, label in found:
                part = frame[frame[dimension] == label]
                values.append([v[0] for v in _means(part["iou"].to_numpy()[None], part)])
            value, low, high = np.array(values).T
            places = np.arange(len(found)) + (k - (len(frames) - 1) / 2) * 0.25
            drawn.errorbar(
                100 * value, places, xerr=100 * _spread(value, low, high), fmt="o", markersize=3, elinewidth=0.8,
                color=COLOURS[k % len(COLOURS)], label=name,
            )  # fmt: skip
        counts = [int((frames[0][dimension] == label).sum()) for dimension, label in found]
        labels = [
            f"{dimension.replace('_', ' ')}: {label} ({n:,})"
            for (dimension, label), n in zip(found, counts, strict=True)
        ]
        drawn.set_yticks(range(len(found)), labels)
        drawn.invert_yaxis()
        drawn.set(xlabel="mean IoU (%)")
        drawn.grid(axis="x", linewidth=0.3)
        _legend(drawn, len(sources))
    return drawn


def scatter(
    first: Any, second: Any, *, dataset: str | None = None, names: Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """IoU of two runs, sample by sample; the title states how often which one is better.

    Args:
        first: a run or predictions.
        second: a run or predictions of the same samples.
        dataset: as for `precision_curve`.
        names: as for `precision_curve`.

    Raises:
        RunError: the samples differ.
    """
    one, two = _frames((first, second), dataset)
    if set(one["sample_id"]) != set(two["sample_id"]):
        raise RunError("the two sources have different samples; score both on the same split")
    x_name, y_name = _names((first, second), names)
    two = two.set_index("sample_id").loc[one["sample_id"]]
    x, y = 100 * one["iou"].to_numpy(), 100 * two["iou"].to_numpy()
    with _drawn_on(ax) as drawn:
        # Points are pixels even in a PDF: ten thousand vector points are slow to show.
        drawn.scatter(x, y, s=3, alpha=0.3, color=COLOURS[0], linewidths=0, rasterized=True)
        drawn.plot([0, 100], [0, 100], color="0.4", linewidth=0.8, linestyle="--")
        drawn.set(xlabel=f"IoU of {x_name} (%)", ylabel=f"IoU of {y_name} (%)", xlim=(-2, 102), ylim=(-2, 102))
        drawn.set_aspect("equal")
        drawn.set_title(f"better: {x_name} {(x > y).mean():.0%}, {y_name} {(y > x).mean():.0%}")
    return drawn


def protocols(source: Any, *, dataset: str | None = None, names: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """The headline of every protocol for the same predictions, with 95 % intervals: how much the rule alone matters.

    Args:
        source: a run or predictions, or the DataFrame of `protocols_frame`.
        dataset: as for `precision_curve`.
        names: only these protocols.
    """
    is_frame = isinstance(source, pd.DataFrame) and "headline" in source
    frame = source if is_frame else protocols_frame(source, dataset)
    shown = frame[frame["headline"] & frame["value"].notna()]
    if names:
        shown = shown[shown["protocol"].isin(list(names))]
    if not len(shown):
        raise RunError(f"none of the protocols {', '.join(names)} has a figure for this source")
    shown = shown.sort_values(["value", "protocol"])
    with _drawn_on(ax, rows=len(shown)) as drawn:
        value, low, high = (shown[name].to_numpy() for name in ("value", "low", "high"))
        drawn.errorbar(
            value, range(len(shown)), xerr=_spread(value, low, high), fmt="o", markersize=3, elinewidth=0.8,
            color=COLOURS[0],
        )  # fmt: skip
        drawn.set_yticks(
            range(len(shown)), [f"{p}: {m}" for p, m in zip(shown["protocol"], shown["metric"], strict=True)]
        )
        drawn.set(xlabel="headline (%)")
        drawn.grid(axis="x", linewidth=0.3)
    return drawn


def progress(address: str, metric: str = "ciou", *, ax: Axes | None = None) -> Axes:
    """Published figures of a split over the years, with one colour per protocol.

    Figures of different protocols are not comparable. A point is hollow if the rule behind it is not known. A figure is
    shown if its source is by the makers of the system and has an arXiv number, a conference or a date.

    Args:
        address: for example "refcoco/val".
        metric: a `metric_id` of the published tables, for example "ciou" or "miou".

    Raises:
        DatasetError: there is no such figure with a date.

    Example:
        >>> from refbench import plot
        >>> plot.progress("refcoco/val", "miou").get_ylabel()
        'mIoU (%)'
    """
    table = published_on(address)
    rows = table[(table["metric_id"] == metric) & (table["evidence"] == "primary")]
    columns = ("protocol", "value", "system", "source")
    dated = sorted(
        (date, float(value), str(system), str(protocol))
        for protocol, value, system, source in zip(*(rows[name] for name in columns), strict=True)
        if (date := _date_of(str(source))) is not None
    )
    if not dated:
        known = ", ".join(sorted(set(table["metric_id"])))
        raise DatasetError(f"no published {metric} of {address} has a date; the metrics are {known or 'none'}")
    with _drawn_on(ax) as drawn:
        colours = iter(COLOURS)
        for protocol in dict.fromkeys(row[3] for row in dated):
            points = np.array([row[:2] for row in dated if row[3] == protocol])
            colour, filled = ("0.5", "none") if protocol == UNKNOWN else (next(colours, "0.3"),) * 2
            x, y = points.T
            drawn.scatter(x, y, s=14, edgecolors=colour, facecolors=filled, label=protocol, zorder=3)
        drawn.legend(fontsize=6, loc="upper left", handletextpad=0.2)
        drawn.set(ylabel=f"{_SHORT.get(metric, metric)} (%)", title=f"{address}, by protocol")
        drawn.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        drawn.margins(x=0.1, y=0.1)
        highest = {system: max(row[:2] for row in dated if row[2] == system) for _, _, system, _ in dated}
        _name_points(drawn, highest, [row[:2] for row in dated])
    return drawn


def _name_points(ax: Axes, names: Mapping[str, tuple[float, float]], points: Sequence[tuple[float, float]]) -> None:
    """Write a name next to each point, on the side where it covers the fewest other names and points."""
    ax.get_figure(root=True).canvas.draw()  # type: ignore[union-attr]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in ax.transData.transform(points)]
    for name, place in names.items():
        tried: list[tuple[int, int, Any, Bbox]] = []
        for across, up in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
            text = ax.annotate(
                name, place, xytext=(3 * across, 3 * up), textcoords="offset points", fontsize=6,
                ha="left" if across > 0 else "right", va="bottom" if up > 0 else "top",
            )  # fmt: skip
            box = text.get_window_extent()
            outside = not (ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1)
            tried.append((2 * outside + sum(box.overlaps(other) for other in taken), len(tried), text, box))
        best = min(tried, key=lambda t: t[:2])
        for _, _, text, _ in tried:
            if text is not best[2]:
                text.remove()
        taken.append(best[3])


def overlay(sample: Sample, prediction: Any = None, *, zoom: bool = False, ax: Axes | None = None) -> Axes:
    """The image of a sample with the outline of its target (green) and of a prediction (orange, dashed).

    Args:
        prediction: a `Mask`, a COCO run-length code, or a bool or 0/1 array (H, W).
        zoom: show only the surroundings of the masks.
    """
    masks = [(sample.target, TARGET, "-", "target")]
    if prediction is not None:
        masks.append((mask_of(prediction, "the prediction"), PREDICTION, "--", "prediction"))
    return _outlines(sample, masks, zoom, sample.expression, ax)


def before_after(sample: Sample, after: Any, *, zoom: bool = True, ax: Axes | None = None) -> Axes:
    """The image of a sample with the outline of its mask (orange, dashed) and of a better one (green).

    Args:
        after: a `Mask`, a COCO run-length code, or a bool or 0/1 array (H, W).
        zoom: show only the surroundings of the masks.
    """
    masks = [(sample.target, PREDICTION, "--", "before"), (mask_of(after, "the mask"), TARGET, "-", "after")]
    return _outlines(sample, masks, zoom, sample.expression, ax)


def _outlines(
    sample: Sample, masks: Sequence[tuple[Mask, str, str, str]], zoom: bool, title: str, ax: Axes | None
) -> Axes:
    for mask, _, _, name in masks:
        if mask.size != (sample.height, sample.width):
            raise PredictionError(
                f"the {name} of {sample.sample_id} is {mask.size}, the image {(sample.height, sample.width)}; resize it"
            )
    with _drawn_on(ax) as drawn:
        drawn.imshow(picture_of(sample.image_path, sample.height, sample.width))
        for mask, colour, line, name in masks:
            if mask.area:
                # A border of background, so that outlines close at the edge of the image.
                inside = np.pad(mask.to_array().astype(float), 1)
                x, y = np.arange(-1, mask.width + 1), np.arange(-1, mask.height + 1)
                drawn.contour(x, y, inside, levels=[0.5], colors=[colour], linestyles=[line], linewidths=1.2)
            drawn.plot([], [], color=colour, linestyle=line, label=name if mask.area else f"{name} (empty)")
        if zoom and any(mask.area for mask, *_ in masks):
            left, top, right, bottom = box_around(masks[0][0].union(*(mask for mask, *_ in masks[1:])))
            drawn.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
        drawn.set_title(title, wrap=True)
        drawn.set_axis_off()
        drawn.legend(loc="upper right", framealpha=0.7, frameon=True)
    return drawn


def _frames(sources: Sequence[Any], dataset: str | None, *, errors: bool = False) -> list[pd.DataFrame]:
    if not sources:
        raise PredictionError("pass at least one run or predictions file")
    frames = []
    for source in sources:
        ready = isinstance(source, pd.DataFrame) and "iou" in source
        frame = source if ready else samples_frame(source, dataset, errors=errors)
        if not len(frame):
            raise PredictionError("a source has no samples, so there is nothing to draw")
        frames.append(frame)
    return frames


def _names(sources: Sequence[Any], names: Sequence[str]) -> list[str]:
    if names:
        if len(names) != len(sources):
            raise PredictionError(f"{len(names)} names for {len(sources)} sources; pass one name for each")
        return list(names)
    return [
        name_of(Path(source)) if isinstance(source, (str, Path)) else f"source {k + 1}"
        for k, source in enumerate(sources)
    ]


def _means(values: NDArray[np.float64], frame: pd.DataFrame) -> tuple[NDArray[np.float64], ...]:
    """The means of M values per sample, (M, N), with their 95 % intervals over the images: three arrays (M,)."""
    codes, images = image_codes(frame["image_id"].tolist())
    sums = sums_by_image(values, np.ones_like(values), codes, images, 0.0)
    low, high = intervals(sums)
    return sums.values(), low, high


def _spread(value: Any, low: Any, high: Any) -> NDArray[np.float64]:
    """Lengths of error bars, (2, N)."""
    lengths: NDArray[np.float64] = np.maximum(np.stack([value - low, high - value]), 0)
    return lengths


def _legend(ax: Axes, sources: int) -> None:
    if sources > 1:
        ax.legend()


def _date_of(source: str) -> float | None:
    """The month of the first arXiv number or date in a text, or the middle of the year of a conference, in years."""
    if found := _ARXIV.search(source):
        return 2000 + int(found[1]) + (int(found[2]) - 1) / 12
    if found := _DAY.search(source):
        return int(found[1]) + (int(found[2]) - 1) / 12
    found = _CONFERENCE.search(source)
    return None if found is None else int(found[1]) + 0.5
