"""Expressions for the `scenes` dataset, each with exactly one target object, or without target.

A property of an object is true, false or borderline (None). For example, "left" is borderline for an object in the
middle of the image. An expression is used only if one object fits it and every other object clearly does not, so that
the target is unambiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refbench.datasets.builders.scenes_drawing import COLOURS, PATTERNS, SHAPES, DrawnObject
from refbench.masks.whole_numbers import PX, Draws

Truth = bool | None
Property = Callable[[DrawnObject], Truth]

KINDS = ("class", "colour", "pattern", "size", "position", "relation", "order")
ORDINALS = ("first", "second", "third", "fourth")
MIN_GAP = 14 * PX


@dataclass(frozen=True)
class Phrase:
    """An expression, the index of its target (None: no target) and its kind."""

    text: str
    target: int | None
    kind: str


@dataclass(frozen=True)
class _Description:
    text: str
    kind: str
    properties: tuple[Property, ...]


def both(truths: Sequence[Truth]) -> Truth:
    """Three-valued `and`: false if any value is false, otherwise borderline if any value is borderline, otherwise
    true.
    """
    if False in truths:
        return False
    return None if None in truths else True


def answer(objects: Sequence[DrawnObject], properties: Sequence[Property]) -> int | None:
    """The index of the object that fits, if exactly one object fits and all others clearly do not; otherwise None."""
    found = None
    for index, o in enumerate(objects):
        truth = both([p(o) for p in properties])
        if truth is None or (truth and found is not None):
            return None
        if truth:
            found = index
    return found


def nothing_fits(objects: Sequence[DrawnObject], properties: Sequence[Property]) -> bool:
    return all(both([p(o) for p in properties]) is False for o in objects)


def _has(attribute: str, value: str) -> Property:
    return lambda o: bool(getattr(o, attribute) == value)


def _has_size(word: str) -> Property:
    # "medium" is borderline for both words.
    return lambda o: None if o.size == "medium" else o.size == word


def _on_side(word: str, height: int, width: int) -> Property:
    def check(o: DrawnObject) -> Truth:
        away, side = {
            "left": (o.centre_x, width),
            "right": (width * PX - o.centre_x, width),
            "top": (o.centre_y, height),
            "bottom": (height * PX - o.centre_y, height),
        }[word]
        return True if 100 * away < 40 * side * PX else None if 100 * away < 52 * side * PX else False

    return check


def _beside(word: str, anchor: DrawnObject) -> Property:
    def check(o: DrawnObject) -> Truth:
        if o is anchor:
            return False
        gap = {
            "left of": anchor.centre_x - o.centre_x,
            "right of": o.centre_x - anchor.centre_x,
            "above": anchor.centre_y - o.centre_y,
            "below": o.centre_y - anchor.centre_y,
        }[word]
        return True if gap > MIN_GAP else None if gap > -MIN_GAP else False

    return check


def _nearest_to(anchor: DrawnObject, candidates: Sequence[DrawnObject]) -> Property:
    def squared(o: DrawnObject) -> int:
        return (o.centre_x - anchor.centre_x) ** 2 + (o.centre_y - anchor.centre_y) ** 2

    ranked = sorted(squared(o) for o in candidates if o is not anchor)

    def check(o: DrawnObject) -> Truth:
        if o is anchor or not ranked:
            return False
        if squared(o) > ranked[0]:
            # Borderline up to 1.2 times as far.
            return None if 100 * squared(o) < 144 * ranked[0] else False
        return True

    return check


def _ranked(candidates: Sequence[DrawnObject], rank: int, key: Callable[[DrawnObject], int]) -> Property:
    """The property of having this rank; borderline if an object of a neighbouring rank is too close to distinguish."""
    ordered = sorted(candidates, key=key)
    values = [key(o) for o in ordered]

    def check(o: DrawnObject) -> Truth:
        if rank >= len(ordered) or o is not ordered[rank]:
            return False
        near = [abs(v - values[rank]) for k, v in enumerate(values) if k != rank]
        return None if near and min(near) < MIN_GAP else True

    return check


def _extreme_size(candidates: Sequence[DrawnObject], largest: bool) -> Property:
    areas = sorted((o.area for o in candidates), reverse=largest)

    def check(o: DrawnObject) -> Truth:
        if len(areas) < 2 or o.area != areas[0]:
            return False
        return True if 100 * max(areas[:2]) >= 135 * max(1, min(areas[:2])) else None

    return check


def _plain_names(o: DrawnObject) -> tuple[str, tuple[Property, ...]]:
    return f"{o.colour} {o.shape}", (_has("colour", o.colour), _has("shape", o.shape))


def _descriptions(
    draws: Draws, objects: Sequence[DrawnObject], target: DrawnObject, height: int, width: int
) -> list[_Description]:
    shape, colour = _has("shape", target.shape), _has("colour", target.colour)
    named = f"{target.colour} {target.shape}"
    out = [
        _Description(f"the {target.shape}", "class", (shape,)),
        _Description(f"{named}", "colour", (shape, colour)),
        _Description(f"the {target.colour} one", "colour", (colour,)),
        _Description(f"the thing that is {target.colour}", "colour", (colour,)),
        _Description(f"{target.pattern} {target.shape}", "pattern", (_has("pattern", target.pattern), shape)),
        _Description(f"the {target.pattern} {named}", "pattern", (_has("pattern", target.pattern), colour, shape)),
    ]
    if target.size != "medium":
        size = _has_size(target.size)
        word = draws.pick({"small": ["small", "little"], "large": ["large", "big"]}[target.size])
        out.append(_Description(f"the {word} {target.shape}", "size", (size, shape)))
        out.append(_Description(f"{word} {named}", "size", (size, colour, shape)))
    out += _position_descriptions(objects, target, height, width)
    out += _relation_descriptions(draws, objects, target)
    out += _order_descriptions(objects, target)
    return out


def _position_descriptions(
    objects: Sequence[DrawnObject], target: DrawnObject, height: int, width: int
) -> list[_Description]:
    sides = {w: _on_side(w, height, width) for w in ("left", "right", "top", "bottom")}
    shape, colour = _has("shape", target.shape), _has("colour", target.colour)
    out = []
    for word, prop in sides.items():
        if prop(target):
            where = f"on the {word}" if word in ("left", "right") else f"at the {word}"
            out.append(_Description(f"the {target.shape} {where}", "position", (shape, prop)))
            out.append(_Description(f"{target.colour} {target.shape} {where}", "position", (colour, shape, prop)))
            out.append(_Description(f"{word} {target.shape}", "position", (shape, prop)))
    for vertical in ("top", "bottom"):
        for horizontal in ("left", "right"):
            pair = (sides[vertical], sides[horizontal])
            if all(p(target) for p in pair):
                text = f"{vertical} {horizontal} {target.shape}"
                out.append(_Description(text, "position", (shape, *pair)))
                if len(objects) > 2:
                    out.append(_Description(f"object in the {vertical} {horizontal}", "position", pair))
    return out


def _relation_descriptions(draws: Draws, objects: Sequence[DrawnObject], target: DrawnObject) -> list[_Description]:
    shape = _has("shape", target.shape)
    out = []
    for anchor in draws.shuffled(objects):
        anchor_text, anchor_properties = _plain_names(anchor)
        if anchor is target or answer(objects, anchor_properties) is None:
            continue
        for word in ("left of", "right of", "above", "below"):
            prop = _beside(word, anchor)
            if prop(target):
                said = f"to the {word}" if word.endswith("of") else word
                text = f"the {target.shape} {said} the {anchor_text}"
                out.append(_Description(text, "relation", (shape, prop)))
        near = _nearest_to(anchor, objects)
        if near(target):
            out.append(_Description(f"the object next to the {anchor_text}", "relation", (near,)))
    return out


def _order_descriptions(objects: Sequence[DrawnObject], target: DrawnObject) -> list[_Description]:
    same = [o for o in objects if o.shape == target.shape]
    if len(same) < 2:
        return []
    shape = _has("shape", target.shape)
    out = []
    ends = {"left": 1, "right": -1}
    for end, sign in ends.items():

        def key(o: DrawnObject, sign: int = sign) -> int:
            return sign * o.centre_x

        rank = sorted(same, key=key).index(target)
        prop = _ranked(same, rank, key)
        if rank == 0:
            out.append(_Description(f"{end}most {target.shape}", "order", (shape, prop)))
        if rank < len(ORDINALS) and len(same) > 2:
            text = f"{ORDINALS[rank]} {target.shape} from the {end}"
            out.append(_Description(text, "order", (shape, prop)))
    for word, largest in (("biggest", True), ("smallest", False)):
        out.append(_Description(f"the {word} {target.shape}", "order", (shape, _extreme_size(same, largest))))
    return out


def _absent(draws: Draws, objects: Sequence[DrawnObject]) -> Phrase | None:
    """A plausible expression that no object fits, usually the description of an object with one word changed."""
    model = draws.pick(objects)
    for _ in range(20):
        colour, shape = model.colour, model.shape
        if draws.percent(50):
            colour = draws.pick(list(COLOURS))
        else:
            shape = draws.pick(list(SHAPES))
        properties: list[Property] = [_has("colour", colour), _has("shape", shape)]
        text = f"{colour} {shape}"
        if draws.percent(25):
            pattern = draws.pick(PATTERNS[1:])
            properties.append(_has("pattern", pattern))
            text = f"the {pattern} {text}"
        if nothing_fits(objects, properties):
            return Phrase(text, None, "no_target")
    return None


def write_phrases(
    draws: Draws, objects: Sequence[DrawnObject], height: int, width: int, most: int = 10
) -> list[Phrase]:
    """At most `most` distinct expressions about a scene, of various kinds. One of them has no target."""
    by_kind: dict[str, list[Phrase]] = {kind: [] for kind in KINDS}
    seen: set[str] = set()
    for index, target in enumerate(objects):
        for description in _descriptions(draws, objects, target, height, width):
            if description.text in seen or answer(objects, description.properties) != index:
                continue
            seen.add(description.text)
            by_kind[description.kind].append(Phrase(description.text, index, description.kind))
    phrases: list[Phrase] = []
    shuffled = {kind: draws.shuffled(found) for kind, found in by_kind.items()}
    while len(phrases) < most - 1 and any(shuffled.values()):
        for found in shuffled.values():
            if found and len(phrases) < most - 1:
                phrases.append(found.pop())
    absent = _absent(draws, objects)
    return phrases if absent is None else [*phrases, absent]
