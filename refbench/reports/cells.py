"""What notebooks show of the objects of refbench: HTML, with every text escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from refbench.records import Estimate, Sample
from refbench.reports.comparison import Comparison
from refbench.reports.diagnosis import Diagnosis
from refbench.reports.leaderboard import SHORT_NAMES
from refbench.reports.overlays import TARGET_RGB, Layer, data_uri, overlay, picture_of
from refbench.scoring.scorer import Scored

PICTURE_PX = 320
# Of a long table, what a cell shows.
MOST_ROWS = 60


def sample_cell(sample: Sample) -> str:
    """The image of a sample with its target in green, and its expression."""
    picture = picture_of(sample.image_path, sample.height, sample.width)
    drawn = overlay(picture, [Layer(sample.target, TARGET_RGB, filled=True)], PICTURE_PX)
    about = "no target" if sample.no_target else f"{sample.category}, {sample.target.area:,} px"
    return (
        f'<figure style="margin:0"><img src="{data_uri(drawn, "PNG")}" alt="{_text(sample.expression)}">'
        f"<figcaption><b>{_text(sample.expression)}</b><br>{_text(about)}<br>"
        f"<code>{_text(sample.sample_id)}</code></figcaption></figure>"
    )


def scored_cell(scored: Scored) -> str:
    """The metrics of a scored split under each protocol, with their intervals."""
    title = f"{scored.address}: {len(scored.scores):,} expressions, {int(scored.scores.failed.sum()):,} failed"
    rows = [
        [name, SHORT_NAMES.get(metric, metric), *_cells(estimate)]
        for name, summary in scored.summaries.items()
        for metric, estimate in summary.metrics.items()
    ]
    return _table(title, ["protocol", "metric", "%", "95 % interval"], rows)


def diagnosis_cell(found: Diagnosis) -> str:
    """What each kind of error costs."""
    rows = [
        [loss.kind.replace("_", " "), f"{loss.samples:,}", f"{loss.cumulative_iou:.2f}", f"{loss.mean_iou:.2f}"]
        for loss in found.losses
    ]
    title = f"{found.address}: points that errors cost"
    return _table(title, ["error", "samples", "cIoU", "mIoU"], rows)


def comparison_cell(found: Comparison) -> str:
    """The metrics of two runs, and their differences."""
    rows = [
        [
            SHORT_NAMES.get(d.metric, d.metric), f"{d.first:.2f}", f"{d.second:.2f}", f"{d.difference:+.2f}",
            f"[{d.low:+.2f}, {d.high:+.2f}]", f"{d.p_value:.3f}",
        ]
        for d in found.metrics
    ]  # fmt: skip
    first, second = found.first.folder.name, found.second.folder.name
    title = f"{found.address}: {found.samples:,} expressions, {found.images:,} images"
    return _table(title, ["metric", first, second, "difference", "95 % interval", "p"], rows)


def _cells(estimate: Estimate) -> list[str]:
    if math.isnan(estimate.value):
        return ["undefined", ""]
    return [f"{estimate.value:.2f}", f"[{estimate.low:.2f}, {estimate.high:.2f}]"]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    shown = rows[:MOST_ROWS]
    body = "".join(f"<tr>{_row(row, 'td')}</tr>" for row in shown)
    more = f"<p>and {len(rows) - len(shown)} more rows</p>" if len(rows) > len(shown) else ""
    return f"<table><caption>{_text(title)}</caption><tr>{_row(head, 'th')}</tr>{body}</table>{more}"


def _row(cells: Iterable[Any], tag: str) -> str:
    return "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells)


def _text(value: Any) -> str:
    return html.escape(str(value))
