"""Encoding where the tensors lie, against pycocotools' encoding of their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refbench.adapters.base import to_predictions
from refbench.adapters.tensor_masks import encode_tensors
from refbench.errors import AdapterError, MaskError
from refbench.masks.mask import Mask
from refbench.records import Answer, Sample

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@pytest.mark.slow
@given(st.lists(st.tuples(shapes, st.floats(0, 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_the_codes_are_those_of_the_pixels(drawn: list[tuple[tuple[int, int], float, int]]) -> None:
    arrays = [np.random.default_rng(seed).random(shape) < share for shape, share, seed in drawn]
    assert encode_tensors([torch.from_numpy(a) for a in arrays]) == [Mask.from_array(a) for a in arrays]


def test_odd_layouts() -> None:
    pixels = torch.rand(37, 53) > 0.5
    views = [pixels.t(), pixels[::2, 3:], pixels.flip(0), pixels[:1], pixels[:, :1], torch.ones(7, 5, dtype=torch.bool)]
    assert encode_tensors(views) == [Mask.from_array(v.numpy()) for v in views]
    assert encode_tensors([]) == []


def test_instances_may_be_any_iterable() -> None:
    masks = [np.ones((4, 6), bool), np.zeros((4, 6), bool)]
    answer = Answer(masks[0], instances=zip(masks, (0.9, 0.5), strict=True), note="half \ud800 a sign")  # type: ignore[arg-type]
    found = to_predictions([sample(4, 6)], [answer])[0]
    assert [(i.mask.area, i.score) for i in found.instances] == [(24, 0.9), (0, 0.5)]
    assert found.note == "half ? a sign"


def test_runs_that_are_none() -> None:
    good = Mask.from_intervals(np.array([1, 5]), np.array([3, 6]), 3, 2)
    assert good.to_array().T.reshape(-1).tolist() == [False, True, True, False, False, True]
    for starts, ends in (([2], [2]), ([0], [7]), ([-1], [2]), ([3, 1], [4, 2]), ([0, 1], [2, 3]), ([1], [])):
        with pytest.raises(MaskError, match="the runs of a mask must be sorted"):
            Mask.from_intervals(np.array(starts, int), np.array(ends, int), 3, 2)


def sample(height: int, width: int) -> Sample:
    return Sample("d/s/0/0", "0", "", height, width, "x", "x", "0", "0", (), "", Mask.empty(height, width), True)


def test_a_device_that_is_not_the_cpu_is_encoded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: a tensor without data ("meta") stands for one, and shows that its pixels are not copied."""
    asked = []

    def encode(masks: list[torch.Tensor]) -> list[Mask]:
        asked.extend(masks)
        return [Mask.full(*m.shape) for m in masks]

    monkeypatch.setattr("refbench.adapters.tensor_masks.encode_tensors", encode)
    mask, instance = (torch.zeros(4, 6, dtype=torch.bool, device="meta") for _ in range(2))
    here = torch.zeros(4, 6, dtype=torch.bool)
    answers = [Answer(mask, instances=[(instance, 0.5)]), here]
    found = to_predictions([sample(4, 6)] * 2, answers)
    assert len(asked) == 2
    assert [p.mask.area for p in found] == [24, 0]
    assert found[0].instances[0].mask.area == 24
    with pytest.raises(AdapterError, match="must be bool, got float32; apply a threshold in"):
        to_predictions([sample(4, 6)], [torch.zeros(4, 6, device="meta")])
    with pytest.raises(AdapterError, match=r"shape as its image, \(6, 4\) \(height, width\), got \(4, 6\)"):
        to_predictions([sample(6, 4)], [mask])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    arrays = [np.random.default_rng(k).random((200 + k, 300)) < 0.3 for k in range(8)]
    assert encode_tensors([torch.from_numpy(a).cuda() for a in arrays]) == [Mask.from_array(a) for a in arrays]
