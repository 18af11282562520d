"""Encodes masks as run-length codes on the GPU, so that only the positions of run boundaries are copied to the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from refbench.masks.mask import Mask

MOST_IN_INT32 = 2**31


def encode_tensors(masks: Sequence[torch.Tensor]) -> list[Mask]:
    """Encode bool tensors (H, W) of any sizes, on one or several devices, as `Mask`s.

    All masks of a device are concatenated in column-major order, with a background pixel around each. The positions
    where the value changes are copied at once, which takes about 0.5 kB per mask instead of 300 kB for its pixels.
    """
    out: list[Mask | None] = [None] * len(masks)
    for device in {mask.device for mask in masks}:
        chosen = [k for k, mask in enumerate(masks) if mask.device == device]
        for k, mask in zip(chosen, _encode_on_device([masks[k] for k in chosen]), strict=True):
            out[k] = mask
    return [mask for mask in out if mask is not None]


@torch.inference_mode()
def _encode_on_device(masks: Sequence[torch.Tensor]) -> list[Mask]:
    gap = torch.zeros(1, dtype=torch.bool, device=masks[0].device)
    # Masks of one size are laid out together: a kernel for each mask would cost more than its work.
    pieces = [gap]
    for _, same in itertools.groupby(masks, lambda mask: mask.shape):
        lines = torch.stack([mask.detach() for mask in same]).transpose(1, 2).flatten(1)
        pieces.append(F.pad(lines, (0, 1)).reshape(-1))
    line = torch.cat(pieces)
    # A change between k and k + 1 of the line: a run starts, or has ended, at pixel k counted after the first gap.
    positions = torch.nonzero(line[1:] != line[:-1]).reshape(-1)
    if len(line) < MOST_IN_INT32:
        # Half the bytes to copy.
        positions = positions.to(torch.int32)
    edges = positions.cpu().numpy().astype(np.int64)
    out = []
    offset = 0
    first = 0
    for mask in masks:
        height, width = mask.shape
        last = int(edges.searchsorted(offset + height * width, side="right"))
        # Every mask begins and ends in background, so its edges come in pairs.
        own = edges[first:last] - offset
        out.append(Mask.from_intervals(own[0::2], own[1::2], height, width))
        offset += height * width + 1
        first = last
    return out
