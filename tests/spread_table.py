"""The table of docs/explanation/spread.md: how far the numbers of one file spread. `python tests/spread_table.py`.

DeepLab answers for the real images of the test data, and each set is scored under every protocol that applies.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from conftest import find_test_data

from refbench import run, score
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.plugins.loading import load
from refbench.scoring.protocols.base import Protocol
from refbench.storage.progress import silent

ADAPTER = f"{Path(__file__).parent / 'adapters' / 'deeplab_adapter.py'}:DeepLab"
SPLITS = (
    "refcoco/val refcoco/testA refcoco/testB refcoco+/val refcoco+/testA refcoco+/testB refcocog-umd/val grefcoco/val"
).split()


def spread(test_data: Path, folder: Path) -> dict[tuple[str, str], list[float]]:
    """(protocol, its headline metric) -> percent for each of SPLITS; builds and runs in `folder`."""
    sources = Sources(test_data / "photos" / "refer", test_data / "photos" / "images")
    for dataset in dict.fromkeys(s.split("/")[0] for s in SPLITS):
        build_dataset(dataset, load("builders", dataset), sources, silent, **_options(dataset))
    found: dict[tuple[str, str], list[float]] = {}
    for split in SPLITS:
        out = folder / split.replace("/", "-")
        run(ADAPTER, split, options={"folder": str(test_data / "deeplab")}, out=out)
        for name, summary in score(out, protocols=["all"]).summaries.items():
            rule = load("protocols", name)
            if isinstance(rule, Protocol):
                value = summary.metrics[rule.headline].value
                found.setdefault((name, rule.headline), []).append(value)
    return found


def _options(dataset: str) -> dict[str, str]:
    return {"crowd": "skip"} if dataset == "grefcoco" else {}


def markdown(found: dict[tuple[str, str], list[float]]) -> str:
    """The table, in percent with one decimal."""
    lines = ["| protocol | prints | " + " | ".join(SPLITS) + " |", "|---|---|" + "--:|" * len(SPLITS)]
    for (name, metric), values in found.items():
        lines.append(f"| `{name}` | {metric} | " + " | ".join(f"{v:.1f}" for v in values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    data = find_test_data()
    if data is None:
        raise SystemExit("real test data not found: set REFBENCH_TEST_DATA to its folder")
    with tempfile.TemporaryDirectory() as place:
        os.environ["REFBENCH_HOME"] = f"{place}/home"
        sys.stdout.write(markdown(spread(data, Path(place))) + "\n")
