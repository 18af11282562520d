"""Fixtures: real test data, and homes with built datasets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from events import GIVE_UP_SECONDS
from filelock import FileLock

from refbench.curation.decisions import decide
from refbench.curation.findings import audit
from refbench.curation.folder import default_folder
from refbench.curation.proposals import propose
from refbench.curation.recipe import parse_recipe
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.plugins.loading import load
from refbench.storage.progress import silent

PROJECT = Path(__file__).parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores; threads of torch would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def find_test_data() -> Path | None:
    given = os.environ.get("REFBENCH_TEST_DATA")
    path = Path(given) if given else PROJECT.parent / "shared" / "data"
    return path.resolve() if path.is_dir() else None


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real annotations and images, which are not part of the project."""
    path = find_test_data()
    if path is None:
        pytest.skip("real test data not found: set REFBENCH_TEST_DATA to its folder to run this test")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $REFBENCH_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("REFBENCH_HOME", str(folder))
    return folder


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[], None]) -> Path:
    """A $REFBENCH_HOME that the first test process to need it builds, for all of them."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_suffix(".done")
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("REFBENCH_HOME", str(folder))
                build()
            done.touch()
    return folder


@pytest.fixture(scope="session")
def embedded_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A $REFBENCH_HOME with `scenes` and `snapshots`, built once; tests must not change what is in it."""

    def build() -> None:
        for dataset in ("scenes", "snapshots"):
            build_dataset(dataset, load("builders", dataset), Sources(), silent)

    return built_once(tmp_path_factory, "embedded", build)


@pytest.fixture
def embedded(embedded_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded datasets as $REFBENCH_HOME."""
    monkeypatch.setenv("REFBENCH_HOME", str(embedded_home))
    return embedded_home


# Three refiners with one start each: enough to agree, and quick.
SMALL_RECIPE = """
name = "small"
[audit]
review = ["mask-like-another", "expression-against-colour"]
drop = ["mask-empty", "image-broken"]
[[refiners]]
name = "watershed"
[[refiners]]
name = "random-walker"
[[refiners]]
name = "grabcut"
variants = 2
[masks]
accept = 0.7
better = 0.5
[calibration]
agreement = [0.3, 0.95]
boundary_iou = [0.3, 1.0]
better = { agreement = 10.0, source_boundary_iou = -10.0, intercept = 0.0 }
"""
SMALL_IMAGES = 14


@pytest.fixture(scope="session")
def hurried_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A $REFBENCH_HOME with the validation splits of `scenes` and `scenes-hurried`, and a decided curation of the
    latter, whose first SMALL_IMAGES images have proposals; tests must not change what is in it."""

    def build() -> None:
        for dataset in ("scenes", "scenes-hurried"):
            build_dataset(dataset, load("builders", dataset), Sources(splits=("val",)), silent)
        curation = default_folder("scenes-hurried/val")
        audit("scenes-hurried/val", parse_recipe(SMALL_RECIPE, "small"), workers=1)
        propose(curation, limit=SMALL_IMAGES, workers=1)
        decide(curation)

    return built_once(tmp_path_factory, "hurried", build)


@pytest.fixture
def hurried(hurried_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`hurried_home` as $REFBENCH_HOME."""
    monkeypatch.setenv("REFBENCH_HOME", str(hurried_home))
    return hurried_home


@pytest.fixture
def curation(hurried: Path, tmp_path: Path) -> Path:
    """A copy of the decided curation of `scenes-hurried/val`, to be changed."""
    folder = tmp_path / "curation"
    shutil.copytree(default_folder("scenes-hurried/val"), folder)
    return folder


@pytest.fixture
def photos(test_data: Path, home: Path) -> Path:
    """A $REFBENCH_HOME with RefCOCO, RefCOCO+ and RefCOCOg (UMD) of the test images."""
    sources = Sources(test_data / "photos" / "refer", test_data / "photos" / "images")
    for dataset in ("refcoco", "refcoco+", "refcocog-umd"):
        build_dataset(dataset, load("builders", dataset), sources, silent)
    return home


@pytest.fixture
def refbench() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own, as a user would."""

    def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "refbench", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=GIVE_UP_SECONDS,
            env={**os.environ, **environment},
            cwd=PROJECT,
        )

    return call
