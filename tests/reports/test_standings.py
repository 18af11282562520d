"""Published results beside measured ones: each under its own protocol, from every kind of source."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refbench import load_samples, run, score, write_predictions
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError, PredictionError, RunError
from refbench.plugins.loading import load
from refbench.reports.comparison import compare
from refbench.reports.pages import write_report
from refbench.reports.published import UNKNOWN, metric_of, published_results
from refbench.reports.standings import leaderboard_frame, standings_of
from refbench.runs.folder import RunFolder
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.sources import predictions_of, result_of
from refbench.storage.progress import silent

Cli = Callable[..., Any]


def test_every_published_figure_has_its_place_in_its_protocol() -> None:
    published = published_results()
    for row in published[published["protocol"] != UNKNOWN].itertuples():
        rule = load("protocols", row.protocol)
        if isinstance(rule, Protocol) and row.metric_id != "unclear":
            name = metric_of(rule, row.metric_id)
            assert name in rule.metrics, (row.system, row.protocol, row.metric_id)


def test_the_metrics_of_published_figures_by_hand() -> None:
    expected = {
        ("lavt-480", "ciou"): "overall IoU", ("lavt-480", "miou"): "Mean IoU",
        ("lavt-480", "precision_at_.9"): "precision@0.9", ("cris", "miou"): "IoU", ("gres", "giou_gres"): "gIoU",
        ("mllmseg-gres", "giou_gres"): "g_iou", ("hyperseg", "giou_lisa"): "giou", ("gsva-gres", "t_acc"): "T_acc",
        ("polyformer-512", "ciou"): "oIoU score", ("rec-acc@0.5", "box_precision_at_.5"): "rec_bbox_iou_0.5",
        ("cris", "ciou"): None, ("lavt-480", "unclear"): None,
    }  # fmt: skip
    for (protocol, metric_id), name in expected.items():
        assert metric_of(load("protocols", protocol), metric_id) == name


@pytest.fixture
def predictions(photos: Path, tmp_path: Path) -> Path:
    """Predictions for RefCOCO val: the target, the target of another sample, or none."""
    samples = load_samples("refcoco/val")
    by_size: dict[Any, list[Any]] = {}
    for sample in samples:
        by_size.setdefault(sample.target.size, []).append(sample.target)
    rows = [
        (s.sample_id, by_size[s.target.size][-1] if k % 3 == 0 else s.target, None)
        for k, s in enumerate(samples)
        if k % 5 != 4
    ]
    path = tmp_path / "mine.jsonl"
    write_predictions(path, rows)
    return path


def test_predictions_stand_beside_published_rows_under_each_rule(predictions: Path) -> None:
    found = {s.protocol: s for s in standings_of("refcoco/val", [predictions])}
    published = published_results()
    here = published[(published["dataset"] == "refcoco") & (published["split"] == "val")]
    assert set(found) == {*here["protocol"], "refbench"}
    assert next(iter(found)) != UNKNOWN
    assert list(found)[-1] == UNKNOWN
    assert found[UNKNOWN].measured == []
    for name, standing in found.items():
        rows = here[here["protocol"] == name]
        figures = sorted(float(v) for v in rows["value"])
        assert sorted(v for row in standing.published for v in row.metrics.values()) == figures
        if name == UNKNOWN:
            continue
        (mine,) = standing.measured
        expected = score(predictions, "refcoco/val", protocols=[name])
        assert mine.metrics == expected.summaries[name].metrics
        assert mine.missing == expected.missing > 0
        assert mine.failures == expected.summaries[name].failures
    lavt = found["lavt-480"]
    assert lavt.headline == "overall IoU"
    assert lavt.sentences()[0].startswith("mine, by the rule of LAVT: ")
    assert lavt.sentences()[0].endswith("LAVT (Swin-B + BERT) printed 72.73")
    values = [row.metrics["overall IoU"] for row in found["caris-448"].published]
    assert values == sorted(values, reverse=True)


def test_one_protocol_and_the_command_line(predictions: Path, refbench: Cli) -> None:
    done = refbench("leaderboard", "show", "refcoco/val", "--with", predictions, "--protocol", "cris", "--json")
    content = json.loads(done.stdout)["protocols"]
    assert list(content) == ["cris"]
    value = score(predictions, "refcoco/val", protocols=["cris"]).summaries["cris"].metrics["IoU"].value
    assert content["cris"]["measured"][0]["metrics"]["IoU"]["value"] == value
    assert {row["system"] for row in content["cris"]["published"]} == {"CRIS"}
    shown = refbench("leaderboard", "show", "refcoco/val", "--with", predictions)
    assert shown.returncode == 0, shown.stderr
    assert "protocol not known" in shown.stdout
    assert f"{value:.2f}" in shown.stdout
    frame = leaderboard_frame("refcoco/val", [predictions], "cris")
    mine = frame[(frame["origin"] == "measured") & (frame["metric"] == "IoU")]
    assert mine["value"].tolist() == [value]
    nothing = refbench("leaderboard", "show", "refcoco/nowhere")
    assert nothing.returncode == 3
    assert "there are some of refcoco on: " in nothing.stderr


def test_runs_scored_folders_and_predictions_give_the_same(embedded: Path, tmp_path: Path) -> None:
    folder = run("noisy-oracle", "snapshots/test", options={"dilate": "2"}, out=tmp_path / "run").folder
    unscored = standings_of("snapshots/test", [folder])[0].measured[0]
    assert not (folder / "summary.json").exists()
    score(folder)
    only_scores = tmp_path / "only"
    only_scores.mkdir()
    for name in ("scores.parquet", "summary.json"):
        shutil.copy(folder / name, only_scores)
    file = tmp_path / "p.jsonl"
    write_predictions(file, [(p.sample_id, p.mask, None) for p in RunFolder(folder).predictions()])
    found = standings_of("snapshots/test", [folder, only_scores, file])
    assert [s.protocol for s in found] == ["refbench"]
    figures = [row.metrics for row in found[0].measured]
    assert figures == [unscored.metrics] * 3
    assert {row.name for row in found[0].measured} == {"noisy-oracle (dilate=2)", "only", "p"}
    with pytest.raises(RunError, match="contains scores on snapshots/test, not on scenes/val"):
        standings_of("scenes/val", [only_scores])
    with pytest.raises(DatasetError, match="no published results of snapshots/test; choose from"):
        standings_of("snapshots/test")


def test_compare_gate_and_report_take_predictions(embedded: Path, tmp_path: Path, refbench: Cli) -> None:
    folder = run("noisy-oracle", "snapshots/test", options={"dilate": "2"}, out=tmp_path / "run").folder
    masks = [(p.sample_id, p.mask, None) for p in RunFolder(folder).predictions()]
    worse, same = tmp_path / "worse.jsonl", tmp_path / "same.jsonl"
    write_predictions(worse, masks[:-30])
    write_predictions(same, masks)
    # A run that is not scored, and a file.
    found = compare(folder, same, dataset="snapshots/test")
    assert all(d.difference == 0 for d in found.metrics)
    assert not (folder / "summary.json").exists()
    score(folder)
    done = refbench("compare", folder, worse, "--dataset", "snapshots/test", "--json", "--page", tmp_path / "c.html")
    assert json.loads(done.stdout)["metrics"]["mean_iou"]["difference"] < 0
    assert "worse" in (tmp_path / "c.html").read_text()
    assert (tmp_path / "c.html").read_text().count("data:image/jpeg") > 20
    gated = refbench("gate", worse, "--baseline", folder, "--dataset", "snapshots/test")
    assert gated.returncode == 1
    assert "30 new ones" in gated.stdout
    assert refbench("gate", same, "--baseline", folder, "--dataset", "snapshots/test").returncode == 0
    written = refbench("report", worse, "--dataset", "snapshots/test", "--json")
    path = Path(json.loads(written.stdout)["report"])
    assert path == tmp_path / "worse.jsonl.report.html"
    page = path.read_text()
    assert "worse on snapshots/test" in page
    assert "30 failed (30 of them without a prediction)" in page
    assert {p.name for p in tmp_path.iterdir() if p.suffix == ".parquet"} == set()
    said = refbench("compare", folder, worse)
    assert said.returncode == 3
    assert "--dataset DATASET/SPLIT" in said.stderr


def test_a_source_that_has_no_predictions_says_so(embedded: Path, tmp_path: Path) -> None:
    scored = score(run("center", "snapshots/test", out=tmp_path / "run").folder)
    assert scored.folder is not None
    alone = tmp_path / "renamed.parquet"
    shutil.copy(scored.folder / "scores.parquet", alone)
    assert math.isclose(result_of(alone).scores.sums()["union"], scored.scores.sums()["union"])  # type: ignore[union-attr]
    assert list(predictions_of(result_of(alone).folder, "snapshots/test")) == []
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(scored.folder / "scores.parquet", only)
    with pytest.raises(RunError, match="contains scores without predictions"):
        write_report(only)
    with pytest.raises(PredictionError, match="contains scores, but no predictions"):
        score(only, "snapshots/test")
    with pytest.raises(RunError, match="not on scenes/val"):
        result_of(scored.folder, "scenes/val")


def test_folders_of_png_files_flat_and_nested(photos: Path, tmp_path: Path) -> None:
    samples = load_samples("refcoco/val")
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    rows = [(s.sample_id, s.target, None) for s in samples]
    write_predictions(flat, rows, form="png")
    write_predictions(nested, rows, form="png-nested")
    expected = {s.sample_id: s.target for s in samples}
    for folder in (flat, nested):
        assert {p.sample_id: p.mask for p in predictions_of(folder, "refcoco/val")} == expected
        assert score(folder, "refcoco/val").missing == 0
    with pytest.raises(PredictionError, match=r"already exists"):
        write_predictions(flat, rows, form="png")


@pytest.mark.slow
def test_a_whole_split(test_data: Path, home: Path, tmp_path: Path) -> None:
    build_dataset("refcoco", load("builders", "refcoco"), Sources(test_data / "whole-splits" / "refer"), silent)
    samples = load_samples("refcoco/val")
    write_predictions(tmp_path / "p.jsonl", [(s.sample_id, s.target, None) for s in samples[::2]])
    found = standings_of("refcoco/val", [tmp_path / "p.jsonl"])
    for standing in found[:-1]:
        assert standing.measured[0].missing == len(samples) // 2
        assert standing.measured[0].samples > 0


def test_what_has_no_figures_is_told(predictions: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr("refbench.scoring.scorer.find_spec", lambda name: None)
    found = {s.protocol: s for s in standings_of("refcoco/val", [predictions], log=said.append)}
    # Without OpenCV the others are still there.
    assert found["hyperseg"].measured == []
    assert len(found["lavt-480"].measured) == 1
    assert [text for text in said if "hyperseg" in text and "refbench[opencv]" in text]
    monkeypatch.undo()
    monkeypatch.setenv("REFBENCH_HOME", str(tmp_path / "home"))
    limited = run("center", "refcoco/val", limit=5, out=tmp_path / "limited").folder
    score(predictions, "refcoco/val", out=tmp_path / "scores")
    said.clear()
    found = {s.protocol: s for s in standings_of("refcoco/val", [limited, tmp_path / "scores"], log=said.append)}
    assert found["lavt-480"].measured == []
    assert [row.name for row in found["refbench"].measured] == ["scores"]
    assert any("only" in text and "limited" in text for text in said)
    assert any("no predictions" in text for text in said)
    assert standings_of("refcoco/val", [predictions], "trimap(5)")[0].measured


def test_a_folder_of_png_files_may_hold_scores(photos: Path, tmp_path: Path) -> None:
    folder = write_predictions(
        tmp_path / "png", [(s.sample_id, s.target, None) for s in load_samples("refcoco/val")], form="png"
    )
    first = score(folder, "refcoco/val", out=folder)
    assert score(folder, "refcoco/val", out=folder).summaries == first.summaries
