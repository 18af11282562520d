"""summary.json: every protocol that was scored, on whichever day, and the files of earlier versions."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refbench import load_samples, run, score
from refbench.errors import RunError
from refbench.reports.leaderboard import build_tables, read_rows
from refbench.reports.pages import write_report
from refbench.reports.published import read_published
from refbench.scoring.results import read_result, read_summary
from refbench.storage.files import project_data

Cli = Callable[..., Any]


@pytest.fixture
def folder(embedded: Path, tmp_path: Path) -> Path:
    return run("noisy-oracle", "snapshots/test", options={"shift": "9"}, out=tmp_path / "run").folder


def protocols_in(folder: Path) -> list[str]:
    return list(json.loads((folder / "summary.json").read_text())["protocols"])


def test_protocols_stand_beside_each_other_whatever_the_order(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    for place, order in ((folder, ("lavt-480", "refbench", "cris")), (other, ("cris", "refbench", "lavt-480"))):
        for name in order:
            score(place, protocols=[name])
    assert protocols_in(folder) == ["refbench", "cris", "lavt-480"]
    assert (folder / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    together = tmp_path / "together"
    score(folder, protocols=["refbench", "cris", "lavt-480"], out=together)
    assert (together / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()


@pytest.mark.slow
def test_every_protocol_is_in_the_leaderboard_and_on_the_page(folder: Path, tmp_path: Path) -> None:
    for name in ("lavt-480", "refbench"):
        score(folder, protocols=[name])
    rows = read_rows([folder])
    assert [r.protocol for r in rows] == ["refbench", "lavt-480"]
    build_tables(rows, read_published(project_data("leaderboards") / "published"), tmp_path / "tables")
    table = (tmp_path / "tables" / "snapshots.md").read_text()
    assert "protocol `refbench`" in table
    assert "protocol `lavt-480`" in table
    page = write_report(folder).read_text()
    for name, metric in (("refbench", "cIoU"), ("lavt-480", "overall IoU")):
        assert f'<td>{name}</td><td class="word">{metric}</td>' in page
    assert "<li>lavt-480: the original predicts on its canvas" in page
    score(folder, protocols=["biou-hqsam"])
    assert "nan" not in re.sub(r"base64,[^\"]*", "", write_report(folder).read_text())


def test_other_answers_begin_a_new_file(embedded: Path, tmp_path: Path, refbench: Cli) -> None:
    samples = load_samples("snapshots/test")
    lines = [
        json.dumps({"sample_id": s.sample_id, "size": list(s.target.size), "counts": s.target.counts.decode()})
        for s in samples
    ]
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    path.write_text("\n".join(lines))
    score(path, "snapshots/test", protocols=["cris"], out=out)
    # The order of the lines is no other answer.
    path.write_text("\n".join(reversed(lines)))
    score(path, "snapshots/test", out=out)
    assert protocols_in(out) == ["refbench", "cris"]
    path.write_text("\n".join(lines[1:]))
    score(path, "snapshots/test", out=out)
    assert protocols_in(out) == ["refbench"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["failures"], summary["missing"]) == (1, 1)
    assert read_result(out).missing == 1
    done = refbench("score", path, "--dataset", "snapshots/test")
    assert "87 samples, 1 failed (1 of them without a prediction)" in done.stdout
    assert json.loads(refbench("score", path, "--dataset", "snapshots/test", "--json").stdout)["missing"] == 1


def as_before_0_1(folder: Path, *names: str) -> dict[str, Any]:
    """The summary of a folder as refbench 0.1.0.dev wrote it."""
    now = json.loads((folder / "summary.json").read_text())
    entries = {
        name: {
            "protocol": name,
            "dataset": f"{now['dataset']}/{now['split']}",
            "fingerprint": now["fingerprint"],
            "refbench_version": "0.1.0",
            "failures": now["failures"],
            **{k: now["protocols"][name][k] for k in ("samples", "interval", "metrics")},
        }
        for name in names
    }
    first = {**entries[names[0]], "sums": now["sums"]}
    return {**first, "protocols": entries} if len(entries) > 1 else first


@pytest.mark.parametrize("names", [("refbench",), ("refbench", "cris"), ("cris",)])
def test_summaries_of_before_0_1_are_read_and_joined(folder: Path, names: tuple[str, ...]) -> None:
    score(folder, protocols=["refbench", "cris"])
    now = read_result(folder)
    (folder / "summary.json").write_text(json.dumps(as_before_0_1(folder, *names)))
    before = read_result(folder)
    assert {n: before.summaries[n].metrics for n in names} == {n: now.summaries[n].metrics for n in names}
    assert (before.address, before.samples, before.failures) == (now.address, now.samples, now.failures)
    score(folder, protocols=["lavt-480"])
    assert set(protocols_in(folder)) == {*names, "lavt-480"}


WHOLE = {"dataset": "a/b", "fingerprint": "f", "samples": 1, "failures": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "Expected `object`, got `array`"),
        ({"protocol": "refbench", "protocols": 3}, "Expected `object`, got `int`"),
        ({"protocol": "refbench", "metrics": {}}, "missing required field"),
        (
            {"protocol": "refbench", "protocols": {"lisa": 3}, "dataset": "a/b"},
            "is not in the format that refbench writes",
        ),
        ({"protocol": "x", "protocols": 3, **WHOLE}, "Expected `object`, got `int` - at `$.protocols`"),
        ({"protocol": "x", "protocols": {"lisa": 3}, **WHOLE}, "Expected `object`, got `int`"),
    ],
)
def test_what_is_of_no_form_is_refused_with_its_name(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RunError) as caught:
        read_summary(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "run `refbench score" in str(caught.value)
