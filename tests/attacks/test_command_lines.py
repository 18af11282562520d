"""Arguments, names and links that lead elsewhere, and commands that are asked to end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from events import GIVE_UP_SECONDS, calls, wait_until

from refbench import load_samples, run, score
from refbench.adapters.worker import Worker
from refbench.cli.main import _run
from refbench.datasets.builders.base import staging_folder
from refbench.errors import AdapterError, DatasetError, PredictionError, RunError
from refbench.runs.folder import Journal, RunFolder

SPLIT = "snapshots/test"
USAGE, BAD_INPUT = 2, 3


@pytest.mark.parametrize("words", [
    ["run", "center", SPLIT, "--out", ""], ["run", "center", SPLIT, "--out="], ["score", ""], ["report", ""],
    ["score", "x", "--out", ""], ["curate", "audit", SPLIT, "--out", ""], ["leaderboard", "build", "--out", ""],
    ["export", SPLIT, "--out", ""], ["run", "center", SPLIT, "--out", "o\udc80"], ["score", "caf\udce9"],
])  # fmt: skip
def test_arguments_that_are_no_paths(
    words: list[str],
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(words) == USAGE
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["**", "a/b", "../a", ".a", "", "a b", "a\nb", "\udcff", "[a]", "-x", "a" * 260, "a\0b", "*", "?", "a:b"]
)
def test_names_of_datasets(name: str, home: Path) -> None:
    (home / "datasets" / "ab").mkdir(parents=True)
    with pytest.raises(DatasetError, match="is not a valid"), staging_folder(name):
        pass
    assert [p.name for p in (home / "datasets").iterdir()] == ["ab"]


@pytest.mark.parametrize("name", ["refcoco+", "a", "my-set_1.2", "A" * 100])
def test_names_that_are_good(name: str, home: Path) -> None:
    with staging_folder(name) as folder:
        assert folder.is_dir()


@pytest.mark.parametrize("name", ["predictions", "working"])
def test_no_file_is_written_through_a_link(name: str, embedded: Path, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    folder.mkdir()
    (folder / name).symlink_to(outside)
    with pytest.raises(RunError, match="is a link, so files would be written elsewhere"):
        run("center", SPLIT, out=folder)
    assert list(outside.iterdir()) == []


def test_a_journal_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", RunFolder(tmp_path)
    victim.write_text("mine")
    folder.journal_path(0).parent.mkdir()
    folder.journal_path(0).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        folder.write_journal(0, Journal(0, ()))
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["run.json", "predictions/part-00000.parquet", "summary.json", "scores.parquet"])
def test_pipes_in_a_run_folder_are_not_waited_for(
    name: str, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("center", SPLIT, out=tmp_path / "run").folder
    score(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    verb = ["run", "center", SPLIT, "--out", str(folder)] if name == "run.json" else ["report", str(folder)]
    assert _run(verb) == BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("size", [[1.0, 2], ["1", 2], [True, 2], [None, None], [10**30, 1], [-1, -1]])
def test_sizes_that_are_no_integers(size: list[object], embedded: Path, tmp_path: Path) -> None:
    sample = load_samples(SPLIT)[0]
    exact = [float(sample.height), float(sample.width)] if size == [1.0, 2] else size
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({"sample_id": sample.sample_id, "size": exact, "counts": "0"}))
    with pytest.raises(PredictionError, match="the mask has"):
        score(path, SPLIT)


SLOW = """
import pathlib, time
import numpy as np

class Slow:
    name = "slow"
    batch_size = 1

    def __init__(self, note: str = "") -> None:
        self.note = pathlib.Path(note)

    def segment(self, images, expressions):
        with self.note.open("a") as file:
            file.write("x")
        if self.note.stat().st_size > 3:
            time.sleep(3600)
        return [np.zeros((i.height, i.width), bool) for i in images]
"""


def start_slow(place: Path, workers: int, stderr: int) -> subprocess.Popen[str]:
    """A run that has answered three samples and then sleeps for an hour."""
    (place / "slow.py").write_text(SLOW)
    note = place / "note"
    words = ["run", f"{place / 'slow.py'}:Slow", SPLIT, "-o", f"note={note}", "--workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, "-m", "refbench", *words, "--out", str(place / "run")],
        stderr=stderr, text=True, start_new_session=True,
        # A shell lets the commands that it starts in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert wait_until(lambda: calls(note) > 3, process)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_asked_to_end_leaves_nobody(
    number: signal.Signals, workers: int, embedded: Path, tmp_path: Path
) -> None:
    """The signal goes to the process that the user started, and to no other."""
    process = start_slow(tmp_path, workers, subprocess.PIPE)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, said = process.communicate(timeout=GIVE_UP_SECONDS)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert "completed results are saved" in said
    wait_until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_come_again_and_again_leave_nobody(number: signal.Signals, embedded: Path, tmp_path: Path) -> None:
    """As from an impatient user, or from a scheduler that signals every process of a job."""
    process = start_slow(tmp_path, 2, subprocess.DEVNULL)
    family = psutil.Process(process.pid).children(recursive=True)

    def again() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        return process.poll() is not None

    wait_until(again)
    wait_until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


@pytest.mark.slow
def test_nohup_is_respected(embedded: Path, tmp_path: Path) -> None:
    """A run that ignores SIGHUP from its start goes on when its terminal is closed."""
    (tmp_path / "slow.py").write_text(SLOW.replace("time.sleep(3600)", "time.sleep(0.01)"))
    note = tmp_path / "note"
    words = ["run", f"{tmp_path / 'slow.py'}:Slow", SPLIT, "-o", f"note={note}", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "refbench", *words], stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert wait_until(lambda: calls(note) > 3, process)
    os.killpg(process.pid, signal.SIGHUP)
    _, said = process.communicate(timeout=GIVE_UP_SECONDS)
    assert process.returncode == 0, said
    assert calls(note) == 87


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_ends_leaves_no_process_and_the_next_one_no_file(number: signal.Signals, home: Path) -> None:
    command = [sys.executable, "-m", "refbench", "build", "scenes-hurried", "--split", "val"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    main = psutil.Process(process.pid)
    wait_until(lambda: len(main.children()) >= 2 and list((home / "datasets").rglob("*.png")), process)
    family = main.children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=GIVE_UP_SECONDS)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    wait_until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert [p.name for p in (home / "datasets").iterdir()] == ["scenes-hurried"]


@pytest.mark.slow
def test_a_worker_that_never_reads_is_given_up(embedded: Path, tmp_path: Path) -> None:
    """Its pipe is full after some kilobytes; the deadline of the answer holds for the question, too."""
    script = tmp_path / "deaf.py"
    script.write_text(
        "import json, sys, time\n"
        "sys.stdin.readline()\n"
        "print(json.dumps({'type': 'ready', 'protocol': 1, 'max_batch': 1000}), flush=True)\n"
        "time.sleep(3600)\n"
    )
    worker = Worker(script, timeout=0.005, batch_size=1000)
    samples = load_samples(SPLIT) * 3
    with pytest.raises(AdapterError, match="did not read a message before the timeout"):
        worker.segment_samples(samples * 3, [None] * len(samples) * 3)
    worker.close()
