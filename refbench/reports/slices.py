"""Slices of a split: by the expression, by the target, and by the other objects around it."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refbench.storage.columns import as_texts

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
# The largest number of words in each class of LENGTHS except the last.
MOST_WORDS = (1, 2, 4, 7)
LENGTHS = ("1", "2", "3-4", "5-7", "8+")
# COCO's classes of area, and the smallest area in each except the first.
SIZES = ("none", "small", "medium", "large")
LEAST_AREAS_PX = (1, 32**2, 96**2)
NO_YES = ("no", "yes")
LOOK_ALIKES = ("0", "1", "2", "3+")
# Of dimensions with many labels the most frequent are shown.
MOST_LABELS = 20
LEAST_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of the samples of a split; each sequence has one entry per sample.

    `tagged` states for each tag which samples have it, bool (N,). `look_alikes` counts the other objects of the
    target's category in the image; None if the objects are not known.
    """

    expressions: Sequence[str]
    categories: Sequence[str]
    split: str
    tagged: Mapping[str, NDArray[np.bool_]]
    target_area: NDArray[np.int64]
    at_border: NDArray[np.bool_]
    look_alikes: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Labels:
    """The label of each sample in one dimension: `names[code]`, with `codes` int64 (N,)."""

    names: Sequence[str]
    codes: NDArray[np.int64]

    def texts(self) -> NDArray[np.object_]:
        """The labels, (N,)."""
        return np.array(self.names, dtype=object)[self.codes]


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
        samples = np.bincount(labels.codes, minlength=len(labels.names)).tolist()
        found = {label: k for k, label in enumerate(labels.names) if label and samples[k]}
        ranked = sorted(found, key=lambda label: -samples[found[label]])
        frequent = [label for label in ranked[:MOST_LABELS] if samples[found[label]] >= LEAST_SAMPLES]
        if len(found) > 1:
            # Sizes and numbers in their order, categories by their frequency.
            order = frequent if dimension == "category" else sorted(frequent, key=label_order)
            out += [Slice(dimension, label, labels.codes == found[label]) for label in order]
    return [*out, *_of_tags(facts.tagged)]


def labels_of(facts: Facts) -> dict[str, Labels]:
    """The label of each sample in each dimension, for example "small" in the dimension "target size"."""
    words = np.fromiter(itertools.chain.from_iterable(_of_words(facts.expressions)), np.int64).reshape(-1, 3)
    categories, first = as_texts(facts.categories).numbered_by_first()
    dimensions = {
        "words": Labels(LENGTHS, words[:, 0]),
        "target size": Labels(SIZES, np.searchsorted(LEAST_AREAS_PX, facts.target_area, side="right")),
        "position words": Labels(NO_YES, words[:, 1]),
        "relation words": Labels(NO_YES, words[:, 2]),
        "at the border": Labels(NO_YES, facts.at_border.astype(np.int64)),
        "split": Labels([facts.split], np.zeros(len(words), np.int64)),
        "category": Labels(first, categories),
    }
    if facts.look_alikes is not None:
        dimensions["look-alikes"] = Labels(LOOK_ALIKES, np.minimum(facts.look_alikes, len(LOOK_ALIKES) - 1))
    return dimensions


def _of_words(expressions: Iterable[str]) -> Iterator[tuple[int, bool, bool]]:
    """For each expression: the index of its length in LENGTHS, and whether it has words of position and of relation."""
    for expression in expressions:
        words = WORD.findall(expression.lower())
        length = bisect.bisect_left(MOST_WORDS, len(words))
        yield length, not POSITION_WORDS.isdisjoint(words), _relates(words)


def _of_tags(tagged: Mapping[str, NDArray[np.bool_]]) -> Iterable[Slice]:
    for tag, rows in sorted(tagged.items()):
        if LEAST_SAMPLES <= int(rows.sum()) < len(rows):
            yield Slice("tag", tag, rows)


def label_order(label: str) -> tuple[int, str]:
    """The order in which labels of a dimension are shown: sizes from small to large, others by name."""
    return (SIZES.index(label) if label in SIZES else -1), label


def _relates(words: Sequence[str]) -> bool:
    pairs = itertools.pairwise(words)
    return not RELATION_WORDS.isdisjoint(words) or any(pair in RELATION_PAIRS for pair in pairs)
