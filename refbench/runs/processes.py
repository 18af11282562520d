"""A pool of processes on this machine. If a process crashes, only its current shard is lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from refbench.errors import AdapterError, RefbenchError, storable, text_of
from refbench.runs.plan import Job, Task
from refbench.runs.scheduler import Event, EventKind
from refbench.runs.shard import CLOSE_SECONDS, ShardRunner
from refbench.storage.children import begin_child, how_it_ended

PATIENCE_SECONDS = CLOSE_SECONDS + 2.0


class Processes:
    """`workers` processes, each of which loads the adapter. If `device` is "cuda", the GPUs are assigned to them in
    turn.

    Raises:
        AdapterError: the adapter is an object that cannot be sent to another process.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self.size = workers
        self._job = job
        try:
            pickle.dumps(job)
        except Exception as error:
            raise AdapterError(
                f"with several workers, an adapter object must be picklable ({error}); make the object picklable, "
                "or pass the adapter by name: path/to/file.py:Class"
            ) from error
        # A forked process would inherit locks and CUDA contexts that it cannot use.
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, SpawnProcess] = {}
        self._pipes: dict[int, Connection] = {}

    def start(self, worker: int) -> None:
        self._forget(worker)
        ours, theirs = self._context.Pipe()
        device, visible = _device(self._job.device, worker)
        job = replace(self._job, device=device)
        process = self._context.Process(target=_serve, args=(theirs, job, visible, os.getpid()), daemon=False)
        process.start()
        theirs.close()
        self._processes[worker] = process
        self._pipes[worker] = ours

    def send(self, worker: int, task: Task) -> None:
        try:
            self._pipes[worker].send(task)
        except OSError:
            # The worker is dead; `wait` will report it, and the task is handed out again.
            return

    def wait(self, seconds: float, step: Callable[[int], None]) -> list[Event]:
        by_pipe = {pipe: worker for worker, pipe in self._pipes.items()}
        if not by_pipe:
            time.sleep(seconds)
        events = []
        for pipe in wait(list(by_pipe), seconds) if by_pipe else []:
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                events.append(Event(worker, *self._pipes[worker].recv()))
            except (EOFError, OSError):
                process = self._processes[worker]
                process.join(PATIENCE_SECONDS)
                why = how_it_ended(process.exitcode)
                self._forget(worker)
                events.append(Event(worker, EventKind.DIED, why))
        return events

    def stop(self, log: Callable[[str], None]) -> None:
        for pipe in self._pipes.values():
            # End of file tells the workers to close the adapter and exit.
            pipe.close()
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            for worker, process in self._processes.items():
                process.join(max(0.0, deadline - time.monotonic()))
                if process.is_alive():
                    log(f"worker {worker} did not end; it is killed")
                    process.kill()
                    process.join()
        finally:
            # Also if a second Ctrl-C comes meanwhile: Python would wait for them at its end.
            for process in self._processes.values():
                if process.is_alive():
                    process.kill()
        self._pipes.clear()

    def _forget(self, worker: int) -> None:
        if worker in self._pipes:
            self._pipes.pop(worker).close()
        process = self._processes.pop(worker, None)
        if process is not None and process.is_alive():
            process.kill()
            process.join()


def _device(device: str, worker: int) -> tuple[str, str | None]:
    """The device of a worker and its CUDA_VISIBLE_DEVICES; None leaves the variable unchanged."""
    if device != "cuda":
        return device, None
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = [d for d in given.split(",") if d] or _installed_devices()
    return "cuda:0", devices[worker % len(devices)] if devices else None


def _installed_devices() -> list[str]:
    """Numbers of the GPUs of this machine, as its driver lists them; asking torch would use memory of a GPU."""
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(k) for k in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def _serve(pipe: Connection, job: Job, visible: str | None, parent: int) -> None:
    """Main loop of a worker: load the adapter, report it, compute tasks, exit when the parent closes the pipe.

    It ends with its parent: otherwise a resumed run would compute this shard twice, and the model would keep its GPU.
    """
    begin_child(parent)
    os.environ["REFBENCH_HOME"] = str(job.home)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    try:
        runner = ShardRunner(job, journal=True)
    except Exception as error:  # noqa: BLE001 (told to the parent, who raises it)
        _tell(pipe, EventKind.FAILED, _portable(error))
        return
    tasks: deque[Task] = deque()
    try:
        pipe.send((EventKind.READY, runner.facts))
        while True:
            while not tasks or pipe.poll():
                tasks.append(pipe.recv())
            task = tasks.popleft()
            # A shard that is computed in turn must not be prepared or queued before.
            following = tasks[0].number if tasks and not tasks[0].in_turn else None
            pipe.send((EventKind.DONE, runner.run(task, following)))
    except (EOFError, BrokenPipeError):
        pass
    except Exception as error:  # noqa: BLE001 (a full disk, a bug: told to the parent, who raises it)
        _tell(pipe, EventKind.FAILED, _portable(error))
    runner.close(lambda _: None)


def _tell(pipe: Connection, kind: EventKind, content: Any) -> None:
    # Another worker may have failed the same way before, and the parent be gone.
    with contextlib.suppress(OSError):
        pipe.send((kind, content))


def _portable(error: Exception) -> Exception:
    """The error itself if the parent process can rebuild it, otherwise an AdapterError with its text."""
    text = storable(error) if isinstance(error, RefbenchError) else f"{type(error).__name__}: {text_of(error)}"
    if type(error).__module__.split(".")[0] not in ("refbench", "builtins"):
        # A class of the adapter's own file means nothing to the parent.
        return AdapterError(text)
    try:
        again: Any = pickle.loads(pickle.dumps(error))
        return again if isinstance(again, type(error)) else AdapterError(text)
    except Exception:  # noqa: BLE001 (an exception class may refuse in any way)
        return AdapterError(text)
