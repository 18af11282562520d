"""Small adapters that compute exactly, and ones that misbehave, for tests of the run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refbench.records import Answer

# The environment names a file to which `Threshold` adds a byte each time it is asked ...
CALLS = "REFBENCH_TEST_CALLS"
# ... and after how many of them it answers no more, but waits to be killed.
LAST_CALL = "REFBENCH_TEST_LAST_CALL"


class Threshold:
    """Bright pixels of the image, more or less of them by the length of the expression: exact integers."""

    name = "threshold"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Any]:
        _tell_call()
        time.sleep(self.seconds * len(images))
        masks = [np.asarray(i.convert("L")) > 60 + 4 * len(e) for i, e in zip(images, expressions, strict=True)]
        return [Answer(m, no_target=not m.any(), score=float(m.mean())) for m in masks]


def _tell_call() -> None:
    if CALLS not in os.environ:
        return
    path = Path(os.environ[CALLS])
    with path.open("ab") as file:
        file.write(b".")
    while path.stat().st_size >= int(os.environ.get(LAST_CALL, 1 << 30)):
        time.sleep(0.01)


class Misbehaving(Threshold):
    """Breaks the contract in the way named by `how`, for expressions that hold `word`."""

    name = "misbehaving"

    def __init__(self, how: str, word: str = "") -> None:
        super().__init__()
        self.how = how
        self.word = word
        self.largest = 0

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Any]:
        self.largest = max(self.largest, len(images))
        masks: list[Any] = [a.mask for a in super().segment(images, expressions)]
        hit = [k for k, e in enumerate(expressions) if self.word in e]
        if self.how == "memory" and len(images) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        if not hit:
            return masks
        if self.how == "raise":
            raise ValueError("no thanks")
        if self.how == "few":
            return masks[:-1]
        if self.how == "none":
            return None  # type: ignore[return-value]
        for k in hit:
            masks[k] = {
                "float": masks[k].astype(np.float32),
                "size": masks[k][:-1],
                "channel": masks[k][..., None],
                "nan": Answer(masks[k], score=float("nan")),
            }.get(self.how, masks[k])
        return masks

    def close(self) -> None:
        if self.how == "hang":
            time.sleep(3600)
        if self.how == "close":
            raise OSError("the lid is stuck")


class Counting(Threshold):
    """Writes down how many images each call got."""

    name = "counting"

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Any]:
        with self.log.open("a") as file:
            file.write(f"{len(images)}\n")
        return super().segment(images, expressions)


class Leaky(Threshold):
    """Lets its neighbours in the batch change an answer."""

    name = "leaky"

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Any]:
        level = np.mean([np.asarray(i).mean() for i in images])
        return [np.asarray(i.convert("L")) > level for i in images]


class Deadly(Threshold):
    """Takes its process along when it is asked about `word`."""

    name = "deadly"

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Any]:
        if self.word in expressions:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().segment(images, expressions)


class DeadlyInStages:
    """As `Deadly`, with stages; it dies in `stage`."""

    name = "deadly-in-stages"

    def __init__(self, word: str, stage: str) -> None:
        self.word = word
        self.stage = stage

    def _die(self, stage: str, expressions: Sequence[str]) -> None:
        if stage == self.stage and self.word in expressions:
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> Any:
        self._die("prepare", expressions)
        return image, expressions

    def forward(self, batch: list[Any]) -> list[Any]:
        for _, expressions in batch:
            self._die("forward", expressions)
        pairs = [(image, e) for image, expressions in batch for e in expressions]
        return Threshold().segment([image for image, _ in pairs], [e for _, e in pairs])

    def finish(self, batch: list[Any], output: list[Any]) -> list[Any]:
        return output


class Stillborn(Threshold):
    """Never gets ready."""

    name = "stillborn"

    def __init__(self) -> None:
        super().__init__()
        os._exit(3)


class Late(Threshold):
    """Fails from the image `first` on, in the order of names."""

    name = "late"
    opens_images = True

    def __init__(self, first: str) -> None:
        super().__init__()
        self.first = first

    def segment_samples(self, samples: Sequence[Any], images: Sequence[Any]) -> list[Any]:
        if any(Path(s.image_path).name >= self.first for s in samples):
            raise ValueError("too late")
        return [np.zeros((s.height, s.width), bool) for s in samples]


class OnlyOne(Threshold):
    """The second of its kind cannot load, once the first one works."""

    name = "only-one"

    def __init__(self, mark: Path, seconds: float = 0.0) -> None:
        super().__init__(seconds)
        self.asked = mark.with_suffix(".asked")
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            while not self.asked.exists():
                time.sleep(0.01)
            raise RuntimeError("no memory left for another one") from None

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Any]:
        self.asked.touch()
        return super().segment(images, expressions)
