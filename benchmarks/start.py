"""How soon refbench answers: its import, its help, and the first score from a fresh wheel."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.data import seconds_of, temporary_home

PROJECT = Path(__file__).parent.parent
MASKS = 15


def measure() -> dict[str, Any]:
    """Seconds of whole processes, the fastest of ten, taken in turns; the first score is CPU time, measured once."""
    programs = {
        "python -c pass": ("-c", "pass"),
        'python -c "import numpy"': ("-c", "import numpy"),
        'python -c "import refbench"': ("-c", "import refbench"),
        "refbench --help": ("-m", "refbench", "--help"),
    }
    seconds = dict.fromkeys(programs, float("inf"))
    for _ in range(10):
        for name, arguments in programs.items():
            seconds[name] = min(seconds[name], seconds_of(lambda a=arguments: _call(*a), 1))  # type: ignore[misc]
    alone, numpy_seconds, ours, told = seconds.values()
    return {
        **{f"{name}, s": value for name, value in seconds.items()},
        "import refbench beyond Python, s (wanted at most 0.05)": ours - alone,
        "help against import numpy (wanted at most 2.5)": told / numpy_seconds,
        **_first_score(),
    }


def _call(*arguments: str, **environment: str) -> None:
    # Not from the project, whose package would be imported instead of the one on the path.
    subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=tempfile.gettempdir(), env={**os.environ, **environment},
    )  # fmt: skip


def _first_score() -> dict[str, Any]:
    """The wheel has neither bytecode nor anything of an earlier run; its dependencies are those of this Python."""
    with tempfile.TemporaryDirectory() as folder, temporary_home() as home:
        _call("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, str(PROJECT))
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(folder) / "fresh")
        place = {"PYTHONPATH": str(Path(folder) / "fresh")}
        run = str(home / "run")
        _call("-m", "refbench", "build", "snapshots", **place)
        _call("-m", "refbench", "run", "center", "snapshots/test", "--limit", str(MASKS), "--out", run, **place)
        for compiled in (Path(folder) / "fresh").rglob("__pycache__"):
            for file in compiled.iterdir():
                file.unlink()
        times = []
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            _call("-m", "refbench", "score", run, **place)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return {
            "wheel, MB": wheel.stat().st_size / 1e6,
            f"first score of {MASKS} masks from a fresh wheel, CPU s (wanted at most 4)": times[0],
            "second score, CPU s": times[1],
        }
