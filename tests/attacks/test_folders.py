"""Run folders, splits and tables of strangers: every command says what is wrong in one message, and ends with 3."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refbench import run, score
from refbench.cli.main import _run
from refbench.runs.folder import RunFolder

SPLIT = "snapshots/test"
BAD_INPUT = 3


@pytest.fixture(scope="module")
def made(embedded_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBENCH_HOME", str(embedded_home))
        score(run("center", SPLIT, out=folder).folder)
    return folder


@pytest.fixture
def folder(made: Path, embedded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def column(name: str, values: Callable[[pa.Table], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.column_names.index(name), name, values(t))


PARTS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a row twice": lambda t: pa.concat_tables([t, t.slice(3, 1)]),
    "a row less": lambda t: t.slice(1),
    "no row": lambda t: t.slice(0, 0),
    "a column less": lambda t: t.drop_columns(["instances"]),
    "a column more": lambda t: t.append_column("x", t["width"]),
    "a column renamed": lambda t: t.rename_columns([n.replace("error", "fault") for n in t.column_names]),
    "a column twice": lambda t: t.append_column("error", t["error"]),
    "text heights": column("height", lambda t: t["height"].cast("string")),
    "float heights": column("height", lambda t: t["height"].cast("float64")),
    "other heights": column("height", lambda t: pa.array([1] * len(t), pa.int32())),
    "negative heights": column("height", lambda t: pa.array([-1] * len(t), pa.int32())),
    "missing ids": column("sample_id", lambda t: pa.array([None] * len(t), pa.string())),
    "unknown ids": column("sample_id", lambda t: pa.array([f"{n}?" for n in t["sample_id"].to_pylist()])),
    "missing codes": column("counts", lambda t: pa.array([None] * len(t), pa.string())),
    "codes that are none": column("counts", lambda t: pa.array(["no code!"] * len(t))),
    "codes outside ASCII": column("counts", lambda t: pa.array(["\u00e9"] * len(t))),
    "no_target as text": column("no_target", lambda t: pa.array(["no"] * len(t))),
    "no_target as number": column("no_target", lambda t: pa.array([7] * len(t))),
    "missing errors": column("error", lambda t: pa.array([None] * len(t), pa.string())),
    "text that is not UTF-8": column(
        "sample_id", lambda t: pa.array([b"\xff\xfe"] * len(t), pa.binary()).view(pa.string())
    ),
    "notes as lists": column("note", lambda t: pa.array([["x"]] * len(t))),
}
VERBS: dict[str, Callable[[Path], list[str]]] = {
    "score": lambda f: ["score", str(f)],
    "report": lambda f: ["report", str(f)],
    "resume": lambda f: ["run", "center", SPLIT, "--out", str(f)],
}


def ends_with_one_message(words: list[str], capsys: pytest.CaptureFixture[str], *names: str) -> None:
    capsys.readouterr()
    code = _run(words)
    said = capsys.readouterr().err
    assert code == BAD_INPUT, said
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    assert message.count("error: ") == 1
    assert all(name in message for name in names), message


@pytest.mark.parametrize("change", PARTS)
@pytest.mark.parametrize("verb", ["score", "resume"])
def test_parts_of_strangers(change: str, verb: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = RunFolder(folder).written
    pq.write_table(PARTS[change](pq.read_table(path)), path)
    ends_with_one_message(VERBS[verb](folder), capsys)


@pytest.mark.parametrize(
    "fields",
    [
        {"samples": 2**40, "shards": 2**40}, {"samples": 10**9, "shards": 10**9}, {"samples": 88}, {"samples": 1},
        {"samples": 0, "shards": 0}, {"shards": 3}, {"samples": 87.5}, {"limit": 3}, {"finished": ""}, {"split": "val"},
        {"adapter": "\ud800"}, {"adapter": "a\0b"}, {"usage": {"requests": float("nan")}}, {"failures": -1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["score", "report"])
def test_run_json_of_strangers(
    fields: dict[str, Any], verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers are compared with the split before anything is made for each sample."""
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    ends_with_one_message(VERBS[verb](folder), capsys)


def test_a_part_of_no_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(RunFolder(folder).shard_path(0), RunFolder(folder).shard_path(7))
    ends_with_one_message(["score", str(folder)], capsys, "part-00007.parquet")


SPLITS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a row twice": lambda t: pa.concat_tables([t, t.slice(3, 1)]),
    "no polygons": lambda t: t.drop_columns(["polygons"]),
    "no tags": lambda t: t.drop_columns(["tags"]),
    "missing codes": column("target_counts", lambda t: pa.array([None] * len(t), pa.string())),
    "missing annotations": column("ann_ids", lambda t: pa.array([None] * len(t), pa.list_(pa.string()))),
    "text heights": column("height", lambda t: t["height"].cast("string")),
    "float heights": column("height", lambda t: t["height"].cast("float64")),
    "boxes of three": column("box_xywh", lambda t: pa.array([[1.0, 2.0, 3.0]] * len(t), pa.list_(pa.float64(), 3))),
    "codes outside ASCII": column("target_counts", lambda t: pa.array(["\u00e9"] * len(t))),
    "codes that are none": column("target_counts", lambda t: pa.array(["no code!"] * len(t))),
}


@pytest.mark.parametrize("change", SPLITS)
@pytest.mark.parametrize("verb", ["score", "report", "diagnose"])
def test_splits_of_strangers(
    change: str, verb: str, made: Path, embedded_home: Path, home: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(embedded_home / "datasets" / "snapshots", home / "datasets" / "snapshots")
    path = home / "datasets" / "snapshots" / "test.parquet"
    pq.write_table(SPLITS[change](pq.read_table(path)), path)
    folder = shutil.copytree(made, tmp_path / "run")
    ends_with_one_message([verb, str(folder)], capsys, "test.parquet")
