"""The demo: two small datasets, five segmenters, tables, and a site of their results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from refbench.datasets.builders import scenes, snapshots
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import RunError
from refbench.reports.leaderboard import Row, build_tables, read_rows
from refbench.reports.published import read_published
from refbench.reports.site.build import build_site
from refbench.runs.runner import default_folder, run
from refbench.scoring.scorer import score
from refbench.storage.files import home, project_data
from refbench.storage.manifest import MANIFEST_FILE, dataset_folder, read_manifest
from refbench.storage.progress import Progress

DATASETS = {"scenes": scenes, "snapshots": snapshots}
SPLITS = ("scenes/test", "snapshots/test")
SEGMENTERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("nothing", {}),
    ("everything", {}),
    ("center", {}),
    ("noisy-oracle", {"dilate": "2", "swap": "0.1"}),
    ("tiny", {}),
)


@dataclass(frozen=True, slots=True)
class DemoRun:
    rows: dict[str, list[Row]]
    tables: Path
    page: Path
    seconds: float


def run_demo(progress: Progress, log: Callable[[str], None]) -> DemoRun:
    """Build the datasets, run, score and rank the segmenters, and build a site; existing datasets and predictions are
    reused.
    """
    began = time.monotonic()
    for dataset, module in DATASETS.items():
        if not _is_built(dataset, module.VERSION):
            log(f"building {dataset}")
            build_dataset(dataset, module.build, Sources(), progress)
    segmenters = SEGMENTERS
    if find_spec("torch") is None:
        segmenters = tuple((name, options) for name, options in SEGMENTERS if name != "tiny")
        log("tiny is left out, since torch is not installed: pip install 'refbench[models]'")
    folders: dict[str, list[Path]] = {}
    for address in SPLITS:
        for adapter, options in segmenters:
            folder = home() / "demo" / "runs" / default_folder(adapter, options, address).relative_to(home() / "runs")
            folders.setdefault(address, []).append(folder)
            try:
                run(adapter, address, options=options, out=folder, progress=progress, log=log)
            except RunError:
                # The run is of an older refbench or of other weights. The folder belongs to the demonstration.
                shutil.rmtree(folder)
                run(adapter, address, options=options, out=folder, progress=progress, log=log)
            score(folder)
    rows = {address: read_rows(places) for address, places in folders.items()}
    tables = home() / "demo" / "tables"
    build_tables(
        [r for group in rows.values() for r in group],
        read_published(project_data("leaderboards") / "published"),
        tables,
    )
    site = build_site([home() / "demo" / "runs"], home() / "demo" / "site", progress=progress)
    return DemoRun(rows, tables, site.index, time.monotonic() - began)


def _is_built(dataset: str, version: int) -> bool:
    if not (dataset_folder(dataset) / MANIFEST_FILE).is_file():
        return False
    return read_manifest(dataset).builder.version == version
