"""The run folder as a stranger may have left it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refbench import run, score
from refbench.errors import RefbenchError, RunError
from refbench.runs.folder import RunFolder


@pytest.fixture
def folder(embedded: Path, tmp_path: Path) -> Path:
    return run("center", "snapshots/test", out=tmp_path / "run").folder


def changed(folder: Path, **fields: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shards": -1}, r"Expected `int` >= 0 - at `\$.shards`"),
        ({"shards": 10**15}, "Expected `int` <="),
        ({"shards": 10**6}, r"states more shards \(1000000\) than samples \(87\);"),
        ({"samples": "87"}, "Expected `int`, got `str`"),
        ({"adapter_options": [1]}, "Expected `object`, got `array`"),
        ({"limit": 1.5}, "Expected `int"),
        ({"dataset": None}, "Expected `str`, got `null`"),
    ],
)
def test_run_json_is_checked_where_it_is_read(folder: Path, fields: dict[str, Any], message: str) -> None:
    changed(folder, **fields)
    with pytest.raises(RunError, match=message) as caught:
        score(folder)
    assert str(folder / "run.json") in str(caught.value)


def test_a_field_that_earlier_versions_lack_has_its_default(folder: Path) -> None:
    path = folder / "run.json"
    content = json.loads(path.read_text())
    for name in ("usage", "answer_notes", "workers", "engine", "deterministic", "mode", "batch_pixels"):
        del content[name]
    path.write_text(json.dumps({**content, "of_a_later_version": 1}))
    info = RunFolder(folder).info
    assert (info.workers, info.engine, info.mode, info.usage) == (1, "local", "", {})
    assert score(folder).summaries


def rewritten(folder: Path, change: Any) -> None:
    (path,) = RunFolder(folder).written
    pq.write_table(change(pq.read_table(path)), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pa.concat_tables([t, t.slice(3, 1)]), "occurs twice in"),
        (lambda t: t.slice(1), "has no prediction for 1 of its samples"),
        (lambda t: t.drop_columns(["counts"]), "is damaged"),
        (lambda t: t.set_column(1, "height", t["width"].cast("string")), "has no column height of type int32"),
        (lambda t: t.append_column("x", t["width"]), "has a column that no run writes: 'x'"),
        (lambda t: t.slice(0, 0), "has no prediction for 87 of its samples"),
        (lambda t: t.set_column(5, "no_target", pa.array(["yes"] * len(t))), "has no column no_target of type bool"),
        (
            lambda t: t.set_column(7, "error", pa.array([None] * len(t), pa.string())),
            "has no value in the column error",
        ),
        (lambda t: t.set_column(0, "sample_id", pa.array(["no/such/sample"] * len(t))), "is not in this split"),
    ],
)
def test_shards_hold_each_sample_once(folder: Path, change: Any, message: str) -> None:
    rewritten(folder, change)
    with pytest.raises(RefbenchError, match=message):
        score(folder)


def test_predictions_are_those_of_the_samples_wanted(folder: Path) -> None:
    whole = list(RunFolder(folder).predictions())
    assert len(whole) == 87
    wanted = {whole[5].sample_id, whole[9].sample_id}
    assert [p.sample_id for p in RunFolder(folder).predictions(wanted)] == [whole[5].sample_id, whole[9].sample_id]
    RunFolder(folder).written[0].unlink()
    with pytest.raises(RunError, match="is damaged"):
        list(RunFolder(folder).predictions())
