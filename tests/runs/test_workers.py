"""Processes and Ray actors: the same bytes as one process, workers that die, and samples that kill."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from adapters.exact_adapters import CALLS, LAST_CALL, Threshold
from events import GIVE_UP_SECONDS, calls, wait_until

from refbench import load_samples, run, score
from refbench.errors import AdapterError, RunError, TooManyFailures
from refbench.runs.folder import RunFolder
from refbench.runs.plan import plan_batches, plan_shards
from refbench.storage.files import read_table
from refbench.storage.predictions import predictions_from_table

pytestmark = pytest.mark.slow  # kills and clusters

ADAPTERS = Path(__file__).parent.parent / "adapters" / "exact_adapters.py"
SLOW, SLOWER = {"seconds": "0.002"}, {"seconds": "0.004"}


def content(folder: Path) -> dict[str, bytes]:
    """What must not depend on who computed it."""
    score(folder)
    names = [*RunFolder(folder).written, folder / "scores.parquet", folder / "summary.json"]
    return {p.name: p.read_bytes() for p in names}


@pytest.fixture(scope="module")
def reference(embedded_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBENCH_HOME", str(embedded_home))
        return content(run(f"{ADAPTERS}:Threshold", "scenes/test", out=folder).folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for this file; starting it takes seconds."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=3, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("workers", [2, 4])
def test_processes_write_the_same_bytes(
    embedded: Path, tmp_path: Path, reference: dict[str, bytes], workers: int
) -> None:
    result = run(f"{ADAPTERS}:Threshold", "scenes/test", workers=workers, out=tmp_path / "run")
    assert content(result.folder) == reference
    info = json.loads((result.folder / "run.json").read_text())
    assert (info["engine"], info["workers"]) == ("local", workers)
    assert sorted(read_table(result.folder / "timings.parquet")["shard"].to_pylist()) == list(range(info["shards"]))
    assert not list((result.folder / "working").iterdir())


# Two actors are those of the test with kills.
@pytest.mark.parametrize("workers", [1, 3])
def test_ray_actors_write_the_same_bytes(
    embedded: Path, cluster: None, tmp_path: Path, reference: dict[str, bytes], workers: int
) -> None:
    result = run(f"{ADAPTERS}:Threshold", "scenes/test", engine="ray", workers=workers, out=tmp_path / "run")
    assert content(result.folder) == reference


def test_a_float_model_gives_the_same_bytes_when_deterministic(embedded: Path, tmp_path: Path) -> None:
    once = run("tiny", "scenes/val", limit=300, deterministic=True, out=tmp_path / "1").folder
    twice = run("tiny", "scenes/val", limit=300, deterministic=True, workers=2, out=tmp_path / "2").folder
    assert content(once) == content(twice)
    with pytest.raises(RunError, match="deterministic True there, False now"):
        run("tiny", "scenes/val", limit=300, out=once)


class Killer(threading.Thread):
    """Kills workers of this process at random moments, so often; at most three before the next shard is done, or a
    run would never finish one.

    The moments are counted in batches: no two deaths in a row are over the same one, which would be held against it.
    """

    def __init__(self, kills: int, is_worker: str, seed: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.left = kills
        self.is_worker = is_worker
        self.moments = random.Random(seed)
        self.folder = folder
        self.stopped = False

    def run(self) -> None:
        before = self.left
        died_over: dict[str, str] = {}
        while self.left and not self.stopped:
            self._let_pass(self.moments.randrange(1, 30))
            asking = self._asking()
            fresh = asking and all(died_over.get(shard) != batch for shard, batch in asking.items())
            if not fresh or before - self.left >= 3 * (1 + len(RunFolder(self.folder).written)):
                continue
            workers = [p for p in psutil.Process().children(recursive=True) if self.is_worker in _command(p)]
            if workers:
                self.moments.choice(workers).send_signal(signal.SIGKILL)
                died_over |= asking
                self.left -= 1

    def _asking(self) -> dict[str, str]:
        """What each shard that is being computed asks about just now."""
        found = {}
        for path in (self.folder / "working").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                found[path.name] = " ".join(json.loads(path.read_text())["asking"])
        return found

    def _let_pass(self, batches: int) -> None:
        last: dict[str, str] = {}
        while batches and not self.stopped:
            asking = self._asking()
            batches -= asking != last
            last = asking
            time.sleep(0.002)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize(("engine", "is_worker"), [("local", "multiprocessing.spawn"), ("ray", "ray::Actor")])
def test_workers_killed_at_random_leave_no_trace(
    embedded: Path, cluster: None, tmp_path: Path, reference: dict[str, bytes], engine: str, is_worker: str
) -> None:
    folder = tmp_path / "run"
    # An actor takes seconds to start again, a process less than one.
    kills = 20 if engine == "local" else 8
    while kills > 0:
        # A run that is through before the last kill is begun again.
        killer = Killer(kills, is_worker, 7 + kills, folder)
        killer.start()
        result = run(f"{ADAPTERS}:Threshold", "scenes/test", options=SLOW, engine=engine, workers=2, out=folder)
        killer.stopped = True
        killer.join()
        assert result.failures == 0
        kills = killer.left
        for path in RunFolder(folder).written if kills else []:
            path.unlink()
    assert content(folder) == reference


@pytest.mark.parametrize(
    ("engine", "workers", "adapter", "more"),
    [
        ("local", 2, "Deadly", {}),
        ("ray", 1, "Deadly", {}),
        ("local", 2, "DeadlyInStages", {"stage": "forward"}),
        ("local", 2, "DeadlyInStages", {"stage": "prepare"}),
    ],
)
def test_a_sample_that_kills_its_process_is_a_failed_one(
    embedded: Path, cluster: None, tmp_path: Path, engine: str, workers: int, adapter: str, more: dict[str, str]
) -> None:
    samples = load_samples("scenes/val")
    poison = samples[333].expression
    poisoned = {s.sample_id for s in samples if s.expression == poison}
    assert len(poisoned) <= 3
    said: list[str] = []
    result = run(
        f"{ADAPTERS}:{adapter}", "scenes/val", options={"word": poison, **more}, engine=engine, workers=workers,
        out=tmp_path / "run", max_failures=len(poisoned), log=said.append,
    )  # fmt: skip
    rows = {
        p.sample_id: p for path in RunFolder(result.folder).written for p in predictions_from_table(read_table(path))
    }
    failed = {key: p.error for key, p in rows.items() if p.error}
    assert failed.keys() == poisoned
    assert all("the adapter's process died on this sample" in error for error in failed.values())
    fine = run(Threshold(), "scenes/val", out=tmp_path / "fine").folder
    expected = {p.sample_id: p for p in RunFolder(fine).predictions()}
    assert {k: p.mask for k, p in rows.items() if k not in poisoned} == {
        k: p.mask for k, p in expected.items() if k not in poisoned
    }
    assert any("kills the process of the adapter" in line for line in said)


def test_adapters_that_cannot_start_in_workers(embedded: Path, cluster: None, tmp_path: Path) -> None:
    unpicklable = Threshold()
    unpicklable.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(AdapterError, match=r"must be picklable .*path/to/file.py:Class"):
        run(unpicklable, "scenes/val", workers=2, out=tmp_path / "a")
    for engine in ("local", "ray"):
        with pytest.raises(AdapterError, match="needs -o word="):
            run(f"{ADAPTERS}:Deadly", "scenes/val", engine=engine, workers=2, out=tmp_path / "b")
        with pytest.raises(AdapterError, match="workers crash while they load the adapter"):
            run(f"{ADAPTERS}:Stillborn", "scenes/val", engine=engine, workers=2, out=tmp_path / "c")
        options = {"how": "raise"}
        with pytest.raises(AdapterError, match=r"failed on all of the first \d+ samples: ValueError: no thanks"):
            run(f"{ADAPTERS}:Misbehaving", "scenes/val", options=options, engine=engine, workers=2, out=tmp_path / "d")
    assert not RunFolder(tmp_path / "d").written
    with pytest.raises(RunError, match="unknown engine 'slurm'; choose from local, ray"):
        run("nothing", "scenes/val", engine="slurm")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_later_shard_that_fails_as_a_whole_is_kept(embedded: Path, tmp_path: Path, workers: int) -> None:
    """The second shard is given out before the first one has shown that the adapter works."""
    second = plan_shards(load_samples("scenes/val"))[1]
    first = {s.image_path for s in second}
    options = {"first": Path(min(first)).name}
    with pytest.raises(TooManyFailures, match=f"{len(second)} of 500 samples failed, 0 are allowed"):
        run(f"{ADAPTERS}:Late", "scenes/val", options=options, workers=workers, out=tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").written) == 2


def test_one_worker_that_cannot_load_does_not_stop_the_others(
    embedded: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    said: list[str] = []
    options = {"mark": str(tmp_path / "loaded"), **SLOW}
    result = run(
        f"{ADAPTERS}:OnlyOne", "scenes/test", options=options, workers=2, out=tmp_path / "run", log=said.append
    )
    assert any("does not get ready" in line for line in said)
    assert {k: v for k, v in content(result.folder).items() if k.startswith("part")} == {
        k: v for k, v in reference.items() if k.startswith("part")
    }


def test_failures_add_up_over_workers(embedded: Path, tmp_path: Path) -> None:
    options = {"how": "raise", "word": "star"}
    expected = sum("star" in s.expression for s in load_samples("scenes/val"))
    with pytest.raises(TooManyFailures, match=f"{expected} of 500 samples failed, 3 are allowed"):
        run(f"{ADAPTERS}:Misbehaving", "scenes/val", options=options, workers=2, max_failures=3, out=tmp_path / "run")
    again = run(f"{ADAPTERS}:Misbehaving", "scenes/val", options=options, max_failures=expected, out=tmp_path / "run")
    assert again.resumed == 500


def test_batches_of_large_pictures_are_smaller(embedded: Path) -> None:
    shard = plan_shards(load_samples("scenes/val"))[0]
    area = shard[0].height * shard[0].width
    assert [len(b) for b in plan_batches(shard[:20], 8)] == [8, 8, 4]
    assert [len(b) for b in plan_batches(shard[:9], 8, 3 * area)] == [3, 3, 3]
    assert [len(b) for b in plan_batches(shard[:3], 8, area - 1)] == [1, 1, 1]
    assert [s for b in plan_batches(shard, 7, 5 * area) for s in b] == shard


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_killed_driver_takes_its_workers_along_and_others_go_on(
    embedded: Path, tmp_path: Path, reference: dict[str, bytes], engine: str
) -> None:
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "refbench", "run", f"{ADAPTERS}:Threshold", "scenes/test", "-o", "seconds=0.004",
        "--engine", engine, "--workers", "2", "--out", str(folder),
    ]  # fmt: skip
    told = tmp_path / "calls"
    # Both workers wait in their third shard at the latest.
    environment = {**os.environ, CALLS: str(told), LAST_CALL: str(100)}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: calls(told) >= 100 and RunFolder(folder).written, driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    workers = [p for p in children if any(kind in _command(p) for kind in ("multiprocessing.spawn", "ray::Actor"))]
    assert len(workers) == 2
    driver.kill()
    driver.wait()
    assert 0 < len(RunFolder(folder).written) < 5
    assert psutil.wait_procs(workers, timeout=GIVE_UP_SECONDS)[1] == []
    result = run(f"{ADAPTERS}:Threshold", "scenes/test", options=SLOWER, workers=3, out=folder)
    assert result.resumed >= 256
    assert content(folder) == reference


def test_a_node_that_leaves(embedded: Path, tmp_path: Path, reference: dict[str, bytes]) -> None:
    script = Path(__file__).parent / "leaving_node.py"
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(script), f"{ADAPTERS}:Threshold", "scenes/test", str(folder)],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}, capture_output=True, text=True, timeout=GIVE_UP_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "died" in done.stdout
    assert {k: v for k, v in content(folder).items() if k.startswith(("part", "scores"))} == {
        k: v for k, v in reference.items() if k.startswith(("part", "scores"))
    }
