"""Hands shards to a crew of workers until all are there: in any order, again when a worker dies, never twice at once.

A crew is a set of workers (`Crew`): this process, processes, or actors of Ray. A worker that dies over a shard is
started again. What it was asking about stands in its journal; a batch over which two have died is taken apart, and a
sample over which two more die, alone, is a failed one. The rest of the shard is computed to its end.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from refbench.errors import AdapterError, RunError
from refbench.runs.plan import Facts, ShardReport, Task, journal_path

# One is computed, the next one waits with the worker, so that it never waits for us.
IN_FLIGHT = 2
DEATHS_WHILE_LOADING = 3
DEATHS_WHILE_LOADING_AGAIN = 10
DEATHS_IN_A_ROW = 20
DEATHS_OVER_THE_SAME = 2
# More samples that kill their process than this, beyond the allowed failures, are no accident.
CRASHING_SAMPLES = 8
WAIT_SECONDS = 0.5
LONGEST_BACK_OFF_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a worker: "ready" (its `Facts`), "done" (a `ShardReport`), "died" (why, in words), or
    "failed" (an exception that another worker would meet too)."""

    worker: int
    kind: str
    content: Any = None


class Crew(Protocol):
    """Workers by number. `start` begins one (again); `send` gives one a task, `wait` tells what happened."""

    size: int

    def start(self, worker: int) -> None: ...
    def send(self, worker: int, task: Task) -> None: ...
    def wait(self, seconds: float, step: Callable[[int], None]) -> list[Event]: ...
    def stop(self, log: Callable[[str], None]) -> None: ...


@dataclass(slots=True)
class Outcome:
    """The sums of a run."""

    samples: int = 0
    failures: int = 0
    adapter_failures: int = 0
    first_error: str = ""
    notes: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    timings: list[dict[str, Any]] = field(default_factory=list)


