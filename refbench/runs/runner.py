"""Runs an adapter on a split, resumes after interruptions, and writes reproducible files.

The split is divided into shards before the run, independent of the model. An existing shard file is complete. Its bytes
contain no time and no host name, and do not depend on the worker that computed it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from refbench._version import __version__
from refbench.errors import DatasetError, RunError, TooManyFailures
from refbench.plugins.loading import load_attribute
from refbench.records import Question, RunInfo
from refbench.runs.folder import RunFolder
from refbench.runs.in_process import InProcess
from refbench.runs.plan import AUTO_PIXELS, Facts, Job, plan_shards
from refbench.runs.processes import Processes
from refbench.runs.scheduler import Outcome, Scheduler, WorkerPool
from refbench.runs.timings import stage_table
from refbench.storage.files import home
from refbench.storage.locks import exclusive
from refbench.storage.manifest import parse_address
from refbench.storage.progress import Progress, silent
from refbench.storage.provenance import git_state, now
from refbench.storage.samples import load_questions
from refbench.storage.secrets import published_arguments, published_options

LONGEST_NAME = 120
ENGINES = ("local", "ray")
# After writing timings, a run waits this many times as long before it writes them again.
TIMINGS_PAUSE = 50


def _say_nothing(message: str) -> None:
    """The default log, which prints nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    """A completed run. `stages` states how the time of this call was spent; `bottleneck` summarises it in a
    sentence.
    """

    folder: Path
    samples: int
    failures: int
    resumed: int
    seconds: float
    notes: dict[str, int]
    usage: dict[str, float]
    stages: list[list[str]]
    bottleneck: str

    def __repr__(self) -> str:
        return f"RunResult({str(self.folder)!r}, {self.samples:,} samples, {self.failures:,} failed)"


def run(
    adapter: str | Any,
    address: str,
    *,
    options: Mapping[str, str] | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    limit: int | None = None,
    out: Path | None = None,
    max_failures: int = 0,
    engine: str = "local",
    workers: int = 1,
    ray_address: str | None = None,
    deterministic: bool = False,
    arguments: Sequence[str] = (),
    progress: Progress = silent,
    log: Callable[[str], None] = _say_nothing,
) -> RunResult:
    """Run an adapter on a split and write a run folder, or continue an interrupted run.

    Args:
        adapter: a name (`refbench list adapters`), `path/to/file.py:Class`, or an adapter object.
        address: the split, for example "refcoco/testA"; build it first.
        options: constructor options of a named adapter, as strings.
        device: device of the model; "cuda" with several workers assigns the GPUs in turn.
        batch_size: number of expressions per call; if None, that of the adapter, with smaller batches for large images.
        limit: run only the first `limit` samples.
        out: run folder; by default in `$REFBENCH_HOME/runs`.
        max_failures: if more samples fail, TooManyFailures is raised after everything is written.
        engine: "local" runs in this process, or in `workers` processes on this machine; "ray" runs in as many actors.
        ray_address: address of an existing Ray cluster; by default RAY_ADDRESS, or Ray on this machine.
        deterministic: use deterministic kernels and one thread on a CPU, and reset random generators and the
            batch size for each shard.

    Raises:
        DatasetError: the split is not built, or has no images although the adapter needs them.
        AdapterError: the adapter cannot be loaded, or failed on every sample of the first shard.
        RunError: the folder belongs to another run, or cannot be written; completed shards are kept.
        TooManyFailures: see max_failures.

    Example:
        >>> from refbench import run
        >>> result = run("center", "snapshots/test")
        >>> result.samples, result.failures
        (87, 0)
    """
    samples, fingerprint = load_questions(address)
    samples = samples[:limit]
    if not samples:
        raise DatasetError(f"{address} holds no samples")
    shards = plan_shards(samples)
    out = None if out is None else Path(out).absolute()
    job = Job(
        adapter=_absolute(adapter),
        options=dict(options or {}),
        address=address,
        fingerprint=fingerprint,
        limit=limit,
        device=device,
        batch_size=batch_size,
        deterministic=deterministic,
        home=home().absolute(),
        started_in=Path.cwd(),
    )
    with ExitStack() as stack:
        if out is not None:
            # Before the model is loaded, which may take minutes.
            stack.enter_context(exclusive(out))
        pool = _worker_pool(job, samples, engine, workers, ray_address)
        stack.callback(pool.stop, log)
        scheduler = Scheduler(pool, log)
        facts = scheduler.start_workers()
        folder = RunFolder(out or default_folder(facts.name, facts.options, address, limit))
        if out is None:
            stack.enter_context(exclusive(folder.path))
        info = folder.claim(
            dataclasses.replace(
                _info(job, facts, deterministic),
                fingerprint=fingerprint,
                samples=len(samples),
                shards=len(shards),
                arguments=published_arguments(arguments),
                engine=engine,
                workers=workers,
            )
        )
        return _compute(scheduler, folder, info, shards, max_failures, progress)


def _info(job: Job, facts: Facts, deterministic: bool) -> RunInfo:
    """The run information that is known before a run begins, except for the samples."""
    dataset, split = parse_address(job.address)
    return RunInfo(
        adapter=facts.name,
        adapter_options=facts.options,
        code_sha256=facts.code_sha256,
        weights_sha256=facts.weights_sha256,
        dataset=dataset,
        split=split,
        fingerprint="",
        samples=0,
        shards=0,
        limit=job.limit,
        batch_size=facts.batch_size,
        batch_pixels=None if job.batch_size else facts.batch_size * AUTO_PIXELS,
        device=job.device,
        seed=facts.seed,
        refbench_version=__version__,
        git=git_state(Path(__file__).parents[2]),
        packages=facts.packages,
        device_name=facts.device_name,
        started=now(),
        mode=facts.mode,
        deterministic=deterministic,
    )


