"""Submissions that are verified or refused, and results in the formats of the Hugging Face Hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub._eval_results import eval_result_entries_to_yaml, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from refbench import run, score
from refbench.errors import RunError
from refbench.reports.recomputation import Status, verify
from refbench.reports.submission import submit
from refbench.storage.files import path_sha256

Cli = Callable[..., Any]


@pytest.fixture
def scored(embedded: Path, tmp_path: Path) -> Path:
    folder = run("noisy-oracle", "snapshots/test", options={"dilate": "2"}, out=tmp_path / "run").folder
    score(folder, protocols=["refbench", "lavt-480"])
    return folder


def test_a_submission_is_verified_by_its_command(scored: Path, tmp_path: Path, refbench: Cli) -> None:
    done = refbench("submit", scored, "--out", tmp_path / "board", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    folder = Path(made["folder"])
    assert folder == tmp_path / "board" / "noisy-oracle-dilate=2" / "snapshots-test"
    assert made["protocols"] == {"refbench": "verified", "lavt-480": "verified"}
    assert made["verify"] == "refbench leaderboard verify noisy-oracle-dilate=2/snapshots-test"
    checked = refbench("leaderboard", "verify", tmp_path / "board" / made["verify"].split()[-1], "--strict")
    assert checked.returncode == 0
    assert checked.stdout.count("\tverified\t") == 2
    readme = (folder / "README.md").read_text()
    value = score(scored).summaries["refbench"].metrics["mean_iou"].value
    assert f"{value:.1f}" in readme
    assert made["verify"] in readme
    table = pq.read_table(next((folder / "predictions").iterdir()))
    assert set(table["raw"].to_pylist()) | set(table["note"].to_pylist()) == {""}
    assert str(tmp_path) not in readme
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "run.json",
        "summary.json",
        "scores.parquet",
        "predictions",
    }
    again = refbench("submit", scored, "--out", tmp_path / "board")
    assert again.returncode == 3
    assert "already exists" in again.stderr
    assert not [p for p in (tmp_path / "board").iterdir() if p.name.startswith(".")]


def change_json(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return tamper


def higher(content: Any) -> None:
    content["protocols"]["refbench"]["metrics"]["mean_iou"]["value"] += 1


def wider(content: Any) -> None:
    content["protocols"]["lavt-480"]["metrics"]["overall IoU"]["high"] += 1


def swap_masks(folder: Path) -> None:
    path = next((folder / "predictions").iterdir())
    table = pq.read_table(path)
    rows = table.to_pylist()
    by_size = {}
    for row in rows:
        other = by_size.setdefault((row["height"], row["width"]), row)
        if other["counts"] != row["counts"]:
            row["counts"], other["counts"] = other["counts"], row["counts"]
            break
    pq.write_table(type(table).from_pylist(rows, table.schema), path)


def drop_row(folder: Path) -> None:
    path = next((folder / "predictions").iterdir())
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def repeat_row(folder: Path) -> None:
    path = next((folder / "predictions").iterdir())
    table = pq.read_table(path)
    pq.write_table(type(table).from_pylist([*table.to_pylist(), table.to_pylist()[0]], table.schema), path)


def no_predictions(folder: Path) -> None:
    shutil.rmtree(folder / "predictions")


TAMPERINGS: dict[str, Callable[[Path], None]] = {
    "a higher figure": change_json("summary.json", higher),
    "another interval": change_json("summary.json", wider),
    "fewer samples": change_json("summary.json", lambda c: c.update(samples=c["samples"] - 1)),
    "fewer failures": change_json("summary.json", lambda c: c.update(failures=1)),
    "another fingerprint": change_json("summary.json", lambda c: c.update(fingerprint="0" * 64)),
    "another split": change_json("run.json", lambda c: c.update(split="val")),
    "a later version": change_json("run.json", lambda c: c.update(refbench_version="99.0")),
    "an unknown protocol": change_json(
        "summary.json", lambda c: c["protocols"].update(mine=c["protocols"]["refbench"])
    ),
    "two masks exchanged": swap_masks,
    "a prediction less": drop_row,
    "a prediction twice": repeat_row,
    "no predictions": no_predictions,
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_a_submission_that_was_changed_is_refused(kind: str, scored: Path, tmp_path: Path) -> None:
    made = submit(scored, tmp_path / "board")
    assert all(v.status is Status.VERIFIED for v in verify(made.folder))
    TAMPERINGS[kind](made.folder)
    # By the reviewer, and if somebody wants to submit it again.
    assert any(v.status is not Status.VERIFIED and v.reason for v in verify(made.folder))
    with pytest.raises(RunError):
        submit(made.folder, tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.json"))


def test_predictions_can_stay_elsewhere(scored: Path, tmp_path: Path, refbench: Cli) -> None:
    made = submit(scored, tmp_path / "board", url="https://example.org/p.zip")
    link = json.loads((made.folder / "predictions.json").read_text())
    assert link["sha256"] == path_sha256(scored / "predictions", "*.parquet")
    assert not (made.folder / "predictions").exists()
    assert {v.status for v in verify(made.folder)} == {Status.ELSEWHERE}
    assert refbench("leaderboard", "verify", made.folder).returncode == 0
    assert refbench("leaderboard", "verify", made.folder, "--strict").returncode == 1
    # The reviewer puts them there.
    shutil.copytree(scored / "predictions", made.folder / "predictions")
    assert {v.status for v in verify(made.folder)} == {Status.VERIFIED}


def test_runs_that_cannot_be_submitted(embedded: Path, tmp_path: Path) -> None:
    folder = run("center", "snapshots/test", out=tmp_path / "run").folder
    with pytest.raises(RunError, match="is not scored"):
        submit(folder, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="is not a run folder"):
        submit(tmp_path / "empty", tmp_path / "out")


def check_eval_results(content: Any) -> None:
    """The specification of `.eval_results/*.yaml`, restated: a list of entries; id, task_id and value are required."""
    assert isinstance(content, list)
    assert content
    for entry in content:
        assert set(entry) <= {"dataset", "value", "verifyToken", "date", "source", "notes"}
        assert set(entry["dataset"]) <= {"id", "task_id", "revision"}
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry["dataset"]["id"])
        assert re.fullmatch(r"[\w.-]+", entry["dataset"]["task_id"])
        assert isinstance(entry["value"], float | int)
        assert set(entry.get("source", {"url": ""})) <= {"url", "name", "user", "org"}
        assert "url" in entry.get("source", {"url": ""})


def check_eval_yaml(content: Any) -> None:
    """The specification of `eval.yaml`, restated: a name, a description, a framework, and tasks with an id."""
    assert set(content) == {"name", "description", "evaluation_framework", "tasks"}
    ids = [task["id"] for task in content["tasks"]]
    assert len(set(ids)) == len(ids) > 0
    for task in content["tasks"]:
        assert set(task) <= {"id", "config", "split"}
        assert all(isinstance(v, str) and v for v in task.values())


def test_results_for_the_hub(scored: Path, tmp_path: Path, refbench: Cli) -> None:
    words = ("export", scored, "--format", "hf-eval", "--out", tmp_path / "hub", "--hub-dataset", "owner/snapshots")
    done = refbench(*words, "--source-url", "https://example.org/run", "--json")
    assert done.returncode == 0, done.stderr
    results, index = map(Path, json.loads(done.stdout)["files"])
    assert results == tmp_path / "hub" / ".eval_results" / "snapshots-test.yaml"
    content = yaml.safe_load(results.read_text())
    check_eval_results(content)
    entries = parse_eval_result_entries(content)
    assert eval_result_entries_to_yaml(entries) == content
    by_task = {e.task_id: e.value for e in entries}
    summaries = score(scored).summaries | score(scored, protocols=["lavt-480"]).summaries
    assert by_task["test-refbench-mean_iou"] == round(summaries["refbench"].metrics["mean_iou"].value, 4)
    assert set(by_task) == {
        "test-refbench-cumulative_iou", "test-refbench-mean_iou", "test-refbench-mean_boundary_iou",
        "test-lavt-480-overall_IoU",
    }  # fmt: skip
    card = yaml.safe_load(index.read_text())
    name, found = model_index_to_eval_results(card["model-index"])
    assert name == "noisy-oracle (dilate=2)"
    assert {r.metric_type: r.metric_value for r in found} == by_task
    assert {r.dataset_split for r in found} == {"test"}
    data = ModelCardData(model_name=name, eval_results=found)
    assert data.to_dict()["model-index"][0]["results"]
    for wrong in ("snapshots", "../x/y", "a/b/c"):
        assert refbench(*words[:-1], wrong).returncode == 3
    assert refbench(*words[:-2]).returncode == 2


def test_an_exported_dataset_registers_as_a_benchmark(embedded: Path, tmp_path: Path, refbench: Cli) -> None:
    done = refbench("export", "snapshots/test", "--format", "hf", "--out", tmp_path / "d", "--json")
    assert done.returncode == 0, done.stderr
    content = yaml.safe_load((tmp_path / "d" / "eval.yaml").read_text())
    check_eval_yaml(content)
    assert {t["split"] for t in content["tasks"]} == {"test"}
    assert "test-refbench-mean_iou" in {t["id"] for t in content["tasks"]}
    assert str(tmp_path / "d" / "eval.yaml") in json.loads(done.stdout)["files"]
