"""What programs of other people rely on: names, entry points, files in a wheel, and types."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import PROJECT

import refbench
from refbench.plugins.loading import load_attribute
from refbench.plugins.table import TABLE

NAMES = {
    "Answer", "Mask", "ReferringMetric", "Sample", "Segmenter", "__version__", "as_hf", "build", "collate", "compare",
    "curate", "diagnose", "export", "leaderboard_frame", "load_samples", "overlap", "pair_counts", "plot",
    "protocols_frame", "read_run", "read_scores", "run", "runs_frame", "sample_table", "samples_frame", "score",
    "to_latex", "torch_dataset", "verify", "write_predictions",
}  # fmt: skip
FACES = ("masks", "storage", "datasets", "adapters", "runs", "scoring", "reports", "curation", "plugins")


def test_the_names_of_the_package() -> None:
    assert set(refbench.__all__) >= NAMES
    for name in refbench.__all__:
        assert getattr(refbench, name) is not None


@pytest.mark.parametrize("face", FACES)
def test_every_room_has_a_face(face: str) -> None:
    room = load_attribute(f"refbench.{face}:__all__")
    assert room, face
    for name in room:
        assert load_attribute(f"refbench.{face}:{name}") is not None


def test_the_kinds_of_plugins_keep_their_names() -> None:
    # The groups of entry points are `refbench.<kind>`.
    assert list(TABLE) == ["builders", "adapters", "protocols", "checks", "refiners"]


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_its_data(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, PROJECT],
        capture_output=True,
        text=True,
    )
    if "No module named 'hatchling'" in done.stderr or "BackendUnavailable" in done.stderr:
        pytest.skip("hatchling is not installed")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "refbench/py.typed" in names
    assert "refbench/data/datasets/refcoco/card.md" in names
    assert "refbench/curation/review/page.html" in names
    tops = {n.split("/")[0] for n in names}
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["name"]
    assert tops == {"refbench", f"{version}-{refbench.__version__}.dist-info"}
    assert not [n for n in names if n.endswith((".pyc", ".nbc", ".nbi"))]


@pytest.mark.slow
@pytest.mark.slow
def test_the_public_names_are_typed_for_a_user(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            from pathlib import Path

            import numpy as np

            from refbench import Mask, load_samples, pair_counts, run, sample_table, score

            masks = [Mask.from_array(np.zeros((4, 5), bool)), Mask.full(4, 5)]
            areas: list[int] = [m.area for m in masks]
            union = pair_counts(masks, masks)["union"].sum()
            folder: Path = run("center", "snapshots/test").folder
            value: float = score(folder).summaries["refbench"].metrics["mean_iou"].value
            words: list[str] = [s.expression for s in load_samples("snapshots/test")]
            rows = len(sample_table("snapshots/test"))
            wrong: str = masks[0].area
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stdout
    assert 'has type "int", variable has type "str"' in errors[0]