def _worker_pool(
    job: Job, questions: Sequence[Question], engine: str, workers: int, ray_address: str | None
) -> WorkerPool:
    if engine not in ENGINES:
        raise RunError(f"unknown engine {engine!r}; choose from {', '.join(ENGINES)}")
    if workers < 1:
        raise RunError(f"the number of workers must be at least 1, got {workers}")
    if engine == "ray":
        pool: WorkerPool = load_attribute("refbench.runs.ray_actors:RayActors")(job, workers, ray_address)
        return pool
    return InProcess(job, questions) if workers == 1 else Processes(job, workers)


def _absolute(adapter: Any) -> Any:
    """The absolute path of an adapter file, which is valid in every process."""
    path, colon, name = adapter.rpartition(":") if isinstance(adapter, str) else ("", "", "")
    return f"{Path(path).absolute()}:{name}" if colon and path.endswith(".py") else adapter


def _compute(
    scheduler: Scheduler,
    folder: RunFolder,
    info: RunInfo,
    shards: Sequence[Sequence[Question]],
    max_failures: int,
    progress: Progress,
) -> RunResult:
    """Compute the missing shards, and complete run.json."""
    began = time.monotonic()
    sizes = [len(shard) for shard in shards]
    missing = [k for k in range(len(sizes)) if not folder.shard_path(k).exists()]
    before = {k: folder.tally(k, shards[k]) for k in sorted(set(range(len(sizes))) - set(missing))}
    resumed = sum(sizes[k] for k in before)
    task = f"{info.adapter} on {info.address}"
    progress(task, resumed, sum(sizes))
    outcome = _dispatch(
        scheduler,
        folder,
        info,
        missing,
        max_failures,
        nothing_done=not any(tally.failures < sizes[k] for k, tally in before.items()),
        step=lambda done: progress(task, resumed + done, sum(sizes)),
    )
    failures = outcome.failures + sum(tally.failures for tally in before.values())
    notes = sum((tally.notes for tally in before.values()), outcome.notes.copy())
    if missing or not info.finished:
        finished = dataclasses.replace(
            info,
            finished=now(),
            failures=failures,
            answer_notes=dict(sorted(notes.items())),
            usage=_added(info.usage, outcome.usage),
        )
        folder.write_info(finished)
    seconds = time.monotonic() - began
    stages, bottleneck = stage_table(outcome.timings, seconds, scheduler.pool.size)
    result = RunResult(
        folder.path, sum(sizes), failures, resumed, seconds, dict(notes), dict(outcome.usage), stages, bottleneck
    )
    if failures > max_failures:
        raise _too_many(result, folder, max_failures)
    return result


def _dispatch(
    scheduler: Scheduler,
    folder: RunFolder,
    info: RunInfo,
    missing: Sequence[int],
    max_failures: int,
    *,
    nothing_done: bool,
    step: Callable[[int], None],
) -> Outcome:
    """Compute shards; usage is written after each shard, timings now and then, and both when the run is stopped."""
    computing = set(missing)
    timings = [row for row in folder.timings() if row.shard not in computing]
    write_again_at = 0.0

    def keep_usage() -> None:
        if scheduler.outcome.usage:
            folder.write_info(dataclasses.replace(info, usage=_added(info.usage, scheduler.outcome.usage)))

    def keep_timings() -> None:
        folder.write_timings([*timings, *scheduler.outcome.timings])

    def on_shard(_: Outcome) -> None:
        nonlocal write_again_at
        keep_usage()
        began = time.monotonic()
        if began >= write_again_at:
            # The file has a row for every shard: written after each of thousands, it would take most of the time.
            keep_timings()
            written = time.monotonic()
            write_again_at = written + TIMINGS_PAUSE * (written - began)

    try:
        outcome = scheduler.dispatch(
            folder.path, missing, max_failures, nothing_done=nothing_done, on_shard=on_shard, step=step
        )
    except BaseException as stopped:
        if isinstance(stopped, KeyboardInterrupt):
            scheduler.outcome.usage.update(getattr(stopped, "usage", {}))
        # What stopped the run may also be a full disk.
        with suppress(RunError):
            keep_usage()
            keep_timings()
        raise
    if missing:
        keep_timings()
    return outcome


def _too_many(result: RunResult, folder: RunFolder, allowed: int) -> TooManyFailures:
    error = TooManyFailures(
        f"{result.failures} of {result.samples} samples failed, {allowed} are allowed (--max-failures); "
        f"all predictions are in {folder}, the reasons in the column 'error': {folder.first_error()}"
    )
    error.result = result
    return error


def _added(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """The total usage of an interrupted run: in earlier calls and in this one."""
    return {k: before.get(k, 0) + now.get(k, 0) for k in sorted({*before, *now})}


def default_folder(name: str, options: Mapping[str, str], address: str, limit: int | None = None) -> Path:
    """`$REFBENCH_HOME/runs/<adapter and options>/<dataset>-<split>`."""
    words = [name, *(f"{k}={v}" for k, v in sorted(published_options(options).items()))]
    safe = "".join(c if c.isalnum() or c in "-_.,=+" else "_" for c in ",".join(words))
    dataset, split = parse_address(address)
    end = "" if limit is None else f"-first{limit}"
    safe = safe.lstrip(".") or "adapter"
    if len(safe) > LONGEST_NAME:
        # Options with paths make long names; the hash keeps two names distinct after cutting.
        safe = f"{safe[: LONGEST_NAME - 9]}-{hashlib.sha256(safe.encode()).hexdigest()[:8]}"
    return home() / "runs" / safe / f"{dataset}-{split}{end}"
