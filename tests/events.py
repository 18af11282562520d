"""Waiting for what happens, not for seconds: the machine may be busy."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# No event takes as long; a test that would wait for ever fails instead.
GIVE_UP_SECONDS = 1200.0


def wait_until(happened: Callable[[], object], process: subprocess.Popen[str] | None = None) -> bool:
    """Wait until something has happened, or until the process has ended; whether it has happened."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not happened():
        if process is not None and process.poll() is not None:
            return bool(happened())
        assert time.monotonic() < deadline, "what the test waits for does not happen"
        time.sleep(0.002)
    return True


def calls(path: Path) -> int:
    """How often the adapters that write to this file have been asked."""
    return path.stat().st_size if path.exists() else 0


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """What a process and its children have computed so far: the clock of their progress, on a busy machine too."""
    try:
        main = psutil.Process(process.pid)
        times = [one.cpu_times() for one in (main, *main.children(recursive=True))]
    except psutil.Error:
        return float("inf") if process.poll() is not None else 0.0
    return float(sum(t.user + t.system for t in times))


def kill(process: subprocess.Popen[str]) -> bool:
    """`kill -9`, for a process and the group that it leads; whether it was still alive."""
    if process.poll() is None:
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    return process.wait() == -signal.SIGKILL
