"""Tests whether an adapter satisfies the interface, and reports what fails (`refbench check-adapter`)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from refbench.adapters.base import ask, has_contract
from refbench.errors import AdapterError, no_exit, storable, text_of
from refbench.masks.mask import Mask
from refbench.records import Prediction, Sample
from refbench.storage.images import EXIF_ORIENTATION, to_rgb
from refbench.storage.progress import Progress, silent

OK, NOTE, FAILED = "ok", "note", "failed"
# Batching may change the last bits of a float, which flips at most this share of pixels along outlines. A larger
# share means that the samples of a batch influence each other.
MAX_FLOAT_DRIFT = 0.002


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one test: `verdict` is "ok", "note" (allowed, but worth knowing) or "failed"."""

    name: str
    verdict: str
    detail: str


def check_adapter(adapter: Any, progress: Progress = silent) -> list[Check]:
    """Run all tests; a test that raises an exception counts as failed.

    The images are synthetic. An adapter with `segment_samples` gets samples that are not from a built dataset; their
    target is a disc.
    """
    tests: list[tuple[str, Callable[[Any], tuple[str, str]]]] = [
        ("name and method", _has_contract),
        ("masks: number, dtype and size", _plain_batch),
        ("order: each answer belongs to its expression", _order),
        ("determinism: the same input twice", _deterministic),
        ("batch independence: batches of 1, 7 and 32", _batches),
        *((f"image: {name}", _picture_test(make)) for name, make in _ODD_PICTURES.items()),
        ("images: left as they are", _leaves_images_alone),
        ("expression: empty", _expression_test("")),
        ("expression: 2,000 words", _expression_test("the man " * 1000)),
        ("expression: signs outside ASCII", _expression_test("le garçon à la 帽子 🧢 \t\n")),
    ]
    results = []
    for number, (name, test) in enumerate(tests):
        try:
            with no_exit("it"):
                verdict, detail = test(adapter)
        except Exception as error:  # noqa: BLE001 (whatever an adapter raises is the finding)
            known = isinstance(error, AdapterError)
            text = storable(error) if known else f"raises {type(error).__name__}: {text_of(error)}"
            verdict, detail = FAILED, text[:300]
        results.append(Check(name, verdict, detail))
        progress("checks", number + 1, len(tests))
    return results


def _has_contract(adapter: Any) -> tuple[str, str]:
    if has_contract(adapter):
        return OK, adapter.name
    if not isinstance(getattr(adapter, "name", None), str) or not adapter.name:
        return FAILED, "it has no attribute `name` that is a non-empty text"
    return FAILED, "it has no method segment(images, expressions)"


def _plain_batch(adapter: Any) -> tuple[str, str]:
    pictures = [_picture(120, 160), _picture(160, 120), _picture(97, 131)]
    _ask(adapter, pictures, ["red disc", "blue square", "the thing on the left"])
    return OK, "three images of three sizes"


def _order(adapter: Any) -> tuple[str, str]:
    # Different sizes, so that an answer in the wrong place has the wrong shape.
    pictures = [_picture(60 + 7 * k, 90 - 5 * k) for k in range(6)]
    expressions = [f"disc number {k}" for k in range(6)]
    forward = _ask(adapter, pictures, expressions)
    backward = _ask(adapter, pictures[::-1], expressions[::-1])[::-1]
    share = _differing_share(forward, backward)
    if share > MAX_FLOAT_DRIFT:
        return FAILED, f"reversing a batch changes {share:.2%} of its pixels"
    return OK, "a reversed batch gives reversed answers"


def _deterministic(adapter: Any) -> tuple[str, str]:
    pictures, expressions = _many(8)
    share = _differing_share(_ask(adapter, pictures, expressions), _ask(adapter, pictures, expressions))
    if share > 0:
        return FAILED, f"{share:.4%} of the pixels differ between two identical calls; fix seeds and sampling"
    return OK, "identical"


def _batches(adapter: Any) -> tuple[str, str]:
    pictures, expressions = _many(32)
    whole = _ask(adapter, pictures, expressions)
    shares = {}
    for size in (1, 7):
        parts: list[Prediction] = []
        for first in range(0, 32, size):
            chosen = slice(first, first + size)
            parts += _ask(adapter, pictures[chosen], expressions[chosen])
        shares[size] = _differing_share(whole, parts)
    worst = max(shares.values())
    detail = ", ".join(f"batch {size} against 32: {share:.4%} of the pixels differ" for size, share in shares.items())
    if worst > MAX_FLOAT_DRIFT:
        return FAILED, f"{detail}; a sample must not depend on its neighbours"
    return (OK, "identical") if worst == 0 else (NOTE, f"{detail} (padding and kernel choice move floats)")


