"""How soon `refbench --help` answers, against Python importing numpy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.data import seconds_of


def measure() -> dict[str, Any]:
    """Seconds of whole processes, the fastest of ten, taken in turns."""
    help_seconds = numpy_seconds = float("inf")
    for _ in range(10):
        help_seconds = min(help_seconds, seconds_of(lambda: _call("-m", "refbench", "--help"), 1))
        numpy_seconds = min(numpy_seconds, seconds_of(lambda: _call("-c", "import numpy"), 1))
    return {
        "refbench --help, s": help_seconds,
        'python -c "import numpy", s': numpy_seconds,
        "help against import numpy (wanted at most 2.5)": help_seconds / numpy_seconds,
    }


def _call(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
