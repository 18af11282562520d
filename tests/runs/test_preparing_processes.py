"""Images prepared in processes: the same bytes as in threads, and processes that fail, die or lose their parent."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from adapters.exact_adapters import Threshold
from events import wait_until
from PIL import Image
from runs.test_stages import ADDRESS, Device, Failing, ThresholdInStages, errors_of, shard_bytes

from refbench import load_samples, run
from refbench.adapters import torch_settings
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.builders.refer import build as build_refer
from refbench.records import Question
from refbench.runs.images import decode
from refbench.runs.preparing_process import BLOCK_BYTES, PreparingProcess, ProcessDied, Reply, can_fork
from refbench.storage.progress import silent

pytestmark = pytest.mark.skipif(not can_fork(), reason="no forked processes on this system")


class InProcesses(ThresholdInStages):
    """It keeps the processes that called `prepare`, which those processes cannot tell it."""

    prepare_in_processes = True

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> Any:
        grey, limits = super().prepare(image, expressions)
        return grey, limits, os.getpid()

    def forward(self, batch: list[Any]) -> list[Any]:
        self.pids = getattr(self, "pids", set()) | {pid for *_, pid in batch}
        return super().forward([(grey, limits) for grey, limits, _ in batch])


@pytest.fixture
def reference(embedded: Path, tmp_path: Path) -> list[bytes]:
    return shard_bytes(run(Threshold(), ADDRESS, out=tmp_path / "reference").folder)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("beside", [False, True])
def test_bytes_are_those_without_processes(
    reference: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, beside: bool
) -> None:
    if beside:
        monkeypatch.setattr(torch_settings, "Beside", Device)
    adapter = InProcesses()
    result = run(adapter, ADDRESS, batch_size=size, out=tmp_path / "run")
    assert shard_bytes(result.folder) == reference
    assert os.getpid() not in adapter.pids
    assert not any(psutil.pid_exists(pid) for pid in adapter.pids)


def test_deterministic_runs_use_no_processes(embedded: Path, tmp_path: Path) -> None:
    adapter = InProcesses()
    run(adapter, ADDRESS, deterministic=True, out=tmp_path / "run")
    assert adapter.pids == {os.getpid()}


class FailingInProcesses(Failing):
    prepare_in_processes = True


def test_only_the_samples_that_fail_are_failed(embedded: Path, tmp_path: Path) -> None:
    samples = load_samples(ADDRESS)
    word = samples[5].expression
    adapter = FailingInProcesses("prepare", word, ValueError("no thanks"))
    said: list[str] = []
    result = run(adapter, ADDRESS, batch_size=16, max_failures=len(samples), out=tmp_path / "run", log=said.append)
    errors = errors_of(result.folder)
    assert set(errors) == {s.sample_id for s in samples if word in s.expression}
    assert all("ValueError: no thanks" in error for error in errors.values())
    # It fails in threads too, so that processes are not to blame.
    assert not any("instead" in line for line in said)


class Unfit(InProcesses):
    """Its `prepare` does something in a process that it does not do in a thread."""

    def __init__(self, unfit: Callable[[], Any]) -> None:
        super().__init__()
        self.unfit = unfit
        self.home = os.getpid()

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> Any:
        if os.getpid() != self.home:
            return self.unfit()
        return super().prepare(image, expressions)


class TwoArguments(Exception):
    """It can be pickled, but not read again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def _refuse() -> Any:
    raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")


@pytest.mark.parametrize(
    ("unfit", "told"),
    [
        (_refuse, "Cannot re-initialize CUDA"),
        (threading.Lock, "cannot be sent to another process"),
        (lambda: TwoArguments("a", "b"), "cannot be read from another process"),
        (lambda: sys.exit(3), "SystemExit"),
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
    ],
)
def test_threads_take_over(reference: list[bytes], tmp_path: Path, unfit: Callable[[], Any], told: str) -> None:
    said: list[str] = []
    result = run(Unfit(unfit), ADDRESS, batch_size=16, out=tmp_path / "run", log=said.append)
    assert shard_bytes(result.folder) == reference
    remarks = [line for line in said if "images are prepared in threads instead" in line]
    assert len(remarks) == 1
    assert told in remarks[0]


def test_processes_that_cannot_be_started(
    reference: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("refbench.runs.images.PreparingProcess", refuse)
    said: list[str] = []
    result = run(InProcesses(), ADDRESS, out=tmp_path / "run", log=said.append)
    assert shard_bytes(result.folder) == reference
    assert "cannot be started (Resource temporarily unavailable)" in said[0]


@contextmanager
def process_of(prepare: Callable[[Image.Image, Sequence[str]], Any]) -> Iterator[PreparingProcess]:
    process = PreparingProcess(lambda _: Image.new("RGB", (9, 7), (1, 2, 3)), prepare, "cpu")
    try:
        yield process
    finally:
        process.close()


def question(embedded: Path) -> list[Question]:
    return list(load_samples(ADDRESS)[:1])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype and a.stride() == b.stride() and a.requires_grad == b.requires_grad and torch.equal(a, b)
        )
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.isfortran(a) == np.isfortran(b) and bool(np.array_equal(a, b))
    if isinstance(a, Image.Image):
        return (a.mode, a.size, a.tobytes(), a.info) == (b.mode, b.size, b.tobytes(), b.info)
    return bool(a == b)


