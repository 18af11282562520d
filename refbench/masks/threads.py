"""Processes slices of a batch in threads, by default one per core."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
# Numbers of pairs in a chunk. Ctrl-C waits until the present chunks are counted.
LEAST_CHUNK, MOST_CHUNK, CHUNKS_A_THREAD = 128, 4096, 4


def in_chunks(work: Callable[[slice], Result], n: int, threads: int | None) -> list[tuple[slice, Result]]:
    """Run `work` on slices of 0..n in threads; this is faster only if `work` releases the GIL."""
    most = threads or available_cores()
    # To hand out a chunk costs as much as to count ten pairs, but with too few chunks, threads wait for the last one.
    step = min(max(LEAST_CHUNK, -(-n // (CHUNKS_A_THREAD * most))), MOST_CHUNK)
    chunks = [slice(k, min(k + step, n)) for k in range(0, n, step)]
    workers = min(most, len(chunks))
    if workers <= 1:
        return [(c, work(c)) for c in chunks]
    with ThreadPoolExecutor(workers) as pool:
        return list(zip(chunks, pool.map(work, chunks), strict=True))


def available_cores() -> int:
    """Number of cores that this process may use (a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
