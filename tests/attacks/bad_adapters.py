"""Adapters that end the process, raise what is no error, or hand over text that cannot be printed or stored."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw

from refbench import Answer
from refbench.errors import RefbenchError


class Unreadable(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class NotAnError(BaseException):
    pass


class Exiting(list[Any]):
    """A list of answers that ends the program when it is counted."""

    def __len__(self) -> int:
        sys.exit(0)


def fail(error: BaseException) -> Any:
    raise error


def end_later() -> None:
    threading.Timer(0.2, os._exit, (0,)).start()
    time.sleep(60)


# What code of others may do instead of returning masks; these pass through Python.
RAISES: dict[str, Callable[[], Any]] = {
    "sys.exit(0)": lambda: sys.exit(0),
    "sys.exit()": lambda: sys.exit(),
    "sys.exit(text)": lambda: sys.exit("bye"),
    "answers that exit": lambda: Exiting([None]),
    "GeneratorExit": lambda: fail(GeneratorExit()),
    "not an error": lambda: fail(NotAnError("odd")),
    "unreadable text": lambda: fail(Unreadable()),
    "lone surrogate": lambda: fail(ValueError("caf\udce9")),
    "NUL": lambda: fail(ValueError("a\0b")),
    "10 MB of text": lambda: fail(ValueError("x" * 10**7)),
}
# These end the process without any exception.
ENDS: dict[str, Callable[[], Any]] = {
    "os._exit(0)": lambda: os._exit(0),
    "exit of the C library": lambda: ctypes.CDLL(None)._exit(0),
    "os._exit(0) in a thread": end_later,
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "SIGABRT": lambda: os.kill(os.getpid(), signal.SIGABRT),
}


class Bad:
    """Does `what` for the expressions that contain `word`, or in another method."""

    name = "bad"
    batch_size = 4

    def __init__(self, what: str = "", where: str = "segment", word: str = "") -> None:
        self.what, self.where, self.word = what, where, word
        if where == "constructor":
            self._act()

    def _act(self) -> Any:
        return {**RAISES, **ENDS}[self.what]()

    def segment(self, images: list[Image.Image], expressions: list[str]) -> Any:
        if self.where == "segment" and any(self.word in e for e in expressions):
            return self._act()
        return [np.zeros((i.height, i.width), bool) for i in images]

    def usage(self) -> Any:
        return self._act() if self.where == "usage" else {}

    def remarks(self) -> Any:
        return self._act() if self.where == "remarks" else []

    def close(self) -> None:
        if self.where == "close":
            self._act()


class BadStages:
    """As `Bad`, in one of the three stages."""

    name = "bad-stages"
    batch_size = 4

    def __init__(self, what: str = "", where: str = "forward") -> None:
        self.what, self.where = what, where

    def prepare(self, image: Image.Image, expressions: list[str]) -> Any:
        if self.where == "prepare":
            RAISES[self.what]()
        return image.size, len(expressions)

    def forward(self, batch: list[Any]) -> Any:
        return RAISES[self.what]() if self.where == "forward" else batch

    def finish(self, batch: list[Any], output: Any) -> Any:
        if self.where == "finish":
            return RAISES[self.what]()
        return [np.zeros(size[::-1], bool) for size, count in batch for _ in range(count)]


class Painter:
    """Answers with the bright pixels of the image, and then paints the image white."""

    name = "painter"
    how: ClassVar[dict[str, Callable[[Image.Image], Any]]] = {
        "paste": lambda i: i.paste((255, 255, 255), (0, 0, *i.size)),
        "draw": lambda i: ImageDraw.Draw(i).rectangle((0, 0, *i.size), fill="white"),
        "putpixel": lambda i: [i.putpixel((x, y), (255, 255, 255)) for x in range(i.width) for y in range(i.height)],
        "thumbnail": lambda i: i.thumbnail((8, 8)),
    }

    def __init__(self, how: str = "", batch_size: int = 1) -> None:
        self.with_, self.batch_size = how, batch_size

    def _answer(self, image: Image.Image) -> np.ndarray:
        mask = np.asarray(image.convert("L")) > 128
        if self.with_:
            self.how[self.with_](image)
        return mask

    def segment(self, images: list[Image.Image], expressions: list[str]) -> list[np.ndarray]:
        # An image that occurs several times in a batch is one object.
        done = {id(i): i for i in images}
        masks = {k: self._answer(i) for k, i in done.items()}
        return [masks[id(i)] for i in images]


class StagedPainter(Painter):
    """As `Painter`, in stages."""

    segment = None  # type: ignore[assignment]

    def prepare(self, image: Image.Image, expressions: list[str]) -> Any:
        return self._answer(image), len(expressions)

    def forward(self, batch: list[Any]) -> Any:
        return batch

    def finish(self, batch: list[Any], output: Any) -> Any:
        return [mask for mask, count in output for _ in range(count)]


class Leaky:
    """Repeats its options and the environment in everything that it hands over."""

    name = "leaky"

    def __init__(self, api_key: str = "", endpoint: str = "", weights: str = "") -> None:
        self.api_key, self.endpoint, self.weights = api_key, endpoint, weights

    def _all(self) -> str:
        return f"{self.api_key} {self.endpoint} {self.weights} {os.environ.get('MY_SERVICE_TOKEN')}"

    def segment_samples(self, samples: list[Any], images: list[Image.Image]) -> list[Answer]:
        if "left" in samples[0].expression:
            raise ValueError(self._all())
        if "right" in samples[0].expression:
            raise RefbenchError(self._all())
        empty = [np.zeros((i.height, i.width), bool) for i in images]
        return [Answer(mask, note=self._all(), raw=self._all()) for mask in empty]

    def remarks(self) -> list[str]:
        return [self._all()]
