"""What the published evaluators print: their own loaders, targets and loops were run on `originals/` of the test data.

`printed.json` there holds one object per protocol and split. Originals that sum in float32 are good to 1e-5 percent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refbench import score
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.plugins.loading import load
from refbench.scoring.protocols.base import Protocol
from refbench.storage.progress import silent

PREDICTIONS = {
    "refcoco/val": "refcoco_val.jsonl",
    "grefcoco/val": "grefcoco_val.jsonl",
    "refzom/test": "refzom_test.jsonl",
}
TOLERANCE_PERCENT = 2e-4


@pytest.fixture(scope="module")
def originals(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with its datasets built in a home of their own."""
    folder = test_data / "originals"
    if not (folder / "printed.json").is_file():
        pytest.skip(f"{folder}/printed.json is not there: get the test data again to run this test")
    return folder


@pytest.fixture(scope="module")
def found(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, float]]:
    """(split, protocol) -> metric -> percent, of every entry of printed.json."""
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBENCH_HOME", str(tmp_path_factory.mktemp("originals")))
        for dataset in ("refcoco", "grefcoco", "refzom"):
            build_dataset(dataset, load("builders", dataset), Sources(originals / dataset), silent)
        for split, file in PREDICTIONS.items():
            names = [e["protocol"] for e in printed(originals) if e["split"] == split]
            scored = score(originals / file, split, protocols=names)
            for name in names:
                summary = scored.summaries[load("protocols", name).name]
                out[split, name] = {m: e.value for m, e in summary.metrics.items()}
    return out


def printed(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "printed.json").read_text())
    return entries


@pytest.mark.slow
def test_every_figure_that_an_original_printed(
    originals: Path, found: dict[tuple[str, str], dict[str, float]], record_property: Any
) -> None:
    entries = printed(originals)
    assert len(entries) >= 25
    differences = []
    for entry in entries:
        ours = found[entry["split"], entry["protocol"]]
        for metric, value in entry["printed"].items():
            differences.append((abs(ours[metric] - value), entry["protocol"], entry["split"], metric))
    differences.sort(reverse=True)
    record_property("differences", differences)
    wrong = [d for d in differences if d[0] > TOLERANCE_PERCENT]
    assert not wrong, wrong
    # Nearly all are good to the last digits that float32 keeps.
    assert differences[0][0] < 2e-5


def test_every_rule_that_was_run_says_so_by_its_names(
    originals: Path, found: dict[tuple[str, str], dict[str, float]]
) -> None:
    for entry in printed(originals):
        rule = load("protocols", entry["protocol"])
        assert isinstance(rule, Protocol)
        assert set(entry["printed"]) <= set(rule.metrics)
