"""Two at once: folders have one owner at a time, datasets are published in one step, and nobody reads a mixture."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from events import GIVE_UP_SECONDS, wait_until

from refbench import load_samples, run, score
from refbench.datasets.builders.base import Built, samples_fingerprint, staging_folder, write_dataset
from refbench.errors import DatasetError, RefbenchError, RunError
from refbench.records import Sample
from refbench.runs.plan import Job, plan_shards
from refbench.runs.shard import ShardRunner
from refbench.storage.files import write_json
from refbench.storage.locks import LOCK_FILE, exclusive
from refbench.storage.manifest import split_fingerprint
from refbench.storage.samples import load_split

SPLIT = "snapshots/test"
HOLDING = """
import sys
from pathlib import Path
from refbench.storage.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def command(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refbench", *map(str, words)], capture_output=True, text=True, timeout=GIVE_UP_SECONDS,
        env={**os.environ, **more},
    )  # fmt: skip


def test_the_second_owner_is_told_who_is_the_first(tmp_path: Path) -> None:
    with another_holder(tmp_path) as holder:
        message = rf"is in use by process {holder.pid} on .*; wait until it has ended"
        with pytest.raises(RunError, match=message), exclusive(tmp_path):
            pass
        with pytest.raises(DatasetError, match=f"{holder.pid}"), exclusive(tmp_path, wanted=DatasetError):
            pass
    # Threads of one process, too.
    with exclusive(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()} "), exclusive(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_dead_owner_keeps_nothing(tmp_path: Path) -> None:
    with another_holder(tmp_path) as holder:
        holder.kill()
        holder.wait()
        assert (tmp_path / LOCK_FILE).exists()
        with exclusive(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_when_the_owner_ends(tmp_path: Path) -> None:
    with another_holder(tmp_path) as holder:
        assert holder.stdin is not None
        threading.Timer(0.2, holder.stdin.close).start()
        with exclusive(tmp_path, patience=GIVE_UP_SECONDS):
            assert holder.wait() == 0


def test_many_take_turns(tmp_path: Path) -> None:
    """A counter that is read and written under the lock loses nothing, though owners remove the file of the lock."""
    path = tmp_path / "count.json"
    write_json(path, 0)

    def count() -> None:
        for _ in range(25):
            with exclusive(tmp_path, patience=GIVE_UP_SECONDS):
                write_json(path, json.loads(path.read_text()) + 1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_text()) == 200


@pytest.mark.parametrize("place", ["link", "folder", "pipe"])
def test_a_lock_file_of_a_stranger_is_not_written(place: str, tmp_path: Path) -> None:
    victim, lock = tmp_path / "victim", tmp_path / "run" / LOCK_FILE
    victim.write_text("mine")
    lock.parent.mkdir()
    {"link": lambda: lock.symlink_to(victim), "folder": lock.mkdir, "pipe": lambda: os.mkfifo(lock)}[place]()
    if place == "pipe":
        with exclusive(lock.parent):
            pass
    else:
        with pytest.raises(RunError, match="cannot write"), exclusive(lock.parent):
            pass
    assert victim.read_text() == "mine"


VERBS = {
    "run": lambda folder: ("run", "center", SPLIT, "--out", folder),
    "audit": lambda folder: ("curate", "audit", "scenes/val", "--out", folder),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_is_told_who_holds_its_folder(verb: str, embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with another_holder(folder) as holder:
        done = command(*VERBS[verb](folder))
        assert (done.returncode, f"in use by process {holder.pid}" in done.stderr) == (3, True), done.stderr
        assert [p.name for p in folder.iterdir()] == [LOCK_FILE]


@pytest.mark.slow
def test_builds_of_one_dataset_take_no_turns_but_say_so(home: Path) -> None:
    place = home / "datasets" / ".staging" / "snapshots"
    leftover, neighbour = place / "killed", home / "datasets" / ".staging" / "snapshots.v2" / "running"
    leftover.mkdir(parents=True)
    neighbour.mkdir(parents=True)
    with another_holder(place) as holder:
        done = command("build", "snapshots")
        assert (done.returncode, f"in use by process {holder.pid}" in done.stderr) == (3, True), done.stderr
        assert leftover.exists()
    done = command("build", "snapshots")
    assert done.returncode == 0, done.stderr
    # What a killed build left is gone; what belongs to another dataset is not.
    assert not place.exists()
    assert neighbour.exists()


@pytest.mark.slow
def test_protocols_that_are_scored_at_once_all_stand(embedded: Path, tmp_path: Path) -> None:
    folder = run("center", SPLIT, out=tmp_path / "run").folder
    names = ("refbench", "cris", "lisa")
    processes = [
        subprocess.Popen([sys.executable, "-m", "refbench", "score", str(folder), "--protocol", name]) for name in names
    ]
    assert [p.wait(GIVE_UP_SECONDS) for p in processes] == [0] * len(names)
    assert set(json.loads((folder / "summary.json").read_text())["protocols"]) == set(names)


@pytest.fixture
def two_builds(embedded: Path) -> tuple[list[Sample], list[Sample]]:
    samples = load_samples(SPLIT)
    fields = [f.name for f in dataclasses.fields(Sample)]

    def with_text(text: str) -> list[Sample]:
        return [Sample(**{**{n: getattr(s, n) for n in fields}, "expression": text, "image_path": ""}) for s in samples]

    return with_text("first"), with_text("second")


def publish(samples: list[Sample]) -> str:
    with staging_folder("twice") as staging:
        write_dataset("twice", Built("test", 1, {"test": samples}, [], [], "none"), staging)
    return samples_fingerprint(samples)


def test_no_reader_sees_a_mixture(two_builds: tuple[list[Sample], list[Sample]], home: Path) -> None:
    known = {publish(samples) for samples in two_builds}
    over = threading.Event()
    seen, problems = set(), []

    def read() -> None:
        while not over.is_set():
            try:
                samples, fingerprint = load_split("twice/test")
                if samples_fingerprint(samples) != fingerprint or fingerprint not in known:
                    problems.append(fingerprint)
                seen.add(fingerprint)
            except RefbenchError as error:
                problems.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(60):
        publish(two_builds[k % 2])
    wait_until(lambda: seen == known or problems)
    over.set()
    reader.join()
    assert not problems
    assert seen == known
    assert [p.name for p in (home / "datasets").iterdir()] == ["twice"]


def test_workers_refuse_another_build(
    two_builds: tuple[list[Sample], list[Sample]], home: Path, tmp_path: Path
) -> None:
    first, second = two_builds
    publish(first)
    job = Job("nothing", {}, "twice/test", None, "cpu", None, False, home, tmp_path, split_fingerprint("twice/test"))
    runner = ShardRunner(job)
    asked = [[(s.sample_id, s.expression) for s in shard] for shard in runner.shards]
    assert asked == [[(s.sample_id, s.expression) for s in shard] for shard in plan_shards(first)]
    runner.close(lambda _: None)
    publish(second)
    with pytest.raises(DatasetError, match="twice/test was built again since the run began"):
        ShardRunner(job)


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_is_honoured(umask: int, tmp_path: Path) -> None:
    program = (
        f"import os; os.umask({umask})\n"
        "from refbench import run, score\n"
        "from refbench.datasets.builders.base import Sources, build_dataset\n"
        "from refbench.plugins.loading import load\n"
        "from refbench.storage.progress import silent\n"
        "build_dataset('snapshots', load('builders', 'snapshots'), Sources(), silent)\n"
        "score(run('center', 'snapshots/test').folder)\n"
    )
    env = {**os.environ, "REFBENCH_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", program], check=True, env=env, capture_output=True)
    for path in (tmp_path / "home").rglob("*"):
        allowed = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == allowed & ~umask, path


def test_scores_of_two_threads(embedded: Path, tmp_path: Path) -> None:
    folder = run("center", SPLIT, out=tmp_path / "run").folder
    threads = [threading.Thread(target=score, args=(folder,), kwargs={"protocols": [n]}) for n in ("refbench", "cris")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads((folder / "summary.json").read_text())["protocols"]) == {"refbench", "cris"}
