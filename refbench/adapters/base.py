"""The interface of adapters, and the only place where the output of an adapter becomes a prediction.

    class MySegmenter:
        name = "mine"
        def segment(self, images, expressions): ...

`images` are upright 8-bit RGB images (PIL), and `expressions` are strings. `segment` returns a list of the same length.
Each item is a mask with the size of its image (a bool (H, W) array, a tensor on any device or a `Mask`) or an `Answer`.
If an adapter needs the whole samples, it can implement `segment_samples(samples, images)` instead.

To keep a GPU busy, an adapter can split `segment` into three stages:

    def prepare(self, image, expressions): ...   # CPU: decode threads call it, a few images ahead
    def forward(self, batch): ...                # device: `batch` is a list of results of `prepare`
    def finish(self, batch, output): ...         # masks of all expressions of the batch, in order

`prepare` gets one image with its expressions and must be thread-safe. On CUDA, `forward` of the next batch is queued
before `finish` of the current batch, and `finish` runs in another stream. Therefore `finish` must find everything in
`output`.

`AdapterExtras` lists the optional attributes. If an adapter raises `RunStopped`, the run ends, and the remaining
samples do not count as failed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from refbench.errors import AdapterError, MaskError, storable
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_attribute
from refbench.records import Answer, Instance, Prediction, Question

DEFAULT_BATCH_SIZE = 8


class Segmenter(Protocol):
    """Any object with a name and a method that turns images and expressions into masks.

    Example:
        >>> import numpy as np
        >>> class Bright:
        ...     name = "bright"
        ...
        ...     def segment(self, images, expressions):
        ...         return [np.asarray(image.convert("L")) > 200 for image in images]
        >>> from refbench import run
        >>> run(Bright(), "snapshots/test").failures
        0
    """

    name: str

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> Sequence[Any]: ...


class Stages(Protocol):
    """An adapter whose `segment` is split into three stages; see the module docstring.

    Example:
        >>> import numpy as np
        >>> class Bright:
        ...     name = "bright"
        ...
        ...     def prepare(self, image, expressions):
        ...         return np.asarray(image.convert("L")), len(expressions)
        ...
        ...     def forward(self, batch):
        ...         return [grey > 200 for grey, _ in batch]
        ...
        ...     def finish(self, batch, output):
        ...         return [mask for mask, (_, count) in zip(output, batch) for _ in range(count)]
        >>> from refbench import run
        >>> run(Bright(), "snapshots/test").failures
        0
    """

    name: str

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> Any: ...

    def forward(self, batch: list[Any]) -> Any: ...

    def finish(self, batch: list[Any], output: Any) -> Sequence[Any]: ...


class Staged:
    """Gives an adapter with stages the method `segment`, which calls them in turn."""

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Any]:
        """See the interface of adapters."""
        return list(_in_stages(self, images, expressions))


def _in_stages(adapter: Any, images: Sequence[Image.Image], expressions: Sequence[str]) -> Sequence[Any]:
    """The answers of an adapter whose stages are called one after the other."""
    batch = [adapter.prepare(image, together) for image, together in in_a_row(images, expressions)]
    return counted(adapter.finish(batch, adapter.forward(batch)), len(expressions), "finish")


def in_a_row(images: Sequence[Image.Image], expressions: Sequence[str]) -> Iterator[tuple[Image.Image, list[str]]]:
    """Each image with the consecutive expressions that refer to it."""
    for _, group in itertools.groupby(zip(images, expressions, strict=True), key=lambda pair: id(pair[0])):
        pairs = list(group)
        yield pairs[0][0], [expression for _, expression in pairs]


def has_stages(adapter: Any) -> bool:
    """Whether an adapter is called in stages: it has the three stages and does not define `segment` or
    `segment_samples` itself.
    """
    # An own `segment`, perhaps of a subclass, is what its author wants to be called.
    own = hasattr(adapter, "segment_samples") or getattr(type(adapter), "segment", Staged.segment) is not Staged.segment
    return not own and all(callable(getattr(adapter, stage, None)) for stage in ("prepare", "forward", "finish"))


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterExtras:
    """Optional attributes and methods of an adapter, with their defaults.

    Attributes:
        batch_size: number of expressions per call, for `--batch-size auto`.
        needs_images: if False, the adapter also runs on datasets without images, and gets None for each image.
        opens_images: if True, the adapter opens `sample.image_path` itself, and refbench does not decode images.
        questions_suffice: if True, `segment_samples` gets `Question`s, not whole samples with targets; a run then
            begins in a fifth of the time and memory.
        prepare_in_processes: if True, `prepare` is called in forked processes on Linux, not in threads. It is faster if
            `prepare` runs much Python code. Changes that `prepare` makes to the adapter are lost, and it must not use
            the device.
        weights_sha256: hash of the weights; runs with different hashes are different runs.
        code_sha256: hash of the code, if it is not in the file of the class.
        packages: the version of each package of the model by the name of the package, if it runs in another
            environment.
        mode: "forced" if the text of the answer is given to the model, "generate" if the model writes it.
        seed: first seed for `--deterministic`; the number of the shard is added to it.
        usage: what was used since the last call, for example the number of requests or dollars by name.
        remarks: messages for the user since the last call.
        begin_shard: called with a seed before each shard of a deterministic run.
        close: called at the end.
    """

    batch_size: int = DEFAULT_BATCH_SIZE
    needs_images: bool = True
    opens_images: bool = False
    questions_suffice: bool = False
    prepare_in_processes: bool = False
    weights_sha256: str = ""
    code_sha256: str = ""
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mode: str = ""
    seed: int = 0
    usage: Callable[[], Mapping[str, float]] | None = None
    remarks: Callable[[], Iterable[str]] | None = None
    begin_shard: Callable[[int], None] | None = None
    close: Callable[[], None] | None = None

    @staticmethod
    def of(adapter: Any) -> AdapterExtras:
        """The extras of an adapter.

        Raises:
            AdapterError: the seed is not an integer, or an attribute that must be a method is not callable.
        """
        names = [f.name for f in dataclasses.fields(AdapterExtras)]
        found = AdapterExtras(**{n: getattr(adapter, n) for n in names if hasattr(adapter, n)})
        name = getattr(adapter, "name", type(adapter).__name__)
        if not isinstance(found.seed, int):
            raise AdapterError(f"the seed of {name} must be an integer, got {found.seed!r}")
        for method in ("usage", "remarks", "begin_shard", "close"):
            value = getattr(found, method)
            if value is not None and not callable(value):
                raise AdapterError(
                    f"refbench calls {name}.{method}, so this attribute must be a method, got {type(value).__name__}; "
                    "if the attribute has another purpose, rename the attribute"
                )
        return found


def has_contract(adapter: Any) -> bool:
    """Whether an object has a name and a method `segment` or `segment_samples`, or the three stages."""
    name = getattr(adapter, "name", None)
    methods = hasattr(adapter, "segment") or hasattr(adapter, "segment_samples") or has_stages(adapter)
    return isinstance(name, str) and bool(name) and methods


def ask(adapter: Any, samples: Sequence[Question], images: Sequence[Image.Image | None]) -> list[Prediction]:
    """Pass a batch to an adapter and check its answer.

    Raises:
        AdapterError: the answer is invalid; the message says how. Exceptions of the adapter itself are not caught.
    """
    return to_predictions(samples, answers_of(adapter, samples, images))


def answers_of(adapter: Any, samples: Sequence[Question], images: Sequence[Image.Image | None]) -> Sequence[Any]:
    """The answers of the adapter for a batch; raises AdapterError unless it is a list with one answer per sample."""
    if hasattr(adapter, "segment_samples"):
        answers = adapter.segment_samples(list(samples), list(images))
    elif has_stages(adapter):
        return _in_stages(adapter, cast(Sequence[Image.Image], images), [s.expression for s in samples])
    else:
        answers = adapter.segment(list(images), [s.expression for s in samples])
    return counted(answers, len(samples))


def counted(answers: Any, expected: int, method: str = "segment") -> Sequence[Any]:
    """The answers; raises AdapterError unless they are a list of the expected length."""
    if not hasattr(answers, "__len__"):
        raise AdapterError(f"{method}() must return a list of masks, got {type(answers).__name__}")
    if len(answers) != expected:
        raise AdapterError(f"{method}() returned {len(answers)} masks for {expected} expressions")
    return cast(Sequence[Any], answers)


def to_predictions(samples: Sequence[Question], answers: Sequence[Any]) -> list[Prediction]:
    """Check answers against their samples and encode them. Tensors on a device are encoded on that device, all in one
    pass.

    Raises:
        AdapterError: a mask is not bool or has another size than its image, or a score is not a finite number.
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
                note=storable(answer.note),
                raw=storable(answer.raw),
            )
        )
    return out


def _encode_tensors(samples: Sequence[Question], answers: Sequence[Answer]) -> dict[int, Mask]:
    """Encode the tensors that are on a device; each mask is stored under the id of its tensor."""
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
        raise AdapterError("a mask is None; if nothing is found, return np.zeros((height, width), bool)")
    if not isinstance(mask, Mask):
        pixels = np.asarray(mask.detach().numpy() if hasattr(mask, "detach") else mask)
        _check_pixels(str(pixels.dtype), pixels.shape, size)
        try:
            return Mask.from_array(pixels)
        except MaskError as error:
            raise AdapterError(str(error)) from None
    if mask.size != size:
        raise AdapterError(f"the mask must have the same size as its image, {size} (height, width), got {mask.size}")
    return mask


def _check_pixels(dtype: str, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    if dtype != "bool":
        raise AdapterError(f"the mask must be bool, got {dtype}; apply a threshold in the adapter, e.g. > 0.5")
    if shape != size:
        raise AdapterError(f"the mask must have the same shape as its image, {size} (height, width), got {shape}")


def _to_score(score: Any) -> float:
    value = float(score)
    if not np.isfinite(value):
        raise AdapterError(f"the score must be a finite number, got {value}")
    return value
