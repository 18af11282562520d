"""Adapters with stages: the same bytes as without, in whatever order the stages are called, and their failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters.exact_adapters import Threshold
from PIL import Image

from refbench import load_samples, run
from refbench.adapters import torch_settings
from refbench.adapters.base import Staged, has_stages
from refbench.adapters.contract import OK, check_adapter
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.builders.refer import build as build_refer
from refbench.errors import AdapterError
from refbench.records import Answer
from refbench.runs.folder import RunFolder
from refbench.runs.plan import Job, Task, by_image, plan_batches, plan_shards
from refbench.runs.shard import ShardRunner
from refbench.storage.progress import silent

ADDRESS = "scenes/val"


class ThresholdInStages:
    """As `Threshold`; it keeps what it was called with."""

    name = "threshold"

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.prepared: list[int] = []
        self.lock = threading.Lock()

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> tuple[Any, list[int]]:
        with self.lock:
            self.prepared.append(len(expressions))
        return np.asarray(image.convert("L")), [60 + 4 * len(e) for e in expressions]

    def forward(self, batch: list[Any]) -> list[Any]:
        self.calls.append(("forward", sum(len(limits) for _, limits in batch)))
        return [grey > limit for grey, limits in batch for limit in limits]

    def finish(self, batch: list[Any], output: list[Any]) -> list[Answer]:
        self.calls.append(("finish", len(output)))
        return [Answer(m, no_target=not m.any(), score=float(m.mean())) for m in output]


def shard_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in RunFolder(folder).shards]


def errors_of(folder: Path) -> dict[str, str]:
    return {p.sample_id: p.error for p in RunFolder(folder).predictions() if p.error}


class Device(torch_settings.Beside):
    """A device that computes beside this process, without one."""

    def __init__(self, device: str) -> None:
        super().__init__("cpu")
        self.in_parallel = True
        self.marks = 0

    def mark(self) -> Any:
        self.marks += 1
        return self.marks

    @contextmanager
    def after(self, mark: Any) -> Iterator[None]:
        yield

    def wait(self, mark: Any) -> None:
        assert mark is not None


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_settings, "Beside", Device)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("beside", [False, True])
def test_bytes_are_those_without_stages(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, beside: bool
) -> None:
    if beside:
        monkeypatch.setattr(torch_settings, "Beside", Device)
    reference = run(Threshold(), ADDRESS, out=tmp_path / "reference").folder
    staged = run(ThresholdInStages(), ADDRESS, batch_size=size, out=tmp_path / "staged").folder
    assert shard_bytes(reference) == shard_bytes(staged)


def test_an_image_is_prepared_once_for_its_expressions(embedded: Path, tmp_path: Path) -> None:
    adapter = ThresholdInStages()
    run(adapter, ADDRESS, batch_size=64, out=tmp_path / "run")
    images = by_image(load_samples(ADDRESS))
    assert sorted(adapter.prepared) == sorted(len(group) for group in images)


def test_the_next_batch_is_queued_before_a_batch_is_finished(embedded: Path, tmp_path: Path, device: None) -> None:
    adapter = ThresholdInStages()
    run(adapter, ADDRESS, batch_size=40, out=tmp_path / "run")
    shards = [plan_batches(s, 40, 40 * 2**20, whole_images=True) for s in plan_shards(load_samples(ADDRESS))]
    assert len(shards) > 1
    sizes = [len(batch) for shard in shards for batch in shard]
    forward, finish = ([n for name, n in adapter.calls if name == stage] for stage in ("forward", "finish"))
    assert forward == finish == sizes
    # From the second one on, each forward comes before the finish of the batch before it, also from shard to shard.
    order = [name for name, _ in adapter.calls]
    assert order == ["forward", *["forward", "finish"] * (len(sizes) - 1), "finish"]


def test_deterministic_runs_do_not_overlap(embedded: Path, tmp_path: Path, device: None) -> None:
    adapter = ThresholdInStages()
    run(adapter, ADDRESS, deterministic=True, out=tmp_path / "run")
    order = [name for name, _ in adapter.calls]
    assert order == ["forward", "finish"] * (len(order) // 2)


class Failing(ThresholdInStages):
    """Fails at one stage for expressions that hold a word, or with more than three expressions."""

    def __init__(self, stage: str, word: str, error: Exception) -> None:
        super().__init__()
        self.stage, self.word, self.error = stage, word, error
        self.largest = 0

    def _fail(self, stage: str, hit: bool) -> None:
        if stage == self.stage and hit:
            raise self.error

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> Any:
        self._fail("prepare", any(self.word in e for e in expressions))
        return (*super().prepare(image, expressions), any(self.word in e for e in expressions))

    def forward(self, batch: list[Any]) -> list[Any]:
        count = sum(len(limits) for _, limits, _ in batch)
        self._fail("memory", count > 3)
        self.largest = max(self.largest, count)
        self._fail("forward", any(hit for *_, hit in batch))
        return super().forward([(grey, limits) for grey, limits, _ in batch])

    def finish(self, batch: list[Any], output: list[Any]) -> list[Answer]:
        self._fail("finish", any(hit for *_, hit in batch))
        answers = super().finish(batch, output)
        return answers[:-1] if self.stage == "few" and any(hit for *_, hit in batch) else answers


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("stage", ["prepare", "forward", "finish", "few"])
def test_only_the_samples_that_fail_are_failed(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, beside: bool
) -> None:
    if beside:
        monkeypatch.setattr(torch_settings, "Beside", Device)
    samples = load_samples(ADDRESS)
    word = samples[5].expression
    wanted = {s.sample_id for s in samples if word in s.expression}
    assert 0 < len(wanted) < len(samples)
    adapter = Failing(stage, word, ValueError("no thanks"))
    result = run(adapter, ADDRESS, batch_size=16, max_failures=len(samples), out=tmp_path / "run")
    errors = errors_of(result.folder)
    assert set(errors) == wanted
    said = "finish() returned 0 masks for 1 expressions" if stage == "few" else "ValueError: no thanks"
    assert all(said in error for error in errors.values())
    reference = run(Threshold(), ADDRESS, out=tmp_path / "reference").folder
    pairs = zip(RunFolder(reference).predictions(), RunFolder(result.folder).predictions(), strict=True)
    assert all(a == b for a, b in pairs if b.sample_id not in wanted)


@pytest.mark.parametrize("beside", [False, True])
def test_batches_that_do_not_fit_into_memory_are_halved(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    if beside:
        monkeypatch.setattr(torch_settings, "Beside", Device)
    adapter = Failing("memory", "no such word", RuntimeError("CUDA out of memory"))
    said: list[str] = []
    result = run(adapter, ADDRESS, batch_size=16, out=tmp_path / "run", log=said.append)
    assert result.failures == 0
    assert adapter.largest <= 3
    assert "out of memory with " in said[0]
    # The size never grows again.
    going_on = [int(line.rsplit("with ", 1)[1].split()[0]) for line in said if "going on" in line]
    assert going_on == sorted(going_on, reverse=True)
    reference = run(Threshold(), ADDRESS, out=tmp_path / "reference").folder
    assert shard_bytes(reference) == shard_bytes(result.folder)


def test_broken_images_spoil_only_their_samples(test_data: Path, home: Path, tmp_path: Path, device: None) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (test_data / "photos" / "images").rglob("*.jpg"):
        (images / path.name).write_bytes(path.read_bytes())
    build_dataset("refcoco", build_refer, Sources(test_data / "photos" / "refer", images), silent)
    samples = load_samples("refcoco/val")
    broken = samples[len(samples) // 2]
    Path(broken.image_path).write_bytes(b"not an image")
    result = run(ThresholdInStages(), "refcoco/val", batch_size=16, max_failures=99, out=tmp_path / "run")
    errors = errors_of(result.folder)
    assert set(errors) == {s.sample_id for s in samples if s.image_id == broken.image_id}
    assert all(Path(broken.image_path).name in error for error in errors.values())


class OwnSegment(Staged):
    """A subclass of an adapter with stages whose author wants `segment` to be called."""

    name = "own"

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> Any:
        raise AssertionError

    forward = finish = prepare

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Any]:
        return [np.ones((i.height, i.width), bool) for i in images]


def test_which_adapters_have_stages(embedded: Path, tmp_path: Path) -> None:
    assert has_stages(ThresholdInStages())
    assert not has_stages(Threshold())
    assert not has_stages(OwnSegment())
    assert run(OwnSegment(), "snapshots/test", out=tmp_path / "run").failures == 0
    assert {c.verdict for c in check_adapter(ThresholdInStages())} == {OK}


def test_stages_are_called_in_turn_by_segment() -> None:
    class Both(ThresholdInStages, Staged):
        pass

    images = [Image.new("RGB", (9, 7), (90, 90, 90)), Image.new("RGB", (5, 6), (70, 70, 70))]
    asked = [images[0], images[0], images[1]]
    expressions = ["cat", "the long cat on the left", "dog"]
    ours = Both().segment(asked, expressions)
    expected = Threshold().segment(asked, expressions)
    assert [a.mask.tolist() for a in ours] == [a.mask.tolist() for a in expected]


@pytest.mark.parametrize("size", [1, 4, 10, 1000])
@pytest.mark.parametrize("pixels", [None, 700_000])
def test_batches_of_whole_images(embedded: Path, size: int, pixels: int | None) -> None:
    shard = plan_shards(load_samples(ADDRESS))[0]
    batches = plan_batches(shard, size, pixels, whole_images=True)
    assert [s for batch in batches for s in batch] == shard
    for batch in batches:
        assert len(batch) <= size
        area = sum(s.height * s.width for s in batch)
        assert len(batch) == 1 or pixels is None or area <= pixels
    for group in by_image(shard):
        holding = [b for b in batches if any(s.image_id == group[0].image_id for s in b)]
        fits = len(group) <= size and (pixels is None or sum(s.height * s.width for s in group) <= pixels)
        assert len(holding) == 1 or not fits


def test_an_error_for_all_samples_ends_the_run(embedded: Path, tmp_path: Path) -> None:
    adapter = Failing("forward", "", ValueError("no thanks"))
    with pytest.raises(AdapterError, match="no thanks"):
        run(adapter, ADDRESS, batch_size=16, out=tmp_path / "run")


def test_a_shard_in_turn_leaves_nothing_behind(embedded: Path, tmp_path: Path, device: None) -> None:
    """A worker that computes shard 0 with shard 1 next, then shard 1 in turn, as after a crash, then shard 2."""
    job = Job(ThresholdInStages(), {}, "scenes/train", 900, "cpu", 16, False, embedded, tmp_path)
    runner = ShardRunner(job, journal=True)
    assert len(runner.shards) > 2
    folder = tmp_path / "run"
    (folder / "predictions").mkdir(parents=True)
    runner.run(Task(0, folder), following=1)
    runner.run(Task(1, folder, in_turn=True), following=2)
    runner.run(Task(2, folder), following=1)
    runner.close(lambda _: None)
    reference = run(Threshold(), "scenes/train", limit=900, out=tmp_path / "reference").folder
    for number in range(3):
        ours, expected = (RunFolder(f).shard_path(number).read_bytes() for f in (folder, reference))
        assert ours == expected


def test_one_bad_expression_does_not_repeat_its_batch(embedded: Path, tmp_path: Path) -> None:
    samples = load_samples(ADDRESS)
    word = samples[5].expression
    adapter = Failing("prepare", word, ValueError("no thanks"))
    run(adapter, ADDRESS, batch_size=64, max_failures=len(samples), out=tmp_path / "run")
    bad = {s.image_id for s in samples if word in s.expression}
    again = sum(s.image_id in bad and word not in s.expression for s in samples)
    assert sum(count for name, count in adapter.calls if name == "forward") <= len(samples) + again
