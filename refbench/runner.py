"""Runs an adapter over a split: decodes ahead, batches, survives kills, and writes what can be repeated.

The split is cut into shards before the run, from the dataset alone: whole images, in order, about
`SHARD_SAMPLES` expressions each. A shard file that is there is done; its bytes hold no time and no host.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from refbench.adapters.base import DEFAULT_BATCH_SIZE, ask
from refbench.errors import AdapterError, DatasetError, RefbenchError, RunError, TooManyFailures
from refbench.images import load_image
from refbench.mask import Mask, available_cores
from refbench.plugins import load_adapter
from refbench.progress import Progress, silent
from refbench.provenance import code_sha256, device_name, git_state, now, package_versions
from refbench.records import Prediction, RunInfo, Sample
from refbench.storage import (
    home,
    load_samples,
    parse_address,
    predictions_table,
    read_json,
    read_table,
    split_fingerprint,
    write_json,
    write_table,
)
from refbench.version import __version__

SHARD_SAMPLES = 256
IMAGES_AHEAD = 24
CLOSE_SECONDS = 10.0


def _say_nothing(message: str) -> None:
    """The default log."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    folder: Path
    samples: int
    failures: int
    resumed: int
    seconds: float


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
    arguments: Sequence[str] = (),
    progress: Progress = silent,
    log: Callable[[str], None] = _say_nothing,
) -> RunResult:
    """Run an adapter over a split and write a run folder, or go on with one that was interrupted.

    Args:
        adapter: a name (`refbench list adapters`), `path/to/file.py:Class`, or an object with the contract.
        address: the split, e.g. "refcoco/testA"; build it first.
        options: constructor options of a named adapter, as texts.
        batch_size: expressions a call; None asks the adapter.
        limit: only the first so many samples.
        out: run folder; by default below `$REFBENCH_HOME/runs`.
        max_failures: more failed samples than this raise, once everything is written.

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
    chosen = dict(options or {})
    if isinstance(adapter, str):
        segmenter = load_adapter(adapter, chosen, device=device)
    else:
        segmenter = adapter
        chosen = _settings_of(adapter)
    name = getattr(segmenter, "name", None)
    if not isinstance(name, str) or not (hasattr(segmenter, "segment") or hasattr(segmenter, "segment_samples")):
        raise AdapterError(f"{adapter} is no adapter: it needs a `name` and a method `segment(images, expressions)`")
    needs_images = getattr(segmenter, "needs_images", True)
    if needs_images and not samples[0].image_path:
        raise DatasetError(f"{address} was built without images; run `refbench build {dataset} ... --images FOLDER`")
    size = batch_size or int(getattr(segmenter, "batch_size", DEFAULT_BATCH_SIZE))
    folder = Path(out) if out else default_folder(name, chosen, address, limit)
    shards = plan_shards(samples)
    info = RunInfo(
        adapter=name,
        adapter_options=chosen,
        code_sha256=code_sha256(segmenter),
        weights_sha256=str(getattr(segmenter, "weights_sha256", "")),
        dataset=dataset,
        split=split,
        fingerprint=fingerprint,
        samples=len(samples),
        shards=len(shards),
        limit=limit,
        batch_size=size,
        device=device,
        seed=int(getattr(segmenter, "seed", 0)),
        refbench_version=__version__,
        git=git_state(Path(__file__).parent.parent),
        packages=package_versions(),
        device_name=device_name(device),
        arguments=list(arguments),
        started=now(),
    )
    info = _claim_folder(folder, info)
    began = time.monotonic()
    paths = planned_paths(folder, len(shards))
    resumed = sum(len(s) for s, p in zip(shards, paths, strict=True) if p.exists())
    worker = _ShardWorker(segmenter, size, needs_images, log)
    done = resumed
    failures = 0
    task = f"{name} on {address}"
    progress(task, resumed, len(samples))
    timings = _read_timings(folder)
    try:
        for number, (shard, path) in enumerate(zip(shards, paths, strict=True)):
            if path.exists():
                failures += _failures_in(path)
                continue
            shard_began = time.monotonic()
            predictions = []
            for batch in worker.predict(shard):
                predictions += batch
                done += len(batch)
                progress(task, done, len(samples))
            failed = [p for p in predictions if p.error]
            failures += len(failed)
            if failures > max_failures and worker.adapter_failures == failures == sum(map(len, shards[: number + 1])):
                raise AdapterError(f"{name} failed on each of the first {failures} samples: {failed[0].error}")
            write_table(path, predictions_table(predictions))
            timings.append({"shard": number, "samples": len(shard), "seconds": time.monotonic() - shard_began})
            write_table(folder / "timings.parquet", pa.Table.from_pylist(timings, schema=TIMINGS_SCHEMA))
    finally:
        worker.close()
        close_adapter(segmenter, log)
    if resumed < len(samples) or not info.finished:
        finished = dataclasses.replace(info, finished=now(), failures=failures)
        write_json(folder / "run.json", dataclasses.asdict(finished))
    if failures > max_failures:
        raise TooManyFailures(
            f"{failures} of {len(samples)} samples failed, {max_failures} are allowed (--max-failures); "
            f"all predictions are in {folder}, the reasons in the column 'error': {_first_error(paths)}"
        )
    return RunResult(folder, len(samples), failures, resumed, time.monotonic() - began)


TIMINGS_SCHEMA = pa.schema([("shard", pa.int32()), ("samples", pa.int32()), ("seconds", pa.float64())])


def plan_shards(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Whole images in order of first appearance, at least SHARD_SAMPLES expressions a shard but the last."""
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image_id, []).append(sample)
    shards: list[list[Sample]] = [[]]
    for group in by_image.values():
        if len(shards[-1]) >= SHARD_SAMPLES:
            shards.append([])
        shards[-1] += group
    return shards


