"""Real processes, really killed, and a disk that is really full."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from adapters.exact_adapters import CALLS
from events import calls, kill, wait_until

from refbench.runs.folder import RunFolder

pytestmark = pytest.mark.slow  # kills

PROJECT = Path(__file__).parent.parent.parent
ADAPTER = f"{PROJECT / 'tests' / 'adapters' / 'exact_adapters.py'}:Threshold"


def command(out: Path, seconds: float, *more: str) -> list[str]:
    arguments = ["run", ADAPTER, "scenes/test", "--out", str(out), "-o", f"seconds={seconds}", *more]
    return [sys.executable, "-m", "refbench", *arguments]


def test_twenty_kills_leave_no_trace(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kill -9` at 20 random moments of one run; resumed, every byte of the result is an undisturbed run's."""
    undisturbed, killed, told = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "calls"
    seconds = 0.001
    monkeypatch.setenv(CALLS, str(told))
    subprocess.run(command(undisturbed, seconds), check=True, capture_output=True)
    of_one_shard = calls(told) // len(RunFolder(undisturbed).written)
    moments = random.Random(20_261_121)
    kills = mid_run = 0
    while kills < 20:
        told.unlink(missing_ok=True)
        # The start of Python, some call, or what follows the last call of a shard: the shard is written.
        moment = moments.choice([0, moments.randrange(1, of_one_shard), of_one_shard, moments.randrange(99)])
        process = subprocess.Popen(command(killed, seconds), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda moment=moment: calls(told) >= moment, process)
        if kill(process):
            kills += 1
            mid_run += (killed / "run.json").exists()
        else:
            assert len(RunFolder(killed).written) == len(RunFolder(undisturbed).written), "it ended without finishing"
            # It finished before the 20th kill: take the last shard away, so that there is work left to kill.
            RunFolder(killed).written[-1].unlink()
    assert mid_run >= 10
    subprocess.run(command(killed, seconds), check=True, capture_output=True)
    assert not list(killed.rglob("*.tmp"))
    for folder in (undisturbed, killed):
        subprocess.run([sys.executable, "-m", "refbench", "score", str(folder)], check=True, capture_output=True)
    names = [p.relative_to(undisturbed) for p in RunFolder(undisturbed).written]
    assert names == [p.relative_to(killed) for p in RunFolder(killed).written]
    for name in [*names, "scores.parquet", "summary.json"]:
        assert (undisturbed / name).read_bytes() == (killed / name).read_bytes(), name


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_during_a_run(embedded: Path, small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "run"
    full = subprocess.run(command(out, 0.0), capture_output=True, text=True)
    assert full.returncode == 3, full.stderr
    assert full.stderr.count("error:") == 1
    assert "No space left on device. Results that were already complete are intact" in full.stderr
    assert "Traceback" not in full.stderr
    finished = {p.name: p.read_bytes() for p in RunFolder(out).written}
    assert not list(out.rglob("*.tmp"))
    # With space again, the same command goes on from there.
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    subprocess.run(command(out, 0.0), check=True, capture_output=True)
    subprocess.run(command(tmp_path / "whole", 0.0), check=True, capture_output=True)
    assert {p.name: p.read_bytes() for p in RunFolder(out).written} == {
        p.name: p.read_bytes() for p in RunFolder(tmp_path / "whole").written
    }
    assert all((out / "predictions" / name).read_bytes() == content for name, content in finished.items())


def test_no_write_permission(embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        # Root may write anywhere but in /proc.
        folder = Path("/proc/self/refbench")
    done = subprocess.run(command(folder / "run", 0.0), capture_output=True, text=True)
    assert done.returncode == 3
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
