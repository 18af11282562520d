"""Builds a dataset from files, from the hub or from an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from refbench.datasets.builders import exported
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.catalogue import HubSource, hub_source
from refbench.errors import DatasetError, RefbenchError
from refbench.plugins.loading import load, load_attribute
from refbench.plugins.options import builder_options
from refbench.storage.manifest import Manifest
from refbench.storage.progress import Progress, silent

HUB = "hub"


def _download_it(_: HubSource) -> None:
    """Download without asking."""


def build(
    dataset: str,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    *,
    splits: Sequence[str] = (),
    options: dict[str, str] | None = None,
    sources: Path | None = None,
    offline: bool = False,
    ask: Callable[[HubSource], None] = _download_it,
    progress: Progress = silent,
) -> Manifest:
    """Build a dataset and write all splits that the files contain to `$REFBENCH_HOME/datasets`.

    Args:
        dataset: a name from `refbench list datasets`.
        annotations: folder of the original release, annotation file, Parquet files of the hub, or folder of an export;
            "hub" downloads the dataset. Datasets that are drawn here (`scenes`) need none.
        images: folder or zip file with the images; "hub" downloads them.
        splits: only these splits; by default all.
        options: options of the builder, for example `{"negatives": "true"}`.
        sources: your own sources.toml, for example with a mirror.
        offline: download nothing; use what was downloaded earlier.
        ask: called before each download; it may raise an exception to stop.

    Raises:
        DatasetError: the files are missing or invalid, with the positions of invalid rows; nothing is written then.

    Example:
        >>> import refbench
        >>> refbench.build("snapshots").splits["test"].expressions
        87
    """
    builder = load("builders", dataset)
    # Before anything is downloaded.
    chosen: dict[str, Any] = builder_options(dataset, builder, options or {})
    tables = annotations == HUB and hub_source(dataset, HUB, sources).files[0].path.endswith(".parquet")
    if tables and images is not None:
        raise DatasetError(f"the tables of {dataset} on the hub contain the images; do not pass images")
    downloads: list[str] = []

    def place(given: Path | str | None, what: str) -> Path | None:
        if given != HUB:
            return None if given is None else Path(given)
        source = hub_source(dataset, what, sources)
        ask(source)
        found = load_attribute("refbench.datasets.hub:fetch")(source, offline, progress)
        if not isinstance(found, Path):
            raise RefbenchError("the download returned no folder")
        # The cache keeps each commit in a folder of its name.
        downloads.append(f"{source.repo} at commit {found.name}")
        return found

    annotated, photographs = place(annotations, HUB), place(images, "images")
    for path in (annotated, photographs):
        if path is not None and not path.exists():
            raise DatasetError(f"{path} does not exist")
    if exported.is_export(annotated):
        if options:
            raise DatasetError(
                "a dataset that is built from an export takes no options, because the export contains its own options"
            )
        builder, chosen = exported.build, {}
    found = Sources(annotated, photographs, tuple(downloads), tuple(splits))
    return build_dataset(dataset, builder, found, progress, **chosen)
