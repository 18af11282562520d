"""Plug-ins: the table is right, other packages can add to it, names cannot be taken twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refbench.errors import RefbenchError
from refbench.plugins import loading
from refbench.plugins.loading import available, load, load_adapter, summary_of
from refbench.plugins.table import TABLE
from refbench.storage.files import project_data

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_options_are_listed_with_their_choices(refbench: Cli) -> None:
    told = json.loads(refbench("list", "adapters", "evfsam", "--json").stdout)
    options = {o["name"]: o for o in told["options"]}
    assert "EVF-SAM" in told["about"]
    assert options["kind"] == {"name": "kind", "default": None, "choices": ["ori", "sam2", "effi"]}
    assert options["release"] == {"name": "release", "default": "", "choices": ["multitask", "first"]}
    text = refbench("list", "adapters", "grounded-sam").stdout
    assert "-o\tdefault\tone of" in text
    assert "\ndetector\t" in text


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in TABLE.items() for n in names])
def test_every_entry_of_the_table_loads_and_is_described(kind: str, name: str) -> None:
    assert load(kind, name) is not None
    assert summary_of(TABLE[kind][name])


def test_every_dataset_has_a_card() -> None:
    for name in TABLE["builders"]:
        card = (project_data("datasets") / name / "card.md").read_text()
        assert card.startswith("# ")
        assert f"refbench build {name}" in card


def package(folder: Path, group: str, name: str) -> None:
    """An installed package that registers an entry point."""
    (folder / "their_package.py").write_text(
        "import numpy as np\n"
        "class Theirs:\n"
        "    '''Answers with the left half.'''\n"
        "    name = 'theirs'\n"
        "    def __init__(self, share: float = 0.5):\n"
        "        self.share = share\n"
        "    def segment(self, images, expressions):\n"
        "        return [np.arange(i.width)[None].repeat(i.height, 0) < self.share * i.width for i in images]\n"
    )
    info = folder / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[refbench.{group}]\n{name} = their_package:Theirs\n")


def test_an_installed_package_adds_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "adapters", "theirs")
    monkeypatch.syspath_prepend(tmp_path)
    assert available("adapters")["theirs"] == "their_package:Theirs"
    assert load_adapter("theirs", {"share": "0.25"}).share == 0.25
    assert summary_of("their_package:Theirs") == "Answers with the left half."


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "adapters", "tiny")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        RefbenchError,
        match=r"the installed package their-package registers 'tiny' in refbench\.adapters, but this name is",
    ):
        available("adapters")


def test_a_broken_package_is_named_not_a_bug_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "adapters", "theirs")
    (tmp_path / "their_package.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_package", raising=False)
    with pytest.raises(RefbenchError, match="their_package:Theirs needs the package a_package_that_is_not_there"):
        load("adapters", "theirs")
    (tmp_path / "their_package.py").write_text("")
    with pytest.raises(RefbenchError, match="their_package:Theirs cannot be loaded"):
        load("adapters", "theirs")
    assert summary_of("not_there_at_all.deeper:Thing").startswith("cannot be read")


def test_unknown_names_list_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(loading.UnknownPlugin, match=r"unknown protocol 'lavt'; did you mean .*lavt-480\?"):
        load("protocols", "lavt")


def test_a_near_miss_is_named_and_a_far_one_gets_the_list() -> None:
    with pytest.raises(loading.UnknownPlugin, match=r"unknown dataset 'sginw-cows'; did you mean .*.*\?"):
        load("builders", "sginw-cows")
    with pytest.raises(loading.UnknownPlugin, match="unknown protocol 'xyz'; choose from"):
        load("protocols", "xyz")
