"""Plots: what is drawn are the figures of score and diagnose; vector files; colours that everybody can tell apart."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from refbench import Mask, load_samples, plot, protocols_frame, run, samples_frame, score
from refbench.errors import DatasetError, PredictionError, RunError
from refbench.reports.diagnosis import diagnose
from refbench.reports.error_kinds import KINDS

matplotlib.use("Agg")
SPLIT = "scenes/val"


@pytest.fixture(scope="module")
def runs(embedded_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBENCH_HOME", str(embedded_home))
        places = []
        for name, options in (("careful", {"shift": "1", "part": "0.2"}), ("careless", {"shift": "5", "swap": "0.2"})):
            places.append(run("noisy-oracle", SPLIT, options=options, out=folder / name).folder)
            score(places[-1])
    return places


@pytest.fixture(autouse=True)
def _closed(embedded: Path) -> object:
    yield
    plt.close("all")


def test_the_curve_has_the_precision_of_the_scores(runs: list[Path]) -> None:
    ax = plot.precision_curve(*runs)
    metrics = score(runs[0]).summaries["refbench"].metrics
    x, y = ax.lines[0].get_data()
    for threshold in (50, 70, 90):
        expected = metrics[f"precision_at_0.{threshold // 10}"]
        assert y[np.flatnonzero(np.isclose(x, threshold))[0]] == pytest.approx(expected.value)
        band = ax.collections[0].get_paths()[0].vertices
        at = band[np.isclose(band[:, 0], threshold), 1]
        assert [at.min(), at.max()] == pytest.approx([expected.low, expected.high])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["careful", "careless"]


def test_the_histogram_has_every_sample(runs: list[Path]) -> None:
    ax = plot.iou_histogram(runs[0], bins=10)
    values = ax.patches[0].get_data().values
    assert values.sum() == pytest.approx(100)
    counts, _ = np.histogram(samples_frame(runs[0])["iou"], np.linspace(0, 1, 11))
    assert values == pytest.approx(100 * counts / counts.sum())


def test_errors_cost_what_diagnose_says(runs: list[Path]) -> None:
    ax = plot.errors(runs[1])
    losses = {loss.kind: loss.mean_iou for loss in diagnose(runs[1], write=False).losses}
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([losses[kind] for kind in KINDS])
    assert [t.get_text().replace(" ", "_") for t in ax.get_yticklabels()] == list(KINDS)


def test_slices_have_the_means_of_diagnose(runs: list[Path]) -> None:
    ax = plot.slices(runs[1])
    found = {
        f"{p.dimension.replace('-', ' ')}: {p.label}": p.metrics["mean_iou"]
        for p in diagnose(runs[1], write=False).slices
    }
    labels = [re.sub(r" \([\d,]+\)$", "", t.get_text()) for t in ax.get_yticklabels()]
    assert len(labels) > 8
    for label, value in zip(labels, ax.lines[0].get_xdata(), strict=True):
        assert value == pytest.approx(found[label].value)


def test_the_scatter_counts_who_is_better(runs: list[Path]) -> None:
    ax = plot.scatter(*runs)
    one, two = (samples_frame(r, errors=False) for r in runs)
    assert np.array_equal(ax.collections[0].get_offsets(), 100 * np.stack([one["iou"], two["iou"]], axis=1))
    share = (one["iou"].to_numpy() > two["iou"].to_numpy()).mean()
    assert f"careful {share:.0%}" in ax.get_title()
    with pytest.raises(RunError, match="different samples"):
        plot.scatter(one, two.iloc[1:])


def test_protocols_are_sorted_by_their_headline(runs: list[Path]) -> None:
    frame = protocols_frame(runs[1])
    ax = plot.protocols(frame)
    values = ax.lines[0].get_xdata()
    assert list(values) == sorted(frame[frame["headline"]]["value"].dropna())
    two = plot.protocols(frame, names=["cris", "lavt-480"])
    assert len(two.lines[0].get_xdata()) == 2


def test_progress_shows_published_figures_with_their_year() -> None:
    ax = plot.progress("refcoco/val")
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    assert [2022.5, 72.73] in points.tolist()  # LAVT, CVPR 2022
    assert "lavt-480" in [t.get_text() for t in ax.get_legend().get_texts()]
    with pytest.raises(DatasetError, match="the metrics are box_precision"):
        plot.progress("refcoco/val", "nothing")


def test_masks_are_drawn_as_outlines() -> None:
    sample = load_samples(SPLIT)[0]
    ax = plot.overlay(sample, sample.target)
    assert ax.get_title() == sample.expression
    left, top, width, height = sample.target.box_xywh
    for contour in (c for c in ax.collections if c.get_paths()):
        vertices = np.concatenate([p.vertices for p in contour.get_paths()])
        assert vertices.min(axis=0) == pytest.approx([left - 0.5, top - 0.5])
        assert vertices.max(axis=0) == pytest.approx([left + width - 0.5, top + height - 0.5])
    empty = plot.before_after(sample, Mask.empty(*sample.target.size))
    assert [t.get_text() for t in empty.get_legend().get_texts()] == ["before", "after (empty)"]
    with pytest.raises(PredictionError, match="resize it"):
        plot.overlay(sample, Mask.empty(3, 3))


def test_plots_use_the_axes_they_are_given(runs: list[Path]) -> None:
    sample, frames = load_samples(SPLIT)[0], [samples_frame(r) for r in runs]
    for draw in (
        lambda ax: plot.precision_curve(*frames, ax=ax),
        lambda ax: plot.iou_histogram(*frames, ax=ax),
        lambda ax: plot.errors(*frames, ax=ax),
        lambda ax: plot.slices(*frames, ax=ax),
        lambda ax: plot.scatter(*frames, ax=ax),
        lambda ax: plot.progress("refcoco/val", "miou", ax=ax),
        lambda ax: plot.overlay(sample, ax=ax),
        lambda ax: plot.before_after(sample, sample.target, ax=ax),
    ):
        _, ax = plt.subplots()
        before = len(plt.get_fignums())
        assert draw(ax) is ax
        assert len(plt.get_fignums()) == before
        assert ax.has_data()


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_files_are_vectors_with_text_and_always_the_same(runs: list[Path], tmp_path: Path, suffix: str) -> None:
    files = [plot.save(plot.precision_curve(*runs), tmp_path / f"{k}{suffix}") for k in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    content = files[0].read_bytes()
    if suffix == ".svg":
        assert b">IoU threshold (%)<" in content
        assert float(re.search(rb'width="([\d.]+)pt"', content)[1]) == pytest.approx(72 * 3.3)
    else:
        assert b"/FontFile2" in content or b"/Type42" in content or b"TrueType" in content
    assert b"/Subtype /Image" not in content


def test_settings_of_the_caller_stay(runs: list[Path]) -> None:
    before = dict(matplotlib.rcParams)
    plot.save(plot.precision_curve(runs[0]), runs[0].parent / "curve.pdf")
    assert dict(matplotlib.rcParams) == before


def _seen(colour: str, matrix: np.ndarray) -> np.ndarray:
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
    return np.clip(matrix @ linear, 0, 1)


@pytest.mark.parametrize(
    "matrix",
    [
        # Deuteranopia and protanopia: Machado, Oliveira & Fernandes, "A Physiologically-based Model for Simulation of
        # Color Vision Deficiency", 2009, severity 1.0.
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    ],
)
def test_the_first_colours_differ_with_any_colour_vision(matrix: list[list[float]]) -> None:
    seen = [_seen(c, np.array(matrix)) ** (1 / 2.4) for c in plot.COLOURS[:4]]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.1


def test_what_cannot_be_drawn_is_named(runs: list[Path]) -> None:
    with pytest.raises(PredictionError, match="pass at least one"):
        plot.precision_curve()
    with pytest.raises(PredictionError, match="1 names for 2 sources"):
        plot.iou_histogram(*runs, names=["a"])
    with pytest.raises(PredictionError, match="its errors are not known"):
        plot.errors(samples_frame(score(runs[0])))
    with pytest.raises(PredictionError, match="nothing to draw"):
        plot.precision_curve(pd.DataFrame({"iou": []}))
