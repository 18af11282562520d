"""Codes from strangers: random bytes and mutated real codes end in a mask or a MaskError, never in a crash."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from refbench import Mask
from refbench.errors import MaskError


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, derandomize=True)
@given(st.integers(1, 70000), st.integers(1, 70000), st.binary(max_size=40))
def test_random_bytes(height: int, width: int, counts: bytes) -> None:
    try:
        mask = Mask.from_rle({"size": [height, width], "counts": counts})
    except MaskError:
        return
    # What passes is a code that pycocotools reads the same way.
    assert mask.area == coco_mask.area({"size": [height, width], "counts": counts})


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.data())
def test_mutated_codes(seed: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    good = Mask.from_array(random.random((12, 17)) < 0.5)
    counts = bytearray(good.counts)
    for _ in range(data.draw(st.integers(1, 4))):
        counts[data.draw(st.integers(0, len(counts) - 1))] = data.draw(st.integers(0, 255))
    try:
        mask = Mask.from_rle({"size": [12, 17], "counts": bytes(counts)})
    except MaskError:
        return
    assert mask.to_array().shape == (12, 17)
    assert mask.area == mask.to_array().sum()


def test_memory_follows_the_code_not_the_claimed_size() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(50):
        # 2^28 pixels claimed by a few characters: a decoder by pixels would need 256 MB each.
        assert Mask.full(16384, 16384).area == 2**28
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 64 * 2**20
