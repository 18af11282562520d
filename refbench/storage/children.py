"""Child processes that end when their parent ends, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

PARENT_SECONDS = 0.5
# From <linux/prctl.h>.
PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Let this process be killed when its parent process ends, even if it is asleep or in a library.

    The kernel does it on Linux, as soon as the thread that started this process ends. Elsewhere, a thread looks for the
    parent from time to time.

    Args:
        parent: process id of the parent, as the parent states it. It may have ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    if sys.platform != "linux":
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="end-with-parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def leave_signals_to_parent() -> None:
    """Ignore Ctrl-C and SIGTERM, which also reach the parent; the parent decides when its children stop.

    Programs that this process starts do not inherit it, in contrast to SIG_IGN.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _nothing)


def begin_child(parent: int) -> None:
    """The start of a worker process: it ends with its parent, and leaves signals to it."""
    leave_signals_to_parent()
    end_with_parent(parent)


def _nothing(number: int, frame: Any) -> None:
    pass


def how_it_ended(code: int | None) -> str:
    """What an exit code of `multiprocessing` says, as text."""
    if code is None:
        return "it does not answer"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
