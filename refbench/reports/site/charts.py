"""Charts as inline SVG, which take their colours from the style sheet and need no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 640


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval in a row of a chart, in percent."""

    label: str
    value: float
    low: float
    high: float
    note: str = ""


def bars(rows: Sequence[tuple[str, float, str]], title: str, unit: str) -> Markup:
    """Horizontal bars: (label, value, text behind the bar)."""
    if not rows:
        return Markup("")
    most = max(max(value for _, value, _ in rows), 1e-9)
    height, left, right = 24 * len(rows) + 8, 190, 110
    parts = []
    for k, (label, value, text) in enumerate(rows):
        y = 4 + 24 * k
        length = (WIDTH - left - right) * value / most
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 3}" width="{length:.1f}" height="16" rx="2"/>'
            f'<text x="{left + length + 6:.1f}" y="{y + 15}" class="quiet">{escape(text)} {escape(unit)}</text>'
        )
    return _svg(parts, height, title)


def intervals(rows: Sequence[Interval], title: str) -> Markup:
    """A dot with its interval for each row, on a common scale in percent."""
    shown = [row for row in rows if not math.isnan(row.value)]
    if not shown:
        return Markup("")
    low = math.floor(min(row.low for row in shown) / 10) * 10
    high = max(low + 10, math.ceil(max(row.high for row in shown) / 10) * 10)
    left, right, top = 220, 20, 22
    height = top + 20 * len(shown) + 8

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * (value - low) / (high - low)

    parts = []
    for mark in range(low, high + 1, 10 if high - low <= 60 else 20):
        parts.append(
            f'<line class="grid" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top - 4}" y2="{height - 4}"/>'
            f'<text x="{x(mark):.1f}" y="13" text-anchor="middle" class="quiet">{mark}</text>'
        )
    for k, row in enumerate(shown):
        y = top + 20 * k + 8
        parts.append(
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(row.label)}</text>'
            f'<line class="range" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{x(row.value):.1f}" cy="{y}" r="4"><title>{escape(row.label)}: '
            f"{row.value:.1f} [{row.low:.1f}, {row.high:.1f}]{escape(row.note)}</title></circle>"
        )
    return _svg(parts, height, title)


def histogram(counts: Sequence[int], title: str) -> Markup:
    """Columns of equal width from 0 to 1."""
    most = max([*counts, 1])
    left, top, bottom, height = 40, 8, 24, 180
    step = (WIDTH - left - 16) / len(counts)
    parts = [
        f'<rect class="bar" x="{left + k * step + 1:.1f}" y="{top + (height - top - bottom) * (1 - n / most):.1f}" '
        f'width="{step - 2:.1f}" height="{(height - top - bottom) * n / most:.1f}">'
        f"<title>IoU {k / len(counts):.2f} to {(k + 1) / len(counts):.2f}: {n} samples</title></rect>"
        for k, n in enumerate(counts)
    ]
    for k in range(0, len(counts) + 1, max(1, len(counts) // 5)):
        parts.append(
            f'<text x="{left + k * step:.1f}" y="{height - 7}" text-anchor="middle" class="quiet">'
            f"{k / len(counts):.1f}</text>"
        )
    parts.append(f'<text x="{left - 6}" y="{top + 10}" text-anchor="end" class="quiet">{most}</text>')
    return _svg(parts, height, title)


def curve(points: Sequence[tuple[float, float]], title: str) -> Markup:
    """A line over thresholds from 0.5 to 0.95; values in percent."""
    left, right, top, bottom, height = 40, 12, 10, 24, 180

    def x(threshold: float) -> float:
        return left + (WIDTH - left - right) * (threshold - 0.5) / 0.45

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - value / 100)

    parts = [
        f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end" class="quiet">{v}</text>'
        for v in (0, 50, 100)
    ]
    parts += [
        f'<text x="{x(t):.1f}" y="{height - 7}" text-anchor="middle" class="quiet">{t:.1f}</text>'
        for t in (0.5, 0.6, 0.7, 0.8, 0.9)
    ]
    line = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in points)
    parts.append(f'<polyline class="line" points="{line}"/>')
    parts += [
        f'<circle class="dot" cx="{x(t):.1f}" cy="{y(v):.1f}" r="3.5">'
        f"<title>IoU above {t:.2f}: {v:.1f} %</title></circle>"
        for t, v in points
    ]
    return _svg(parts, height, title)


def _svg(parts: Sequence[str], height: int, title: str) -> Markup:
    # Every part is made of numbers and of text that `escape` has treated.
    head = f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {height}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
