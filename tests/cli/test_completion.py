"""The Tab key: commands, splits, datasets, plug-ins, runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refbench import run


def completed(line: str, shell: str = "bash") -> list[str]:
    """What is offered for the last word of a line."""
    words = line.split(" ")
    code = "from refbench.cli.main import refbench; refbench(prog_name='refbench')"
    environment = {
        **os.environ,
        "_REFBENCH_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [entry.partition(",")[2] for entry in done.stdout.split()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("refbench lea", {"leaderboard"}),
        ("refbench curate pro", {"propose"}),
        ("refbench build refcoco", {"refcoco", "refcoco+", "refcoco-m", "refcocog-umd", "refcocog-google"}),
        ("refbench run noisy", {"noisy-oracle"}),
        ("refbench run tiny scenes/", {"scenes/train", "scenes/val", "scenes/test"}),
        ("refbench verify sn", {"snapshots"}),
        ("refbench score p.jsonl --protocol gsva", {"gsva-gres"}),
        ("refbench score p.jsonl --dataset snap", {"snapshots/test"}),
        ("refbench curate audit scenes/v", {"scenes/val"}),
    ],
)
def test_names_are_completed(embedded: Path, line: str, expected: set[str]) -> None:
    assert set(completed(line)) == expected


def test_run_folders_are_completed(embedded_home: Path, home: Path) -> None:
    home.mkdir()
    (home / "datasets").symlink_to(embedded_home / "datasets")
    folder = run("everything", "snapshots/test").folder
    assert str(folder) in completed(f"refbench diagnose {home}")


def test_a_damaged_manifest_completes_nothing(home: Path) -> None:
    (home / "datasets" / "broken").mkdir(parents=True)
    (home / "datasets" / "broken" / "manifest.json").write_text("[]")
    assert completed("refbench run tiny br") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_line_of_the_documentation_works_in_bash() -> None:
    code = "from refbench.cli.main import refbench; refbench(prog_name='refbench')"
    source = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "_REFBENCH_COMPLETE": "bash_source"},
    )  # fmt: skip
    checked = subprocess.run(["bash", "-n"], input=source.stdout, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert "complete -o nosort -F" in source.stdout
