"""Every check on cases made for it: one that it finds, and its neighbour that it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from curation.miniature_split import HEIGHT, WIDTH, image, objects_of, sample, save_picture, square
from PIL import Image

from refbench.curation.checks.base import SEVERITIES, ImageCheck, ImageView, SplitCheck
from refbench.curation.items import items_of
from refbench.masks.mask import Mask
from refbench.plugins.loading import available, load
from refbench.records import Sample


def found(name: str, samples: list[Sample], with_picture: bool = False) -> list[str]:
    """The items that a check names."""
    check = load("checks", name)()
    findings = list(check.find(ImageView(image(samples), with_picture)))
    assert all(f.check == name and f.severity in SEVERITIES and f.message for f in findings)
    return [f.item_id.removeprefix("toy/val/") for f in findings]


def test_every_check_has_a_rule_and_one_of_two_contracts() -> None:
    for name in available("checks"):
        check = load("checks", name)()
        assert check.code == name
        assert isinstance(check, ImageCheck) != isinstance(check, SplitCheck), name
        assert type(check).__doc__


def test_masks_that_are_empty_or_tiny() -> None:
    samples = [sample("a", 0, "nothing", Mask.empty(HEIGHT, WIDTH), no_target=False, ann_ids=("a",)),
               sample("b", 0, "small", square(5, 5, 10)), sample("c", 0, "large", square(20, 20, 20)),
               sample("d", 0, "not there", None)]  # fmt: skip
    assert found("mask-empty", samples) == ["a"]
    assert found("mask-tiny", samples) == ["b"]


def test_slivers_and_parts_far_apart() -> None:
    whole = square(10, 10, 20).to_array()
    speck, hole, two = whole.copy(), whole.copy(), whole.copy()
    speck[40:42, 10:12] = True
    hole[15, 15] = False
    two[10:30, 60:80] = True
    samples = [sample(k, 0, k, Mask.from_array(m)) for k, m in (("speck", speck), ("hole", hole), ("two", two))]
    samples.append(sample("whole", 0, "whole", Mask.from_array(whole)))
    assert found("mask-slivers", samples) == ["speck", "hole"]
    # 60 - 29 = 31 px away, and the largest part is 20 px long; a speck is not a part.
    assert found("mask-parts-apart", samples) == ["two"]


def test_the_border() -> None:
    assert found("mask-at-border", [sample("a", 0, "a", square(0, 5, 20)), sample("b", 0, "b", square(1, 5, 20))]) == [
        "a"
    ]


def test_polygons_and_boxes_that_say_something_else() -> None:
    mask = square(10, 10, 40)
    fine = ((10.0, 10.0, 50.0, 10.0, 50.0, 50.0, 10.0, 50.0),)
    other = ((30.0, 30.0, 70.0, 30.0, 70.0, 58.0, 30.0, 58.0),)
    samples = [sample("a", 0, "a", mask, polygons=fine), sample("b", 0, "b", mask, polygons=other),
               sample("c", 0, "c", mask, box_xywh=(40.0, 10.0, 40.0, 40.0))]  # fmt: skip
    assert found("mask-unlike-polygons", samples) == ["b"]
    assert found("mask-unlike-box", samples) == ["c"]
    assert found("polygon-coarse", samples) == ["a", "b"]


def test_two_annotations_on_one_object() -> None:
    samples = [sample("a", 0, "left", square(10, 10, 20)), sample("b", 0, "right", square(11, 11, 20)),
               sample("c", 0, "far", square(10, 50, 20))]  # fmt: skip
    assert found("mask-like-another", samples) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "first", "second", "named"),
    [
        ("expression-repeated", ["Red  one", "red one"], ["red one"], ["a/1"]),
        ("expression-shared", ["the one"], ["The one"], ["a/0", "b/0"]),
        ("expression-fragment", ["r"], ["no 5"], ["a/0"]),
        ("expression-fragment", ["?"], ["5"], ["a/0"]),
        ("expression-contradicting", ["left right square"], ["right of the left one"], ["a/0"]),
        ("expression-offensive", ["ugly kid"], ["ugly couch"], ["a/0"]),
    ],
)
def test_expressions(name: str, first: list[str], second: list[str], named: list[str]) -> None:
    samples = [sample("a", k, text, square(5, 5, 20)) for k, text in enumerate(first)]
    samples += [sample("b", k, text, square(5, 50, 20)) for k, text in enumerate(second)]
    assert found(name, samples) == named


ODD = [
    "", " ", "\u3000", "?", "...", "'", "\u4e00\u53ea\u732b", "\u043a\u043e\u0448\u043a\u0430", "\U0001f431", "\u0301",
    "on", "in the", "left", "no.1 - (left)", "a" * 5000, "\n", "\u202e", "the\u00a0man",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_no_expression_stops_an_audit(text: str) -> None:
    samples = [sample("a", 0, text, square(5, 5, 20)), sample("b", 0, text, square(5, 50, 20))]
    names = [name for name in available("checks") if name.startswith("expression-")]
    told = {name for name in names if isinstance(load("checks", name)(), ImageCheck) and found(name, samples)}
    assert "expression-shared" in told
    if not any(c.isalnum() for c in text):
        assert "expression-fragment" in told
    if any("\u0400" < c < "\uffff" and c.isalpha() for c in text):
        assert "expression-other-script" in told


def test_an_expression_that_is_right_and_wrong_at_once() -> None:
    nothing = sample("c", 0, "The one", None)
    samples = [sample("a", 0, "the one", square(5, 5, 20)), sample("b", 0, "another", square(5, 50, 20)), nothing]
    assert found("expression-right-and-wrong", samples) == ["a/0", "c/0"]
    assert found("expression-right-and-wrong", samples[:2]) == []
    assert found("expression-shared", samples) == []


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("left square", False), ("the square on the left", False), ("leftmost square", False),
        ("right square", True), ("rightmost square", True), ("square on the right", True),
        # A side of something else, or of the thing itself, is none of the image.
        ("right of the tree", False), ("the right arm", False), ("square to the right of the man", False),
        ("square with the right hat", False),
    ],
)  # fmt: skip
def test_words_of_place(text: str, denied: bool) -> None:
    samples = [sample("a", 0, text, square(20, 2, 20)), sample("b", 0, "other", square(20, 56, 20))]
    assert (found("expression-against-place", samples) == ["a/0"]) is denied


def test_words_of_size() -> None:
    samples = [
        sample("a", 0, "biggest square", square(5, 5, 10)),
        sample("b", 0, "smallest square", square(20, 30, 30)),
    ]
    assert found("expression-against-size", samples) == ["a/0", "b/0"]
    assert found("expression-against-size", [samples[0], sample("b", 0, "x", square(20, 30, 12))]) == []


def painted(tmp_path: Path, colour: tuple[int, int, int], mask: Mask) -> str:
    """An image of grey noise with a mask in a colour."""
    random = np.random.default_rng(3)
    pixels = np.full((*mask.size, 3), 128, np.uint8) + random.integers(0, 5, (*mask.size, 1)).astype(np.uint8)
    pixels[mask.to_array()] = colour
    return save_picture(tmp_path, pixels)


@pytest.mark.parametrize(
    ("text", "denied"),
    [("red square", False), ("blue square", True), ("square next to the blue one", False), ("blue man", False),
     ("the thing that is blue", True)],
)  # fmt: skip
def test_words_of_colour(tmp_path: Path, text: str, denied: bool) -> None:
    mask = square(15, 15, 30)
    samples = [sample("a", 0, text, mask, image_path=painted(tmp_path, (200, 30, 30), mask))]
    assert (found("expression-against-colour", samples, True) == ["a/0"]) is denied
    assert found("expression-against-colour", samples) == []


def test_outlines_and_the_picture(tmp_path: Path) -> None:
    height, width = 120, 140
    true = square(35, 40, 50, height, width)
    path = painted(tmp_path, (200, 30, 30), true)
    hole = true.to_array()
    hole[50:65, 55:70] = False
    ring = Mask.from_array(hole)
    ring_path = save_picture(tmp_path, _filled(path, ring), "ring.png")

    def named(name: str, mask: Mask, picture: str = path) -> bool:
        return bool(found(name, [sample("a", 0, "x", mask, image_path=picture)], True))

    assert not any(named(n, true) for n in ("mask-off-edges", "mask-holds-ground", "mask-lacks-part"))
    # Two pixels too wide; a hole filled; a strip of eight pixels left out.
    assert named("mask-off-edges", square(33, 38, 54, height, width))
    assert named("mask-holds-ground", true, ring_path)
    assert not named("mask-holds-ground", ring, ring_path)
    cut = true.to_array()
    cut[:, :48] = False
    assert named("mask-lacks-part", Mask.from_array(cut))


def _filled(path: str, mask: Mask) -> np.ndarray:
    pixels = np.asarray(Image.open(path)).copy()
    outside = ~mask.to_array()
    pixels[outside] = 128
    return pixels


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    good = painted(tmp_path, (0, 200, 0), square(5, 5, 20))
    bad = tmp_path / "bad.png"
    bad.write_bytes(Path(good).read_bytes()[:200])
    for path, named in ((good, []), (str(bad), ["1"]), (str(tmp_path / "gone.png"), ["1"])):
        assert found("image-broken", [sample("a", 0, "x", square(5, 5, 20), image_path=path)], True) == named


def test_pictures_that_are_there_twice(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    coarse = random.integers(0, 255, (6, 8, 3)).astype(np.uint8)
    first = np.kron(coarse, np.ones((10, 10, 1), np.uint8))
    other = np.kron(random.integers(0, 255, (6, 8, 3)).astype(np.uint8), np.ones((10, 10, 1), np.uint8))
    brighter = np.clip(first.astype(int) + 6, 0, 255).astype(np.uint8)
    samples = []
    for k, pixels in enumerate((first, other, first, brighter)):
        path = save_picture(tmp_path, pixels, f"{k}.png")
        samples.append(sample(f"r{k}", 0, "x", square(5, 5, 20), image_id=f"i{k}", image_path=path))
    check = load("checks", "image-twice")()
    findings = list(check.find_in_split(items_of(samples, objects_of(samples))))
    assert [(f.item_id, "same file" in f.message) for f in findings] == [("i2", True), ("i3", False)]
