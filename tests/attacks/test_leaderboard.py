"""Forged scored folders: none gets a rank, and `leaderboard verify` names each with the reason."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refbench import run, score
from refbench.cli.main import _run
from refbench.reports.leaderboard import build_tables, rankings, read_rows
from refbench.reports.published import read_published
from refbench.reports.recomputation import Status, verify
from refbench.runs.folder import RunFolder

SPLIT = "snapshots/test"


@pytest.fixture(scope="module")
def made(embedded_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two honest scored runs: `center`, and `oracle`, whose figures a cheat would like to have."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBENCH_HOME", str(embedded_home))
        for name, adapter in (("honest", "center"), ("oracle", "noisy-oracle")):
            score(run(adapter, SPLIT, out=place / name).folder, protocols=["refbench", "cris"])
    return place


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rewritten(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    (path,) = RunFolder(folder).written
    pq.write_table(change(pq.read_table(path)), path)


def figures(folder: Path, value: float = 100.0) -> None:
    """Write figures by hand into summary.json."""
    path = folder / "summary.json"
    content = json.loads(path.read_text())
    for entry in content["protocols"].values():
        for metric in entry["metrics"].values():
            metric.update(value=value, low=value, high=value)
    path.write_text(json.dumps(content))


def hand_written(folder: Path, oracle: Path) -> None:
    (folder / "scores.parquet").unlink()
    figures(folder)


def without_predictions(folder: Path, oracle: Path) -> None:
    shutil.rmtree(folder / "predictions")
    (folder / "scores.parquet").unlink()
    figures(folder)


def forged_scores(folder: Path, oracle: Path) -> None:
    """Scores and summary of the oracle, with honest predictions beside them."""
    for name in ("scores.parquet", "summary.json"):
        shutil.copy(oracle / name, folder / name)


def one_forged_row(folder: Path, oracle: Path) -> None:
    """All sums as they were: what one sample gains, another loses."""
    path = folder / "scores.parquet"
    table = pq.read_table(path)
    order = np.arange(len(table))
    order[[0, 5]] = order[[5, 0]]
    columns = ("intersection", "union", "prediction_area", "target_area", "boundary_intersection", "boundary_union")
    for name in columns:
        values = table[name].to_numpy()[order]
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


def doubled_rows(folder: Path, oracle: Path) -> None:
    rewritten(folder, lambda t: pa.concat_tables([t, t.slice(3, 1)]))


def left_out_rows(folder: Path, oracle: Path) -> None:
    rewritten(folder, lambda t: t.slice(1))


def predictions_of_another_run(folder: Path, oracle: Path) -> None:
    shutil.copy(RunFolder(oracle).written[0], RunFolder(folder).written[0])


def another_split(folder: Path, oracle: Path) -> None:
    changed(folder / "run.json", split="val")
    changed(folder / "summary.json", split="val")


def another_split_in_the_summary(folder: Path, oracle: Path) -> None:
    (folder / "scores.parquet").unlink()
    changed(folder / "summary.json", dataset="refcoco", split="testA")


def another_fingerprint(folder: Path, oracle: Path) -> None:
    for name in ("run.json", "summary.json"):
        changed(folder / name, fingerprint="0" * 64)


def a_later_version(folder: Path, oracle: Path) -> None:
    changed(folder / "run.json", refbench_version="99.1")


def renamed_columns(folder: Path, oracle: Path) -> None:
    rewritten(folder, lambda t: t.rename_columns([n.replace("counts", "mask") for n in t.column_names]))


def one_sample(folder: Path, oracle: Path) -> None:
    (folder / "scores.parquet").unlink()
    for name in ("run.json", "summary.json"):
        changed(folder / name, samples=1)
    changed(folder / "run.json", shards=1)


def unfinished(folder: Path, oracle: Path) -> None:
    changed(folder / "run.json", finished="")


def an_invented_protocol(folder: Path, oracle: Path) -> None:
    path = folder / "summary.json"
    content = json.loads(path.read_text())
    content["protocols"] = {"invented": content["protocols"]["refbench"]}
    path.write_text(json.dumps(content))


def an_invented_metric(folder: Path, oracle: Path) -> None:
    path = folder / "summary.json"
    content = json.loads(path.read_text())
    content["protocols"]["cris"]["metrics"]["brilliance"] = {"value": 100.0, "low": 100.0, "high": 100.0}
    content["protocols"].pop("refbench")
    path.write_text(json.dumps(content))


def many_samples(folder: Path, oracle: Path) -> None:
    """Numbers by which nothing must be allocated."""
    for name in ("run.json", "summary.json"):
        changed(folder / name, samples=2**40)
    changed(folder / "run.json", shards=2**40)
    (folder / "scores.parquet").unlink()


def failures_hidden(folder: Path, oracle: Path) -> None:
    rewritten(folder, lambda t: t.set_column(t.column_names.index("error"), "error", pa.array(["lost"] * len(t))))


def a_damaged_summary(folder: Path, oracle: Path) -> None:
    (folder / "summary.json").write_text('{"dataset": "\\ud800"}')


FORGERIES = [
    hand_written, without_predictions, forged_scores, one_forged_row, doubled_rows, left_out_rows,
    predictions_of_another_run, another_split, another_split_in_the_summary, another_fingerprint, a_later_version,
    renamed_columns, one_sample, unfinished, an_invented_protocol, an_invented_metric, many_samples, failures_hidden,
    a_damaged_summary,
]  # fmt: skip


@pytest.mark.parametrize("forge", FORGERIES)
def test_no_forged_folder_ranks(
    forge: Callable[[Path, Path], None], made: Path, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, forged = tmp_path / "runs" / "honest", tmp_path / "runs" / "forged"
    for folder in (honest, forged):
        shutil.copytree(made / "honest", folder)
    forge(forged, made / "oracle")
    before = {p: p.read_bytes() for p in forged.rglob("*") if p.is_file()}
    verdicts = verify(forged)
    wrong = [v for v in verdicts if v.status is not Status.VERIFIED]
    assert wrong
    assert all(v.reason for v in wrong)
    rows = read_rows([tmp_path / "runs"])
    for ranking in rankings([r for r in rows if r.address == SPLIT]):
        # Of a forged folder, only a protocol whose figures its predictions give may rank.
        good = {v.protocol for v in verdicts if v.status is Status.VERIFIED}
        assert {r.protocol for r in ranking.rows if r.folder == forged} <= good
        assert all(r.reason for r in ranking.unranked)
    assert honest in {r.folder for ranking in rankings(rows) for r in ranking.rows}
    # The command names it, and changes nothing.
    code = _run(["leaderboard", "verify", str(tmp_path / "runs"), "--json"])
    told = {(v["folder"], v["protocol"]): v for v in json.loads(capsys.readouterr().out)}
    assert {v["status"] for (f, _), v in told.items() if f == str(honest)} == {"verified"}
    assert {v["status"] for (f, _), v in told.items() if f == str(forged)} - {"verified"}
    refused = any(v["status"] == "refused" for v in told.values())
    assert code == (1 if refused else 0)
    assert before == {p: p.read_bytes() for p in forged.rglob("*") if p.is_file()}


def test_honest_folders_are_verified(made: Path, embedded: Path) -> None:
    for name in ("honest", "oracle"):
        assert [(v.protocol, v.status) for v in verify(made / name)] == [
            ("refbench", Status.VERIFIED), ("cris", Status.VERIFIED)
        ]  # fmt: skip


def test_without_the_dataset_nothing_ranks(made: Path, home: Path) -> None:
    assert {v.status for v in verify(made / "honest")} == {Status.ELSEWHERE}
    assert "has not been built" in verify(made / "honest")[0].reason


HOSTILE = (
    "<img src=x onerror=alert(1)>", "![x](http://a.b/c.png)", "[x](javascript:alert(1))", "**bold** _it_ ~~no~~ `c`",
    "a|b|c", "a\nb\r\nc\u2028d", "=HYPERLINK(0)", "+1+1", "@SUM(1)", "-2+3", "\t=1", "\u202eevil", "a\\|b", "$x$",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_stay_text_in_every_table(name: str, made: Path, embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    shutil.copytree(made / "honest", folder)
    changed(folder / "run.json", adapter=name)
    published = read_published(tmp_path)
    row = dict.fromkeys(published.columns, "")
    row |= {"system": name, "variant": name, "benchmark": "Snapshots", "split": "test", "metric_id": "ciou"}
    row |= {"metric_as_printed": name, "value": "12.5", "protocol": "cris", "source": name, "note": name}
    published.loc[0] = row
    build_tables(read_rows([tmp_path / "runs"]), published, tmp_path / "tables")
    for page in (tmp_path / "tables").glob("*.md"):
        text = page.read_text()
        assert not re.search(r"<(img|script|a)\b|[\r\u2028\u202e]", text)
        assert "](" not in text.replace("\\]", "")
        for line in text.splitlines():
            if line.startswith("|"):
                # As many cells as the head has: no bar of a name opens one.
                cells = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
                assert cells in {len(re.findall(r"\|", head)) for head in text.splitlines() if set(head) <= set("|-")}
    for table in (tmp_path / "tables").glob("*.csv"):
        with table.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        assert all(len(line) == len(lines[0]) for line in lines)
        assert not [c for line in lines for c in line if len(c) > 1 and c[0] in "=+-@\t\r" and not c[1:2].isdigit()]
