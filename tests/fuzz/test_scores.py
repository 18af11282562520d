"""Mutated annotation files and results, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # fuzzing

CASES = int(os.environ.get("REFBENCH_FUZZ_CASES", "600"))


def test_every_mutated_file_ends_in_the_restated_figures_or_one_message() -> None:
    """`make fuzz` runs 20,000 cases."""
    program = Path(__file__).with_name("fuzz_scores.py")
    done = subprocess.run([sys.executable, str(program), str(CASES), "12"], capture_output=True, text=True)
    assert done.stdout, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["scored"] + report["refused"] == CASES
    assert min(report["scored"], report["refused"]) > CASES // 5
