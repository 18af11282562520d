"""The measurements for a GPU, at small size on a CPU: the script cannot fail for a silly reason when a GPU is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from events import GIVE_UP_SECONDS

from benchmarks.gpu import SECTIONS

PROJECT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_section_is_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            PROJECT / "benchmarks" / "gpu.sh",
            tmp_path,
            "--small",
            "--all-seconds",
            "2000",
            "--seconds",
            "1000",
            "--images",
            "2",
        ],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
        env={**os.environ, "PYTHON": sys.executable, "NO_TESTS": "1"},
    )
    assert done.returncode == 0, done.stdout + (tmp_path / "errors.log").read_text()
    for section in SECTIONS:
        figures = json.loads((tmp_path / f"{section}.json").read_text())
        assert figures["hardware"].startswith("CPU")
        assert figures[section]
    assert "share of the loop" in done.stdout