class Foreman:
    """Musters a crew, then has shards computed by it."""

    def __init__(self, crew: Crew, log: Callable[[str], None]) -> None:
        self.crew = crew
        self.log = log
        self.facts: Facts | None = None
        self.outcome = Outcome()
        self.finished = 0
        self._ready: set[int] = set()
        self._flying: dict[int, list[int]] = {k: [] for k in range(crew.size)}
        self._again_at: dict[int, float] = {}
        self._deaths_in_a_row = 0
        self._loading_deaths: Counter[int] = Counter()
        self._retired: set[int] = set()
        self._last_death: dict[int, tuple[tuple[str, ...], int]] = {}
        self._singly: dict[int, set[str]] = {}
        self._crashing: dict[int, set[str]] = {}

    def muster(self) -> Facts:
        """Start every worker and wait until the first is ready.

        Raises:
            AdapterError: workers die while they load. What a worker raises while it loads is raised here.
        """
        for worker in range(self.crew.size):
            self.crew.start(worker)
        while self.facts is None:
            for event in self.crew.wait(WAIT_SECONDS, lambda _: None):
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
        """Have the shards `numbers` computed and written below `folder`.

        `on_shard` gets the sums after each shard, `step` the number of samples that are done altogether.
        `nothing_done`: no shard was computed before; then an adapter that fails on every sample, more of them than
        `max_failures`, stops the run before anything is written.

        Raises:
            AdapterError: it fails on every sample, or its process dies over too many of them.
            RunError: workers die without end, or disagree about the adapter.
        """
        self._folder = folder
        self._waiting = deque(numbers)
        self._max_failures = max_failures
        self._nothing_done = nothing_done
        left = len(numbers)
        # Journals of a run that was killed tell nothing about this one.
        for journal in (folder / "working").glob("part-*.json"):
            journal.unlink(missing_ok=True)
        while left:
            if len(self._retired) == self.crew.size:
                raise AdapterError("no worker is left that can load the adapter")
            self._give_out()
            for event in self.crew.wait(WAIT_SECONDS, lambda count: step(self.finished + count)):
                if self._take(event):
                    left -= 1
                    on_shard(self.outcome)
            step(self.finished + self._done_in_journals())
            self._restart()
        return self.outcome

    def _give_out(self) -> None:
        """Fill the hands of those who are there, round by round, so that few shards spread over all."""
        for depth in range(IN_FLIGHT):
            for worker in range(self.crew.size):
                if self._waiting and len(self._flying[worker]) == depth and worker in self._ready:
                    number = self._waiting.popleft()
                    self._flying[worker].append(number)
                    self.crew.send(worker, self._task(number))

    def _task(self, number: int) -> Task:
        return Task(
            number,
            self._folder,
            frozenset(self._singly.get(number, ())),
            frozenset(self._crashing.get(number, ())),
            self._max_failures if self._nothing_done else None,
        )

    def _take(self, event: Event) -> bool:
        """Note what happened; True if a shard is done."""
        if event.kind == "failed":
            self._fail(event)
            return False
        if event.kind == "ready":
            self._ready.add(event.worker)
            self._loading_deaths[event.worker] = 0
            self._check_facts(event.content)
            return False
        if event.kind == "died":
            self._bury(event)
            return False
        report: ShardReport = event.content
        facts = cast(Facts, self.facts)
        self._flying[event.worker].remove(report.number)
        for line in report.log:
            self.log(line)
        self.outcome.usage.update(report.usage)
        if not report.kept and not self._nothing_done:
            # It was given out before another shard had shown that the adapter works: compute it for good.
            self._waiting.appendleft(report.number)
            return False
        if not report.kept:
            raise AdapterError(
                f"{facts.name} failed on each of the first {report.failures} samples: {report.first_error}"
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
        outcome.timings.append({**report.timing, "worker": event.worker})
        return True

    def _fail(self, event: Event) -> None:
        """An exception ends the run, unless it is one worker's that could not load while others could."""
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
                    f"workers have different adapters: {name} {here!r} and {there!r}; give all the same files"
                )

    def _bury(self, event: Event) -> None:
        lost, self._flying[event.worker] = self._flying[event.worker], []
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
        for number in lost:
            self._learn(number)
        if loading and self.facts is None and self._loading_deaths[event.worker] >= DEATHS_WHILE_LOADING:
            raise AdapterError(
                f"workers die while they load the adapter: {event.content} (a script of yours that calls run() with "
                'several workers must do so below `if __name__ == "__main__":`)'
            )
        if loading and self._loading_deaths[event.worker] >= DEATHS_WHILE_LOADING_AGAIN:
            # The adapter can be loaded, as another worker or an earlier time has shown; not by this one any more.
            self._retire(event.worker, str(event.content))
            return
        if self._deaths_in_a_row > DEATHS_IN_A_ROW:
            raise RunError(
                f"{self._deaths_in_a_row} workers died without finishing a shard, the last: {event.content}; "
                "what was finished is kept"
            )
        delay = min(LONGEST_BACK_OFF_SECONDS, 0.25 * 2 ** min(self._deaths_in_a_row - 1, 10))
        self._again_at[event.worker] = time.monotonic() + delay

    def _learn(self, number: int) -> None:
        """What the journal of a shard, if it was begun, says about a death.

        Machines fail and people kill: only deaths over the very same samples, one after the other, are held against
        them. After two a batch is asked about one by one; a sample with which it then ends twice more is given up.
        """
        journal = _read_journal(self._folder, number)
        if journal is None:
            return
        journal_path(self._folder, number).unlink(missing_ok=True)
        asking = tuple(journal["asking"])
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
            # Alone, it has to happen again as often.
            self._last_death[number] = (), 0

    def _give_up(self, number: int, sample_id: str) -> None:
        self._crashing.setdefault(number, set()).add(sample_id)
        self._deaths_in_a_row = 0
        self.log(f"{sample_id} kills the process of the adapter; it counts as failed")
        if sum(map(len, self._crashing.values())) > self._max_failures + CRASHING_SAMPLES:
            raise AdapterError(
                f"the process of {cast(Facts, self.facts).name} died over more than {CRASHING_SAMPLES} samples, "
                f"the last {sample_id}; what was finished is kept"
            )

    def _restart(self) -> None:
        for worker, when in list(self._again_at.items()):
            if time.monotonic() >= when:
                del self._again_at[worker]
                self.crew.start(worker)

    def _done_in_journals(self) -> int:
        """Samples of the shards that are being computed, as far as their journals tell."""
        numbers = [n for flying in self._flying.values() for n in flying]
        return sum((_read_journal(self._folder, n) or {}).get("done", 0) for n in numbers)


def _read_journal(folder: Path, number: int) -> dict[str, Any] | None:
    """The journal of a shard, None if there is none or it is being written this moment."""
    try:
        found = json.loads(journal_path(folder, number).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"done", "asking"} <= found.keys() else None
