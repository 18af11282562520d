"""Dense masks counted on their device: the counts of `pair_counts`."""

from __future__ import annotations

import numpy as np
import pytest

from refbench import Mask, ReferringMetric, pair_counts
from refbench.errors import MaskError

torch = pytest.importorskip("torch")
dense_counts = pytest.importorskip("refbench.masks.tensor_counts").dense_counts


def masks(seed: int) -> np.ndarray:
    """Two batches of random masks, bool (2, B, H, W): noise, empty, full, and a large shape."""
    random = np.random.default_rng(seed)
    batch, height, width = (int(v) for v in random.integers((1, 1, 1), (6, 120, 120)))
    y, x = np.mgrid[:height, :width]
    shape = (y - height / 2) ** 2 + (x - width / 3) ** 2 < (min(height, width) / 2.5) ** 2
    noise = random.random((2, batch, height, width)) < random.choice([0, 0.02, 0.5, 0.98, 1])
    return noise ^ shape if seed % 2 else noise


def expected(pairs: np.ndarray) -> np.ndarray:
    first, second = ([Mask.from_array(m) for m in side] for side in pairs)
    return np.stack(list(pair_counts(first, second).values()), axis=1)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
def test_the_counts_are_those_of_pair_counts(seed: int, dtype: str) -> None:
    pairs = masks(seed)
    first, second = (torch.from_numpy(side).to(getattr(torch, dtype)) for side in pairs)
    assert np.array_equal(dense_counts(first, second), expected(pairs))


def test_other_values_and_shapes_are_refused() -> None:
    ones = torch.ones(1, 4, 4)
    with pytest.raises(MaskError, match="predictions must contain only False and True"):
        dense_counts(ones * 0.5, ones)
    with pytest.raises(MaskError, match="both must be"):
        dense_counts(ones, ones[:, :3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_metric_on_the_gpu_has_the_values_of_the_cpu() -> None:
    for seed in range(20):
        pairs = masks(seed)
        ours, theirs = ReferringMetric(), ReferringMetric()
        ours.update(*pairs)
        theirs.update(*(torch.from_numpy(side).cuda() for side in pairs))
        assert theirs.compute() == ours.compute()
        assert all(np.array_equal(theirs.counts()[name], values) for name, values in ours.counts().items())
