"""Identities of counts and summaries: they hold for every rule, and what breaks one is refused with its name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refbench import run, score
from refbench.errors import DatasetError, RunError
from refbench.records import Estimate, Summary
from refbench.reports.leaderboard import read_rows
from refbench.reports.recomputation import Status, verify
from refbench.scoring.counts import check_scores, read_scores, scores_to_table
from refbench.scoring.protocols.audit import check_summary
from refbench.scoring.results import read_result
from refbench.storage.files import write_table


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


@pytest.mark.parametrize("column", ["sample_id", "image_id"])
def test_ids_that_are_no_text(scored: Path, column: str) -> None:
    path = scored / "scores.parquet"
    table = pq.read_table(path)
    texts = [text.encode() for text in table[column].to_pylist()]
    texts[3] = b"\xff" + texts[3]
    place = table.schema.get_field_index(column)
    write_table(path, table.set_column(place, column, pa.array(texts, pa.binary()).view(pa.string())))
    with pytest.raises(DatasetError, match=re.escape(str(path))):
        read_scores(path)
    (verdict,) = verify(scored)
    assert verdict.status is Status.REFUSED


@pytest.mark.parametrize(
    ("column", "change", "identity"),
    [
        ("union", lambda c: c + 1, "union = prediction_area"),
        ("intersection", lambda c: c * 0 - 1, "no count is negative"),
        ("boundary_intersection", lambda c: c + 10**6, "boundary_intersection <= intersection"),
        ("boundary_union", lambda c: c + 10**6, "boundary_union <= union"),
        ("boundary_union", lambda c: c * 0, "a mask that is not empty has a boundary"),
        ("boundary_union", lambda c: c * 0 + 1, "boundary_intersection <= boundary_union"),
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
    with pytest.raises(RunError, match=r", row 3 \(.*\) contains impossible counts; expected:") as caught:
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
        ("precision_at_0.7", (99.9, 99.0, 100.0), ": the values of precision_at_X must not increase with"),
        ("mean_iou", (101.0, 90.0, 100.0), "but every metric must be a percentage"),
        ("mean_iou", (50.0, 60.0, 40.0), r"than the upper end, 40\.0; score the run again"),
    ],
)
def test_a_summary_that_breaks_one_is_refused(
    scored: Path, metric: str, figures: tuple[float, float, float], message: str
) -> None:
    path = scored / "summary.json"
    summary = json.loads(path.read_text())
    if metric.startswith("precision"):
        summary["protocols"]["refbench"]["metrics"]["precision_at_0.6"]["value"] = 1.0
    summary["protocols"]["refbench"]["metrics"][metric] = dict(zip(("value", "low", "high"), figures, strict=True))
    path.write_text(json.dumps(summary))
    (verdict,) = verify(scored)
    assert verdict.status is Status.REFUSED
    assert re.search(message, verdict.reason)


def test_series_are_told_apart() -> None:
    one, little = Estimate(50.0, 40.0, 60.0), Estimate(1.0, 0.0, 2.0)
    series = {"Pr@50": one, "Pr@60": one, "seg_prec@0.50": Estimate(9.0, 8.0, 10.0), "seg_prec@0.95": little}
    check_summary(Summary("any", series, 3, 0), "")
    with pytest.raises(RunError, match=": the values of Pr@X must not increase with"):
        check_summary(Summary("any", {"Pr@0.7": little, "Pr@0.8": one}, 3, 0), "here")


def own(summary: dict[str, Any]) -> dict[str, Any]:
    return summary["protocols"]["refbench"]


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    return own(summary)["metrics"]


def edited(scored: Path, change: Any) -> Path:
    path = scored / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))
    return scored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["sums"].update(union=s["sums"]["union"] + 1), "sums.union is"),
        (lambda s: s.update(failures=3), "3 failures, 0 in the rows"),
        (lambda s: figures(s)["mean_iou"].update(value=figures(s)["mean_iou"]["low"]), "from the rows"),
        (lambda s: s.update(split="other"), "the rows are of snapshots/test"),
        (lambda s: s.update(fingerprint="f" * 64), "is not that of the run"),
        (lambda s: figures(s)["mean_iou"].update(value=None, low=None, high=None), "has no value"),
        (lambda s: figures(s)["mean_iou"].update(low=figures(s)["mean_iou"]["value"]), "from the rows"),
        (lambda s: figures(s).pop("mean_iou"), "its metrics are not those of refbench"),
        (lambda s: s.update(samples=7), "87 samples by refbench, 7 in all"),
        (lambda s: (s.update(samples=7), own(s).update(samples=7)), "7 samples, 87 in the run"),
        (lambda s: s.update(missing=2), "missing <= failures <= samples"),
        (lambda s: s.update(samples=float("inf")), "contains the number inf, which refbench never writes"),
        (lambda s: s["protocols"].update(lisa={**own(s), "samples": 99}), "99 samples by lisa, 87 in all"),
        (lambda s: own(s).pop("metrics"), "missing required field `metrics`"),
        (lambda s: s.pop("protocols"), "missing required field `protocols`"),
        (lambda s: own(s).update(metrics=[]), "run `refbench score"),
    ],
)
def test_a_summary_that_contradicts_its_neighbours_is_refused(scored: Path, change: Any, message: str) -> None:
    assert read_result(scored).scores is not None
    with pytest.raises(RunError, match=message):
        read_result(edited(scored, change))


def test_a_summary_of_the_wrong_kind_is_refused(scored: Path) -> None:
    (scored / "summary.json").write_text("[1, 2]")
    with pytest.raises(RunError, match="summary"):
        read_result(scored)


def test_counts_lie_within_the_image(scored: Path) -> None:
    table = read_scores(scored / "scores.parquet")
    pixels = np.full(len(table), 10**9)
    check_scores(table, "here", pixels)
    pixels[5] = 3
    with pytest.raises(RunError, match=r"row 5 .*a mask has no more pixels than its image"):
        check_scores(table, "here", pixels)


def test_rows_are_of_their_types_and_there_once(scored: Path) -> None:
    path = scored / "scores.parquet"
    table = read_scores(path)
    write_table(path, scores_to_table(table.take(np.array([0, 1, 2, 1]))))
    with pytest.raises(RunError, match=r", row 3: the sample .* occurs twice; run `refbench"):
        read_scores(path)
    whole = scores_to_table(table)
    write_table(path, whole.set_column(whole.column_names.index("union"), "union", whole["union"].cast("float64")))
    with pytest.raises(
        RunError,
        match=r"the column union was not written by refbench, because it has the type .*double; run",
    ):
        read_scores(path)


def test_metrics_without_a_value_survive_the_file(scored: Path) -> None:
    # snapshots/test has expressions without target; an empty answer to one leaves HQ-SAM's mean without a value.
    run("nothing", "snapshots/test", out=scored / "nothing")
    score(scored / "nothing", protocols=["biou-hqsam", "samtok-bench"])
    text = (scored / "nothing" / "summary.json").read_text()
    assert "NaN" not in text
    metrics = read_result(scored / "nothing").summaries["biou-hqsam"].metrics
    assert all(np.isnan(v) for v in dataclasses.astuple(metrics["val_iou_0"]))
    assert [r.protocol for r in read_rows([scored / "nothing"])] == ["biou-hqsam", "samtok-bench"]
