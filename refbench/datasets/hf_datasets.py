"""Built splits as Hugging Face datasets."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from datasets import Dataset  # type: ignore[attr-defined]  # mypy finds the folder of this project

from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.storage.images import load_image
from refbench.storage.manifest import of_one_build, parse_address, split_path
from refbench.storage.samples import image_place, split_table

_COLUMNS = (
    "sample_id", "image_id", "height", "width", "expression", "ref_id", "sent_id", "ann_ids", "category", "no_target",
    "target_counts", "image_path",
)  # fmt: skip


def as_hf(address: str, *, with_images: bool = True) -> Dataset:
    """A built split as a Hugging Face `datasets.Dataset`, with one row per expression.

    Rows have the columns `sample_id`, `image_id`, `height`, `width`, `expression`, `ref_id`, `sent_id`, `ann_ids`,
    `category`, `no_target`, `mask` (bool (H, W)) and `image` (PIL, RGB). Images and masks are decoded when a row is
    read.

    Args:
        address: for example "refcoco/val".
        with_images: whether rows have the column `image`.

    Raises:
        DatasetError: the split is not built, or images are asked for and it was built without them.

    Example:
        >>> from refbench import as_hf
        >>> data = as_hf("snapshots/test")
        >>> row = data[0]
        >>> len(data), row["expression"], row["image"].size == row["mask"].shape[::-1]
        (87, 'the round mission patch', True)
    """
    table = of_one_build(parse_address(address)[0], lambda: split_table(address, _COLUMNS))
    path = split_path(address)
    places = [image_place(p, path) for p in table["image_path"].to_pylist()]
    if with_images and not all(places):
        raise DatasetError(
            f"{address} was built without images; build it again with --images, or pass with_images=False"
        )
    at = table.column_names.index("image_path")
    ready = table.set_column(at, "image_path", pa.array(places, pa.string()))
    data: Dataset = Dataset(ready.replace_schema_metadata(None)).with_transform(_decoded if with_images else _masks)
    return data


def _masks(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns of some rows, with the masks decoded."""
    out = {name: values for name, values in batch.items() if name not in ("target_counts", "image_path")}
    if {"target_counts", "height", "width"} <= set(batch):
        codes = zip(batch["height"], batch["width"], batch["target_counts"], strict=True)
        out["mask"] = [Mask(height, width, code.encode("ascii")).to_array() for height, width, code in codes]
    return out


def _decoded(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns of some rows, with the masks and the images decoded."""
    out = _masks(batch)
    if {"image_path", "height", "width"} <= set(batch):
        places = zip(batch["image_path"], batch["height"], batch["width"], strict=True)
        out["image"] = [load_image(path, height, width) for path, height, width in places]
    return out
