"""The README and the documentation: their Python runs, their commands exist, and every public name has an example."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import PROJECT

import refbench
from refbench.cli.main import refbench as group
from refbench.reports.error_kinds import KINDS

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text())
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, kind, text in found if kind == language]


@pytest.fixture
def writable(embedded_home: Path, home: Path) -> Path:
    """A $REFBENCH_HOME of one's own, with the embedded datasets."""
    home.mkdir()
    (home / "datasets").symlink_to(embedded_home / "datasets")
    return home


def name_of(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_its_python_runs(page: Path, writable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(writable)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def commands(page: Path) -> Iterator[str]:
    for block in (*blocks(page, ""), *blocks(page, "sh"), *blocks(page, "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            for part in line.split("; "):
                if part.startswith("refbench "):
                    yield part.partition("  #")[0].partition(" > ")[0]


def check(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = group
    while isinstance(command, click.Group):
        word = words.pop(0)
        if word == "...":
            return
        found = command.get_command(click.Context(command), word)
        assert found is not None, f"{line}: there is no {word!r}"
        command = found
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            assert word.partition("=")[0] in options, f"{line}: there is no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_commands_and_options_exist(page: Path) -> None:
    for line in commands(page):
        check(line)


def test_commands_are_found_and_wrong_ones_noticed() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 50
    for wrong in ("refbench scoer x", "refbench score p --datasets x", "refbench curate aduit x"):
        with pytest.raises(AssertionError):
            check(wrong)


@pytest.mark.parametrize("name", [n for n in refbench.__all__ if n not in ("__version__", "Sample")])
def test_its_example_runs(name: str, writable: Path) -> None:
    thing = getattr(refbench, name)
    tests = [t for t in doctest.DocTestFinder(recurse=False).find(thing, name) if t.examples]
    assert tests, f"{name} has no example"
    for test in tests:
        assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


def test_the_kinds_of_errors_have_their_own_names() -> None:
    text = (PROJECT / "docs" / "guides" / "comparing.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(KINDS)


def test_the_readme_is_short() -> None:
    text = (PROJECT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1400


def test_its_links_lead_somewhere() -> None:
    made = {f"docs/reference/{n}.md" for n in ("cli", "files", "protocols", "adapters", "checks", "refiners")}
    for page in (PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target in made or (PROJECT / target).exists(), f"{page.name}: {target}"
