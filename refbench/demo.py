"""The demonstration: both embedded datasets, five segmenters, a table and pages with overlays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from refbench.builders.base import Sources, build_dataset
from refbench.leaderboard import Row, build_tables, read_published, read_rows
from refbench.plugins import load
from refbench.progress import Progress
from refbench.report import write_index, write_report
from refbench.runner import default_folder, run
from refbench.scorer import score
from refbench.storage import dataset_folder, home, project_data

DATASETS = ("scenes", "snapshots")
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
    """Build, run, score, rank and draw; what is there already is not done again."""
    began = time.monotonic()
    for dataset in DATASETS:
        if not (dataset_folder(dataset) / "manifest.json").is_file():
            log(f"building {dataset}")
            build_dataset(dataset, load("builders", dataset), Sources(), progress)
    segmenters = SEGMENTERS
    if find_spec("torch") is None:
        segmenters = tuple((name, options) for name, options in SEGMENTERS if name != "tiny")
        log("tiny is left out, since torch is not installed: pip install 'refbench[models]'")
    folders: dict[str, list[Path]] = {}
    for address in SPLITS:
        for adapter, options in segmenters:
            folder = default_folder(adapter, options, address)
            folders.setdefault(address, []).append(folder)
            run(adapter, address, options=options, out=folder, progress=progress, log=log)
            score(folder)
            write_report(folder)
    rows = {address: read_rows(places) for address, places in folders.items()}
    tables = home() / "demo"
    build_tables(
        [r for group in rows.values() for r in group],
        read_published(project_data("leaderboards") / "published"),
        tables,
    )
    page = write_index(rows, tables / "index.html")
    return DemoRun(rows, tables, page, time.monotonic() - began)
