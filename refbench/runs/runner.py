"""Runs an adapter over a split: survives kills, resumes, and writes what can be repeated.

The split is cut into shards before the run, from the dataset alone. A shard file that is there is done; its bytes hold
no time and no host, and do not depend on who computed it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from refbench._version import __version__
from refbench.errors import AdapterError, DatasetError, RunError, TooManyFailures
from refbench.plugins.loading import load_attribute
from refbench.records import RunInfo
from refbench.runs.in_process import Here
from refbench.runs.plan import AUTO_PIXELS, Facts, Job, plan_shards, planned_paths, shard_paths
from refbench.runs.processes import Processes
from refbench.runs.scheduler import Crew, Foreman, Outcome
from refbench.runs.timings import TIMINGS_SCHEMA, stage_table
from refbench.storage.files import home, read_json, read_table, write_json, write_table
from refbench.storage.manifest import parse_address, split_fingerprint
from refbench.storage.progress import Progress, silent
from refbench.storage.provenance import git_state, now
from refbench.storage.samples import load_samples

LONGEST_NAME = 120
ENGINES = ("local", "ray")


def _say_nothing(message: str) -> None:
    """The default log."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run. `stages` tells where the time of this call went, `bottleneck` sums it up in a sentence."""

    folder: Path
    samples: int
    failures: int
    resumed: int
    seconds: float
    notes: dict[str, int]
    usage: dict[str, float]
    stages: list[list[str]]
    bottleneck: str


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
    """Run an adapter over a split and write a run folder, or go on with one that was interrupted.

    Args:
        adapter: a name (`refbench list adapters`), `path/to/file.py:Class`, or an object with the contract.
        address: the split, e.g. "refcoco/testA"; build it first.
        options: constructor options of a named adapter, as texts.
        device: where the model computes; "cuda" with several workers gives each a GPU in turn.
        batch_size: expressions a call; None asks the adapter, and makes batches of large pictures smaller.
        limit: only the first so many samples.
        out: run folder; by default below `$REFBENCH_HOME/runs`.
        max_failures: more failed samples than this raise, once everything is written.
        engine: "local" computes in this process, or in `workers` processes of this machine; "ray" in as many actors.
        ray_address: of an existing Ray cluster; by default RAY_ADDRESS, or Ray on this machine.
        deterministic: repeatable kernels, one thread on a CPU, and nothing carried over from shard to shard.

    Raises:
        DatasetError: the split is not built, or has no images though the adapter needs them.
        AdapterError: the adapter cannot be loaded, or has failed on every sample of the first shard.
        RunError: the folder belongs to another run, or cannot be written; finished shards stay.
        TooManyFailures: see max_failures.
    """
    dataset, split = parse_address(address)
    fingerprint = split_fingerprint(address)
    samples = load_samples(address)[:limit]
    if not samples:
        raise DatasetError(f"{address} holds no samples")
    shards = plan_shards(samples)
    out = None if out is None else Path(out).absolute()
    job = Job(
        adapter=_absolute(adapter),
        options=dict(options or {}),
        address=address,
        limit=limit,
        device=device,
        batch_size=batch_size,
        deterministic=deterministic,
        home=home().absolute(),
        started_in=Path.cwd(),
    )
    crew = _crew(job, engine, workers, ray_address)
    try:
        foreman = Foreman(crew, log)
        facts = foreman.muster()
        folder = out or default_folder(facts.name, facts.options, address, limit)
        info = _claim_folder(
            folder,
            RunInfo(
                adapter=facts.name,
                adapter_options=facts.options,
                code_sha256=facts.code_sha256,
                weights_sha256=facts.weights_sha256,
                dataset=dataset,
                split=split,
                fingerprint=fingerprint,
                samples=len(samples),
                shards=len(shards),
                limit=limit,
                batch_size=facts.batch_size,
                batch_pixels=None if batch_size else facts.batch_size * AUTO_PIXELS,
                device=device,
                seed=facts.seed,
                refbench_version=__version__,
                git=git_state(Path(__file__).parents[2]),
                packages=facts.packages,
                device_name=facts.device_name,
                arguments=list(arguments),
                started=now(),
                mode=facts.mode,
                deterministic=deterministic,
                engine=engine,
                workers=workers,
            ),
        )
        return _compute(foreman, facts, folder, info, [len(s) for s in shards], max_failures, progress)
    finally:
        crew.stop(log)


