"""Decodes images ahead of the model, and prepares them for adapters with stages, in threads or processes."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from refbench.errors import DatasetError
from refbench.masks.threads import available_cores
from refbench.records import Question
from refbench.runs.plan import area_px, by_image
from refbench.runs.preparing_process import Prepare, PreparingProcess, ProcessDied, can_fork
from refbench.storage.images import load_image

IMAGES_AHEAD = 24
PIXELS_AHEAD = 2**26
# Threads that decode; more of them wait for Python's lock.
MOST_THREADS = 8

Picture = Image.Image | DatasetError | None


def decode(sample: Question) -> Image.Image | DatasetError:
    """The image of a sample, or the error if it cannot be read."""
    try:
        return load_image(sample.image_path, sample.height, sample.width)
    except DatasetError as error:
        return error


def thread_pool(initializer: Callable[[], None] | None = None) -> ThreadPoolExecutor:
    """The threads that decode and prepare."""
    return ThreadPoolExecutor(most_at_once(), "decode", initializer)


def most_at_once() -> int:
    """Number of images that are decoded or prepared at the same time."""
    return max(2, min(MOST_THREADS, available_cores()))


class Pictures:
    """Decodes the images of expected samples in advance; each image is decoded once."""

    def __init__(self) -> None:
        self._pool = thread_pool()
        self._waiting: deque[Question] = deque()
        self._expected: set[str] = set()
        self._decoding: dict[str, tuple[Future[Image.Image | DatasetError], int]] = {}
        self._current: tuple[str, Picture] = ("", None)

    def expect(self, samples: Sequence[Question]) -> None:
        for sample in {s.image_id: s for s in samples}.values():
            if sample.image_id not in self._expected:
                self._expected.add(sample.image_id)
                self._waiting.append(sample)

    def of(self, sample: Question) -> Picture:
        """The image of an expected sample; consecutive samples of an image get the same Python object."""
        if self._current[0] != sample.image_id:
            self._fill()
            if sample.image_id in self._decoding:
                picture: Picture = self._decoding.pop(sample.image_id)[0].result()
                self._expected.discard(sample.image_id)
            else:
                # Asked about out of order, or a second time after others.
                picture = decode(sample)
            self._current = sample.image_id, picture
            self._fill()
        return self._current[1]

    def _fill(self) -> None:
        held = sum(pixels for _, pixels in self._decoding.values())
        while self._waiting and len(self._decoding) < IMAGES_AHEAD:
            area = area_px(self._waiting[0])
            if self._decoding and held + area > PIXELS_AHEAD:
                return
            sample = self._waiting.popleft()
            self._decoding[sample.image_id] = self._pool.submit(decode, sample), area
            held += area

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPart:
    """Consecutive samples of one image in a batch, with what `prepare` returned for them.

    If the image cannot be read, `picture` is the error; if it was read in another process, `picture` is None. If
    `prepare` failed, `failed` is True. `decode_seconds` and `prepare_seconds` are the seconds spent in a thread or
    process.
    """

    samples: list[Question]
    picture: Picture
    prepared: Any
    failed: bool
    decode_seconds: float
    prepare_seconds: float


class Preparation:
    """Decodes and prepares the parts of announced batches, in order, a few images ahead, in threads or processes.

    A thread takes an idle process and waits for it. If a process dies or cannot do the work, the threads do it.

    Args:
        prepare: the method of the adapter.
        ahead: number of images that are prepared, or are being prepared; PIXELS_AHEAD limits their pixels.
        initializer: called once in each thread.
        in_processes: whether to use processes, where the system can fork.
        device: device of the model.
    """

    def __init__(
        self,
        prepare: Prepare,
        ahead: int,
        initializer: Callable[[], None] | None = None,
        *,
        in_processes: bool = False,
        device: str = "cpu",
    ) -> None:
        self._prepare = prepare
        self._ahead = max(IMAGES_AHEAD, ahead)
        self._remarks: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._processes: list[PreparingProcess] = []
        # Those that do nothing now.
        self._idle: queue.SimpleQueue[PreparingProcess] = queue.SimpleQueue()
        self._use_processes = in_processes and can_fork()
        if self._use_processes:
            # Before there are threads: a fork copies their locks.
            self._start_processes(device)
        self._pool = thread_pool(initializer)
        self._announced: set[int] = set()
        self._waiting: deque[list[Question]] = deque()
        self._started: deque[tuple[list[Question], Future[PreparedPart]]] = deque()
        self._held_px = 0
        # The image that was started last: if the next part is about it too, it need not be decoded again.
        self._last: tuple[str, Future[PreparedPart]] | None = None

    def _start_processes(self, device: str) -> None:
        try:
            for _ in range(most_at_once()):
                self._processes.append(PreparingProcess(decode, self._prepare, device))
                self._idle.put(self._processes[-1])
        except OSError as error:
            self._go_on_in_threads(f"processes that prepare images cannot be started ({error.strerror or error})")

    def _go_on_in_threads(self, why: str) -> None:
        if self._use_processes:
            self._use_processes = False
            self._remarks.put(f"{why}; images are prepared in threads instead")

    def remarks(self) -> list[str]:
        """What a user should know, since the last call."""
        found = []
        while not self._remarks.empty():
            found.append(self._remarks.get())
        return found

    def expect(self, shard: int, batches: Sequence[Sequence[Question]]) -> None:
        """Announce the batches of a shard. They come after all batches that were announced before."""
        if shard not in self._announced:
            self._announced.add(shard)
            self._waiting.extend(part for batch in batches for part in by_image(batch))
            self._fill()

    def begin(self, shard: int, batches: Sequence[Sequence[Question]]) -> None:
        """Start with the batches of this shard. Batches that were announced to come before them are dropped."""
        first = self._started[0][0] if self._started else self._waiting[0] if self._waiting else None
        if first is None or first[0] is not batches[0][0]:
            self.reset()
        self.expect(shard, batches)
        self._announced.discard(shard)

    def reset(self) -> None:
        """Drop everything that was announced."""
        for _, future in self._started:
            future.cancel()
        self._announced.clear()
        self._waiting.clear()
        self._started.clear()
        self._held_px = 0
        self._last = None

    def of(self, batch: Sequence[Question]) -> Iterator[PreparedPart]:
        """The parts of the next batch, each as soon as it is ready."""
        for _ in by_image(batch):
            if not self._started:
                self._start()
            part, future = self._started.popleft()
            yield future.result()
            self._held_px -= area_px(part[0])
            self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._started) < self._ahead:
            if self._started and self._held_px + area_px(self._waiting[0][0]) > PIXELS_AHEAD:
                return
            self._start()

    def _start(self) -> None:
        part = self._waiting.popleft()
        before = self._last[1] if self._last is not None and self._last[0] == part[0].image_id else None
        future = self._pool.submit(self._prepared, part, before)
        self._last = part[0].image_id, future
        self._started.append((part, future))
        self._held_px += area_px(part[0])

    def _prepared(self, part: list[Question], before: Future[PreparedPart] | None) -> PreparedPart:
        if not self._use_processes:
            return self._prepared_here(part, before)
        process = self._idle.get()
        try:
            reply = process(part)
        except ProcessDied as died:
            self._go_on_in_threads(f"a process that prepares images died on {part[0].sample_id} ({died})")
            # The image could kill this process too. Its samples are asked one by one later, and the journal says which.
            return PreparedPart(part, None, None, True, 0.0, 0.0)
        finally:
            self._idle.put(process)
        if not reply.error and not reply.unreadable:
            return PreparedPart(part, None, reply.prepared, False, reply.decode_seconds, reply.prepare_seconds)
        found = self._prepared_here(part, None)
        if reply.error and not found.failed:
            self._go_on_in_threads(f"`prepare` fails in a process of its own ({reply.error})")
        return found

    def _prepared_here(self, part: list[Question], before: Future[PreparedPart] | None) -> PreparedPart:
        began = time.perf_counter()
        # If the part before is about this image, it was started earlier, so that waiting for it ends.
        picture = None if before is None else before.result().picture
        if picture is None:
            picture = decode(part[0])
        decode_seconds = time.perf_counter() - began
        if isinstance(picture, DatasetError):
            return PreparedPart(part, picture, None, False, decode_seconds, 0.0)
        began = time.perf_counter()
        try:
            # A copy, because the next part may be about this image too, and an adapter may draw into it.
            prepared, failed = self._prepare(picture.copy(), [s.expression for s in part]), False
        except BaseException:  # noqa: BLE001 (it is raised again when the samples are asked one by one)
            prepared, failed = None, True
        return PreparedPart(part, picture, prepared, failed, decode_seconds, time.perf_counter() - began)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.close()
