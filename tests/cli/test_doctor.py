"""`refbench doctor`: what is here, what is missing, without importing or changing anything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refbench.plugins.requirements import missing_packages
from refbench.plugins.table import TABLE

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_it_states_versions_datasets_and_what_lacks(embedded: Path, refbench: Cli) -> None:
    done = refbench("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["system"]["home"] == str(embedded)
    assert found["datasets"]["scenes"]["splits"] == ["test", "train", "val"]
    assert set(found["adapters"]) == set(TABLE["adapters"])
    assert found["packages"]["numpy"]
    text = refbench("doctor").stdout
    assert "built datasets" in text
    assert "snapshots" in text


def test_nothing_heavy_is_imported(embedded: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from refbench.cli.doctor import doctor; "
        "done = CliRunner().invoke(doctor, ['--json']); assert done.exit_code == 0, done.output; "
        "print([name for name in ('torch', 'transformers', 'pandas', 'ray', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_damaged_dataset_is_named(home: Path, refbench: Cli) -> None:
    (home / "datasets" / "broken").mkdir(parents=True)
    (home / "datasets" / "broken" / "manifest.json").write_text("{")
    done = refbench("doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["datasets"]["broken"]["error"]


def test_what_a_module_lacks_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(
        "import json, not_there.sub\nfrom also_missing import x\nimport refbench.errors\nraise RuntimeError\n"
        "def f():\n    import only_when_called\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert missing_packages("theirs:Adapter") == ["also_missing", "not_there"]
    assert missing_packages("nothing_like_this:Adapter") == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(("scroe",), "score"), (("leaderbord",), "leaderboard"), (("curate", "proposs"), "propose")],
)
def test_a_mistyped_command_suggests_the_right_one(refbench: Cli, typed: tuple[str, ...], meant: str) -> None:
    done = refbench(*typed)
    assert done.returncode == 2
    assert f"Did you mean {meant}" in done.stderr


def test_all_protocols_print_their_headlines(embedded: Path, refbench: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert refbench("run", "everything", "snapshots/test", "--out", folder).returncode == 0
    short = refbench("score", folder, "--protocol", "all")
    full = refbench("score", folder, "--protocol", "all", "--full")
    assert short.returncode == full.returncode == 0
    rows = [line.split("\t")[0] for line in short.stdout.splitlines()[2:]]
    assert len(rows) == len(set(rows)) > 30
    assert len(full.stdout.splitlines()) > 3 * len(rows)
    assert "--full" in short.stderr
