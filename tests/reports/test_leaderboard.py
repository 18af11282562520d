"""Tables: ranked, with intervals, published results apart, and data that is tested like code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from refbench import run, score
from refbench.errors import RefbenchError
from refbench.plugins.loading import available
from refbench.plugins.table import TABLE
from refbench.reports.leaderboard import (
    build_tables,
    published_markdown,
    read_rows,
)
from refbench.reports.published import DATASET_OF_BENCHMARK, PUBLISHED_COLUMNS, UNKNOWN, read_published
from refbench.reports.recomputation import Status
from refbench.scoring.protocols.systems import SYSTEMS
from refbench.storage.files import project_data

Cli = Callable[..., subprocess.CompletedProcess[str]]
PUBLISHED = project_data("leaderboards") / "published"


@pytest.fixture
def runs(embedded: Path, tmp_path: Path) -> Path:
    for adapter, options in (("nothing", {}), ("center", {}), ("noisy-oracle", {"dilate": "2"})):
        folder = tmp_path / "runs" / adapter / "scenes-val"
        score(run(adapter, "scenes/val", options=options, out=folder).folder)
    return tmp_path / "runs"


@pytest.mark.slow
def test_tables_rank_and_keep_published_figures_apart(runs: Path, tmp_path: Path) -> None:
    files = build_tables(read_rows([runs]), read_published(PUBLISHED), tmp_path / "tables")
    text = (tmp_path / "tables" / "scenes.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split("|")[2].strip() for line in lines] == ["system", "noisy-oracle (dilate=2)", "center", "nothing"]
    assert "cIoU" in lines[0]
    assert "[" in lines[1]
    measured = pd.read_csv(tmp_path / "tables" / "measured.csv")
    assert set(measured.columns) >= {"system", "metric", "value", "low", "high", "fingerprint", "protocol"}
    assert len(measured) == 3 * 9
    # Twice the same bytes.
    before = {f: f.read_bytes() for f in files}
    build_tables(read_rows([runs]), read_published(PUBLISHED), tmp_path / "tables")
    assert before == {f: f.read_bytes() for f in files}


def test_every_table_of_published_figures_has_one_protocol_and_is_sorted() -> None:
    published = read_published(PUBLISHED)
    figures = published[(published["benchmark"] == "RefCOCO") & (published["split"] == "val")]
    shown = 0
    tables = published_markdown(figures).split("Published, ")[1:]
    assert len(tables) == figures["protocol"].nunique()
    for text in tables:
        protocol = UNKNOWN if text.startswith("protocol not known") else text.split("`")[1]
        rows = figures[figures["protocol"] == protocol]
        head, *lines = (
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in text.splitlines()
            if line.startswith("| ")
        )
        first, last = (3, 4) if protocol == UNKNOWN else (2, head.index("evidence"))
        values = [float(cell) for line in lines for cell in line[first:last] if cell]
        assert sorted(values) == sorted(rows["value"].astype(float))
        if protocol not in (UNKNOWN, "mlcd-seg"):
            headline = [float(line[2]) for line in lines if line[2]]
            assert headline == sorted(headline, reverse=True)
        shown += len(values)
    assert shown == len(figures)
    assert tables[-1].startswith("protocol not known")


def test_every_published_figure_has_source_and_evidence() -> None:
    published = read_published(PUBLISHED)
    assert len(published) >= 789
    assert tuple(published.columns) == PUBLISHED_COLUMNS
    assert published["source"].str.len().gt(0).all()
    assert published["protocol_note"].str.len().gt(0).all()
    assert set(DATASET_OF_BENCHMARK.values()) & set(TABLE["builders"])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("value", "high", "line 2: the value 'high' is not a number"),
        ("evidence", "hearsay", "line 2: evidence must be one of"),
        ("source", "", "line 2: every published figure needs its source"),
        ("metric_id", "", "line 2: metric_id is empty"),
        ("protocol", "", "line 2: there is no protocol ''; use a name of `refbench list protocols`, or 'unknown'"),
        ("protocol", "lavt", "line 2: there is no protocol 'lavt'"),
        ("protocol_note", "", "line 2: protocol_note is empty"),
    ],
)
def test_bad_published_rows_are_named(tmp_path: Path, column: str, value: str, message: str) -> None:
    row = dict.fromkeys(PUBLISHED_COLUMNS, "x") | {"value": "1.5", "evidence": "primary", "protocol": "cris"}
    row[column] = value
    pd.DataFrame([row]).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(RefbenchError, match=message):
        read_published(tmp_path)
    pd.DataFrame([{"a": 1}]).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(RefbenchError, match="the columns must be"):
        read_published(tmp_path)


@pytest.mark.slow
def test_published_rows_know_their_rule(refbench: Cli) -> None:
    published = read_published(PUBLISHED)
    # A system prints by the rule that is said of it, wherever its figures stand.
    for row in published[published["protocol"] != UNKNOWN].itertuples():
        assert row.system in SYSTEMS[row.protocol], (row.system, row.protocol)
    assert set(SYSTEMS) <= set(available("protocols"))
    assert (published["protocol"] == "caris-448").sum() == 65
    assert (published["protocol"] == UNKNOWN).sum() < 160
    listed = {p["name"]: p for p in json.loads(refbench("list", "protocols", "--json").stdout)["protocols"]}
    assert listed["lavt-480"]["systems"] == ["LAVT"]
    assert listed["etris"]["same_as"] == "cris"
    assert {name for name, p in listed.items() if p["systems"]} == set(SYSTEMS)
    assert all(p["summary"] and p["source"] for p in listed.values())
    assert "ETRIS" in refbench("list", "protocols").stdout


def test_a_damaged_summary_is_named_and_costs_no_other_run(runs: Path) -> None:
    path = next(runs.rglob("summary.json"))
    path.write_text(json.dumps({"metrics": {}}))
    said: list[str] = []
    assert len(read_rows([runs], log=said.append)) == 2
    assert "is not in the format that refbench writes: Object missing required field `dataset`;" in said[0]
    assert str(path.parent) in said[0]


@pytest.mark.slow
def test_the_committed_tables_are_those_of_the_committed_runs(embedded: Path, tmp_path: Path) -> None:
    place = project_data("leaderboards")
    rows = read_rows([place / "runs"])
    assert {row.status for row in rows} == {Status.VERIFIED}
    build_tables(rows, read_published(PUBLISHED), tmp_path)
    fresh = {p.name: p.read_text() for p in tmp_path.iterdir()}
    committed = {p.name: p.read_text() for p in (place / "tables").iterdir()}
    assert fresh == committed, "run `refbench leaderboard build --out leaderboards/tables` and commit it"
