"""The workflow file that users copy: its own commands, run in a shell in its own order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from refbench.scoring.counts import read_scores, write_scores

pytestmark = pytest.mark.slow  # a whole workflow

PROJECT = Path(__file__).parent.parent


def test_its_commands_pass_and_fail_as_they_should(tmp_path: Path) -> None:
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "gate.yml").read_text())
    steps = {s["name"]: s["run"] for s in workflow["jobs"]["gate"]["steps"] if "run" in s}
    assert list(steps) == ["Install", "Build", "Run", "Score", "Gate", "Tell"]
    # In place of Install: this environment.
    environment = {
        **os.environ,
        **workflow["env"],
        "BASELINE": str(PROJECT / workflow["env"]["BASELINE"]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "REFBENCH_HOME": str(tmp_path / "home"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }

    def execute(name: str, **changes: str) -> int:
        done = subprocess.run(
            ["bash", "-e", "-c", steps[name]], env={**environment, **changes}, cwd=tmp_path, capture_output=True
        )
        return done.returncode

    assert [execute(name) for name in ("Build", "Run", "Score", "Gate", "Tell")] == [0] * 5
    assert (tmp_path / "summary.md").read_text().startswith("### ✅ The gate passes: scenes/test")
    # A baseline that is clearly better than the run.
    path = tmp_path / "run" / "scores.parquet"
    (tmp_path / "better").mkdir()
    table = read_scores(path)
    right = table.take(table.intersection.argsort())
    write_scores(tmp_path / "better" / "scores.parquet", perfect(right))
    assert execute("Gate", BASELINE=str(tmp_path / "better")) == 1
    assert execute("Tell") == 0
    assert "### ❌ The gate fails" in (tmp_path / "summary.md").read_text()


def perfect(table):  # type: ignore[no-untyped-def]
    columns = {name: getattr(table, name) for name in table.__slots__}
    area = table.target_area
    band = table.boundary_union.clip(max=area)
    band = band.clip(min=(area > 0).astype(area.dtype))
    return type(table)(
        **{
            **columns,
            "intersection": area,
            "union": area,
            "prediction_area": area,
            "boundary_intersection": band,
            "boundary_union": band,
        }
    )
