"""Counts of dense masks on their device, without copying the masks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from refbench.errors import MaskError
from refbench.masks.counting import boundary_widths_px


def dense_counts(predictions: Tensor, targets: Tensor, boundary: float = 0.02) -> NDArray[np.int64]:
    """`pair_counts` of dense masks; only the counts leave the device.

    Args:
        predictions, targets: bool or 0/1, (B, H, W), on one device.
        boundary: as for `pair_counts`.

    Returns:
        int64 (B, 6), columns as in `pairs.COUNTS`.

    Raises:
        MaskError: the shapes differ, or a mask has other values than 0 and 1.
    """
    if predictions.shape != targets.shape or predictions.ndim != 3:
        raise MaskError(
            f"the predictions have the shape {tuple(predictions.shape)}, the targets {tuple(targets.shape)}; both must "
            "be (B, H, W)"
        )
    for name, masks in (("predictions", predictions), ("targets", targets)):
        if masks.dtype != torch.bool and not bool(((masks == 0) | (masks == 1)).all()):
            raise MaskError(f"{name} must contain only False and True, or 0 and 1; apply a threshold first")
    height, width = (np.array([side], np.int64) for side in predictions.shape[1:])
    reach = int(boundary_widths_px(height, width, boundary)[0])
    first, second = predictions != 0, targets != 0
    bands = _band(first, reach), _band(second, reach)
    pairs = [first & second, first | second, first, second, bands[0] & bands[1], bands[0] | bands[1]]
    counts = torch.stack([pair.flatten(1).sum(dim=1, dtype=torch.int64) for pair in pairs], dim=1)
    found: NDArray[np.int64] = counts.cpu().numpy()
    return found


def _band(masks: Tensor, reach: int) -> Tensor:
    """The pixels that an erosion by a square of 2 * reach + 1 pixels removes, bool (B, H, W).

    Everything outside the image is background.
    """
    # In half precision 0 and 1 are exact, and pooling only chooses among them.
    background = F.pad((~masks).to(torch.float16 if masks.is_cuda else torch.float32), [reach] * 4, value=1.0)[:, None]
    side = 2 * reach + 1
    near = F.max_pool2d(F.max_pool2d(background, (side, 1), 1), (1, side), 1)[:, 0]
    return masks & (near > 0)