def default_folder(name: str, options: Mapping[str, str], address: str, limit: int | None = None) -> Path:
    """`$REFBENCH_HOME/runs/<adapter and options>/<dataset>-<split>`."""
    words = [name, *(f"{k}={v}" for k, v in sorted(options.items()))]
    safe = "".join(c if c.isalnum() or c in "-_.,=+" else "_" for c in ",".join(words))
    dataset, split = parse_address(address)
    end = "" if limit is None else f"-first{limit}"
    return home() / "runs" / (safe.lstrip(".")[:120] or "adapter") / f"{dataset}-{split}{end}"


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a run's run.json."""
    info = read_json(folder / "run.json", RunError)
    if not isinstance(info, dict) or not {"adapter", "dataset", "split", "fingerprint"} <= info.keys():
        raise RunError(f"{folder / 'run.json'} was not written by `refbench run`")
    return info


def planned_paths(folder: Path, shards: int) -> list[Path]:
    return [folder / "predictions" / f"part-{k:05d}.parquet" for k in range(shards)]


def shard_paths(folder: Path) -> list[Path]:
    """The shards that are there."""
    return sorted((folder / "predictions").glob("part-*.parquet"))


def _settings_of(adapter: Any) -> dict[str, str]:
    """Plain attributes of an adapter object: what sets it apart from another of its class."""
    plain = (bool, int, float, str, Path)
    found = getattr(adapter, "__dict__", {})
    return {k: str(v) for k, v in sorted(found.items()) if isinstance(v, plain) and not k.startswith("_")}


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
        "refbench_version": info.refbench_version,
    }
    other = [f"{k} {before.get(k)!r} there, {v!r} now" for k, v in same.items() if before.get(k) != v]
    if other:
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


def _failures_in(path: Path) -> int:
    try:
        errors = read_table(path, ["error"])["error"].to_pylist()
    except (DatasetError, KeyError):
        raise RunError(f"{path} is damaged; remove it and run the same command again") from None
    return sum(1 for error in errors if error)


def _first_error(paths: Sequence[Path]) -> str:
    for path in paths:
        for row in read_table(path, ["sample_id", "error"]).to_pylist():
            if row["error"]:
                return f"{row['sample_id']}: {row['error']}"
    return "none"


