"""Distributes work on images over several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from refbench.curation.items import ImageItems
from refbench.masks.threads import available_cores


def chunks(images: Sequence[ImageItems], size: int) -> Iterator[Sequence[ImageItems]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def map_in_processes(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int | None) -> Iterator[Any]:
    """The results of jobs in their order, computed by processes if there is more than one worker."""
    count = min(workers or available_cores(), len(jobs))
    if count <= 1:
        yield from map(work, jobs)
        return
    # Spawned, not forked: a fork would copy the locks of threads that numba or torch may hold.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, jobs)
