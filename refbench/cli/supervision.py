"""Runs commands that load code from outside in a child process, so that this code cannot end them unnoticed.

A model may call `os._exit(0)`, and a library may crash. The parent process is small: it waits, passes signals on, and
says how the child ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

import click

from refbench.storage.children import end_with_parent

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# <asm-generic/siginfo.h>: the terminal sent the signal, to the child as well.
SI_KERNEL = 0x80
UNFINISHED = 1


def supervised(work: Callable[[], int]) -> int:
    """The exit code of `work`, computed in a child process; UNFINISHED if the child ended before `work` returned."""
    watched = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        end_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = work()
        os.write(writer, bytes([code]))
        return code
    os.close(writer)
    status = _wait(child, watched)
    said = os.read(reader, 1)
    os.close(reader)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if said:
        return said[0]
    click.echo(
        f"error: the process that ran this command {_how(status)} before the command was finished. The code of a model "
        "may end its process, and the system ends processes if memory runs out. Completed results are saved; the same "
        "command resumes. With --workers 2, `refbench run` finds the samples on which the process ends",
        err=True,
    )
    return UNFINISHED


def _wait(child: int, watched: set[signal.Signals]) -> int:
    """Wait until the child ends, and pass signals on to it; its status, as of `os.waitpid`."""
    while True:
        came = signal.sigwaitinfo(watched)
        if came.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
        elif came.si_code != SI_KERNEL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, came.si_signo)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
