"""Masks: every way in, every way out, and everything that is not a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from refbench import Mask
from refbench.errors import MaskError

arrays = hnp.arrays(np.bool_, st.tuples(st.integers(1, 30), st.integers(1, 30)))


@settings(deadline=None)
@given(arrays)
def test_round_trips_and_equality_with_pycocotools(array: np.ndarray) -> None:
    mask = Mask.from_array(array)
    theirs = coco_mask.encode(np.asfortranarray(array.astype(np.uint8)))
    assert mask.counts == theirs["counts"]
    assert np.array_equal(mask.to_array(), array)
    assert mask.area == array.sum()
    assert mask.box_xywh == tuple(coco_mask.toBbox(theirs))
    assert Mask.from_rle(mask.to_rle()) == mask
    assert Mask.from_rle({"size": list(array.shape), "counts": mask.counts.decode()}) == mask


@settings(deadline=None)
@given(arrays, st.randoms())
def test_uncompressed_and_uncanonical_counts_mean_the_same_mask(array: np.ndarray, random: object) -> None:
    flat = array.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(np.int8)) != 0)
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    # An empty run between two halves of another changes the code, not the mask.
    split = next((k for k, c in enumerate(counts) if c > 1), None)
    longer = counts if split is None else [*counts[:split], 1, 0, counts[split] - 1, *counts[split + 1 :]]
    assert Mask.from_rle({"size": list(array.shape), "counts": counts}) == Mask.from_array(array)
    assert Mask.from_rle({"size": list(array.shape), "counts": longer}) == Mask.from_array(array)


def test_polygons_are_the_union_of_their_parts() -> None:
    square, overlapping, apart = [1, 1, 6, 1, 6, 6, 1, 6], [4, 4, 9, 4, 9, 9, 4, 9], [12, 0, 15, 0, 15, 4, 12, 4]
    whole = Mask.from_polygons([square, overlapping, apart], 20, 20)
    parts = [Mask.from_polygons([p], 20, 20).to_array() for p in (square, overlapping, apart)]
    assert np.array_equal(whole.to_array(), parts[0] | parts[1] | parts[2])
    assert Mask.from_polygons([], 3, 4) == Mask.empty(3, 4)


def test_empty_full_and_union() -> None:
    assert Mask.empty(3, 4).area == 0
    assert Mask.full(3, 4).area == 12
    assert Mask.empty(3, 4).union(Mask.full(3, 4)) == Mask.full(3, 4)
    assert Mask.empty(3, 4).union() == Mask.empty(3, 4)
    with pytest.raises(MaskError, match="cannot join masks of different sizes"):
        Mask.empty(3, 4).union(Mask.empty(4, 3))


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [2, 2]}, "keys 'size' and 'counts'"),
        ("04", "dict"),
        ({"size": [2], "counts": "4"}, "size must be"),
        ({"size": "22", "counts": "4"}, "size must be"),
        ({"size": [2, 2.0], "counts": "4"}, "width must be an integer"),
        ({"size": [True, 2], "counts": "4"}, "height must be an integer"),
        ({"size": [0, 2], "counts": ""}, "height must be"),
        ({"size": [-2, -2], "counts": "4"}, "height must be"),
        ({"size": [2**40, 1], "counts": "4"}, "height must be"),
        ({"size": [65535, 65535], "counts": "4"}, "pixels"),
        ({"size": [2, 2], "counts": ""}, "add up"),
        ({"size": [2, 2], "counts": "5"}, "add up"),
        ({"size": [2, 2], "counts": "3"}, "add up"),
        ({"size": [2, 2], "counts": "4T"}, "middle of a count"),
        ({"size": [2, 2], "counts": "\n4"}, "character outside"),
        ({"size": [2, 2], "counts": "4\x7f"}, "character outside"),
        ({"size": [2, 2], "counts": "é"}, "not ASCII"),
        ({"size": [2, 2], "counts": b"\xff\xfe"}, "character outside"),
        ({"size": [2, 2], "counts": "O"}, "negative"),
        ({"size": [2, 2], "counts": "oooooooooooo0"}, "longer than"),
        ({"size": [2, 2], "counts": None}, "must be str, bytes or a list"),
        ({"size": [2, 2], "counts": 4}, "must be str, bytes or a list"),
        ({"size": [2, 2], "counts": [5, -1]}, "uncompressed counts must be between 0 and"),
        ({"size": [2, 2], "counts": [2, 1]}, "of the counts is 3, but height times width"),
        ({"size": [2, 2], "counts": [2**62, 2**62, 2**62]}, "uncompressed counts must be between 0 and"),
        ({"size": [2, 2], "counts": [2.0, 2.0]}, "integers"),
        ({"size": [2, 2], "counts": [[2], [2, 3]]}, "integers"),
        ({"size": [2, 2], "counts": ["2", "2"]}, "integers"),
    ],
)
def test_broken_codes_are_refused_with_the_reason(rle: object, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        Mask.from_rle(rle)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 1, 5, 5], "y values for at least three points"),
        ([1, 1, 5, 5, 3], "y values for at least three points"),
        ([1, 1, 5, 5, 3, 9, 4], "y values for at least three points"),
        ([1, 1, 5, float("nan"), 3, 9], "finite"),
        ([1, 1, 5, float("inf"), 3, 9], "finite"),
        ([1, 1, 1e12, 5, 3, 9], "has a vertex at"),
        (["a", 1, 5, 5, 3, 9], "list of numbers"),
        ([[1, 1], [5, 5], [3, 9]], "y values for at least three points"),
        (None, "must be a flat list of x, y values for at least three points; it has"),
    ],
)
def test_broken_polygons_are_refused(polygon: object, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        Mask.from_polygons([polygon], 10, 10)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2)), "threshold"),
        (np.full((2, 2), 255, np.uint8), "mask must contain only 0 and 1"),
        (np.full((2, 2), -1), "mask must contain only 0 and 1"),
        (np.zeros((2, 2, 1), bool), "shape"),
        (np.zeros((0, 2), bool), "height must be"),
        ([["a"]], "threshold"),
    ],
)
def test_arrays_that_are_no_masks(array: object, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        Mask.from_array(array)


SIDES = st.integers(1, 40)
POLYGONS = st.lists(
    st.lists(st.floats(-3, 43, allow_nan=False, width=32), min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0),
    min_size=1,
    max_size=4,
)


def is_canonical(mask: Mask) -> bool:
    """Reading the code again, with every check, gives the same code."""
    return Mask(mask.height, mask.width, mask.counts).counts == mask.counts


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(SIDES, SIDES, POLYGONS, st.randoms(use_true_random=False))
def test_codes_that_are_not_checked_again_are_canonical(height: int, width: int, polygons: Any, rng: Any) -> None:
    drawn = Mask.from_polygons(polygons, height, width)
    pixels = np.array([[rng.random() < 0.4 for _ in range(width)] for _ in range(height)])
    noise = Mask.from_array(pixels)
    both = drawn.union(noise)
    for mask in (drawn, noise, both, Mask.empty(height, width), Mask.full(height, width)):
        assert is_canonical(mask)
        assert mask.area == mask.to_array().sum()
    assert np.array_equal(both.to_array(), drawn.to_array() | pixels)


def test_many_codes_at_once() -> None:
    a = Mask.from_polygons([[1, 1, 9, 1, 9, 9]], 12, 14)
    # The same pixels, written with a run of length zero in the middle: 5 + 0 + 163 for 168 pixels of background.
    loose = coco_mask.frPyObjects({"size": [12, 14], "counts": [5, 0, 163]}, 12, 14)["counts"]
    found = Mask.from_codes([a.counts, loose, a.counts], [12, 12, 12], [14, 14, 14])
    assert found[0] is found[2]
    assert found == [a, Mask.empty(12, 14), a]
    assert found[1].counts != loose
    assert Mask.from_codes([], [], []) == []
    # One code for two sizes is two masks, and one of them does not fit.
    with pytest.raises(MaskError, match=r"mask 1:.*invalid run-length code"):
        Mask.from_codes([a.counts, a.counts], [12, 12], [14, 15])
    with pytest.raises(MaskError, match="height must be"):
        Mask.from_codes([a.counts], [0], [14])


@pytest.mark.parametrize("seed", range(40))
def test_arrays_of_any_layout_have_the_code_of_pycocotools(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(v) for v in random.integers(1, 70, 2))
    pixels = random.random((height, width)) < random.choice([0, 0.02, 0.5, 0.98, 1])
    expected = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))["counts"]
    layouts = [
        pixels, np.asfortranarray(pixels), pixels.astype(np.uint8), pixels.astype(np.int64), pixels[::-1][::-1],
        np.repeat(pixels, 2, axis=1)[:, ::2], np.asfortranarray(pixels.astype(np.uint8)),
    ]  # fmt: skip
    assert {Mask.from_array(layout).counts for layout in layouts} == {expected}


def test_a_bool_with_another_byte_in_memory_is_foreground() -> None:
    odd = np.frombuffer(bytes([0, 255, 2, 0]), np.uint8).view(np.bool_).reshape(2, 2)
    expected = Mask.from_array(np.array([[False, True], [True, False]]))
    assert Mask.from_array(odd) == expected
    assert Mask.from_array(odd.T) == expected
