"""The table in the docs of how far one file's numbers spread is what the code computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import PROJECT
from spread_table import SPLITS, spread

pytestmark = pytest.mark.slow  # a network on every split

# Another processor may round the network's answers otherwise along outlines.
TOLERANCE = 0.5


def test_the_table_in_the_docs(test_data: Path, home: Path, tmp_path: Path) -> None:
    found = spread(test_data, tmp_path)
    text = (PROJECT / "docs" / "explanation" / "spread.md").read_text()
    assert f"| protocol | prints | {' | '.join(SPLITS)} |" in text
    rows = {m[1]: m[2] for m in re.finditer(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE)}
    assert len(found) > 25
    for (name, metric), values in found.items():
        shown, *cells = rows[name].split(" | ")
        assert shown == metric
        assert [float(c) for c in cells] == pytest.approx(values, abs=TOLERANCE, nan_ok=True), name
