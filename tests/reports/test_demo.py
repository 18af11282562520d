"""The demonstration: five segmenters on two datasets, a ranking that makes sense, a page, and a second time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a whole demo

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_demo(refbench: Cli, embedded_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "datasets").symlink_to(embedded_home / "datasets")
    first = refbench("demo", "--json", REFBENCH_HOME=str(home))
    assert first.returncode == 0, first.stderr
    results = json.loads(first.stdout)["results"]
    assert set(results) == {"scenes/test", "snapshots/test"}
    ranking = list(results["scenes/test"])
    assert ranking[:2] == ["noisy-oracle (dilate=2,swap=0.1)", "tiny"] or ranking[:2] == [
        "tiny",
        "noisy-oracle (dilate=2,swap=0.1)",
    ]
    assert set(ranking[2:]) == {"nothing", "everything", "center"}
    assert results["scenes/test"]["tiny"]["cumulative_iou"] >= 70
    page = Path(json.loads(first.stdout)["page"])
    shown = {p.name for p in (page.parent / "runs").glob("*.html")}
    assert len(shown) == 10
    tables = {p.name for p in Path(json.loads(first.stdout)["tables"]).iterdir()}
    assert {"scenes.md", "snapshots.md", "measured.csv", "refcoco.md"} <= tables
    again = refbench("demo", REFBENCH_HOME=str(home))
    assert again.returncode == 0
    assert "tiny\t" in again.stdout
    assert "building" not in again.stderr
