"""The scheduler: assigns shards to a pool of workers until all are computed, and restarts workers that crash.

Workers are this process, processes on this machine, or Ray actors (`WorkerPool`). If a batch crashes two workers, its
samples are retried one by one. A sample that crashes two more workers counts as failed, and the rest of its shard is
computed. The journal of the shard records which samples a worker was predicting when it crashed.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, cast

from refbench.errors import AdapterError, RunError
from refbench.runs.folder import RunFolder
from refbench.runs.plan import Facts, ShardReport, Task
from refbench.runs.timings import ShardTiming

# A worker computes one shard and already holds the next, so that it never waits for the scheduler.
IN_FLIGHT = 2
DEATHS_WHILE_LOADING = 3
DEATHS_WHILE_LOADING_AGAIN = 10
DEATHS_IN_A_ROW = 20
DEATHS_OVER_THE_SAME = 2
# If more samples than this, beyond the allowed failures, kill their process, the run ends.
CRASHING_SAMPLES = 8
WAIT_SECONDS = 0.5
LONGEST_BACK_OFF_SECONDS = 8.0


class EventKind(Enum):
    """What happened to a worker, and the type of the content of the event."""

    READY = "the adapter is loaded: its Facts"
    DONE = "a shard is computed: a ShardReport"
    DIED = "the worker is gone: why, in words"
    FAILED = "an exception that every worker would meet: the exception"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a worker; `EventKind` states what `content` is."""

    worker: int
    kind: EventKind
    content: Any = None


class WorkerPool(Protocol):
    """Numbered workers: `start` starts or restarts a worker, `send` gives it a task, and `wait` returns events."""

    size: int

    def start(self, worker: int) -> None: ...
    def send(self, worker: int, task: Task) -> None: ...
    def wait(self, seconds: float, step: Callable[[int], None]) -> list[Event]: ...
    def stop(self, log: Callable[[str], None]) -> None: ...


@dataclass(slots=True)
class Outcome:
    """The results of this call so far: counts, notes, usage and timings."""

    samples: int = 0
    failures: int = 0
    adapter_failures: int = 0
    first_error: str = ""
    notes: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    timings: list[ShardTiming] = field(default_factory=list)


