"""A pool of worker processes that end with the process that started them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import Any

from refbench.errors import RunError
from refbench.masks.threads import available_cores
from refbench.storage.children import begin_child

# For each process, so many chunks of jobs are computed or wait.
AHEAD_PER_PROCESS = 2


def map_in_processes(
    work: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int | None = None,
    chunk: int = 1,
    *,
    of_script: bool = True,
) -> Iterator[Any]:
    """The results of jobs in their order, computed by processes if there is more than one worker.

    Args:
        work: a function of a module, so that other processes can import it.
        workers: number of processes; if None, one per core.
        chunk: number of jobs that a process takes at a time.
        of_script: whether jobs or results may be of classes of the program that was started. If not, the processes do
            not run it, so that a script needs no `if __name__ == "__main__":`.

    Raises:
        RunError: a process was killed, for example because memory ran out. Exceptions of `work` are raised here.
    """
    count = min(workers or available_cores(), len(jobs))
    if count <= 1:
        yield from map(work, jobs)
        return
    before = set(multiprocessing.active_children())
    # Spawned, not forked: a fork would copy the locks of threads that torch may hold.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=begin_child, initargs=(os.getpid(),))
    parts = (jobs[k : k + chunk] for k in range(0, len(jobs), chunk))

    def submit(part: Sequence[Any]) -> Future[list[Any]]:
        # It may start a process.
        with nullcontext() if of_script else _without_script():
            return pool.submit(_several, work, part)

    try:
        # A few ahead: if the results are used more slowly than they are made, they must not fill the memory.
        waiting = deque(map(submit, itertools.islice(parts, AHEAD_PER_PROCESS * count)))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(map(submit, itertools.islice(parts, 1)))
        pool.shutdown()
    except BrokenProcessPool:
        raise RunError(
            "a worker process ended before its work was done. Perhaps memory ran out; then use fewer --workers, if the "
            'command has them. If your own script makes this call, it must be under `if __name__ == "__main__":`, '
            "because every worker runs the script again"
        ) from None
    finally:
        # After an error or an interruption, nobody wants the jobs that are still in the queue.
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
        pool.shutdown(wait=False)


@contextmanager
def _without_script() -> Iterator[None]:
    """A process that is spawned in the block does not run the program that was started: `multiprocessing` finds it by
    these two attributes.
    """
    script = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(script)[name] for name in ("__spec__", "__file__") if name in vars(script)}
    try:
        script.__spec__ = None
        vars(script).pop("__file__", None)
        yield
    finally:
        vars(script).update(hidden)


def _several(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    return [work(job) for job in jobs]
