"""Frames of samples, runs and protocols: the same figures as score and diagnose, one row each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refbench import (
    Mask,
    load_samples,
    protocols_frame,
    run,
    runs_frame,
    samples_frame,
    score,
    write_predictions,
)
from refbench.errors import PredictionError, RunError
from refbench.masks.pairs import COUNTS
from refbench.reports.diagnosis import diagnose
from refbench.reports.error_kinds import KINDS
from refbench.scoring.counts import SCORES_FILE

SPLIT = "snapshots/test"


@pytest.fixture(scope="module")
def folder(embedded_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBENCH_HOME", str(embedded_home))
        place = run("noisy-oracle", SPLIT, out=tmp_path_factory.mktemp("run") / "noisy").folder
        score(place, protocols=["refbench", "cris"])
    return place


def test_a_row_has_the_counts_the_iou_and_the_error_of_its_sample(embedded: Path, folder: Path) -> None:
    frame = samples_frame(folder)
    samples = load_samples(SPLIT)
    assert frame["sample_id"].tolist() == [s.sample_id for s in samples]
    assert frame["expression"].tolist() == [s.expression for s in samples]
    assert frame["category"].tolist() == [s.category for s in samples]
    scores = score(folder).scores
    for name in COUNTS:
        assert np.array_equal(frame[name], getattr(scores, name))
    summary = score(folder).summaries["refbench"].metrics
    assert 100 * frame["iou"].mean() == pytest.approx(summary["mean_iou"].value, abs=1e-9)
    assert 100 * frame["boundary_iou"].mean() == pytest.approx(summary["mean_boundary_iou"].value, abs=1e-9)
    found = diagnose(folder, write=False)
    assert frame["error"].tolist() == found.errors.names()
    assert np.array_equal(frame[[f"{kind}_px" for kind in KINDS]].to_numpy(), found.errors.pixels)
    assert set(frame["target_size"]) <= {"none", "small", "medium", "large"}
    assert {"words", "position_words", "relation_words", "at_the_border", "look_alikes"} <= set(frame)


def test_slices_have_the_samples_that_diagnose_counts(embedded: Path, folder: Path) -> None:
    frame = samples_frame(folder, errors=False)
    assert "error" not in frame
    for part in diagnose(folder, write=False).slices:
        column = part.dimension.replace(" ", "_").replace("-", "_")
        if part.dimension == "tag":
            rows = frame["tags"].map(lambda tags, tag=part.label: tag in tags)
        else:
            rows = frame[column] == part.label
        assert int(rows.sum()) == part.samples
        assert 100 * frame["iou"][rows].mean() == pytest.approx(part.metrics["mean_iou"].value, abs=1e-9)


def test_missing_predictions_are_marked(embedded: Path, tmp_path: Path) -> None:
    samples = load_samples(SPLIT)
    file = write_predictions(tmp_path / "p.jsonl", [(s.sample_id, s.target, None) for s in samples[3:]])
    frame = samples_frame(file, SPLIT)
    assert frame["missing"].tolist() == [True] * 3 + [False] * (len(samples) - 3)
    assert frame["failed"].tolist() == frame["missing"].tolist()
    assert set(frame["error"][:3]) <= {"failed"}
    in_memory = samples_frame({s.sample_id: s.target for s in samples[3:]}, SPLIT)
    pd.testing.assert_frame_equal(in_memory, frame)


def test_scores_without_predictions_have_no_errors(embedded: Path, folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / SCORES_FILE
    alone.write_bytes((folder / SCORES_FILE).read_bytes())
    frame = samples_frame(alone)
    assert "error" not in frame
    assert frame["missing"].isna().all()
    assert np.array_equal(frame["iou"], samples_frame(folder)["iou"])


def test_results_give_the_same_rows(embedded: Path, folder: Path) -> None:
    frame = samples_frame(folder)
    of_scored, of_diagnosis = samples_frame(score(folder)), samples_frame(diagnose(folder, write=False))
    pd.testing.assert_frame_equal(of_scored, frame[of_scored.columns])
    pd.testing.assert_frame_equal(of_diagnosis.drop(columns="missing"), frame.drop(columns="missing"))


def test_runs_are_listed_with_their_figures(embedded: Path, folder: Path, tmp_path: Path) -> None:
    frame = runs_frame(folder.parent)
    assert set(frame["protocol"]) == {"refbench", "cris"}
    summaries = score(folder, protocols=["refbench", "cris"]).summaries
    for row in frame.itertuples():
        estimate = summaries[row.protocol].metrics[row.metric]
        assert (row.value, row.low, row.high) == (estimate.value, estimate.low, estimate.high)
    assert set(frame["system"]) == {"noisy-oracle"}
    assert frame["finished"].str.len().min() > 10
    pd.testing.assert_frame_equal(runs_frame([folder]), frame)
    with pytest.raises(RunError, match="no scored run in"):
        runs_frame(tmp_path)


def test_every_protocol_has_one_headline(embedded: Path, folder: Path) -> None:
    frame = protocols_frame(folder)
    assert frame[frame["headline"]]["protocol"].is_unique
    assert set(frame[frame["headline"]]["protocol"]) == set(frame["protocol"])
    expected = score(folder, protocols=["all"], out=folder.parent / "elsewhere").summaries
    assert set(frame["protocol"]) == set(expected)
    for row in frame.itertuples():
        value = expected[row.protocol].metrics[row.metric].value
        assert row.value == value or (np.isnan(row.value) and np.isnan(value))


def test_a_split_is_required_for_masks_in_memory() -> None:
    with pytest.raises(PredictionError, match="the split of the predictions is not given"):
        samples_frame({"a": Mask.empty(2, 2)})
