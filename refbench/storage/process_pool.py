"""A pool of worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from refbench.errors import RunError
from refbench.masks.threads import available_cores
from refbench.storage.children import begin_child


def map_in_processes(
    work: Callable[[Any], Any], jobs: Sequence[Any], workers: int | None = None, chunk: int = 1
) -> Iterator[Any]:
    """The results of jobs in their order, computed by processes if there is more than one worker.

    Args:
        work: a function of a module, so that other processes can import it.
        workers: number of processes; if None, one per core.
        chunk: number of jobs that a process takes at a time.

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
    try:
        yield from pool.map(work, jobs, chunksize=chunk)
        pool.shutdown()
    except BrokenProcessPool:
        raise RunError(
            "a worker process was killed, perhaps because memory ran out; run the same command again with fewer "
            "--workers"
        ) from None
    finally:
        # After an error or an interruption, nobody wants the jobs that are still in the queue.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