class _ShardWorker:
    """Feeds batches to the adapter while threads decode the images of the next ones."""

    def __init__(self, adapter: Any, batch_size: int, needs_images: bool, log: Callable[[str], None]) -> None:
        self.adapter = adapter
        self.batch_size = batch_size
        self.needs_images = needs_images
        self.log = log
        self.adapter_failures = 0
        self._pool = ThreadPoolExecutor(max(2, min(8, available_cores())), "decode")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def predict(self, shard: Sequence[Sample]) -> Iterator[list[Prediction]]:
        """Predictions of a shard, in order, a list a batch."""
        pictures = self._pictures(shard)
        while batch := list(islice(pictures, self.batch_size)):
            yield self._predict_batch(batch)

    def _pictures(self, shard: Sequence[Sample]) -> Iterator[tuple[Sample, Image.Image | DatasetError | None]]:
        """Each sample with its picture, decoded once for all its expressions; a broken one as its error."""
        if not self.needs_images:
            yield from ((s, None) for s in shard)
            return
        distinct = list({s.image_id: s for s in shard}.values())
        waiting = deque(distinct)
        decoding: deque[Future[Image.Image | DatasetError]] = deque()
        picture: Image.Image | DatasetError | None = None
        current = None
        for sample in shard:
            while waiting and len(decoding) < IMAGES_AHEAD:
                decoding.append(self._pool.submit(_decode, waiting.popleft()))
            if sample.image_id != current:
                picture = decoding.popleft().result()
                current = sample.image_id
            yield sample, picture

    def _predict_batch(self, batch: list[tuple[Sample, Image.Image | DatasetError | None]]) -> list[Prediction]:
        ready = [(s, p) for s, p in batch if not isinstance(p, DatasetError)]
        answered = iter(self._ask(ready) if ready else [])
        return [_failed(s, p) if isinstance(p, DatasetError) else next(answered) for s, p in batch]

    def _ask(self, batch: list[tuple[Sample, Image.Image | None]]) -> list[Prediction]:
        """Ask for a batch; halve it when memory runs out, take it apart when a sample breaks it."""
        try:
            return ask(self.adapter, [s for s, _ in batch], [p for _, p in batch])
        except Exception as error:  # noqa: BLE001 (an adapter may raise anything; it is counted)
            if len(batch) == 1:
                self.adapter_failures += 1
                return [_failed(batch[0][0], error)]
            out_of_memory = _is_out_of_memory(error)
        # Outside the except block: there, the traceback would keep the failed call's tensors alive.
        if out_of_memory:
            self.batch_size = len(batch) // 2
            self.log(f"out of memory with {len(batch)} expressions; going on with {self.batch_size} at a time")
            _empty_cuda_cache()
        size = self.batch_size if out_of_memory else 1
        predictions: list[Prediction] = []
        while rest := batch[len(predictions) :][: min(size, self.batch_size)]:
            predictions += self._ask(rest)
        return predictions


def _empty_cuda_cache() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _decode(sample: Sample) -> Image.Image | DatasetError:
    try:
        return load_image(sample.image_path, sample.height, sample.width)
    except DatasetError as error:
        return error


def _failed(sample: Sample, error: Exception) -> Prediction:
    text = str(error) if isinstance(error, RefbenchError) else f"{type(error).__name__}: {error}"
    return Prediction(sample.sample_id, Mask.empty(sample.height, sample.width), error=text[:500] or "failed")


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in str(error).lower()
    )


def close_adapter(adapter: Any, log: Callable[[str], None]) -> None:
    """Close the adapter, but do not wait for ever: the results are on disk already."""
    close = getattr(adapter, "close", None)
    if close is None:
        return

    def attempt() -> None:
        try:
            close()
        except Exception as error:  # noqa: BLE001 (somebody else's clean-up; the run is done)
            log(f"the adapter failed to close: {type(error).__name__}: {error}")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        log(f"the adapter did not close within {CLOSE_SECONDS:.0f} s; going on without waiting")
