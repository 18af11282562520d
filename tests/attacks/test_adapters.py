"""Adapters that end the process, raise what is no error, or paint into their images: no run ends green by them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from attacks.bad_adapters import ENDS, RAISES, Bad, BadStages, Painter, StagedPainter
from events import GIVE_UP_SECONDS

from refbench import load_samples, run
from refbench.adapters.contract import NOTE, check_adapter
from refbench.errors import AdapterError, TooManyFailures
from refbench.plugins.loading import load_adapter
from refbench.runs.folder import RunFolder
from refbench.storage.files import read_table

SPLIT = "snapshots/test"
FILE = Path(__file__).with_name("bad_adapters.py")
UNFINISHED, TOO_MANY = 1, 4


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refbench", *map(str, words)], capture_output=True, text=True, timeout=GIVE_UP_SECONDS
    )


@pytest.mark.parametrize("what", RAISES)
def test_what_an_adapter_raises_is_a_failed_sample(what: str, embedded: Path, tmp_path: Path) -> None:
    """Some samples fail; the others are answered, and the run is finished."""
    word = load_samples(SPLIT)[0].expression
    adapter = Bad(what, word=word)
    hit = sum(word in s.expression for s in load_samples(SPLIT))
    with pytest.raises(TooManyFailures, match=f"{hit} of 87 samples failed"):
        run(adapter, SPLIT, out=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.info.finished
    assert folder.info.failures == hit
    errors = [e for path in folder.written for e in read_table(path)["error"].to_pylist()]
    assert [bool(e) for e in errors] == [word in s.expression for s in load_samples(SPLIT)]


@pytest.mark.parametrize("where", ["prepare", "forward", "finish"])
@pytest.mark.parametrize("what", RAISES)
def test_what_a_stage_raises_is_a_failed_sample(what: str, where: str, embedded: Path, tmp_path: Path) -> None:
    if (what, where) in {("answers that exit", "prepare"), ("answers that exit", "forward")}:
        pytest.skip("only finish returns answers")
    with pytest.raises(AdapterError, match="bad-stages failed on all of the first"):
        run(BadStages(what, where), SPLIT, limit=4, out=tmp_path / "run")


@pytest.mark.parametrize("where", ["usage", "remarks", "close"])
@pytest.mark.parametrize("what", RAISES)
def test_what_the_other_methods_raise_costs_no_sample(what: str, where: str, embedded: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = run(Bad(what, where), SPLIT, limit=4, out=tmp_path / "run", log=said.append)
    assert (result.samples, result.failures) == (4, 0)
    assert RunFolder(tmp_path / "run").info.finished
    if what != "answers that exit":
        assert "the adapter" in " ".join(said)


@pytest.mark.parametrize("what", RAISES)
def test_a_constructor_that_raises_is_named(what: str) -> None:
    if what == "answers that exit":
        pytest.skip("a constructor returns no answers")
    with pytest.raises(AdapterError, match=r"bad_adapters\.py:Bad"):
        load_adapter(f"{FILE}:Bad", {"what": what, "where": "constructor"})


def test_a_file_that_exits_when_it_is_imported(tmp_path: Path) -> None:
    for number, line in enumerate(("sys.exit(0)", "raise GeneratorExit", "raise ValueError('\\udce9')", "exit()")):
        file = tmp_path / f"model_{number}.py"
        file.write_text(f"import sys\n{line}\n")
        with pytest.raises(AdapterError, match=f"model_{number}"):
            load_adapter(f"{file}:Model", {})


def test_names_and_figures_that_cannot_be_stored(embedded: Path, tmp_path: Path) -> None:
    adapter = Bad("sys.exit(0)", where="nowhere")
    adapter.name = "caf\udce9"
    adapter.mode = "\udce9"  # type: ignore[attr-defined]
    adapter.usage = lambda: {"d\udce9": float("nan"), "requests": 3}  # type: ignore[method-assign]
    said: list[str] = []
    run(adapter, SPLIT, limit=4, out=tmp_path / "run", log=said.append)
    info = RunFolder(tmp_path / "run").info
    assert (info.adapter, info.mode, dict(info.usage)) == ("caf?", "?", {})
    assert "must be a finite number" in " ".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("what", ENDS)
def test_a_process_that_ends_is_told_and_never_green(what: str, embedded: Path, tmp_path: Path) -> None:
    """With one worker the command ends with 1; with two, the sample is found and the command ends with 4."""
    options = ("-o", f"what={what}", "-o", f"word={load_samples(SPLIT)[0].expression}")
    words = ("run", f"{FILE}:Bad", SPLIT, *options, "--out")
    done = command(*words, tmp_path / "one")
    assert done.returncode == UNFINISHED, done.stderr
    assert "before the command was finished" in done.stderr
    assert not RunFolder(tmp_path / "one").info.finished
    done = command(*words, tmp_path / "two", "--workers", 2)
    assert done.returncode == TOO_MANY, done.stderr
    assert RunFolder(tmp_path / "two").info.finished


@pytest.mark.slow
@pytest.mark.parametrize("where", ["constructor", "close"])
@pytest.mark.parametrize("verb", [("run",), ("check-adapter",)])
def test_a_process_that_ends_elsewhere(verb: tuple[str], where: str, embedded: Path, tmp_path: Path) -> None:
    if verb == ("check-adapter",) and where == "close":
        pytest.skip("check-adapter does not close")
    split = (SPLIT, "--out", tmp_path / "run") if verb == ("run",) else ()
    done = command(*verb, f"{FILE}:Bad", *split, "-o", "what=os._exit(0)", "-o", f"where={where}")
    assert done.returncode == UNFINISHED, done.stderr
    assert "ended with exit code 0 before the command was finished" in done.stderr


@pytest.mark.parametrize("how", Painter.how)
@pytest.mark.parametrize("kind", [Painter, StagedPainter])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_painter_spoils_no_other_sample(
    kind: type[Painter], how: str, batch_size: int, embedded: Path, tmp_path: Path
) -> None:
    def bytes_of(adapter: Painter, name: str) -> list[bytes]:
        run(adapter, SPLIT, limit=20, out=tmp_path / name, max_failures=20)
        return [path.read_bytes() for path in RunFolder(tmp_path / name).written]

    assert bytes_of(kind(how, batch_size), "painted") == bytes_of(kind("", batch_size), "plain")


def test_check_adapter_names_the_painter(tmp_path: Path) -> None:
    for how in Painter.how:
        found = {check.name: check for check in check_adapter(Painter(how))}
        assert found["images: left as they are"].verdict == NOTE
    clean = {check.name: check for check in check_adapter(Painter())}
    assert clean["images: left as they are"].detail == "unchanged"
