"""Computes shards with one adapter: decodes images ahead, forms batches, handles lack of memory and failing samples."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import random
import sys
import sysconfig
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refbench.adapters.base import AdapterExtras, answers_of, counted, has_contract, has_stages, to_predictions
from refbench.errors import AdapterError, DatasetError, RefbenchError, RunStopped, no_exit, storable, text_of
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_adapter, load_attribute
from refbench.records import Prediction, Question
from refbench.runs.folder import Journal, RunFolder
from refbench.runs.images import Picture, Pictures, Preparation, PreparedPart, decode
from refbench.runs.plan import (
    AUTO_PIXELS,
    Facts,
    Job,
    ShardReport,
    Task,
    by_image,
    plan_batches,
    plan_shards,
)
from refbench.runs.timings import StageClock
from refbench.storage.files import write_table
from refbench.storage.predictions import predictions_table
from refbench.storage.provenance import code_sha256, device_name, package_versions
from refbench.storage.samples import load_questions, load_split
from refbench.storage.secrets import published, published_options, secret_values

# Folders whose traceback lines do not help to find a fault in an adapter: refbench and Python's library.
OURS, LIBRARY = str(Path(__file__).parents[1]) + os.sep, sysconfig.get_paths()["stdlib"] + os.sep

CLOSE_SECONDS = 10.0
# Images that are prepared beyond the next batch.
IMAGES_BEYOND_A_BATCH = 8

Step = Callable[[int], None]


@dataclasses.dataclass(slots=True)
class _InFlight:
    """A batch whose forward pass is queued on the device, or failed. `mark` is its place in the queue."""

    batch: list[Question]
    parts: list[PreparedPart]
    output: Any = None
    mark: Any = None
    failed: bool = False

    @property
    def ready(self) -> list[PreparedPart]:
        """The parts whose image could be read and prepared."""
        return [part for part in self.parts if not part.failed and not isinstance(part.picture, DatasetError)]


class ShardRunner:
    """An adapter and the plan of a run. Call `close` at the end, so that the adapter can free its model or process.

    Args:
        job: what is computed.
        questions: those of the job, if they have been loaded already.
        journal: whether to write down which samples are being computed, so that a crash tells on which it happened.

    Raises:
        AdapterError: the adapter cannot be loaded, has no `name`, or has none of `segment`, `segment_samples` and the
            three stages.
        DatasetError: the split is not built, or has no images although the adapter needs them.
    """

    def __init__(self, job: Job, questions: Sequence[Question] | None = None, journal: bool = False) -> None:
        self.job = job
        self._journal = journal
        samples = self._of_this_build(*load_questions(job.address)) if questions is None else questions
        if not samples:
            raise DatasetError(f"{job.address} holds no samples")
        if job.deterministic:
            # Set before anything computes: cuBLAS reads it once, and an adapter may import torch later.
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
            if importlib.util.find_spec("torch") is not None:
                load_attribute("refbench.adapters.torch_settings:make_deterministic")()
            _seed(0)
        self.adapter: Any = job.adapter
        if isinstance(job.adapter, str):
            self.adapter = load_adapter(job.adapter, job.options, device=job.device, deterministic=job.deterministic)
        self._secrets = secret_values(job.options)
        self._owner = job.adapter if isinstance(job.adapter, str) else type(job.adapter).__name__
        try:
            with no_exit(self._owner):
                self.extras = AdapterExtras.of(self.adapter)
                self.facts = _facts(self.adapter, self.extras, job)
                takes_samples = hasattr(self.adapter, "segment_samples")
        except RefbenchError:
            raise
        except Exception as error:
            # A property of the adapter, or an attribute of another type than the interface states.
            raise AdapterError(f"the attributes of {self._owner} cannot be read: {_told(error)}") from error
        if self.facts.needs_images and not samples[0].image_path:
            dataset = job.address.partition("/")[0]
            raise DatasetError(
                f"{job.address} was built without images; run `refbench build {dataset} ... --images FOLDER`"
            )
        if takes_samples and not self.extras.questions_suffice:
            # It may need more than the questions, for example the classes.
            samples = self._of_this_build(*load_split(job.address))
        self.shards = plan_shards(samples)
        self._pixels = None if job.batch_size else self.facts.batch_size * AUTO_PIXELS
        # Some adapters open the images themselves, in another process; decoding them here would be wasted work.
        decoded = self.facts.needs_images and not self.extras.opens_images
        # If a run must be deterministic, nothing may be in progress that uses random numbers for another batch.
        self._staged = decoded and has_stages(self.adapter) and not job.deterministic
        self._preparation: Preparation | None = None
        self._one_thread: Any = _for_torch("OneThreadEach") if self._staged else None
        if self._staged:
            ahead = self.facts.batch_size + IMAGES_BEYOND_A_BATCH
            self._preparation = Preparation(
                self.adapter.prepare,
                ahead,
                self._one_thread,
                in_processes=self.extras.prepare_in_processes,
                device=job.device,
            )
        self._pictures = Pictures() if decoded else None
        self._beside: Any = _for_torch("Beside", job.device) if self._staged else None
        self._overlap = bool(self._beside and self._beside.in_parallel)
        self._early: tuple[int, _InFlight] | None = None
        self._most = self.facts.batch_size
        self._adapter_failures = 0
        self._batch_failed = False
        self._said: list[str] = []
        self._utilisation: Any = _for_torch("Utilisation", job.device)

    def _of_this_build(self, samples: Sequence[Question], fingerprint: str) -> Sequence[Question]:
        """The samples that the run is about."""
        if self.job.fingerprint not in ("", fingerprint):
            raise DatasetError(f"{self.job.address} was built again since the run began; run the same command again")
        return samples[: self.job.limit]

    def close(self, log: Callable[[str], None]) -> None:
        for threads in (self._pictures, self._preparation, self._utilisation):
            if threads is not None:
                threads.close()
        if self._one_thread is not None:
            self._one_thread.restore()
        close_adapter(self.adapter, log)

    def run(self, task: Task, following: int | None = None, step: Step = lambda _: None) -> ShardReport:
        """Compute a shard and write it. Meanwhile, decode the images of the next shard, `following`.

        `step` is called after every batch with its number of samples.
        """
        try:
            return self._run(task, following, step)
        except (RunStopped, KeyboardInterrupt) as error:
            # Report the usage up to this point too.
            error.usage = self._usage()  # type: ignore[union-attr]
            raise

    def _run(self, task: Task, following: int | None, step: Step) -> ShardReport:
        clock = StageClock()
        shard = self.shards[task.number]
        if self.job.deterministic:
            # No state of another shard may matter: neither its reduced batch size nor its random numbers.
            self._most = self.facts.batch_size
            _seed(self.facts.seed + task.number)
            if self.extras.begin_shard is not None:
                with no_exit(self._owner):
                    self.extras.begin_shard(self.facts.seed + task.number)
        self._adapter_failures = 0
        _for_torch("reset_peak_memory", self.job.device)
        predictions: list[Prediction] = []
        if self._preparation is None or task.in_turn:
            self._early = None
            if self._preparation is not None:
                self._preparation.reset()
            computed = self._in_turn(task, following, clock)
        else:
            computed = self._in_stages(self._preparation, task, following, clock)
        for done in computed:
            predictions += done
            step(len(done))
        failed = [p for p in predictions if p.error]
        hopeless = self._adapter_failures == len(shard)
        kept = not (hopeless and task.give_up_above is not None and len(failed) > task.give_up_above)
        if kept:
            with clock.stage("write"):
                write_table(RunFolder(task.folder).shard_path(task.number), predictions_table(predictions))
        if self._journal:
            RunFolder(task.folder).journal_path(task.number).unlink(missing_ok=True)
        # First the usage: what is wrong with it is said with this shard.
        usage = self._usage()
        said, self._said = (*self._said, *self._remarks()), []
        return ShardReport(
            number=task.number,
            samples=len(shard),
            failures=len(failed),
            adapter_failures=self._adapter_failures,
            first_error=failed[0].error if failed else "",
            kept=kept,
            timing=dataclasses.replace(
                clock.timing(task.number, len(shard)),
                peak_memory_bytes=_peak_memory(),
                peak_device_bytes=_for_torch("peak_memory", self.job.device) or None,
                device_busy_percent=self._utilisation.percent() if self._utilisation else None,
            ),
            notes=dict(Counter(p.note for p in predictions if p.note)),
            log=said,
            usage=usage,
        )

    def _plan(self, shard: int) -> list[list[Question]]:
        return plan_batches(self.shards[shard], self.facts.batch_size, self._pixels, whole_images=self._staged)

    def _in_turn(self, task: Task, following: int | None, clock: StageClock) -> Iterator[list[Prediction]]:
        """The predictions of each batch of a shard; one batch is computed after the other."""
        if self._pictures:
            self._pictures.expect(self.shards[task.number])
            # The following shard of an adapter with stages is decoded by its preparation.
            if following is not None and self._preparation is None:
                self._pictures.expect(self.shards[following])
        done = 0
        for batch in self._plan(task.number):
            yield [p for part in _parts(batch, task) for p in self._predict(part, task, done, clock)]
            done += len(batch)

    def _in_stages(
        self, preparation: Preparation, task: Task, following: int | None, clock: StageClock
    ) -> Iterator[list[Prediction]]:
        """As `_in_turn`, for an adapter with stages: on CUDA, the next batch is queued before a batch is finished."""
        batches = self._plan(task.number)
        flights: deque[_InFlight] = deque()
        if self._early is not None and self._early[0] == task.number:
            # Its first batch was queued at the end of the shard before.
            flights.append(self._early[1])
            batches = batches[1:]
        else:
            preparation.begin(task.number, batches)
        self._early = None
        if following is not None:
            preparation.expect(following, self._plan(following))
        done = 0
        for batch in batches:
            for piece in self._pieces(batch):
                if self._journal:
                    self._write_down(task, [s for f in flights for s in f.batch] + piece, done)
                flights.append(self._launch(preparation, piece, clock))
                while flights and (len(flights) > 1 or flights[0].failed or not self._overlap):
                    yield (landed := self._land(flights.popleft(), task, done, clock))
                    done += len(landed)
        next_batches = [] if following is None else self._plan(following)
        if following is not None and self._overlap and flights and len(next_batches[0]) <= self._most:
            preparation.begin(following, next_batches)
            # If the adapter stops the run here, it will do so again when the shard is computed.
            with contextlib.suppress(RunStopped):
                self._early = following, self._launch(preparation, next_batches[0], clock)
        while flights:
            yield (landed := self._land(flights.popleft(), task, done, clock))
            done += len(landed)

    def _pieces(self, batch: list[Question]) -> Iterator[list[Question]]:
        """The batch, or parts of it with whole images if memory has run out for batches of this size."""
        piece: list[Question] = []
        for group in by_image(batch):
            if piece and len(piece) + len(group) > self._most:
                yield piece
                piece = []
            piece = piece + group
        yield piece

    def _launch(self, preparation: Preparation, batch: list[Question], clock: StageClock) -> _InFlight:
        """Queue the forward pass of a batch; if it fails, the batch is computed again in turn when it lands."""
        parts = []
        waiting = time.perf_counter()
        for part in preparation.of(batch):
            seconds = time.perf_counter() - waiting
            clock.waited(seconds, {"pictures": part.decode_seconds, "prepare": part.prepare_seconds})
            parts.append(part)
            waiting = time.perf_counter()
        flight = _InFlight(batch, parts)
        flight.failed = len(batch) > self._most
        if not flight.failed and flight.ready:
            out_of_memory = False
            try:
                with clock.stage("model"), no_exit(self._owner):
                    flight.output = self.adapter.forward([part.prepared for part in flight.ready])
                    flight.mark = self._beside.mark() if self._overlap else None
            except RunStopped:
                raise
            except Exception as error:  # noqa: BLE001 (it is raised again, and counted, when computed in turn)
                flight.failed, out_of_memory = True, _is_out_of_memory(error)
            if out_of_memory:
                self._shrink(len(batch))
        return flight

    def _land(self, flight: _InFlight, task: Task, done: int, clock: StageClock) -> list[Prediction]:
        """The predictions of a batch. What failed in a stage is computed again in turn, image by image."""
        answers = None if flight.failed else self._finish(flight, clock)
        flight.output = None
        rest = iter(answers or ())
        predictions: list[Prediction] = []
        for part in flight.parts:
            if answers is not None and part in flight.ready:
                predictions += [next(rest) for _ in part.samples]
                continue
            if self._journal:
                self._write_down(task, part.samples, done + len(predictions))
            picture = decode(part.samples[0]) if part.picture is None else part.picture
            predictions += self._predict_pictures(part.samples, [picture] * len(part.samples), task, clock)
        return predictions

    def _finish(self, flight: _InFlight, clock: StageClock) -> list[Prediction] | None:
        """The predictions of the parts that are ready; None if a stage failed."""
        samples = [s for part in flight.ready for s in part.samples]
        if not samples:
            return []
        try:
            with self._beside.after(flight.mark) if self._overlap else contextlib.nullcontext(), no_exit(self._owner):
                with clock.stage("model"):
                    if self._overlap:
                        self._beside.wait(flight.mark)
                    prepared = [part.prepared for part in flight.ready]
                    answers = counted(self.adapter.finish(prepared, flight.output), len(samples), "finish")
                    if not self._overlap:
                        _for_torch("synchronize", self.job.device)
                with clock.stage("encode"):
                    return self._stored(to_predictions(samples, answers))
        except RunStopped:
            raise
        except Exception as error:  # noqa: BLE001 (it is raised again, and counted, when computed in turn)
            out_of_memory = _is_out_of_memory(error)
        finally:
            if self._overlap:
                self._beside.drain()
        if out_of_memory:
            self._shrink(len(flight.batch))
        return None

    def _shrink(self, expressions: int) -> None:
        """Memory ran out with so many expressions in a batch. Called outside of `except`: there, the traceback would
        keep the tensors of the failed call alive.
        """
        if expressions == 1:
            return
        # Another batch that was already queued may have failed after the size was reduced.
        self._most = max(1, min(self._most, expressions // 2))
        self._said.append(f"out of memory with {expressions} expressions; going on with {self._most} at a time")
        _for_torch("empty_cache")

    def _predict(self, batch: Sequence[Question], task: Task, done: int, clock: StageClock) -> list[Prediction]:
        if self._journal:
            self._write_down(task, batch, done)
        with clock.stage("pictures"):
            pictures: list[Picture] = [self._pictures.of(s) if self._pictures else None for s in batch]
        return self._predict_pictures(batch, pictures, task, clock)

    def _predict_pictures(
        self, batch: Sequence[Question], pictures: Sequence[Picture], task: Task, clock: StageClock
    ) -> list[Prediction]:
        crashed = AdapterError("the adapter's process died on this sample, and again when it ran alone")
        spoiled: dict[int, Exception] = {k: p for k, p in enumerate(pictures) if isinstance(p, DatasetError)}
        spoiled |= {k: crashed for k, s in enumerate(batch) if s.sample_id in task.crashing}
        ready = [(s, p) for k, (s, p) in enumerate(zip(batch, pictures, strict=True)) if k not in spoiled]
        answered = iter(self._ask(ready, clock) if ready else [])
        return [_failed(s, spoiled[k], self._secrets) if k in spoiled else next(answered) for k, s in enumerate(batch)]

    def _ask(self, batch: Sequence[tuple[Question, Any]], clock: StageClock) -> list[Prediction]:
        """Predict in pieces that fit into memory: halve them if memory runs out, and split a piece if a sample
        fails.
        """
        predictions: list[Prediction] = []
        while rest := batch[len(predictions) :][: self._most]:
            predictions += self._ask_piece(rest, clock)
        return predictions

    def _ask_piece(self, batch: Sequence[tuple[Question, Any]], clock: StageClock) -> list[Prediction]:
        try:
            samples = [s for s, _ in batch]
            with no_exit(self._owner):
                with clock.stage("model"):
                    answers = answers_of(self.adapter, samples, _own_images([p for _, p in batch]))
                    # The device may still compute after the call returns; count this time as model, not as encoding.
                    _for_torch("synchronize", self.job.device)
                with clock.stage("encode"):
                    return self._stored(to_predictions(samples, answers))
        except RunStopped:
            raise
        except Exception as error:  # noqa: BLE001 (an adapter may raise anything; it is counted)
            if len(batch) == 1:
                self._adapter_failures += 1
                return [_failed(batch[0][0], error, self._secrets)]
            out_of_memory = _is_out_of_memory(error)
            told = _told(error, self._secrets)
        # Outside the except block: there, the traceback would keep the failed call's tensors alive.
        if out_of_memory:
            self._shrink(len(batch))
            return self._ask(batch, clock)
        if not self._batch_failed:
            # Logged once: if only batches fail, every batch is retried one by one, which is slow.
            self._batch_failed = True
            self._said.append(f"a batch of {len(batch)} expressions failed; retrying one by one: {told[:300]}")
        return [p for one in batch for p in self._ask_piece([one], clock)]

    def _stored(self, predictions: list[Prediction]) -> list[Prediction]:
        """The predictions, with texts that may be published: an adapter may repeat its options in them."""
        return [
            dataclasses.replace(p, note=published(p.note, self._secrets), raw=published(p.raw, self._secrets))
            if p.note or p.raw
            else p
            for p in predictions
        ]

    def _usage(self) -> dict[str, float]:
        if self.extras.usage is None:
            return {}
        try:
            with no_exit(self._owner):
                found = {storable(name): float(value) for name, value in dict(self.extras.usage()).items()}
            if not all(map(math.isfinite, found.values())):
                raise ValueError(f"every value must be a finite number, got {found}")
        except Exception as error:  # noqa: BLE001 (somebody else's bookkeeping must not cost a shard)
            self._said.append(f"the adapter cannot report its usage: {_told(error, self._secrets)}")
            return {}
        return found

    def _remarks(self) -> list[str]:
        """Remarks of the preparation and of the adapter since the last shard, except those about single samples."""
        ours = [] if self._preparation is None else self._preparation.remarks()
        ours = [published(remark, self._secrets) for remark in ours]
        if self.extras.remarks is None:
            return ours
        try:
            with no_exit(self._owner):
                return ours + [published(storable(remark), self._secrets) for remark in self.extras.remarks()]
        except Exception as error:  # noqa: BLE001 (as above)
            return [*ours, f"the adapter cannot report its remarks: {_told(error, self._secrets)}"]

    def _write_down(self, task: Task, batch: Sequence[Question], done: int) -> None:
        RunFolder(task.folder).write_journal(task.number, Journal(done, tuple(s.sample_id for s in batch)))


def _facts(adapter: Any, extras: AdapterExtras, job: Job) -> Facts:
    if not has_contract(adapter):
        raise AdapterError(
            f"{job.adapter} is not an adapter; it needs an attribute `name` and a method `segment(images, "
            "expressions)`, "
            "or the methods `prepare`, `forward` and `finish`"
        )
    size = extras.batch_size if job.batch_size is None else job.batch_size
    if not isinstance(size, int) or size < 1:
        raise AdapterError(f"the batch size of {adapter.name} must be a positive integer, got {size!r}")
    return Facts(
        name=storable(adapter.name),
        options=_options_of(adapter, job),
        code_sha256=extras.code_sha256 or code_sha256(adapter),
        weights_sha256=storable(extras.weights_sha256),
        batch_size=size,
        seed=extras.seed,
        needs_images=bool(extras.needs_images),
        mode=storable(extras.mode),
        device_name=str(_for_torch("name_of", job.device) or device_name(job.device)),
        packages=package_versions() | {storable(k): storable(v) for k, v in dict(extras.packages).items()},
    )


def _options_of(adapter: Any, job: Job) -> dict[str, str]:
    """The options of an adapter as they are stored in run.json: without secrets."""
    options = dict(job.options) if isinstance(job.adapter, str) else _settings_of(adapter)
    return {name: str(value) for name, value in published_options(options).items()}


def _settings_of(adapter: Any) -> dict[str, str]:
    """Plain attributes of an adapter object, which distinguish it from other objects of its class."""
    plain = (bool, int, float, str, Path)
    found = getattr(adapter, "__dict__", {})
    return {k: storable(v) for k, v in sorted(found.items()) if isinstance(v, plain) and not k.startswith("_")}


def _parts(batch: list[Question], task: Task) -> Iterator[list[Question]]:
    """The batch as a whole, or sample by sample if a process crashed on it."""
    if any(s.sample_id in task.singly for s in batch):
        yield from ([s] for s in batch)
    else:
        yield batch


def _own_images(pictures: Sequence[Any]) -> list[Any]:
    """Copies, one for each image: an adapter may draw into its images, and later expressions need them as they were."""
    copies: dict[int, Any] = {id(p): p if p is None else p.copy() for p in pictures}
    return [copies[id(p)] for p in pictures]


def _failed(sample: Question, error: Exception, secrets: Collection[str]) -> Prediction:
    text = _told(error, secrets)[:500] or "failed"
    return Prediction(sample.sample_id, Mask.empty(sample.height, sample.width), error=text)


def _told(error: Exception, secrets: Collection[str] = ()) -> str:
    """An error as text that may be published; for an error in the code of an adapter, with the last line of that code
    in the traceback.
    """
    if isinstance(error, RefbenchError):
        return published(storable(error), secrets)
    lines = traceback.extract_tb(error.__traceback__)
    own = [x for x in lines if not x.filename.startswith((OURS, LIBRARY)) and "-packages" not in x.filename]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return published(f"{type(error).__name__}: {text_of(error)}{place}", secrets)


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in text_of(error).lower()
    )


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number % 2**32)
    _for_torch("seed", number)


def _for_torch(name: str, *arguments: Any) -> Any:
    """Call a function of `torch_settings` if torch is imported."""
    if sys.modules.get("torch") is None:
        return None
    return load_attribute(f"refbench.adapters.torch_settings:{name}")(*arguments)


def _peak_memory() -> int | None:
    """Peak memory of this process in bytes; None except on Linux, where it is cheap to read."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return None


def close_adapter(adapter: Any, log: Callable[[str], None]) -> None:
    """Close the adapter with a time limit, because the results are already on disk."""
    close = AdapterExtras.of(adapter).close
    if close is None:
        return

    def attempt() -> None:
        try:
            close()
        except BaseException as error:  # noqa: BLE001 (somebody else's clean-up; the run is done)
            log(f"the adapter failed to close: {type(error).__name__}: {text_of(error)}")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        log(f"the adapter did not close within {CLOSE_SECONDS:.0f} s; going on without waiting")
