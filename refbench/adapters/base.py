"""The adapter contract, and the one place where an adapter's answer becomes a row.

    class MySegmenter:
        name = "mine"
        def segment(self, images, expressions): ...

`images` are PIL RGB pictures (upright, 8-bit), `expressions` the texts; the answer is a list of as many
bool (H, W) arrays, tensors on any device, or `Mask`s, each at its image's own size; or `Answer`s.
An adapter that needs more offers `segment_samples(samples, images)` instead.

Optional attributes: `batch_size` (what `--batch-size auto` means, default 8), `needs_images` (False: may run
on a dataset without images and gets None for each), `opens_images` (True: reads `sample.image_path` itself),
`weights_sha256`, `code_sha256` and `packages` (where its code and what it needs lie elsewhere), `mode` ("forced" where
the text of the answer is given to the model, "generate" where the model writes it), `usage()` (name -> number since the
last call: requests, dollars), `close()`. One that raises `RunStopped` ends the run without counting what is left as
failed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from refbench.errors import AdapterError, MaskError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_attribute
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
    return to_predictions(samples, answers_of(adapter, samples, images))


def answers_of(adapter: Any, samples: Sequence[Sample], images: Sequence[Image.Image | None]) -> Sequence[Any]:
    """What the adapter returns for a batch; raises AdapterError unless it is a list with one answer a sample."""
    if hasattr(adapter, "segment_samples"):
        answers = adapter.segment_samples(list(samples), list(images))
    else:
        answers = adapter.segment(list(images), [s.expression for s in samples])
    if not hasattr(answers, "__len__"):
        raise AdapterError(f"segment must return a list of masks, not {type(answers).__name__}")
    if len(answers) != len(samples):
        raise AdapterError(f"segment returned {len(answers)} masks for {len(samples)} expressions")
    return cast(Sequence[Any], answers)


def to_predictions(samples: Sequence[Sample], answers: Sequence[Any]) -> list[Prediction]:
    """Check answers against their samples. Tensors on a device are encoded there, all in one go.

    Raises:
        AdapterError: not bool, or not of the image's size, or a score that is no finite number.
    """
    complete = [
        # Instances may be any iterable; they are gone through twice.
        dataclasses.replace(a, instances=list(a.instances)) if isinstance(a, Answer) else Answer(a)
        for a in answers
    ]
    encoded = _encode_tensors(samples, complete)
    out = []
    for sample, answer in zip(samples, complete, strict=True):
        size = sample.height, sample.width
        instances = tuple(Instance(_to_mask(m, size, encoded), _to_score(s)) for m, s in answer.instances)
        out.append(
            Prediction(
                sample.sample_id,
                _to_mask(answer.mask, size, encoded),
                None if answer.score is None else _to_score(answer.score),
                None if answer.no_target is None else bool(answer.no_target),
                instances,
                note=_storable(answer.note),
                raw=_storable(answer.raw),
            )
        )
    return out


def _storable(text: Any) -> str:
    """A text without half characters, which no file could hold."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def _encode_tensors(samples: Sequence[Sample], answers: Sequence[Answer]) -> dict[int, Mask]:
    """The masks that lie on a device, by the identity of their tensors."""
    tensors = {}
    for sample, answer in zip(samples, answers, strict=True):
        for mask in (answer.mask, *(m for m, _ in answer.instances)):
            if hasattr(mask, "detach") and mask.device.type != "cpu":
                _check_pixels(str(mask.dtype).removeprefix("torch."), tuple(mask.shape), (sample.height, sample.width))
                tensors[id(mask)] = mask
    if not tensors:
        return {}
    # torch is there, since its tensors are; this module does not need it otherwise.
    encode = load_attribute("refbench.adapters.tensor_masks:encode_tensors")
    return dict(zip(tensors, encode(list(tensors.values())), strict=True))


def _to_mask(mask: Any, size: tuple[int, int], encoded: Mapping[int, Mask]) -> Mask:
    if id(mask) in encoded:
        return encoded[id(mask)]
    if mask is None:
        raise AdapterError("a mask is None; where nothing is found return np.zeros((height, width), bool)")
    if not isinstance(mask, Mask):
        pixels = np.asarray(mask.detach().numpy() if hasattr(mask, "detach") else mask)
        _check_pixels(str(pixels.dtype), pixels.shape, size)
        try:
            return Mask.from_array(pixels)
        except MaskError as error:
            raise AdapterError(str(error)) from None
    if mask.size != size:
        raise AdapterError(f"a mask is {mask.size}, its image {size} (height, width)")
    return mask


def _check_pixels(dtype: str, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    if dtype != "bool":
        raise AdapterError(f"a mask must be bool, not {dtype}; threshold it in the adapter, e.g. > 0.5")
    if shape != size:
        raise AdapterError(f"a mask has the shape {shape}, its image is {size} (height, width)")


def _to_score(score: Any) -> float:
    value = float(score)
    if not np.isfinite(value):
        raise AdapterError(f"a score must be a finite number, not {value}")
    return value
