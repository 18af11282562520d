"""A pool of Ray actors, on this machine or on a cluster.

Ray only starts the actors and transports tasks and reports. Only shard numbers are sent; images, masks and results stay
with the actors and in the shared folder. If an actor or its node crashes, it is replaced once resources are free; until
then the others continue.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from refbench.errors import RunError
from refbench.runs.plan import Facts, Job, ShardReport, Task
from refbench.runs.scheduler import Event, EventKind
from refbench.runs.shard import ShardRunner

# Actors that claim every core would leave none for others on the cluster.
MOST_OF_THE_CORES = 0.9
KNOCK_SECONDS = 5.0


class Actor:
    """The code that runs inside an actor."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def load(self) -> Facts:
        # Not in the constructor: Ray passes on a method's exception, but reports a constructor's as a dead actor.
        os.environ["REFBENCH_HOME"] = str(self._job.home)
        with contextlib.suppress(OSError):
            # Relative paths resolve as for the driver, if its folder exists on this node.
            os.chdir(self._job.started_in)
        self._runner = ShardRunner(self._job, journal=True)
        return self._runner.facts

    def run(self, task: Task) -> ShardReport:
        return self._runner.run(task)


def _knock(place: str) -> None:
    """Fail quickly if nothing listens at the address; Ray itself tries for minutes."""
    found = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", place)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), KNOCK_SECONDS).close()
    except OSError as error:
        raise RunError(f"no Ray cluster found at {place}: {error}; start one with `ray start --head`") from None


class RayActors:
    """`workers` actors; if the device is a GPU, each actor has its own.

    Args:
        address: address of an existing cluster; if None, RAY_ADDRESS is used, or Ray is started on this machine.

    Raises:
        RunError: there is no cluster at the address.
    """

    def __init__(self, job: Job, workers: int, address: str | None) -> None:
        self.size = workers
        self._job = job
        # Send no usage reports to Ray's developers, and rebuild no environment on the workers.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        # Ray gives its workers the niceness 15; where it is started for this run, they compute like the run itself.
        os.environ.setdefault("RAY_worker_niceness", "0")
        place = address or os.environ.get("RAY_ADDRESS") or "local"
        self._own = not ray.is_initialized()
        if self._own:
            _knock(place)
            try:
                ray.init(
                    address=place,
                    include_dashboard=None if place != "local" else False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            except (ConnectionError, RuntimeError, ValueError, RayError) as error:
                raise RunError(
                    f"no Ray cluster found at {place}: {error}; start one with `ray start --head`"
                ) from error
        self._actors: dict[int, Any] = {}
        self._running: dict[Any, tuple[int, EventKind]] = {}

    def start(self, worker: int) -> None:
        self._forget(worker)
        # One GPU each. Ray chooses it; inside the actor it is cuda:0.
        cuda = self._job.device.startswith("cuda")
        job = replace(self._job, device="cuda:0") if cuda else self._job
        kind = ray.remote(Actor).options(
            num_gpus=1 if cuda else 0, num_cpus=self._cores(), max_restarts=0, max_concurrency=1
        )
        actor: Any = kind.remote(job)
        self._actors[worker] = actor
        self._running[actor.load.remote()] = worker, EventKind.READY

    def send(self, worker: int, task: Task) -> None:
        self._running[self._actors[worker].run.remote(task)] = worker, EventKind.DONE

    def wait(self, seconds: float, step: Callable[[int], None]) -> list[Event]:
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds) if self._running else ([], [])
        events = []
        for reference in ready:
            worker, kind = self._running.pop(reference)
            try:
                events.append(Event(worker, kind, ray.get(reference)))
            except RayTaskError as error:
                # Raised by our own code inside the actor: as it is, where Ray could carry it here.
                cause = error.cause if isinstance(error.cause, Exception) else RunError(str(error))
                events.append(Event(worker, EventKind.FAILED, cause))
            except RayError as error:
                self._forget(worker)
                why = str(error).strip().partition("\n")[0]
                events.append(Event(worker, EventKind.DIED, why or "its node left"))
        return events

    def stop(self, log: Callable[[str], None]) -> None:
        for worker in list(self._actors):
            self._forget(worker)
        if self._own:
            ray.shutdown()

    def _forget(self, worker: int) -> None:
        for reference in [r for r, (other, _) in self._running.items() if other == worker]:
            del self._running[reference]
        actor = self._actors.pop(worker, None)
        if actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(actor)

    def _cores(self) -> float:
        """Cores per actor: one, or a fraction if there are fewer cores than actors."""
        cores = float(ray.cluster_resources().get("CPU", 1.0))
        return 1.0 if cores > self.size else round(MOST_OF_THE_CORES * cores / self.size, 3)