class Scheduler:
    """Starts the workers of a pool and assigns shards to them."""

    def __init__(self, pool: WorkerPool, log: Callable[[str], None]) -> None:
        self.pool = pool
        self.log = log
        self.facts: Facts | None = None
        self.outcome = Outcome()
        self.finished = 0
        self._ready: set[int] = set()
        self._in_flight: dict[int, list[int]] = {k: [] for k in range(pool.size)}
        self._again_at: dict[int, float] = {}
        self._deaths_in_a_row = 0
        # Shards that a worker was computing, or had next, when it crashed.
        self._lost: set[int] = set()
        self._loading_deaths: Counter[int] = Counter()
        self._retired: set[int] = set()
        self._last_death: dict[int, tuple[tuple[str, ...], int]] = {}
        self._singly: dict[int, set[str]] = {}
        self._crashing: dict[int, set[str]] = {}

    def start_workers(self) -> Facts:
        """Start all workers and wait until the first one is ready.

        Raises:
            AdapterError: workers crash while they load. Exceptions that a worker raises while it loads are raised here.
        """
        for worker in range(self.pool.size):
            self.pool.start(worker)
        while self.facts is None:
            for event in self.pool.wait(WAIT_SECONDS, lambda _: None):
                self._take(event)
            self._restart()
        return self.facts

    def dispatch(
        self,
        folder: Path,
        numbers: Sequence[int],
        max_failures: int,
        nothing_done: bool,
        on_shard: Callable[[Outcome], None],
        step: Callable[[int], None],
    ) -> Outcome:
        """Have the shards `numbers` computed and written to `folder`.

        `on_shard` is called with the counts after each shard, `step` with the number of completed samples.
        `nothing_done` states that no sample has succeeded so far. In this case, if the adapter fails on all samples of
        a shard with more than `max_failures` samples, the shard is not written and the run stops.

        Raises:
            AdapterError: the adapter fails on every sample, or its process crashes on too many of them.
            RunError: workers keep crashing, or have loaded different adapters.
        """
        self._folder = folder
        self._waiting = deque(numbers)
        self._max_failures = max_failures
        self._nothing_done = nothing_done
        left = len(numbers)
        # Journals of a run that was killed tell nothing about this one.
        for journal in RunFolder(folder).journals():
            journal.unlink(missing_ok=True)
        while left:
            if len(self._retired) == self.pool.size:
                raise AdapterError("no remaining worker can load the adapter")
            self._hand_out()
            for event in self.pool.wait(WAIT_SECONDS, lambda count: step(self.finished + count)):
                if self._take(event):
                    left -= 1
                    on_shard(self.outcome)
            step(self.finished + self._done_in_journals())
            self._restart()
        return self.outcome

    def _hand_out(self) -> None:
        """Give every ready worker its next shard, round by round, so that few shards are spread over all workers."""
        for depth in range(IN_FLIGHT):
            for worker in range(self.pool.size):
                if self._waiting and len(self._in_flight[worker]) == depth and worker in self._ready:
                    number = self._waiting.popleft()
                    self._in_flight[worker].append(number)
                    self.pool.send(worker, self._task(number))

    def _task(self, number: int) -> Task:
        return Task(
            number,
            self._folder,
            frozenset(self._singly.get(number, ())),
            frozenset(self._crashing.get(number, ())),
            self._max_failures if self._nothing_done else None,
            number in self._lost,
        )

    def _take(self, event: Event) -> bool:
        """Process an event; True if a shard is complete."""
        if event.kind == EventKind.FAILED:
            self._fail(event)
            return False
        if event.kind == EventKind.READY:
            self._ready.add(event.worker)
            self._loading_deaths[event.worker] = 0
            self._check_facts(event.content)
            return False
        if event.kind == EventKind.DIED:
            self._handle_death(event)
            return False
        report: ShardReport = event.content
        facts = cast(Facts, self.facts)
        self._in_flight[event.worker].remove(report.number)
        for line in report.log:
            self.log(line)
        self.outcome.usage.update(report.usage)
        if not report.kept and not self._nothing_done:
            # Meanwhile another shard has shown that the adapter works: compute this one again and keep it.
            self._waiting.appendleft(report.number)
            return False
        if not report.kept:
            raise AdapterError(
                f"{facts.name} failed on all of the first {report.failures} samples: {report.first_error}"
            )
        self.finished += report.samples
        self._deaths_in_a_row = 0
        self._nothing_done = self._nothing_done and report.adapter_failures == report.samples
        outcome = self.outcome
        outcome.samples += report.samples
        outcome.failures += report.failures
        outcome.adapter_failures += report.adapter_failures
        outcome.first_error = outcome.first_error or report.first_error
        outcome.notes.update(report.notes)
        outcome.timings.append(dataclasses.replace(report.timing, worker=event.worker))
        return True

    def _fail(self, event: Event) -> None:
        """An exception ends the run, unless only this worker failed to load while others could."""
        self.outcome.usage.update(getattr(event.content, "usage", {}))
        if event.worker in self._ready or not (self._ready or self._again_at):
            raise event.content
        self._retire(event.worker, str(event.content))

    def _retire(self, worker: int, why: str) -> None:
        self._retired.add(worker)
        self.log(f"worker {worker} does not get ready ({why}); the others go on without it")

    def _check_facts(self, facts: Facts) -> None:
        self.facts = self.facts or facts
        for name in ("name", "code_sha256", "weights_sha256", "batch_size"):
            here, there = getattr(self.facts, name), getattr(facts, name)
            if here != there:
                raise RunError(
                    f"the workers have different versions of the adapter: {name} is {here!r} on one worker and "
                    f"{there!r} on another; install the same files on all workers"
                )

    def _handle_death(self, event: Event) -> None:
        lost, self._in_flight[event.worker] = self._in_flight[event.worker], []
        if event.worker in self._retired:
            # Its process ends after it has said why it could not load.
            return
        loading = event.worker not in self._ready
        self._loading_deaths[event.worker] += loading
        self._ready.discard(event.worker)
        self._deaths_in_a_row += 1
        self.log(f"worker {event.worker} died ({event.content}); starting it again")
        if lost:
            self._waiting.extendleft(reversed(lost))
        self._lost.update(lost)
        for number in lost:
            self._suspect(number)
        if loading and self.facts is None and self._loading_deaths[event.worker] >= DEATHS_WHILE_LOADING:
            raise AdapterError(
                f"the workers crash while they load the adapter: {event.content} (if your own script calls run() "
                'with several workers, the call must be under `if __name__ == "__main__":`)'
            )
        if loading and self._loading_deaths[event.worker] >= DEATHS_WHILE_LOADING_AGAIN:
            # The adapter can be loaded (by another worker, or earlier), but this worker no longer can.
            self._retire(event.worker, str(event.content))
            return
        if self._deaths_in_a_row > DEATHS_IN_A_ROW:
            raise RunError(
                f"{self._deaths_in_a_row} workers crashed in a row without finishing a shard; the last error: "
                f"{event.content}. Completed shards are kept"
            )
        delay = min(LONGEST_BACK_OFF_SECONDS, 0.25 * 2 ** min(self._deaths_in_a_row - 1, 10))
        self._again_at[event.worker] = time.monotonic() + delay

    def _suspect(self, number: int) -> None:
        """Suspect the samples that a worker was predicting when it crashed, according to the journal of its shard.

        Workers also crash for other reasons, so only consecutive crashes on the same samples count. After two such
        crashes, the samples of the batch are retried one by one; a sample that crashes two more workers counts as
        failed.
        """
        journal = RunFolder(self._folder).journal(number)
        if journal is None:
            return
        RunFolder(self._folder).journal_path(number).unlink(missing_ok=True)
        asking = journal.asking
        before, deaths = self._last_death.get(number, ((), 0))
        deaths = deaths + 1 if asking == before else 1
        self._last_death[number] = asking, deaths
        suspected = self._singly.setdefault(number, set())
        if not suspected.issuperset(asking):
            suspected.clear()
        if deaths < DEATHS_OVER_THE_SAME:
            return
        if suspected.issuperset(asking):
            self._give_up(number, asking[0])
        else:
            suspected.update(asking)
            # A sample alone must kill as many workers again.
            self._last_death[number] = (), 0

    def _give_up(self, number: int, sample_id: str) -> None:
        self._crashing.setdefault(number, set()).add(sample_id)
        self._deaths_in_a_row = 0
        self.log(f"{sample_id} kills the process of the adapter; it counts as failed")
        if sum(map(len, self._crashing.values())) > self._max_failures + CRASHING_SAMPLES:
            raise AdapterError(
                f"the process of {cast(Facts, self.facts).name} crashed on more than {CRASHING_SAMPLES} samples, "
                f"most recently on {sample_id}. Completed shards are kept"
            )

    def _restart(self) -> None:
        for worker, when in list(self._again_at.items()):
            if time.monotonic() >= when:
                del self._again_at[worker]
                self.pool.start(worker)

    def _done_in_journals(self) -> int:
        """Completed samples of the shards that are being computed, according to their journals."""
        numbers = [n for flying in self._in_flight.values() for n in flying]
        journals = (RunFolder(self._folder).journal(n) for n in numbers)
        return sum(journal.done for journal in journals if journal is not None)
