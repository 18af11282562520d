"""The adapter contract, and the one place where an adapter's answer becomes a row.

    class MySegmenter:
        name = "mine"
        def segment(self, images, expressions): ...

`images` are PIL RGB pictures (upright, 8-bit), `expressions` the texts; the answer is a list of as many
bool (H, W) arrays, tensors on any device, or `Mask`s, each at its image's own size; or `Answer`s.
An adapter that needs more offers `segment_samples(samples, images)` instead.

Optional attributes: `batch_size` (what `--batch-size auto` means, default 8), `needs_images` (False: may run
on a dataset without images and gets None for each), `weights_sha256`, `close()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from refbench.errors import AdapterError, MaskError
from refbench.mask import Mask
from refbench.records import Answer, Instance, Prediction, Sample

DEFAULT_BATCH_SIZE = 8


class Segmenter(Protocol):
    """Anything with a name that turns pictures and expressions into masks."""

    name: str

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> Sequence[Any]: ...


def ask(adapter: Any, samples: Sequence[Sample], images: Sequence[Image.Image | None]) -> list[Prediction]:
    """Give an adapter a batch and check its answer.

    Raises:
        AdapterError: it breaks the contract; the message says how. What it raises itself passes through.
    """
    if hasattr(adapter, "segment_samples"):
        answers = adapter.segment_samples(list(samples), list(images))
    else:
        answers = adapter.segment(list(images), [s.expression for s in samples])
    if not hasattr(answers, "__len__"):
        raise AdapterError(f"segment must return a list of masks, not {type(answers).__name__}")
    if len(answers) != len(samples):
        raise AdapterError(f"segment returned {len(answers)} masks for {len(samples)} expressions")
    return [to_prediction(s, a) for s, a in zip(samples, answers, strict=True)]


def to_prediction(sample: Sample, answer: Any) -> Prediction:
    """Check one answer against its sample.

    Raises:
        AdapterError: not bool, or not of the image's size, or a score that is no finite number.
    """
    if not isinstance(answer, Answer):
        answer = Answer(answer)
    size = sample.height, sample.width
    instances = tuple(Instance(_to_mask(m, size), _to_score(s)) for m, s in answer.instances)
    return Prediction(
        sample.sample_id,
        _to_mask(answer.mask, size),
        None if answer.score is None else _to_score(answer.score),
        None if answer.no_target is None else bool(answer.no_target),
        instances,
    )


def _to_mask(mask: Any, size: tuple[int, int]) -> Mask:
    if not isinstance(mask, Mask):
        if hasattr(mask, "detach"):
            mask = mask.detach().cpu().numpy()
        pixels = np.asarray(mask)
        if pixels.dtype != np.bool_:
            raise AdapterError(f"a mask must be bool, not {pixels.dtype}; threshold it in the adapter, e.g. > 0.5")
        if pixels.shape != size:
            raise AdapterError(f"a mask has the shape {pixels.shape}, its image is {size} (height, width)")
        try:
            return Mask.from_array(pixels)
        except MaskError as error:
            raise AdapterError(str(error)) from None
    if mask.size != size:
        raise AdapterError(f"a mask is {mask.size}, its image {size} (height, width)")
    return mask


def _to_score(score: Any) -> float:
    value = float(score)
    if not np.isfinite(value):
        raise AdapterError(f"a score must be a finite number, not {value}")
    return value