def _crew(job: Job, engine: str, workers: int, ray_address: str | None) -> Crew:
    if engine not in ENGINES:
        raise RunError(f"there is no engine {engine!r}; known: {', '.join(ENGINES)}")
    if workers < 1:
        raise RunError(f"a run needs at least one worker, not {workers}")
    if engine == "ray":
        crew: Crew = load_attribute("refbench.runs.ray_actors:RayActors")(job, workers, ray_address)
        return crew
    return Here(job) if workers == 1 else Processes(job, workers)


def _absolute(adapter: Any) -> Any:
    """An adapter file by a path that holds in every process."""
    path, colon, name = adapter.rpartition(":") if isinstance(adapter, str) else ("", "", "")
    return f"{Path(path).absolute()}:{name}" if colon and path.endswith(".py") else adapter


def _compute(
    foreman: Foreman,
    facts: Facts,
    folder: Path,
    info: RunInfo,
    sizes: Sequence[int],
    max_failures: int,
    progress: Progress,
) -> RunResult:
    began = time.monotonic()
    paths = planned_paths(folder, len(sizes))
    numbers = [k for k, path in enumerate(paths) if not path.exists()]
    there = sorted(set(range(len(sizes))) - set(numbers))
    resumed = sum(sizes[k] for k in there)
    before = [_found_in(paths[k]) for k in there]
    total = sum(sizes)
    task = f"{info.adapter} on {info.dataset}/{info.split}"
    timings = [row for row in _read_timings(folder) if row["shard"] not in set(numbers)]

    def keep_usage() -> None:
        if foreman.outcome.usage:
            used = _added(info.usage, foreman.outcome.usage)
            write_json(folder / "run.json", dataclasses.asdict(dataclasses.replace(info, usage=used)))

    def keep_timings(outcome: Outcome) -> None:
        keep_usage()
        rows = sorted([*timings, *outcome.timings], key=lambda row: row["shard"])
        write_table(folder / "timings.parquet", pa.Table.from_pylist(rows, schema=TIMINGS_SCHEMA))

    progress(task, resumed, total)
    try:
        outcome = foreman.dispatch(
            folder,
            numbers,
            max_failures,
            nothing_done=not any(failures < sizes[k] for k, (failures, _) in zip(there, before, strict=True)),
            on_shard=keep_timings,
            step=lambda done: progress(task, resumed + done, total),
        )
    except AdapterError:
        keep_usage()
        raise
    except KeyboardInterrupt as interrupt:
        foreman.outcome.usage.update(getattr(interrupt, "usage", {}))
        keep_usage()
        raise
    failures = outcome.failures + sum(found for found, _ in before)
    notes = outcome.notes.copy()
    for _, earlier in before:
        notes.update(earlier)
    if numbers or not info.finished:
        finished = dataclasses.replace(
            info,
            finished=now(),
            failures=failures,
            answer_notes=dict(sorted(notes.items())),
            usage=_added(info.usage, outcome.usage),
        )
        write_json(folder / "run.json", dataclasses.asdict(finished))
    seconds = time.monotonic() - began
    stages, bottleneck = stage_table(outcome.timings, seconds, foreman.crew.size)
    result = RunResult(folder, total, failures, resumed, seconds, dict(notes), dict(outcome.usage), stages, bottleneck)
    if failures > max_failures:
        error = TooManyFailures(
            f"{failures} of {total} samples failed, {max_failures} are allowed (--max-failures); "
            f"all predictions are in {folder}, the reasons in the column 'error': {_first_error(paths)}"
        )
        error.result = result
        raise error
    return result


