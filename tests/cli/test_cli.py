"""The command line as outsiders rely on it: help, JSON, exit codes, small imports."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from conftest import PROJECT

from refbench.cli.curate import VERBS as VERBS_OF_CURATE
from refbench.cli.main import VERBS, LazyGroup, main
from refbench.cli.main import refbench as group
from refbench.plugins.loading import load_attribute

Cli = Callable[..., subprocess.CompletedProcess[str]]
ADAPTERS = Path(__file__).parents[1] / "adapters" / "exact_adapters.py"


def commands() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, (place, _) in VERBS.items():
        command = load_attribute(place)
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {sub}", c) for sub, c in command.commands.items()]
    return found


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_verb_has_help_and_an_example(name: str, command: click.Command) -> None:
    assert command.help
    assert "Example:" in command.help
    assert f"refbench {name.split(' ')[0]}" in command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


def test_tables_in_a_terminal_have_figures_to_the_right_and_words_to_the_left() -> None:
    rows = [["a", "word", "1.50", "-"], ["b", "longer words", "12.25 [10.00, 14.00]", "3"]]
    code = f"from refbench.cli.output import print_table; print_table('', ['name', 'what', '%', 'samples'], {rows})"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env={**os.environ, "COLUMNS": "100"}, check=True)
    os.close(theirs)
    drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "│ a    │ word         │                 1.50 │       - │" in drawn
    assert "│ b    │ longer words │ 12.25 [10.00, 14.00] │       3 │" in drawn


def test_the_table_says_what_the_commands_say() -> None:
    for name, (place, summary) in VERBS.items():
        assert (load_attribute(place).help or "").split("\n")[0] == summary, name
    assert isinstance(group, LazyGroup)


def test_every_command_stands_in_the_docs() -> None:
    pages = [*(PROJECT / "docs").rglob("*.md"), PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"]
    text = "\n".join(p.read_text() for p in pages)
    for name in VERBS:
        assert f"refbench {name}" in text, name
    for name in VERBS_OF_CURATE:
        assert f"refbench curate {name}" in text, name


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from refbench.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy','pandas','torch','pyarrow','matplotlib','scipy','skimage','PIL','rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_importing_refbench_is_light() -> None:
    code = "import sys, refbench; print(sorted({'pandas', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_json_is_one_object_and_nothing_else(refbench: Cli, embedded: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    calls = {
        "list datasets": ("datasets",),
        "list adapters": ("adapters",),
        "list protocols": ("protocols",),
        "build snapshots": ("fingerprint", "splits"),
        f"run center snapshots/test --out {out}": ("folder", "failures"),
        f"score {out}": ("protocols",),
        f"report {out}": ("report",),
        f"leaderboard build --runs {tmp_path} --out {tmp_path / 'tables'}": ("files", "runs"),
        "check-adapter center": ("passed", "checks"),
    }
    for call, keys in calls.items():
        home = {"REFBENCH_HOME": str(tmp_path / "home")} if call.startswith("build") else {}
        done = refbench(*call.split(" "), "--json", **home)
        assert done.returncode == 0, done.stderr
        content = json.loads(done.stdout)
        assert set(keys) <= content.keys(), call
    scored = json.loads(refbench("score", str(out), "--protocol", "all", "--json").stdout)
    metrics = scored["protocols"]["refbench"]["metrics"]
    assert {"cumulative_iou", "mean_iou", "precision_at_0.5", "mean_boundary_iou"} <= metrics.keys()
    assert all(isinstance(v, float) for v in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "No such command"),
        (["run", "center"], 2, "Missing argument"),
        (["run", "center", "snapshots/test", "--batch-size", "0"], 2, "neither a positive number nor 'auto'"),
        (["run", "center", "snapshots/test", "-o", "x"], 2, "is not key=value"),
        (["run", "nobody", "snapshots/test"], 3, "unknown adapter 'nobody'; choose from nothing"),
        (["run", "center", "atlantis/val"], 3, "atlantis has not been built"),
        (["build", "atlantis"], 3, "unknown dataset 'atlantis'"),
        (["build", "refcoco"], 3, "pass --annotations"),
        (["build", "refcoco", "--annotations", "/no/such"], 2, "/no/such does not exist"),
        (["score", "/no/such.jsonl", "--dataset", "snapshots/test"], 3, "does not exist"),
        (["score", "/no/such"], 3, "/no/such does not exist"),
        (["score", "."], 3, "pass their split with --dataset DATASET/SPLIT"),
        (["run", "center", "snapshots/test", "--ray-address", "auto"], 2, "--ray-address needs --engine ray"),
        (["run", "evfsam", "snapshots/test", "-o", "kind=sam9"], 3, "kind='sam9' must be one of ori, sam2, effi"),
        (
            ["run", "lisa", "snapshots/test", "-o", "repo=/no/such", "-o", "weights=x", "-o", "clip=x"],
            3,
            "does not exist",
        ),
        (
            ["run", "center", "snapshots/test", "--engine", "ray", "--ray-address", "127.0.0.1:9"],
            3,
            "no Ray cluster found",
        ),
        (["list", "adapters", "nobody"], 3, "unknown adapter 'nobody'"),
        (["list", "datasets", "scenes"], 2, "`refbench list datasets` takes no NAME"),
        (["list", "nothing"], 2, "is not one of"),
        (["check-adapter", f"{ADAPTERS}:Leaky"], 1, ""),
        (["run", f"{ADAPTERS}:Misbehaving", "snapshots/test", "-o", "how=raise"], 3, "failed on all of the first"),
        (
            ["run", f"{ADAPTERS}:Misbehaving", "snapshots/test", "-o", "how=raise", "-o", "word=coin"],
            4,
            "samples failed",
        ),
    ],
)
def test_exit_codes(
    refbench: Cli, embedded_home: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "datasets").symlink_to(embedded_home / "datasets")
    done = refbench(*arguments, REFBENCH_HOME=str(home))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_whole_way_in_three_commands(refbench: Cli, test_data: Path, tmp_path: Path) -> None:
    home = {"REFBENCH_HOME": str(tmp_path / "home")}
    photos = test_data / "photos"
    built = refbench("build", "refcoco", "--annotations", photos / "refer", "--images", photos / "images", **home)
    assert built.returncode == 0, built.stderr
    assert "testB\t3\t6\t20" in built.stdout
    ran = refbench("run", f"{ADAPTERS}:Threshold", "refcoco/testB", **home)
    assert ran.returncode == 0, ran.stderr
    assert "threshold on refcoco/testB: 20/20" in ran.stderr
    folder = ran.stdout.strip()
    assert folder.endswith("runs/threshold/refcoco-testB")
    scored = refbench("score", folder, **home)
    assert "cumulative_iou" in scored.stdout
    again = refbench("run", f"{ADAPTERS}:Threshold", "refcoco/testB", **home)
    assert "20 of them done before" in again.stderr


def test_a_closed_pipe_is_no_error(embedded: Path) -> None:
    line = f"{sys.executable} -m refbench list adapters | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_main_returns_codes_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert "version" in capsys.readouterr().out


@pytest.mark.slow
def test_scoring_works_without_torch(embedded: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors', 'datasets'): sys.modules[name] = None\n"
        "from refbench import run, score\n"
        "from refbench.cli.main import main\n"
        "from pathlib import Path\n"
        f"folder = run('noisy-oracle', 'snapshots/test', out=Path('{tmp_path}/run')).folder\n"
        "assert score(folder).summaries['refbench'].metrics['mean_iou'].value == 100\n"
        f"main(['run', 'tiny', 'snapshots/test', '--out', '{tmp_path}/tiny'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "pip install 'refbench[models]'" in done.stderr
