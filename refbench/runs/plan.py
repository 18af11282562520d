"""The plan of a run, which depends only on the dataset: shards, batches, and their paths.

A shard contains whole images, in order, with about `SHARD_SAMPLES` expressions. Its bytes depend only on data and
model, so it does not matter which worker computes it, or how many workers there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refbench.records import Question
from refbench.runs.timings import ShardTiming
from refbench.storage.sharding import cut

SHARD_SAMPLES = 256
# Pixels per expression in a batch of `--batch-size auto`: larger images make smaller batches.
AUTO_PIXELS = 2**20


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a worker needs to know, wherever it runs.

    `adapter` is a name, `path/to/file.py:Class`, or an object. If `batch_size` is None, the batch size of the adapter
    is used, with smaller batches for large images. `home` is $REFBENCH_HOME, and `started_in` is the folder that
    relative paths refer to. Workers refuse another build of the split than that with this `fingerprint`.
    """

    adapter: Any
    options: Mapping[str, str]
    address: str
    limit: int | None
    device: str
    batch_size: int | None
    deterministic: bool
    home: Path
    started_in: Path
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an adapter reports about itself after loading; the same for every worker."""

    name: str
    options: dict[str, str]
    code_sha256: str
    weights_sha256: str
    batch_size: int
    seed: int
    needs_images: bool
    mode: str
    device_name: str
    packages: dict[str, str]


@dataclass(frozen=True, slots=True)
class Task:
    """One shard for a worker, to be written to the run folder `folder`.

    `singly` are samples to predict one by one, because a process crashed on their batch. `crashing` are samples that
    crashed a process although they were predicted alone; they are skipped. If the adapter fails for every sample of a
    shard with more than `give_up_above` samples, the shard is discarded; if `give_up_above` is None, the shard is kept.
    With `in_turn`, nothing is prepared or queued ahead, so that a crash can be attributed to the batch that is being
    computed.
    """

    number: int
    folder: Path
    singly: frozenset[str] = frozenset()
    crashing: frozenset[str] = frozenset()
    give_up_above: int | None = None
    in_turn: bool = False


@dataclass(frozen=True, slots=True)
class ShardReport:
    """The result of a task. `kept` states whether its file was written; `timing` is its row of timings.parquet."""

    number: int
    samples: int
    failures: int
    adapter_failures: int
    first_error: str
    kept: bool
    timing: ShardTiming
    notes: dict[str, int] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    usage: dict[str, float] = field(default_factory=dict)


def area_px(sample: Question) -> int:
    """The number of pixels of the image of a sample."""
    return sample.height * sample.width


def by_image(samples: Sequence[Question]) -> list[list[Question]]:
    """The samples in order, cut where the image changes."""
    return [list(group) for _, group in itertools.groupby(samples, key=lambda sample: sample.image_id)]


def plan_shards(samples: Sequence[Question]) -> list[list[Question]]:
    """Whole images in order of first appearance; every shard except the last has at least SHARD_SAMPLES expressions."""
    by_image: dict[str, list[Question]] = {}
    for sample in samples:
        by_image.setdefault(sample.image_id, []).append(sample)
    groups = list(by_image.values())
    shards = cut(groups, [len(group) for group in groups], SHARD_SAMPLES)
    return [[sample for group in shard for sample in group] for shard in shards]


def plan_batches(
    shard: Sequence[Question], size: int, pixels: int | None = None, whole_images: bool = False
) -> list[list[Question]]:
    """A shard in order, in batches of at most `size` expressions and, if given, `pixels` pixels of images.

    An image counts once for each of its expressions. A batch has at least one expression. With `whole_images`, an image
    is divided among batches only if it has more than `size` expressions or `pixels` pixels; such an image starts a new
    batch.
    """
    if whole_images:
        return _whole_images(shard, size, pixels)
    batches: list[list[Question]] = []
    held = 0
    for sample in shard:
        area = area_px(sample)
        if not batches or len(batches[-1]) >= size or (pixels is not None and held + area > pixels):
            batches.append([])
            held = 0
        batches[-1].append(sample)
        held += area
    return batches


def _whole_images(shard: Sequence[Question], size: int, pixels: int | None) -> list[list[Question]]:
    batches: list[list[Question]] = []
    held = 0
    for group in by_image(shard):
        for part in plan_batches(group, size, pixels):
            area = sum(map(area_px, part))
            fits = batches and len(batches[-1]) + len(part) <= size and (pixels is None or held + area <= pixels)
            if not fits:
                batches.append([])
                held = 0
            batches[-1].extend(part)
            held += area
    return batches