def _leaves_images_alone(adapter: Any) -> tuple[str, str]:
    pictures = [_picture(96, 128), _picture(80, 64)]
    before = [p.tobytes() for p in pictures]
    ask(adapter, [_sample(k, p, "red disc") for k, p in enumerate(pictures)], pictures)
    if [p.tobytes() for p in pictures] != before:
        return NOTE, "it draws into the images that it gets; a run gives it copies, other programs may not"
    return OK, "unchanged"


def _picture_test(make: Callable[[], Image.Image]) -> Callable[[Any], tuple[str, str]]:
    def test(adapter: Any) -> tuple[str, str]:
        # As in a run: the adapter gets what refbench makes of the file.
        picture = to_rgb(make())
        _ask(adapter, [picture], ["the red disc"])
        return OK, f"{picture.height} x {picture.width} px"

    return test


def _expression_test(expression: str) -> Callable[[Any], tuple[str, str]]:
    def test(adapter: Any) -> tuple[str, str]:
        _ask(adapter, [_picture(64, 64), _picture(64, 64)], [expression, "red disc"])
        return OK, "answered"

    return test


def _ask(adapter: Any, pictures: Sequence[Image.Image], expressions: Sequence[str]) -> list[Prediction]:
    samples = [_sample(k, p, e) for k, (p, e) in enumerate(zip(pictures, expressions, strict=True))]
    # Copies, as in a run.
    copies = {id(p): p.copy() for p in pictures}
    return ask(adapter, samples, [copies[id(p)] for p in pictures])


def _sample(number: int, picture: Image.Image, expression: str) -> Sample:
    height, width = picture.height, picture.width
    rows, columns = np.ogrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 <= (min(height, width) / 3) ** 2 + 1
    return Sample(
        sample_id=f"check-adapter/test/{number}/0",
        image_id=str(number),
        image_path="",
        height=height,
        width=width,
        expression=expression,
        raw_expression=expression,
        ref_id=str(number),
        sent_id="0",
        ann_ids=(),
        category="",
        target=Mask.from_array(disc),
        no_target=False,
    )


def _picture(height: int, width: int, turn: int = 0) -> Image.Image:
    """A red disc and a blue square on a grey gradient."""
    ramp = np.linspace(90, 170, width, dtype=np.uint8)[None, :, None]
    picture = Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).copy())
    draw = ImageDraw.Draw(picture)
    radius = max(1, min(height, width) // 5)
    x, y = width // 3, height // 3 + turn % 7
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(210, 40, 40))
    x, y = 2 * width // 3, 2 * height // 3 - turn % 5
    draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=(40, 60, 200))
    return picture


def _many(count: int) -> tuple[list[Image.Image], list[str]]:
    """Several expressions about images of different sizes, in the order of a run."""
    words = ["red disc", "the blue square on the right", "square", "the disc that is red and on the left side"]
    pictures = [_picture(96 + 8 * k, 128 - 4 * k, k) for k in range((count + 2) // 3)]
    return [pictures[k // 3] for k in range(count)], [words[k % len(words)] for k in range(count)]


def _differing_share(a: Sequence[Prediction], b: Sequence[Prediction]) -> float:
    """The share of pixels that differ between two lists of answers, for the image where this share is largest."""
    shares = [float((p.mask.to_array() != q.mask.to_array()).mean()) for p, q in zip(a, b, strict=True)]
    return max(shares)


def _rotated() -> Image.Image:
    picture = _picture(80, 120)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    return Image.open(file, formats=["JPEG"])


def _sixteen_bit() -> Image.Image:
    return Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))


_ODD_PICTURES: dict[str, Callable[[], Image.Image]] = {
    "1 x 1": lambda: _picture(1, 1),
    "1 x 2000": lambda: _picture(1, 2000),
    "2000 x 1": lambda: _picture(2000, 1),
    "grey": lambda: _picture(50, 70).convert("L"),
    "with alpha": lambda: _picture(50, 70).convert("RGBA"),
    "palette": lambda: _picture(50, 70).convert("P"),
    "turned by EXIF": _rotated,
    "16-bit": _sixteen_bit,
}
