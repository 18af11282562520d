"""Identities of counts and summaries: they hold for every rule, and what breaks one is refused with its name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refbench import run, score
from refbench.errors import RunError
from refbench.leaderboard import read_rows
from refbench.protocols.audit import check_metrics
from refbench.scores import check_scores, read_scores, scores_to_table
from refbench.storage import write_table


@pytest.fixture
def scored(embedded: Path, tmp_path: Path) -> Path:
    folder = run("noisy-oracle", "snapshots/test", options={"shift": "9"}, out=tmp_path / "run").folder
    score(folder)
    return folder


def test_whatever_is_written_is_read(scored: Path) -> None:
    check_scores(read_scores(scored / "scores.parquet"), "here")
    assert len(read_rows([scored])) == 1


def test_every_rule_satisfies_them(scored: Path) -> None:
    result = score(scored, protocols=["all"])
    assert len(result.summaries) > 25
    assert set(result.left_out) == {"lvis-instance", "lvis-category-union"}


@pytest.mark.parametrize(
    ("column", "change", "identity"),
    [
        ("union", lambda c: c + 1, "union = prediction_area"),
        ("intersection", lambda c: c * 0 - 1, "no count is negative"),
        ("boundary_intersection", lambda c: c + 10**6, "boundary_intersection <= intersection"),
        ("boundary_union", lambda c: c + 10**6, "boundary_union <= union"),
        ("boundary_union", lambda c: c * 0, "a mask that is not empty has a boundary"),
        ("no_target", lambda c: c | True, "an expression without target has an empty target"),
        ("failed", lambda c: c | True, "a failed sample has an empty prediction"),
    ],
)
def test_a_table_that_breaks_one_is_refused(scored: Path, column: str, change: Any, identity: str) -> None:
    path = scored / "scores.parquet"
    whole = read_scores(path)
    values = np.array(getattr(whole, column)).copy()
    values[3] = change(values[3])
    write_table(path, scores_to_table(dataclasses.replace(whole, **{column: values})))
    with pytest.raises(RunError, match=r"row 3 \(snapshots/test/.*breaks an identity") as caught:
        read_scores(path)
    assert identity in str(caught.value)


def test_a_missing_column_is_named(scored: Path) -> None:
    path = scored / "scores.parquet"
    write_table(path, scores_to_table(read_scores(path)).drop_columns(["failed"]))
    with pytest.raises(RunError, match="has no column failed"):
        read_scores(path)


@pytest.mark.parametrize(
    ("metric", "figures", "message"),
    [
        ("precision_at_0.7", (99.9, 99.0, 100.0), "precision_at_X rises"),
        ("mean_iou", (101.0, 90.0, 100.0), "every figure is a percentage"),
        ("mean_iou", (50.0, 60.0, 40.0), "upside down"),
    ],
)
def test_a_summary_that_breaks_one_is_refused(
    scored: Path, metric: str, figures: tuple[float, float, float], message: str
) -> None:
    path = scored / "summary.json"
    summary = json.loads(path.read_text())
    if metric.startswith("precision"):
        summary["metrics"]["precision_at_0.6"]["value"] = 1.0
    summary["metrics"][metric] = dict(zip(("value", "low", "high"), figures, strict=True))
    path.write_text(json.dumps(summary))
    with pytest.raises(RunError, match=message):
        read_rows([scored])


def test_series_are_told_apart() -> None:
    one = (50.0, 40.0, 60.0)
    check_metrics({"Pr@50": one, "Pr@60": one, "seg_prec@0.50": (9.0, 8.0, 10.0), "seg_prec@0.95": (1.0, 0.0, 2.0)}, "")
    with pytest.raises(RunError, match="rises"):
        check_metrics({"Pr@0.7": (1.0, 0.0, 2.0), "Pr@0.8": one}, "here")
