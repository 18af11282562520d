"""The in-process pool: one worker, which is this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from refbench.records import Question
from refbench.runs.plan import Job, Task
from refbench.runs.scheduler import Event, EventKind
from refbench.runs.shard import ShardRunner


class InProcess:
    """Runs the adapter in this process; the adapter can be any object."""

    size = 1

    def __init__(self, job: Job, questions: Sequence[Question]) -> None:
        self._job = job
        self._questions = questions
        self._runner: ShardRunner | None = None
        self._tasks: deque[Task] = deque()
        self._announced = False

    def start(self, worker: int) -> None:
        self._runner = ShardRunner(self._job, self._questions)

    def send(self, worker: int, task: Task) -> None:
        self._tasks.append(task)

    def wait(self, seconds: float, step: Callable[[int], None]) -> list[Event]:
        if self._runner is None:
            return []
        if not self._announced:
            self._announced = True
            return [Event(0, EventKind.READY, self._runner.facts)]
        if not self._tasks:
            return []
        task = self._tasks.popleft()
        following = self._tasks[0].number if self._tasks else None
        done = 0

        def count(samples: int) -> None:
            nonlocal done
            done += samples
            step(done)

        try:
            return [Event(0, EventKind.DONE, self._runner.run(task, following, count))]
        except Exception as error:  # noqa: BLE001 (reported as the other pools do; the scheduler raises it)
            return [Event(0, EventKind.FAILED, error)]

    def stop(self, log: Callable[[str], None]) -> None:
        if self._runner is not None:
            self._runner.close(log)