def _palette() -> Image.Image:
    return Image.new("RGB", (5, 4), (9, 8, 7)).quantize(4)


THINGS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"abc",
    "bool array": lambda: np.arange(12).reshape(3, 4) % 2 == 0,
    "array by columns": lambda: np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "every second": lambda: np.arange(12)[::2],
    "empty array": lambda: np.zeros((0, 3), np.int16),
    "number": lambda: np.array(5.0),
    "array of objects": lambda: np.array(["a", None], object),
    "records": lambda: np.zeros(3, [("a", "<i4"), ("b", "S2")]),
    "float tensor": lambda: torch.arange(12.0).reshape(3, 4),
    "bfloat16": lambda: torch.arange(12.0).bfloat16(),
    "bool tensor": lambda: torch.tensor([True, False]),
    "tensor of a number": lambda: torch.tensor(5),
    "empty tensor": lambda: torch.zeros(0, 3),
    "channels last": lambda: torch.rand(1, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "slice": lambda: torch.arange(12)[::2],
    "complex": lambda: torch.tensor([1j, 2]),
    "with a gradient": lambda: torch.ones(3, requires_grad=True),
    "image": lambda: Image.new("RGB", (5, 4), (9, 8, 7)),
    "grey image": lambda: Image.new("L", (5, 4), 200),
    "image with a palette": _palette,
    "empty image": lambda: Image.new("RGB", (0, 5)),
}


@pytest.mark.parametrize("name", THINGS)
def test_what_comes_back_is_what_was_prepared(embedded: Path, name: str) -> None:
    torch.manual_seed(0)
    thing = THINGS[name]()
    with process_of(lambda *_: {"thing": thing, "again": [thing], "next": np.arange(3)}) as process:
        reply = process(question(embedded))
        assert reply.error == ""
        assert reply.prepared["next"].tolist() == [0, 1, 2]
        assert _same(thing, reply.prepared["thing"])
        # The memory is used again; what came before stays.
        process(question(embedded))
        assert _same(thing, reply.prepared["thing"])
        if isinstance(thing, np.ndarray | torch.Tensor | Image.Image):
            assert reply.prepared["thing"] is reply.prepared["again"][0]


def test_more_than_the_shared_memory_holds(embedded: Path) -> None:
    large = np.zeros(BLOCK_BYTES, np.uint8)
    large[::4096] = 7
    with process_of(lambda *_: (large[:-5].copy(), large, np.arange(3))) as process:
        reply = process(question(embedded))
    assert np.array_equal(reply.prepared[0], large[:-5])
    assert np.array_equal(reply.prepared[1], large)
    assert reply.prepared[2].tolist() == [0, 1, 2]


def test_a_closed_process_answers_no_more(embedded: Path) -> None:
    with process_of(lambda *_: 1) as process:
        assert process(question(embedded)).prepared == 1
    with pytest.raises(ProcessDied, match="SIGKILL"):
        process(question(embedded))


def test_an_image_that_cannot_be_read(embedded: Path, tmp_path: Path) -> None:
    asked = load_samples(ADDRESS)[0]
    process = PreparingProcess(decode, lambda *_: 1, "cpu")
    try:
        lost = dataclasses.replace(asked, image_path=str(tmp_path / "none.png"))
        assert process([lost]) == Reply(unreadable=True)
    finally:
        process.close()


def test_images_in_a_zip_file_that_is_open_already(photos: Path, test_data: Path, tmp_path: Path) -> None:
    """Forked processes share the position in a file that was opened before."""
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((test_data / "photos" / "images").rglob("*.jpg")):
            file.write(path, path.name)
    build_dataset("refcoco", build_refer, Sources(test_data / "photos" / "refer", archive), silent)
    in_threads = run(ThresholdInStages(), "refcoco/val", out=tmp_path / "threads").folder
    for turn in range(3):
        result = run(InProcesses(), "refcoco/val", batch_size=4, out=tmp_path / f"processes{turn}")
        assert shard_bytes(result.folder) == shard_bytes(in_threads)


def test_a_process_that_nobody_needs_ends(embedded: Path) -> None:
    process = PreparingProcess(decode, lambda *_: 1, "cpu")
    child = psutil.Process(process._process.pid)
    del process
    gc.collect()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


PARENT = """
import os, pathlib, time
from refbench import run

class Slow:
    name = "slow"
    prepare_in_processes = True
    def prepare(self, image, expressions):
        pathlib.Path("pids", str(os.getpid())).touch()
        time.sleep(600)
    def forward(self, batch): ...
    def finish(self, batch, output): ...

run(Slow(), "snapshots/test", out="run")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_parent(embedded: Path, tmp_path: Path, number: signal.Signals) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path)
    wait_until(lambda: len(list(pids.iterdir())) >= 2)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert {int(p.name) for p in pids.iterdir()} <= {p.pid for p in family}
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])
