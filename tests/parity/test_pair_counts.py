"""`pair_counts` against pycocotools and the published decode-and-erode formula, pair by pair."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_reference import blobs, boundary_band, pixel_counts
from pycocotools import mask as coco_mask

from refbench import Mask, pair_counts
from refbench.errors import MaskError
from refbench.masks.rle import run_lengths


def coco128_masks(test_data: Path) -> dict[int, list[Mask]]:
    content = json.loads((test_data / "coco128" / "annotations" / "instances_train2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    masks: dict[int, list[Mask]] = defaultdict(list)
    for annotation in content["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            mask = Mask.from_polygons(segmentation, *sizes[annotation["image_id"]])
        else:
            mask = Mask.from_rle(segmentation)
        masks[annotation["image_id"]].append(mask)
    return masks


@pytest.mark.slow
def test_every_pair_of_real_masks(test_data: Path) -> None:
    pairs = 0
    for masks in coco128_masks(test_data).values():
        first = [a for a in masks for _ in masks]
        second = [b for _ in masks for b in masks]
        counts = pair_counts(first, second)
        arrays = [m.to_array() for m in masks]
        bands = [boundary_band(a) for a in arrays]
        # One matrix product per image counts all intersections of its masks exactly (sums below 2^53).
        flat = np.stack([a.ravel() for a in arrays]).astype(np.float64)
        flat_bands = np.stack([b.ravel() for b in bands]).astype(np.float64)
        both, both_bands = (flat @ flat.T).astype(int), (flat_bands @ flat_bands.T).astype(int)
        areas, band_areas = both.diagonal(), both_bands.diagonal()
        n = len(masks)
        shape = (n, n)
        rles = [m.to_rle() for m in masks]
        assert np.array_equal(coco_mask.area(rles), areas)
        assert np.array_equal(counts["prediction_area"].reshape(shape), np.broadcast_to(areas[:, None], shape))
        assert np.array_equal(counts["target_area"].reshape(shape), np.broadcast_to(areas[None], shape))
        assert np.array_equal(counts["intersection"].reshape(shape), both)
        assert np.array_equal(counts["union"].reshape(shape), areas[:, None] + areas[None] - both)
        assert np.array_equal(counts["boundary_intersection"].reshape(shape), both_bands)
        assert np.array_equal(
            counts["boundary_union"].reshape(shape), band_areas[:, None] + band_areas[None] - both_bands
        )
        merged = [coco_mask.area(coco_mask.merge([a, b], intersect=True)) for a in rles for b in rles]
        assert np.array_equal(counts["intersection"], merged)
        pairs += n * n
    assert pairs == 14_937


def check_pairs(seed: int, pairs: int, largest_height: int, largest_width: int) -> None:
    random = np.random.default_rng(seed)
    predictions, targets = [], []
    for _ in range(pairs):
        height = int(random.integers(1, largest_height + 1))
        width = int(random.integers(1, largest_width + 1))
        predictions.append(blobs(random, height, width))
        targets.append(blobs(random, height, width))
    share = float(random.choice([0.02, 0.02, 0.05, 0.2]))
    counts = pair_counts(
        [Mask.from_array(p) for p in predictions], [Mask.from_array(t) for t in targets], boundary=share
    )
    for k, (p, t) in enumerate(zip(predictions, targets, strict=True)):
        expected = pixel_counts(p, t, share)
        assert {name: int(values[k]) for name, values in counts.items()} == expected, (seed, k, p.shape)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 90))
def test_random_pairs(seed: int, largest_height: int, largest_width: int) -> None:
    check_pairs(seed, 50, largest_height, largest_width)


@pytest.mark.parametrize("seed", range(10))
def test_random_pairs_of_fixed_seeds(seed: int) -> None:
    check_pairs(seed, 1050, 48, 64)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 3000), (4000, 1), (2, 2), (480, 640), (1080, 1920), (3000, 4000), (4000, 3000)]
)
def test_sizes_from_one_pixel_to_twelve_megapixels(height: int, width: int) -> None:
    random = np.random.default_rng(height * width)
    for _ in range(2 if height * width > 10**6 else 12):
        p, t = blobs(random, height, width), blobs(random, height, width)
        counts = pair_counts([Mask.from_array(p)], [Mask.from_array(t)])
        assert {name: int(values[0]) for name, values in counts.items()} == pixel_counts(p, t)


def test_threads_and_chunks_change_nothing(test_data: Path) -> None:
    masks = next(m for m in coco128_masks(test_data).values() if len(m) > 12)
    first = [a for a in masks for _ in masks] * 12
    second = [b for _ in masks for b in masks] * 12
    one, many = pair_counts(first, second, threads=1), pair_counts(first, second, threads=3)
    assert all(np.array_equal(one[name], many[name]) for name in one)


def test_dicts_are_taken_and_results_are_int64() -> None:
    array = np.eye(5, dtype=bool)
    rle = coco_mask.encode(np.asfortranarray(array.astype(np.uint8)))
    counts = pair_counts([rle], [{"size": [5, 5], "counts": rle["counts"].decode()}])
    assert {name: (v.dtype, v.shape) for name, v in counts.items()} == {
        name: (np.dtype(np.int64), (1,)) for name in counts
    }
    assert int(counts["intersection"][0]) == 5
    assert all(v.shape == (0,) for v in pair_counts([], []).values())


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ([Mask.full(2, 2)], [], "number of targets, got 1 predictions and 0 targets"),
        (
            [Mask.full(2, 2)],
            [Mask.full(2, 3)],
            r"pair 0: the prediction has the size \(2, 2\), but the size of the target is \(2, 3\) \(height",
        ),
        ([{"size": [2, 2], "counts": "zz"}], [Mask.full(2, 2)], "prediction of pair 0"),
    ],
)
def test_pairs_that_do_not_fit_are_named(predictions: list, targets: list, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        pair_counts(predictions, targets)


def test_dicts_of_every_form_count_like_masks() -> None:
    random = np.random.default_rng(5)
    masks = [Mask.from_array(random.random((20, 30)) < share) for share in random.random(60)]
    codes = [m.counts for m in masks]
    expected = pair_counts(masks[:30], masks[30:])
    forms = [
        [{"size": [20, 30], "counts": c} for c in codes],
        [{"size": (20, 30), "counts": c.decode()} for c in codes],
        [m.to_rle() for m in masks],
        [{"size": [20, 30], "counts": run_lengths(m.to_array().ravel(order="F"))} for m in masks],
        # A background run of length zero inside a foreground run: the same mask, another code.
        [{"size": [20, 30], "counts": [0, 3, 0, 4, 593]}] * 60,
    ]
    for form in forms[:4]:
        found = pair_counts(form[:30], form[30:])
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        mixed = pair_counts(masks[:30], form[30:])
        assert all(np.array_equal(mixed[name], expected[name]) for name in expected)
    assert pair_counts(forms[4][:1], forms[4][:1])["union"].tolist() == [7]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"counts": "zz"}, "target of pair 1"),
        ({"counts": "é"}, "target of pair 1"),
        ({"counts": 5}, "target of pair 1"),
        ({"size": [2, 3]}, "pair 1"),
        ({"size": [2]}, "target of pair 1"),
        ({"size": [True, 2]}, "target of pair 1"),
        ({"size": [2**70, 2]}, "target of pair 1"),
        ({"size": [0, 2]}, "target of pair 1"),
        ({"size": [2.0, 2]}, "target of pair 1"),
    ],
)
def test_a_wrong_dict_among_right_ones_is_named(changed: dict[str, Any], expected: str) -> None:
    right = {"size": [2, 2], "counts": Mask.full(2, 2).counts}
    with pytest.raises(MaskError, match=expected):
        pair_counts([right] * 3, [right, {**right, **changed}, right])
