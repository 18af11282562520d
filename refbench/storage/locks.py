"""Locks on folders: one process at a time writes to a run, a curation or a dataset."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refbench.errors import RefbenchError, RunError

LOCK_FILE = ".lock"
# File systems that do not support locks, for example some network file systems, are used without one.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
AGAIN_SECONDS = 0.05
MKDIR_TRIES = 20
# How long a short command waits for another one to finish.
PATIENCE_SECONDS = 60.0


@contextmanager
def exclusive(
    folder: Path, *, name: str = LOCK_FILE, patience: float = 0.0, wanted: type[RefbenchError] = RunError
) -> Iterator[None]:
    """Hold the lock of a folder. The system releases it when the process ends, however it ends.

    Args:
        folder: the folder, which is created if it does not exist.
        name: name of the lock file in the folder. It states the owner, and is removed afterwards.
        patience: how long to wait for another owner, in seconds.
        wanted: type of the error.

    Raises:
        RefbenchError: (of type `wanted`) another process, or another thread of this one, holds the lock; the message
            states which process.
    """
    path = folder / name
    deadline = time.monotonic() + patience
    while True:
        descriptor = _opened(path, wanted)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                break
            owner = _owner(descriptor)
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise wanted(
                    f"{folder} is in use by {owner}; wait until it has ended, or choose another folder"
                ) from None
            time.sleep(AGAIN_SECONDS)
            continue
        if _is_same(descriptor, path):
            break
        # The owner before has removed the file after it was opened here.
        os.close(descriptor)
    try:
        _state_owner(descriptor)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _opened(path: Path, wanted: type[RefbenchError]) -> int:
    problem: OSError | None = None
    for _ in range(MKDIR_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Never through a link: the file is written.
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except FileNotFoundError as error:
            # The owner before has removed the folder, too.
            problem = error
        except OSError as error:
            problem = error
            break
    reason = problem.strerror if problem else ""
    raise wanted(
        f"cannot write {path}: {reason}; check the permissions and the free space, or choose another folder"
    ) from problem


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def _state_owner(descriptor: int) -> None:
    words = [Path(sys.argv[0]).name if sys.argv else "", *sys.argv[1:2]]
    owner = {"process": os.getpid(), "host": socket.gethostname(), "command": " ".join(words)}
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode("ascii"), 0)


def _owner(descriptor: int) -> str:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(content['process'])} on {content['host']} ({str(content['command'])[:80]})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
