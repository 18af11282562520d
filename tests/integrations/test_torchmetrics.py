"""`ReferringMetric` as a torchmetrics metric: the same values, and what torchmetrics expects of a Metric."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refbench import ReferringMetric
from refbench.errors import PredictionError
from refbench.integrations import evaluate

torch = pytest.importorskip("torch")
torchmetrics = pytest.importorskip("torchmetrics")
face = pytest.importorskip("refbench.integrations.torchmetrics")


def batches(number: int, size: int = 5) -> list[tuple[Any, Any, list[str]]]:
    random = np.random.default_rng(number)
    out = []
    for k in range(number):
        masks = torch.from_numpy(random.random((2, size, 12, 9)) < random.random())
        out.append((masks[0], masks[1], [f"{k}/{n}" for n in range(size)]))
    return out


def as_numbers(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("protocol", ["refbench", "gsva-gres"])
def test_the_values_are_those_of_the_metric(protocol: str) -> None:
    ours, theirs = ReferringMetric(protocol), face.ReferringMetric(protocol)
    for predictions, targets, ids in batches(7):
        ours.update(predictions, targets, sample_ids=ids)
        theirs.update(predictions, targets, sample_ids=ids)
    assert as_numbers(theirs.compute()) == ours.compute()
    # A second pass of the same samples changes nothing.
    for predictions, targets, ids in batches(7):
        theirs.update(predictions, targets, sample_ids=ids)
    assert as_numbers(theirs.compute()) == ours.compute()


def test_forward_returns_the_value_of_the_batch_and_keeps_all() -> None:
    metric = face.ReferringMetric(metric="mean_iou")
    whole = ReferringMetric()
    for predictions, targets, _ in batches(4):
        one = ReferringMetric()
        one.update(predictions, targets)
        whole.update(predictions, targets)
        assert float(metric(predictions, targets)) == one.compute()["mean_iou"]
    assert float(metric.compute()) == whole.compute()["mean_iou"]
    metric.reset()
    with pytest.raises(PredictionError, match="the metric has no samples"):
        metric.compute()


def test_clones_pickles_and_states_keep_the_samples() -> None:
    metric = face.ReferringMetric(metric="mean_iou")
    metric.persistent(True)
    predictions, targets, _ = batches(1)[0]
    metric.update(predictions, targets)
    value = metric.compute()
    assert metric.clone().compute() == value
    assert pickle.loads(pickle.dumps(metric)).compute() == value
    other = face.ReferringMetric(metric="mean_iou")
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert other.compute() == value
    assert metric.to("cpu").compute() == value
    assert hash(metric) != hash(face.ReferringMetric())


def test_collections_and_trackers_take_it() -> None:
    collection = torchmetrics.MetricCollection(
        {"a": face.ReferringMetric(metric="mean_iou"), "b": face.ReferringMetric(metric="cumulative_iou")}
    )
    tracker = torchmetrics.MetricTracker(collection, maximize=True)
    values = []
    for predictions, targets, _ in batches(3):
        tracker.increment()
        tracker.update(predictions, targets)
        values.append(float(tracker.compute()["a"]))
    assert float(tracker.best_metric()["a"]) == max(values)


def test_torchmetrics_finds_that_one_state_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """The check that torchmetrics has for metrics of others: both ways of `forward` must give the same values."""
    predictions, targets, _ = batches(1)[0]
    checks = pytest.importorskip("torchmetrics.utilities.checks")
    checks.check_forward_full_state_property(
        face.ReferringMetric,
        init_args={"metric": "mean_iou"},
        input_args={"preds": predictions, "target": targets},
        num_update_to_compare=[3],
        reps=1,
    )
    # If the values differed, it would stop before it measures this.
    assert "Partial state for 3 steps took" in capsys.readouterr().out


def test_unknown_metrics_are_named() -> None:
    with pytest.raises(PredictionError, match="refbench has no metric 'giou'; choose from cumulative_iou"):
        face.ReferringMetric(metric="giou")
    with pytest.raises(PredictionError, match="needs more than two masks"):
        face.ReferringMetric("lavt-480")


def _process(rank: int, world: int, place: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world)
    metric = face.ReferringMetric()
    found = batches(6)
    # As DistributedSampler does: every process gets as many batches, so some come twice.
    n = -(-len(found) // world) * world
    for k in range(rank, n, world):
        predictions, targets, ids = found[k % len(found)]
        metric.update(predictions, targets, sample_ids=ids)
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(as_numbers(metric.compute())))
    torch.distributed.destroy_process_group()


def _half(rank: int, world: int, place: str, folder: str) -> None:
    """Only the first process has a batch."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world)
    metric = face.ReferringMetric()
    if rank == 0:
        metric.update(*batches(1)[0][:2])
    Path(folder, f"half-{rank}.json").write_text(json.dumps(as_numbers(metric.compute())))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_process_without_a_batch_takes_part(tmp_path: Path) -> None:
    whole = ReferringMetric()
    whole.update(*batches(1)[0][:2])
    torch.multiprocessing.spawn(_half, (2, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"half-{rank}.json").read_text()) == whole.compute()


@pytest.mark.slow
def test_processes_give_the_same_bits(tmp_path: Path) -> None:
    whole = ReferringMetric()
    for predictions, targets, ids in batches(6):
        whole.update(predictions, targets, sample_ids=ids)
    for world in (2, 4):
        torch.multiprocessing.spawn(_process, (world, str(tmp_path / f"store{world}"), str(tmp_path)), nprocs=world)
        for rank in range(world):
            assert json.loads((tmp_path / f"{world}-{rank}.json").read_text()) == whole.compute()


def test_the_evaluate_module_adds_and_computes() -> None:
    module = evaluate.load()
    whole = ReferringMetric()
    found = batches(3)
    for predictions, targets, _ in found[:2]:
        module.add_batch(predictions=predictions, references=targets)
        whole.update(predictions, targets)
    module.add(prediction=found[2][0][0], reference=found[2][1][0])
    whole.update(found[2][0][:1], found[2][1][:1])
    assert module.compute() == whole.compute()
    with pytest.raises(PredictionError, match="the metric has no samples"):
        module.compute()
    direct = module.compute(predictions=found[0][0], references=found[0][1])
    whole.reset()
    whole.update(*found[0][:2])
    assert direct == whole.compute()
