"""Slices of a split: by the expression, by the target, and by the other objects around it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"[a-z0-9']+")
POSITION_WORDS = frozenset(
    "left right top bottom upper lower middle center centre central corner front back rear foreground background edge "
    "side far near nearest closest closer farthest furthest leftmost rightmost topmost bottommost first second third "
    "fourth fifth last end".split()
)
# One word, or two that stand together.
RELATION_WORDS = frozenset(
    "behind beside besides between under underneath beneath above below over near by next with without holding wearing "
    "carrying riding touching facing against around inside outside beyond across along among opposite".split()
)
RELATION_PAIRS = frozenset([("next", "to"), ("close", "to"), ("in", "front"), ("on", "top"), ("sitting", "on")])
LENGTHS = ((1, "1"), (2, "2"), (4, "3-4"), (7, "5-7"))
# COCO's classes of area, in pixels.
SMALL_PX, MEDIUM_PX = 32**2, 96**2
SIZES = ("none", "small", "medium", "large")
# Of dimensions with many labels the most frequent are shown.
MOST_LABELS = 20
LEAST_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of the samples of a split; each sequence has one entry per sample.

    `look_alikes` counts the other objects of the target's category in the image; None if the objects are not known.
    """

    expressions: Sequence[str]
    categories: Sequence[str]
    splits: Sequence[str]
    tags: Sequence[Sequence[str]]
    target_area: NDArray[np.int64]
    at_border: NDArray[np.bool_]
    look_alikes: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Slice:
    """Samples that share a label in one dimension; `rows` is bool (N,)."""

    dimension: str
    label: str
    rows: NDArray[np.bool_]


def slices_of(facts: Facts) -> list[Slice]:
    """All slices that have at least LEAST_SAMPLES samples and do not contain all samples.

    If a dimension has many labels, only the most frequent are used.
    """
    out = []
    for dimension, labels in labels_of(facts).items():
        found = Counter(label for label in labels if label)
        frequent = [label for label, n in found.most_common(MOST_LABELS) if n >= LEAST_SAMPLES]
        named = np.array(labels, dtype=object)
        if len(found) > 1:
            # Sizes and numbers in their order, categories by their frequency.
            order = frequent if dimension == "category" else sorted(frequent, key=label_order)
            out += [Slice(dimension, label, named == label) for label in order]
    return [*out, *_of_tags(facts.tags)]


def labels_of(facts: Facts) -> dict[str, list[str]]:
    """The label of each sample in each dimension, for example `{"target size": ["small", ...], ...}`."""
    words = [WORD.findall(e.lower()) for e in facts.expressions]
    dimensions: dict[str, list[str]] = {
        "words": [_length(len(w)) for w in words],
        "target size": [_size(int(a)) for a in facts.target_area],
        "position words": [_yes(any(x in POSITION_WORDS for x in w)) for w in words],
        "relation words": [_yes(_relates(w)) for w in words],
        "at the border": [_yes(bool(b)) for b in facts.at_border],
        "split": list(facts.splits),
        "category": list(facts.categories),
    }
    if facts.look_alikes is not None:
        dimensions["look-alikes"] = ["3+" if n > 2 else str(n) for n in facts.look_alikes.tolist()]
    return dimensions


def _of_tags(tags: Sequence[Sequence[str]]) -> Iterable[Slice]:
    found = Counter(tag for row in tags for tag in row)
    for tag, n in sorted(found.items()):
        if LEAST_SAMPLES <= n < len(tags):
            yield Slice("tag", tag, np.array([tag in row for row in tags], bool))


def label_order(label: str) -> tuple[int, str]:
    """The order in which labels of a dimension are shown: sizes from small to large, others by name."""
    return (SIZES.index(label) if label in SIZES else -1), label


def _length(words: int) -> str:
    return next((label for most, label in LENGTHS if words <= most), "8+")


def _size(area: int) -> str:
    if area == 0:
        return "none"
    return "small" if area < SMALL_PX else "medium" if area < MEDIUM_PX else "large"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _relates(words: Sequence[str]) -> bool:
    pairs = itertools.pairwise(words)
    return any(w in RELATION_WORDS for w in words) or any(pair in RELATION_PAIRS for pair in pairs)
