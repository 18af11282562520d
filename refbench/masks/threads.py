"""Processes slices of a batch in threads, by default one per core."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
CHUNK_PAIRS = 128


def in_chunks(work: Callable[[slice], Result], n: int, threads: int | None) -> list[tuple[slice, Result]]:
    """Run `work` on slices of 0..n in threads; this is faster only if `work` releases the GIL."""
    chunks = [slice(k, min(k + CHUNK_PAIRS, n)) for k in range(0, n, CHUNK_PAIRS)]
    workers = min(threads or available_cores(), len(chunks))
    if workers <= 1:
        return [(c, work(c)) for c in chunks]
    with ThreadPoolExecutor(workers) as pool:
        return list(zip(chunks, pool.map(work, chunks), strict=True))


def available_cores() -> int:
    """Number of cores that this process may use (a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
