"""A few cases of every campaign; `make attack` runs many."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacks.campaign import CAMPAIGNS

FEW = {"codes": 100_000, "readers": 2_000, "files": 150, "kills": 3, "pairs": 3, "disks": 4}


@pytest.mark.slow
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_few_cases(name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFBENCH_HOME", str(home))
    tally = CAMPAIGNS[name](0, FEW[name], 1_000_000, tmp_path)
    assert tally.bad == 0
    assert sum(tally.ends.values()) >= FEW[name]
