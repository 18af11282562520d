"""Checks of expressions: their words, other expressions, and the masks that they refer to."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2hsv

from refbench.curation.checks.base import NOTE, ImageView, Reporter
from refbench.curation.items import TargetMask, mask_id_of
from refbench.curation.language import flag
from refbench.records import AnnotatedObject, Finding, Sample

WORD = re.compile(r"[a-z0-9']+")
PAIRS = (("left", "right"), ("top", "bottom"), ("front", "back"), ("largest", "smallest"), ("biggest", "smallest"))
# Behind these words comes something that is not meant itself.
RELATIONS = frozenset(
    "of next to beside behind between under underneath beneath above below over near by with without in on at from "
    "holding wearing carrying riding touching facing against around inside outside across along that who which".split()
)
# "left arm": a side of a thing, not of the image.
SIDED = frozenset("of arm hand leg foot shoulder side wing ear eye half part shoe sleeve wheel knee".split())
PERSONS = frozenset(
    "man men woman women guy guys lady ladies girl girls boy boys kid kids dude dudes person people male female "
    "hair haired child baby bear".split()
)


@dataclass(frozen=True)
class Repeated(Reporter):
    """A ref contains the same expression twice, apart from letter case and spaces, so it counts twice in a score."""

    code: ClassVar[str] = "expression-repeated"
    severity: ClassVar[str] = NOTE

    def find(self, image: ImageView) -> Iterator[Finding]:
        seen: dict[tuple[str, str], str] = {}
        for sample in image.items.samples:
            key = sample.ref_id, _normal(sample.expression)
            if key in seen:
                yield self.on_expression(sample, f"{sample.expression!r} again, as in {seen[key]}")
            else:
                seen[key] = sample.sample_id


@dataclass(frozen=True)
class Shared(Reporter):
    """Two objects of an image have the same expression, which cannot be right for both."""

    code: ClassVar[str] = "expression-shared"

    def find(self, image: ImageView) -> Iterator[Finding]:
        by_text: dict[str, list[Sample]] = {}
        for sample in image.items.samples:
            if sample.no_target:
                continue  # nothing that is there is meant, so there is no target twice
            by_text.setdefault(_normal(sample.expression), []).append(sample)
        for text, samples in by_text.items():
            if len({mask_id_of(s) for s in samples}) < 2:
                continue
            for sample in samples:
                other = next(s for s in samples if mask_id_of(s) != mask_id_of(sample))
                yield self.on_expression(sample, f"{text!r} also means another object, in {other.sample_id}")


@dataclass(frozen=True)
class RightAndWrong(Reporter):
    """An expression has a target in one row and no target in another row of the same image; no
    prediction can be right for both.

    In datasets of classes, this happens if two classes have the same name, as with the root categories of Roboflow.
    """

    code: ClassVar[str] = "expression-right-and-wrong"

    def find(self, image: ImageView) -> Iterator[Finding]:
        by_text: dict[str, list[Sample]] = {}
        for sample in image.items.samples:
            by_text.setdefault(_normal(sample.expression), []).append(sample)
        for text, samples in by_text.items():
            with_target = next((s for s in samples if not s.no_target), None)
            without = next((s for s in samples if s.no_target), None)
            if with_target is None or without is None:
                continue
            for sample in samples:
                here, there, other = ("no", "one", with_target) if sample.no_target else ("a", "none", without)
                yield self.on_expression(sample, f"{text!r} has {here} target here, but {there} in {other.sample_id}")


@dataclass(frozen=True)
class OtherScript(Reporter):
    """An expression contains no Latin letters. The checks of words support only English and ignore such an
    expression.
    """

    code: ClassVar[str] = "expression-other-script"
    severity: ClassVar[str] = NOTE

    def find(self, image: ImageView) -> Iterator[Finding]:
        for sample in image.items.samples:
            letters = [c for c in sample.expression if c.isalpha()]
            if letters and not any(unicodedata.name(c, "").startswith("LATIN") for c in letters):
                yield self.on_expression(sample, f"{sample.expression!r} has no Latin letter")


@dataclass(frozen=True)
class Fragment(Reporter):
    """An expression has fewer than `least` letters, or none: "r" does not describe anything."""

    code: ClassVar[str] = "expression-fragment"
    least: int = 2

    def find(self, image: ImageView) -> Iterator[Finding]:
        for sample in image.items.samples:
            # A sign of Chinese or Japanese is a word.
            letters = sum(self.least if c >= "\u2e80" else 1 for c in sample.expression if c.isalpha())
            if letters < self.least and not any(c.isdigit() for c in sample.expression):
                yield self.on_expression(sample, f"{sample.expression!r} has {letters} letters", letters)


@dataclass(frozen=True)
class Contradicting(Reporter):
    """An expression contains two opposites of position or size, and neither of them is relative to another object."""

    code: ClassVar[str] = "expression-contradicting"
    severity: ClassVar[str] = NOTE

    def find(self, image: ImageView) -> Iterator[Finding]:
        for sample in image.items.samples:
            said = {word for word, _ in _free_words(sample.expression)}
            for a, b in PAIRS:
                if a in said and b in said:
                    yield self.on_expression(sample, f"{sample.expression!r} says {a} and {b}")


@dataclass(frozen=True)
class AgainstPlace(Reporter):
    """Words of position contradict the mask, compared with the other objects of its category.

    "left" is wrong if the centre of the box is farther from the left side than `beyond` times the width, and is to the
    right of all other objects of its category. "leftmost" is wrong if another object is farther left by more than
    `apart` times the width. The same applies to right, top and bottom.
    """

    code: ClassVar[str] = "expression-against-place"
    beyond: float = 0.6
    apart: float = 0.06

    def find(self, image: ImageView) -> Iterator[Finding]:
        height, width = image.items.height, image.items.width
        for target in image.items.masks:
            if target.mask.area == 0 or len(target.ann_ids) != 1:
                continue
            own = _middle(target.box_xywh, height, width)
            others = [_middle(o.box_xywh, height, width) for o in _alike(image, target)]
            for sample in target.samples:
                if message := self._denied(sample.expression, own, others):
                    yield self.on_expression(sample, f"{sample.expression!r}: {message}")

    def _denied(self, expression: str, own: tuple[float, float], others: Sequence[tuple[float, float]]) -> str:
        for word, after in _free_words(expression):
            side, axis, sign = SIDES.get(word.removesuffix("most"), ("", 0, 1))
            if not side or after in SIDED:
                continue
            # 0 at the side that is named, 1 at the opposite one.
            share = own[axis] if sign > 0 else 1 - own[axis]
            rest = [o[axis] if sign > 0 else 1 - o[axis] for o in others]
            if word.endswith("most") and rest and min(rest) < share - self.apart:
                return f"another one is farther {side}"
            if share > self.beyond and all(share > r for r in rest):
                return f"the mask lies at {share:.0%} of the way from the {side}"
        return ""


@dataclass(frozen=True)
class AgainstSize(Reporter):
    """An expression says "largest" or "smallest", but another object of the category is
    larger or smaller by a factor of more than `factor`.
    """

    code: ClassVar[str] = "expression-against-size"
    severity: ClassVar[str] = NOTE
    factor: float = 2.0

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            areas = [o.mask.area for o in _alike(image, target) if o.mask.area]
            if target.mask.area == 0 or not areas or len(target.ann_ids) != 1:
                continue
            for sample in target.samples:
                said = {word for word, _ in _free_words(sample.expression)}
                if said & {"biggest", "largest"} and max(areas) > self.factor * target.mask.area:
                    yield self.on_expression(sample, f"{sample.expression!r}: another one is larger", max(areas))
                if "smallest" in said and min(areas) * self.factor < target.mask.area:
                    yield self.on_expression(sample, f"{sample.expression!r}: another one is smaller", min(areas))


@dataclass(frozen=True)
class AgainstColour(Reporter):
    """An expression names a colour, but the share of the mask that has this colour is below `least`. The test for a
    colour is tolerant.

    Only colours before the first relation ("with", "next to") are used. If a person is named in this part of the
    expression ("white man"), no colour is used.
    """

    code: ClassVar[str] = "expression-against-colour"
    needs_images: ClassVar[bool] = True
    least: float = 0.03

    def find(self, image: ImageView) -> Iterator[Finding]:
        for target in image.items.masks:
            named = [(sample, _colours(sample.expression)) for sample in target.samples]
            if image.picture is None or target.mask.area == 0 or not any(colours for _, colours in named):
                continue
            hsv = rgb2hsv(image.picture[image.pixels(target)])
            shares = {name: float(test(hsv).mean()) for name, test in COLOURS.items()}
            for sample, colours in named:
                for colour in colours:
                    if shares[colour] < self.least:
                        message = f"{sample.expression!r}: {shares[colour]:.1%} of the mask is {colour}"
                        yield self.on_expression(sample, message, shares[colour])


@dataclass(frozen=True)
class Offensive(Reporter):
    """An expression contains degrading, insulting or sexual words, by the rules in `refbench/curation/words.toml`."""

    code: ClassVar[str] = "expression-offensive"

    def find(self, image: ImageView) -> Iterator[Finding]:
        for sample in image.items.samples:
            for verdict in flag(sample.expression)[:1]:
                yield self.on_expression(
                    sample, f"{sample.expression!r}: {verdict.says} ({verdict.word!r}, rule {verdict.rule})"
                )


# word -> (its side, axis of (x, y), 1 if the side is where the axis begins)
SIDES = {"left": ("left", 0, 1), "right": ("right", 0, -1), "top": ("top", 1, 1), "bottom": ("bottom", 1, -1)}


def _normal(expression: str) -> str:
    return " ".join(expression.lower().split())


def _words(expression: str) -> list[str]:
    return WORD.findall(expression.lower())


def _free_words(expression: str) -> Iterator[tuple[str, str]]:
    """Each word of an expression together with the next word; nothing if the expression relates its target to another
    object.
    """
    words = _words(expression)
    related = any(w in RELATIONS - {"on", "in", "at"} for w in words)
    # "on the left", "at the bottom", "in the top left" are no relations; "on the table" is one.
    for k, word in enumerate(words):
        if word in ("on", "in", "at") and not _leads_to_side(words[k + 1 :]):
            related = True
    if not related:
        yield from itertools.pairwise([*words, ""])


def _leads_to_side(words: Sequence[str]) -> bool:
    rest = [w for w in words if w not in ("the", "far", "very", "top", "bottom", "upper", "lower")]
    return bool(rest and rest[0].removesuffix("most") in SIDES) or (len(words) > 0 and not rest)


def _colours(expression: str) -> list[str]:
    """The colours of the target: the colours before the first relation, where "that is" does not count as a
    relation.
    """
    words = _words(expression.lower().replace("that is", "").replace("which is", ""))
    end = next((k for k, w in enumerate(words) if w in RELATIONS), len(words))
    head = words[:end]
    return [] if PERSONS & set(head) else [w for w in head if w in COLOURS]


def _alike(image: ImageView, target: TargetMask) -> list[AnnotatedObject]:
    return [o for o in image.items.others(target) if o.category == target.category]


def _middle(box_xywh: tuple[float, float, float, float], height: int, width: int) -> tuple[float, float]:
    return (box_xywh[0] + box_xywh[2] / 2) / width, (box_xywh[1] + box_xywh[3] / 2) / height


ColourTest = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


def _hues(low: float, high: float, saturation: float, value: float) -> ColourTest:
    """A test of HSV pixels (N, 3) between 0 and 1.

    The limits `low` and `high` of the hue are in degrees; `high` is above 360 if the range includes red.
    """

    def test(hsv: NDArray[np.float64]) -> NDArray[np.bool_]:
        hue = hsv[:, 0] * 360
        inside = (hue >= low) & (hue <= high) | (hue + 360 <= high)
        found: NDArray[np.bool_] = inside & (hsv[:, 1] >= saturation) & (hsv[:, 2] >= value)
        return found

    return test


COLOURS: Mapping[str, ColourTest] = {
    "red": _hues(335, 382, 0.35, 0.15),
    "orange": _hues(8, 46, 0.4, 0.3),
    "yellow": _hues(38, 72, 0.3, 0.35),
    "green": _hues(65, 175, 0.15, 0.1),
    "blue": _hues(170, 262, 0.15, 0.1),
    "purple": _hues(245, 330, 0.12, 0.1),
    "white": lambda hsv: (hsv[:, 1] <= 0.35) & (hsv[:, 2] >= 0.55),
    "black": lambda hsv: hsv[:, 2] <= 0.4,
}
