"""Skeletons as they are written, and an environment that is really built."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from refbench.adapters.environments import MARK, build_environment, built_environments, environment_folder, interpreter
from refbench.errors import AdapterError

pytestmark = pytest.mark.slow  # builds environments

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_both_skeletons_run_as_they_are(refbench: Cli, embedded: Path, tmp_path: Path) -> None:
    plain = json.loads(refbench("new-adapter", "my-model", "--out", str(tmp_path), "--json").stdout)
    worker = json.loads(refbench("new-adapter", "Far_Away", "--worker", "--out", str(tmp_path), "--json").stdout)
    assert plain["files"] == [str(tmp_path / "my_model.py")]
    assert plain["try"][0] == f"refbench check-adapter {tmp_path}/my_model.py:MyModel"
    assert [Path(f).name for f in worker["files"]] == ["far_away.py", "requirements.txt"]
    scores = {}
    for command in (plain["try"][1], worker["try"][1]):
        verb, *arguments = command.split()[1:]
        done = refbench(verb, *arguments, "--limit", "40", "--out", str(tmp_path / str(len(scores))))
        assert done.returncode == 0, done.stderr
        scored = json.loads(refbench("score", str(tmp_path / str(len(scores))), "--json").stdout)
        scores[command] = scored["protocols"]
    first, second = scores.values()
    assert first == second
    again = refbench("new-adapter", "my-model", "--out", str(tmp_path))
    assert again.returncode == 3
    assert "already exists and is not overwritten" in again.stderr
    assert refbench("new-adapter", "../up").returncode == 3


def test_an_environment_is_built_once_from_its_lock(
    refbench: Cli, embedded: Path, home: Path, embedded_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"numpy=={version('numpy')}\nPillow=={version('Pillow')}\n")
    built = refbench("env", "build", "mine", "--lock", str(lock), "--python", sys.executable, "--json")
    assert built.returncode == 0, built.stderr
    python = json.loads(built.stdout)["python"]
    assert python == str(interpreter("mine"))
    found = subprocess.run(
        [python, "-c", "import numpy, importlib.util; print(importlib.util.find_spec('pandas'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "None"
    said: list[str] = []
    build_environment("mine", lock=lock, log=said.append)
    assert said == ["mine is built already"]
    refbench("new-adapter", "far", "--worker", "--out", str(tmp_path))
    (home / "datasets").symlink_to(embedded_home / "datasets")
    script = f"script={tmp_path / 'far' / 'far.py'}"
    done = refbench("run", "worker", "scenes/val", "-o", script, "-o", "env=mine", "--limit", "9", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failures"] == 0
    listed = json.loads(refbench("env", "list", "--json").stdout)
    assert [e["name"] for e in listed["built"]] == ["mine"]
    assert refbench("env", "remove", "mine").returncode == 0
    assert refbench("env", "remove", "mine").returncode == 1
    assert built_environments() == []


def test_environments_that_cannot_be_built(home: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.lock"
    bad.write_text("numpy==0.0.0.1\n")
    with pytest.raises(AdapterError, match=r"pip cannot install .*bad.lock: .*numpy==0.0.0.1"):
        build_environment("bad", sys.executable, bad)
    # What was begun is not taken for an environment.
    assert environment_folder("bad").exists()
    assert not (environment_folder("bad") / MARK).exists()
    with pytest.raises(AdapterError, match=r"the environment 'bad' does not exist .existing environments: none"):
        interpreter("bad")
    with pytest.raises(AdapterError, match="no lock file for 'nothing'"):
        build_environment("nothing")
    with pytest.raises(AdapterError, match="cannot make a virtual environment"):
        build_environment("bad", "/no/python", bad)