def _short(value: Any) -> str:
    """As it is told; of a hash the beginning does."""
    return f"{value[:8]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else repr(value)


def _added(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """What earlier calls of an interrupted run have used, and this one."""
    return {k: before.get(k, 0) + now.get(k, 0) for k in sorted({*before, *now})}


def default_folder(name: str, options: Mapping[str, str], address: str, limit: int | None = None) -> Path:
    """`$REFBENCH_HOME/runs/<adapter and options>/<dataset>-<split>`."""
    words = [name, *(f"{k}={v}" for k, v in sorted(options.items()))]
    safe = "".join(c if c.isalnum() or c in "-_.,=+" else "_" for c in ",".join(words))
    dataset, split = parse_address(address)
    end = "" if limit is None else f"-first{limit}"
    safe = safe.lstrip(".") or "adapter"
    if len(safe) > LONGEST_NAME:
        # Paths make long names; what is cut off would be what tells two of them apart.
        safe = f"{safe[: LONGEST_NAME - 9]}-{hashlib.sha256(safe.encode()).hexdigest()[:8]}"
    return home() / "runs" / safe / f"{dataset}-{split}{end}"


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a run's run.json."""
    info = read_json(folder / "run.json", RunError)
    if not isinstance(info, dict) or not {"adapter", "dataset", "split", "fingerprint"} <= info.keys():
        raise RunError(f"{folder / 'run.json'} was not written by `refbench run`")
    return info


# What a run folder of an earlier version means where it says nothing.
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(RunInfo)}


def _claim_folder(folder: Path, info: RunInfo) -> RunInfo:
    """Write run.json, or check that the one that is there belongs to the same run, and return it."""
    path = folder / "run.json"
    if not path.exists():
        if shard_paths(folder):
            raise RunError(f"{folder} holds predictions but no run.json; choose another folder with --out")
        write_json(path, dataclasses.asdict(info))
        return info
    before = read_run(folder)
    for leftover in (folder / "predictions").glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    same = {
        "adapter": info.adapter,
        "adapter_options": info.adapter_options,
        "code_sha256": info.code_sha256,
        "weights_sha256": info.weights_sha256,
        "dataset": info.dataset,
        "split": info.split,
        "fingerprint": info.fingerprint,
        "limit": info.limit,
        "shards": info.shards,
        "device": info.device,
        "batch_size": info.batch_size,
        "batch_pixels": info.batch_pixels,
        "deterministic": info.deterministic,
        "mode": info.mode,
        "refbench_version": info.refbench_version,
    }
    there = {k: before.get(k, _DEFAULTS.get(k)) for k in same}
    other = [f"{k} {_short(there[k])} there, {_short(v)} now" for k, v in same.items() if there[k] != v]
    if other:
        if there["code_sha256"] != info.code_sha256:
            other.append("the code of the adapter has changed since")
        raise RunError(
            f"{folder} belongs to another run ({'; '.join(other)}); choose another folder with --out, or remove it"
        )
    try:
        return RunInfo(**before)
    except TypeError as error:
        raise RunError(f"{path} was written by another refbench ({error}); choose another folder with --out") from None


def _read_timings(folder: Path) -> list[dict[str, Any]]:
    path = folder / "timings.parquet"
    rows: list[dict[str, Any]] = read_table(path).to_pylist() if path.exists() else []
    return rows


def _found_in(path: Path) -> tuple[int, Counter[str]]:
    """Failures and notes of a shard that is there."""
    try:
        table = read_table(path, ["error", "note"])
        errors, notes = table["error"].to_pylist(), table["note"].to_pylist()
    except (DatasetError, KeyError):
        raise RunError(f"{path} is damaged; remove it and run the same command again") from None
    return sum(1 for error in errors if error), Counter(n for n in notes if n)


def _first_error(paths: Sequence[Path]) -> str:
    for path in paths:
        for row in read_table(path, ["sample_id", "error"]).to_pylist():
            if row["error"]:
                return f"{row['sample_id']}: {row['error']}"
    return "none"
