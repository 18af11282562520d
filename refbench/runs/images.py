"""Decodes images in threads ahead of the model, and prepares them for adapters with stages."""

from __future__ import annotations

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
from refbench.storage.images import load_image

IMAGES_AHEAD = 24
PIXELS_AHEAD = 2**26
# Threads that decode; more of them wait for Python's lock.
MOST_THREADS = 8

Picture = Image.Image | DatasetError | None
Prepare = Callable[[Image.Image, Sequence[str]], Any]


def decode(sample: Question) -> Image.Image | DatasetError:
    """The image of a sample, or the error if it cannot be read."""
    try:
        return load_image(sample.image_path, sample.height, sample.width)
    except DatasetError as error:
        return error


def thread_pool(initializer: Callable[[], None] | None = None) -> ThreadPoolExecutor:
    """The threads that decode and prepare."""
    return ThreadPoolExecutor(max(2, min(MOST_THREADS, available_cores())), "decode", initializer)


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

    If the image cannot be read, `picture` is the error; if `prepare` failed, `failed` is True. `decode_seconds` and
    `prepare_seconds` are the seconds spent in a thread.
    """

    samples: list[Question]
    picture: Image.Image | DatasetError
    prepared: Any
    failed: bool
    decode_seconds: float
    prepare_seconds: float


class Preparation:
    """Decodes and prepares the parts of announced batches in threads, in order, a few images ahead.

    Args:
        prepare: the method of the adapter.
        ahead: number of images that are prepared, or are being prepared; PIXELS_AHEAD limits their pixels.
        initializer: called once in each thread.
    """

    def __init__(self, prepare: Prepare, ahead: int, initializer: Callable[[], None] | None = None) -> None:
        self._prepare = prepare
        self._ahead = max(IMAGES_AHEAD, ahead)
        self._pool = thread_pool(initializer)
        self._announced: set[int] = set()
        self._waiting: deque[list[Question]] = deque()
        self._started: deque[tuple[list[Question], Future[PreparedPart]]] = deque()
        self._held_px = 0
        # The image that was started last: if the next part is about it too, it must get the same object.
        self._last: tuple[str, Future[PreparedPart]] | None = None

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
        began = time.perf_counter()
        # If the part before is about this image, it was started earlier, so that waiting for it ends.
        picture = decode(part[0]) if before is None else before.result().picture
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
