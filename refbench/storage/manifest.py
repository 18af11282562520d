"""Where a built dataset lies, and what its manifest states."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from refbench.errors import DatasetError

if TYPE_CHECKING:
    # pyarrow imports pandas when a table is made of one; most verbs need none.
    pass
from refbench.storage.files import home, read_json

SPLIT_KEYS = {"images", "refs", "expressions", "fingerprint"}


def dataset_folder(dataset: str) -> Path:
    if not dataset or "/" in dataset or "\\" in dataset or dataset.startswith("."):
        raise DatasetError(f"{dataset!r} is no dataset name; `refbench list datasets` shows the names")
    return home() / "datasets" / dataset


def parse_address(address: str) -> tuple[str, str]:
    """`refcoco/testA` -> ("refcoco", "testA")."""
    dataset, slash, split = address.partition("/")
    if not slash or not dataset or not split or "/" in split or "\\" in split or ".." in split:
        raise DatasetError(f"{address!r} is no split; write DATASET/SPLIT, for example refcoco/testA")
    return dataset, split


def read_manifest(dataset: str) -> dict[str, Any]:
    path = dataset_folder(dataset) / "manifest.json"
    if not path.exists():
        raise DatasetError(f"{dataset} is not built here ({path} does not exist); run `refbench build {dataset}`")
    manifest = read_json(path)
    splits = manifest.get("splits") if isinstance(manifest, dict) else None
    if not isinstance(splits, dict) or not all(isinstance(s, dict) and set(s) >= SPLIT_KEYS for s in splits.values()):
        raise DatasetError(f"{path} is no manifest of refbench; run `refbench build {dataset}` again")
    found: dict[str, Any] = manifest
    return found


def split_path(address: str) -> Path:
    """The Parquet file of a built split, or an error that says what there is."""
    dataset, split = parse_address(address)
    manifest = read_manifest(dataset)
    path = dataset_folder(dataset) / f"{split}.parquet"
    if split not in manifest["splits"] or not path.exists():
        there = ", ".join(sorted(manifest["splits"])) or "none"
        raise DatasetError(f"{dataset} has no split {split!r} here; built: {there}")
    return path


def split_fingerprint(address: str) -> str:
    """sha256 over the canonical content of a split; image files and Parquet details don't count."""
    dataset, split = parse_address(address)
    split_path(address)
    return str(read_manifest(dataset)["splits"][split]["fingerprint"])
