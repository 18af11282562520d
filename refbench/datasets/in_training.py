"""Built splits as map-style datasets for training loops. This needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.storage.images import load_image
from refbench.storage.manifest import of_one_build, parse_address, split_fingerprint, split_path
from refbench.storage.samples import image_place, split_table

_COLUMNS = (
    "sample_id", "image_id", "image_path", "height", "width", "expression", "ref_id", "ann_ids", "category",
    "target_counts", "no_target",
)  # fmt: skip
# What one item is about.
EXPRESSION, REF, IMAGE = "expression", "ref", "image"
GROUPS = {EXPRESSION: "sample_id", REF: "ref_id", IMAGE: "image_id"}


class TorchDataset:
    """A built split as a map-style dataset for `torch.utils.data.DataLoader`; torch itself is not imported.

    An item is a dict. `image` is uint8 (H, W, 3), RGB. With `by="expression"`, `mask` is bool (H, W), and `expression`,
    `sample_id`, `image_id`, `ref_id`, `category` are texts and `no_target` is a bool. With `by="ref"` or `by="image"`,
    an item has all expressions of a ref or an image: `masks` is bool (N, H, W), and `expressions`, `sample_ids`,
    `ref_ids`, `categories` and `no_target` are lists of N; `image_id` stays one text.

    Images and masks are read when an item is asked for. The dataset can be pickled, so it works with any number of
    workers and any way to start them; its columns are Arrow tables, which forked workers share.

    Args:
        address: for example "refcoco/train".
        transform: called with each item; its result is the item.
        by: "expression", "ref" or "image".

    Raises:
        DatasetError: the split is not built, or was built without images.

    Example:
        >>> from refbench import torch_dataset
        >>> data = torch_dataset("snapshots/test")
        >>> item = data[0]
        >>> len(data), item["image"].shape[:2] == item["mask"].shape, item["expression"]
        (87, True, 'the round mission patch')
    """

    def __init__(
        self, address: str, transform: Callable[[dict[str, Any]], Any] | None = None, *, by: str = EXPRESSION
    ) -> None:
        if by not in GROUPS:
            raise DatasetError(f"`by` must be one of {', '.join(GROUPS)}, got {by!r}")
        self.address, self.transform, self.by = address, transform, by
        dataset = parse_address(address)[0]
        self._table, self.fingerprint = of_one_build(
            dataset, lambda: (split_table(address, _COLUMNS), split_fingerprint(address))
        )
        self._path = split_path(address)
        if not all(self._table["image_path"].to_pylist()):
            raise DatasetError(f"{address} was built without images; build it again with --images")
        self._rows = _grouped(self._table[GROUPS[by]].to_pylist()) if by != EXPRESSION else None

    def __len__(self) -> int:
        return len(self._table) if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        kind = {EXPRESSION: "expressions", REF: "refs", IMAGE: "images"}[self.by]
        return f"TorchDataset({self.address!r}), {len(self):,} {kind}, fingerprint {self.fingerprint[:12]}"

    def __getitem__(self, index: int) -> Any:
        """One item; negative indices count from the end.

        Raises:
            IndexError: there is no such item.
            DatasetError: the image is missing or has another size.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.address} has {len(self)} items, so there is no item {index}")
        index = int(index) % len(self)
        item = self._one(index) if self._rows is None else self._several(self._rows[index])
        return item if self.transform is None else self.transform(item)

    def _one(self, row: int) -> dict[str, Any]:
        cells = self._table.slice(row, 1).to_pylist()[0]
        texts = {name: cells[name] for name in ("expression", "sample_id", "image_id", "ref_id", "category")}
        return {"image": self._image(cells), "mask": _mask(cells), **texts, "no_target": cells["no_target"]}

    def _several(self, rows: Sequence[int]) -> dict[str, Any]:
        cells = self._table.take(rows).to_pylist()
        return {
            "image": self._image(cells[0]),
            "masks": np.stack([_mask(c) for c in cells]),
            "expressions": [c["expression"] for c in cells],
            "sample_ids": [c["sample_id"] for c in cells],
            "image_id": cells[0]["image_id"],
            "ref_ids": [c["ref_id"] for c in cells],
            "categories": [c["category"] for c in cells],
            "no_target": [c["no_target"] for c in cells],
        }

    def _image(self, cells: Mapping[str, Any]) -> NDArray[np.uint8]:
        path = image_place(cells["image_path"], self._path)
        # A copy: torch warns of arrays that cannot be written.
        return np.array(load_image(path, cells["height"], cells["width"]))


def _grouped(keys: Iterable[str]) -> list[list[int]]:
    """The rows of each key, in order of first appearance."""
    out: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        out.setdefault(key, []).append(row)
    return list(out.values())


def _mask(cells: Mapping[str, Any]) -> NDArray[np.bool_]:
    return Mask(cells["height"], cells["width"], cells["target_counts"].encode("ascii")).to_array()


def torch_dataset(
    address: str, transform: Callable[[dict[str, Any]], Any] | None = None, *, by: str = EXPRESSION
) -> TorchDataset:
    """A built split as a map-style dataset for `torch.utils.data.DataLoader`; see `TorchDataset`.

    Example:
        >>> from refbench import torch_dataset
        >>> first = torch_dataset("snapshots/test", by="image")[0]
        >>> first["masks"].ndim
        3
    """
    return TorchDataset(address, transform, by=by)
