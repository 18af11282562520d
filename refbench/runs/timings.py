"""Timings: a clock for the stages of a shard, and a summary of the stages of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

# In the order in which a sample passes them.
STAGES = {
    "pictures": "waiting for images to be decoded",
    "prepare": "waiting for images to be prepared",
    "model": "the adapter",
    "encode": "masks to run-length codes",
    "write": "writing shards",
    "other": "everything else",
}
# A device that is less busy than this is told with the reason.
BUSY_PERCENT = 90.0
TIMINGS_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("samples", pa.int32()),
        ("seconds", pa.float64()),
        *((f"{stage}_seconds", pa.float64()) for stage in STAGES if stage != "other"),
        ("peak_memory_bytes", pa.int64()),
        ("peak_device_bytes", pa.int64()),
        ("device_busy_percent", pa.float64()),
        ("worker", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardTiming:
    """A row of timings.parquet. Values that could not be measured are None."""

    shard: int
    samples: int
    seconds: float
    pictures_seconds: float | None = None
    prepare_seconds: float | None = None
    model_seconds: float | None = None
    encode_seconds: float | None = None
    write_seconds: float | None = None
    peak_memory_bytes: int | None = None
    peak_device_bytes: int | None = None
    device_busy_percent: float | None = None
    worker: int | None = None

    def stage_seconds(self, stage: str) -> float:
        """Seconds of one stage (any of STAGES except the last), 0 if unknown."""
        spent: float | None = getattr(self, f"{stage}_seconds")
        return spent or 0.0


class StageClock:
    """Adds up the seconds of each stage of a shard, and of the whole shard."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys((s for s in STAGES if s != "other"), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - began

    def waited(self, seconds: float, shares: Mapping[str, float]) -> None:
        """Add time spent waiting for several stages that ran in parallel threads; it is divided in proportion to the
        time that each stage took there.
        """
        whole = sum(shares.values())
        for name, share in shares.items():
            self._seconds[name] += seconds * share / whole if whole else 0.0

    def timing(self, shard: int, samples: int) -> ShardTiming:
        """The row of a shard, without the values for memory and device."""
        named: dict[str, Any] = {f"{stage}_seconds": seconds for stage, seconds in self._seconds.items()}
        return replace(ShardTiming(shard, samples, time.perf_counter() - self._began), **named)


def stage_table(timings: Sequence[ShardTiming], wall_seconds: float, workers: int = 1) -> tuple[list[list[str]], str]:
    """Rows (stage, milliseconds per sample, share) of a run, and a sentence that names the bottleneck.

    `timings` are the rows of timings.parquet that this run computed. `wall_seconds` is the time from the first shard to
    the last. Shares are relative to the total time of the workers.
    """
    samples = sum(row.samples for row in timings)
    if not samples:
        return [], ""
    total = sum(row.seconds for row in timings)
    seconds = {s: sum(row.stage_seconds(s) for row in timings) for s in STAGES if s != "other"}
    seconds["other"] = max(0.0, total - sum(seconds.values()))
    rows = [
        [STAGES[stage], f"{1000 * spent / samples:.2f}", f"{spent / total:.0%}" if total else "-"]
        for stage, spent in seconds.items()
        # Only adapters with stages prepare images separately.
        if spent or stage != "prepare"
    ]
    slowest = max(seconds, key=lambda stage: seconds[stage])
    rate = samples / wall_seconds if wall_seconds else float("inf")
    busy = [row.device_busy_percent for row in timings if row.device_busy_percent is not None]
    facts = [f"{rate:.1f} expressions a second" + (f" by {workers} workers" if workers > 1 else "")]
    device = max((row.peak_device_bytes or 0 for row in timings), default=0)
    memory = max((row.peak_memory_bytes or 0 for row in timings), default=0)
    facts.append(
        f"peak memory {memory / 2**30:.1f} GiB" + (f", on the device {device / 2**30:.1f} GiB" if device else "")
    )
    if busy:
        share = sum(busy) / len(busy)
        waits = max((stage for stage in seconds if stage != "model"), key=lambda stage: seconds[stage])
        reason = f" (longest wait: {STAGES[waits]})" if share < BUSY_PERCENT and seconds[waits] else ""
        facts.append(f"device busy {share:.0f} %{reason}")
    return rows, f"{'; '.join(facts)}; most time goes into {STAGES[slowest]} ({seconds[slowest] / total:.0%})"
