"""How work is divided into shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def cut(items: Sequence[Item], sizes: Sequence[int], least: int) -> list[list[Item]]:
    """Divide items, in order, into shards; each shard except the last has a total size of at least `least`."""
    shards: list[list[Item]] = [[]]
    held = 0
    for item, size in zip(items, sizes, strict=True):
        if held >= least:
            shards.append([])
            held = 0
        shards[-1].append(item)
        held += size
    return shards
