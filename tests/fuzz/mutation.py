"""Damage done to files: to their bytes, and to the values inside them."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(10**400), 0.5, 1e308, -1e308, float("nan"), float("inf"), "", "x",
    "\ud800", "../../etc/passwd", "\0", "x" * 100_000, [], {}, [[]], [[[]]], [-1], [0] * 5000, {"size": [1, 1]},
    {"size": [60, 80], "counts": "0"}, {"size": [60, 80], "counts": [4800]}, {"size": [2**31, 2**31], "counts": "1"},
    {"size": [65535, 4000], "counts": [65535 * 4000]}, {"size": [60, 80], "counts": [2**40, -(2**40)]},
    [[0, 0, 1e7, 0, 1e7, 1e7]], [[1, 1, 2, 2]], [[1, 1, 2, 2, 3]], [["a", "b", "c", "d", "e", "f"]],
    [[10, 10, 20, 10, 20, 20], [12, 12, 18, 12, 18, 18]],
)  # fmt: skip


def change_bytes(whole: bytes, rng: random.Random) -> bytes:
    """Cut, repeat, overwrite or flip a few pieces."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        kind = rng.randrange(7)
        at = rng.randrange(len(content) + 1) if content else 0
        end = min(len(content), at + rng.choice((1, 2, 8, 64, 1000)))
        if kind == 0:
            del content[at:]
        elif kind == 1:
            del content[at:end]
        elif kind == 2:
            content[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
        elif kind == 3:
            content[at:at] = bytes(content[at:end])
        elif kind == 4 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 5:
            content[at:at] = rng.choice((b"\0", b"\xff\xff\xff\xff", b"9" * 30, b"[" * 3000, b"\r\n", b"\xef\xbb\xbf"))
        else:
            other = rng.randrange(len(content) + 1) if content else 0
            content[at:end] = content[other : other + end - at]
    return bytes(content)


def change_values(tree: Any, rng: random.Random) -> None:
    """Replace, drop or repeat a few values anywhere in a tree of dicts and lists."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            walk(value)

    walk(tree)
    for node, key in rng.sample(places, min(len(places), rng.choice((1, 1, 1, 2, 4)))):
        if not _holds(node, key):
            continue
        kind = rng.randrange(4)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node.append(node[key])
        elif kind == 2:
            other, place = rng.choice(places)
            # A copy, so that the tree stays one: pyarrow follows a circle until it crashes.
            node[key] = deepcopy(other[place]) if _holds(other, place) else None
        else:
            node[key] = rng.choice(HOSTILE)


def _holds(node: Any, key: Any) -> bool:
    return key in node if isinstance(node, dict) else key < len(node)
