"""Mutated files for every dataset reader, in a process of its own with a bound on its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # fuzzing

CASES = int(os.environ.get("REFBENCH_FUZZ_CASES", "1500"))


def test_every_mutated_file_ends_in_a_dataset_or_a_clear_error() -> None:
    """`make fuzz` runs 24,000 cases; here as many as take a few seconds."""
    program = Path(__file__).with_name("fuzz_readers.py")
    done = subprocess.run(
        [sys.executable, str(program), str(CASES), "11"], capture_output=True, text=True, timeout=3600
    )
    assert done.stdout, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert done.returncode == 0, done.stderr[-2000:]
    assert report["built"] + report["refused"] == CASES
    # Both ends occur: the mutations are neither all harmless nor all coarse.
    assert min(report["built"], report["refused"]) > CASES // 20
    assert report["slowest_seconds"] < 10
    assert report["grown_megabytes"] < 300
    assert report["left_behind"] == []
