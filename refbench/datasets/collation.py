"""Joins items of a `TorchDataset` to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of items, for `DataLoader(collate_fn=refbench.collate)`.

    Arrays and tensors of one shape and dtype are stacked to a tensor. Everything else becomes a list: texts, and images
    of different sizes, because most models resize them by a processor of their own. Flags become a bool tensor.

    Example:
        >>> import numpy as np
        >>> batch = collate([{"mask": np.ones((2, 2), bool), "expression": text} for text in ("a", "b")])
        >>> tuple(batch["mask"].shape), batch["expression"]
        ((2, 2, 2), ['a', 'b'])
    """
    return {name: _joined([item[name] for item in items]) for name in items[0]} if items else {}


def _joined(values: list[Any]) -> Any:
    if all(isinstance(v, bool) for v in values):
        return torch.tensor(values)
    tensors = [torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v for v in values]
    if all(isinstance(v, torch.Tensor) for v in tensors) and len({(v.shape, v.dtype) for v in tensors}) == 1:
        return torch.stack(tensors)
    return tensors
