"""The metric object: the figures of `score`, for every kind of mask, batch, order and number of processes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refbench import Mask, ReferringMetric, load_samples, run, score
from refbench.errors import MaskError, PredictionError
from refbench.plugins.loading import available, load
from refbench.runs.folder import RunFolder
from refbench.scoring.protocols.base import Protocol

OFFERED = (
    "refbench", "cris", "cgformer", "detris", "vlt", "mllmseg-res", "mlcd-seg", "seg-zero", "refcoco-m", "gsva-gres",
    "mllmseg-gres", "biou-hqsam",
)  # fmt: skip
ALIASES = {"etris", "unipixel"}


@pytest.fixture
def pairs(embedded: Path, tmp_path: Path) -> tuple[Path, list[Any]]:
    folder = run("noisy-oracle", "snapshots/test", options={"dilate": "2", "swap": "0.3"}, out=tmp_path / "run").folder
    masks = {p.sample_id: p.mask for p in RunFolder(folder).predictions()}
    return folder, [(masks[s.sample_id], s) for s in load_samples("snapshots/test")]


@pytest.mark.parametrize("protocol", OFFERED)
def test_the_figures_are_those_of_score(protocol: str, pairs: tuple[Path, list[Any]]) -> None:
    folder, rows = pairs
    expected = score(folder, protocols=[protocol]).summaries[protocol].metrics
    metric = ReferringMetric(protocol)
    for first in range(0, len(rows), 7):
        part = rows[first : first + 7]
        metric.update(
            [p for p, _ in part], [s.target for _, s in part], image_ids=[s.image_id for _, s in part],
            no_target=[s.no_target for _, s in part],
        )  # fmt: skip
    # As text, since NaN is not equal to itself.
    assert str(metric.compute()) == str({m: e.value for m, e in expected.items()})
    assert str(metric.intervals()) == str(expected)
    assert list(metric.compute("val/")) == [f"val/{m}" for m in expected]


def test_arrays_tensors_codes_order_and_batches_do_not_matter(pairs: tuple[Path, list[Any]]) -> None:
    torch = pytest.importorskip("torch")
    _, rows = pairs
    forms = {
        "masks": lambda m: m,
        "codes": lambda m: m.to_rle(),
        "bool arrays": lambda m: m.to_array(),
        "numbers": lambda m: m.to_array().astype(np.uint8),
        "floats": lambda m: m.to_array().astype(np.float32),
        "tensors": lambda m: torch.from_numpy(m.to_array().copy()),
    }
    found = []
    for seed, form in enumerate(forms.values()):
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        metric = ReferringMetric()
        while order:
            some, order = order[: seed + 1], order[seed + 1 :]
            metric.update(
                [form(rows[k][0]) for k in some], [form(rows[k][1].target) for k in some],
                no_target=[rows[k][1].no_target for k in some],
            )  # fmt: skip
        found.append(metric.compute())
    assert all(f == found[0] for f in found)
    # One sample, and a whole batch as one array.
    target = np.zeros((3, 8, 9), bool)
    target[:, 2:5, 3:6] = True
    one, batch = ReferringMetric(), ReferringMetric()
    for k in range(3):
        one.update(target[k], target[k])
    batch.update(torch.from_numpy(target), target)
    assert len(one) == len(batch) == 3
    assert one.compute() == batch.compute()
    assert batch.counts()["intersection"].tolist() == [9, 9, 9]
    one.reset()
    assert len(one) == 0


def test_samples_that_come_twice_count_once(pairs: tuple[Path, list[Any]]) -> None:
    _, rows = pairs
    whole, padded, other = ReferringMetric(), ReferringMetric(), ReferringMetric()
    ids = [s.sample_id for _, s in rows]

    def add(metric: ReferringMetric, some: list[int]) -> None:
        metric.update(
            [rows[k][0] for k in some], [rows[k][1].target for k in some], sample_ids=[ids[k] for k in some],
            no_target=[rows[k][1].no_target for k in some],
        )  # fmt: skip

    everything = list(range(len(rows)))
    add(whole, everything)
    add(padded, everything[:50])
    add(other, [*everything[50:], 0, 1, 2])
    padded.merge(other)
    assert padded.compute() == whole.compute()
    again = ReferringMetric()
    again.load_state_dict(json.loads(json.dumps(padded.state_dict())))
    assert again.compute() == whole.compute()
    for broken in ({}, {**padded.state_dict(), "protocol": "cris"}, {**padded.state_dict(), "numbers": [[1]]}):
        with pytest.raises(PredictionError):
            again.load_state_dict(broken)
    with pytest.raises(PredictionError, match="cannot merge cris into refbench"):
        padded.merge(ReferringMetric("cris"))


def test_ids_of_tensors_are_their_values() -> None:
    torch = pytest.importorskip("torch")
    mask = np.ones((1, 2, 2), bool)
    metric = ReferringMetric()
    for ids in (torch.tensor([3]), [torch.tensor(3)], np.array([3]), [3], ["3"]):
        metric.update(mask, mask, sample_ids=ids)
    assert len(metric) == 5
    metric.update(mask, ~mask, sample_ids=["4"])
    assert metric.compute()["mean_iou"] == 50


def test_repeats_that_differ_give_the_same_in_any_order() -> None:
    full, half = np.ones((2, 2), bool), np.array([[True, True], [False, False]])
    found = []
    for order in ((full, half), (half, full)):
        metric = ReferringMetric()
        for prediction in order:
            metric.update([prediction], [full], sample_ids=["a"])
        found.append(metric.compute())
    assert found[0] == found[1]


def test_intervals_do_not_depend_on_the_order_of_named_samples() -> None:
    random = np.random.default_rng(0)
    masks = random.random((2, 40, 5, 5)) < 0.5
    found = []
    for order in (range(40), reversed(range(40))):
        metric = ReferringMetric()
        for k in order:
            metric.update(masks[0, k], masks[1, k], sample_ids=[str(k)])
        found.append(metric.intervals())
    assert found[0] == found[1]


def test_what_cannot_be_counted_is_refused() -> None:
    metric = ReferringMetric()
    with pytest.raises(PredictionError, match="no samples"):
        metric.compute()
    good = np.zeros((4, 5), bool)
    for predictions, targets, message in (
        (good, np.zeros((5, 4), bool), r"sample 0 of the batch: the prediction has the size \(4, 5\)"),
        (np.full((4, 5), 0.5), good, r"predictions\[0\] must contain only False and True"),
        (np.zeros((1, 1, 4, 5)), good, r"predictions must have the shape"),
        ([good, good], [good], "2 predictions for 1 targets"),
        (3, good, "predictions must be arrays"),
        ([np.zeros(4)], [good], r"predictions\[0\] must have the shape \(H, W\)"),
    ):
        with pytest.raises(MaskError, match=message):
            metric.update(predictions, targets)
    with pytest.raises(MaskError, match="image_ids has 2 entries for 1 samples"):
        metric.update(good, good, image_ids=["a", "b"])
    assert len(metric) == 0


def test_protocols_that_need_more_than_masks_say_what() -> None:
    offered, refused = set(), []
    for name in available("protocols"):
        if "(" in name or not isinstance(load("protocols", name), Protocol):
            continue
        try:
            ReferringMetric(name)
            offered.add(name)
        except PredictionError as error:
            refused.append(str(error))
    assert offered == {*OFFERED, *ALIASES}
    assert all("needs more than two masks: " in text for text in refused)
    with pytest.raises(PredictionError, match="scores detections"):
        ReferringMetric("coco-ap")


def _process(rank: int, world: int, place: str, folder: str) -> None:
    from torch import distributed  # noqa: PLC0415 (in the processes only)

    rows = json.loads((Path(folder) / "rows.json").read_text())
    distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world)
    metric = ReferringMetric()
    # As DistributedSampler does: every process gets as many, so some come twice.
    n = -(-len(rows) // world) * world
    for k in range(rank, n, world):
        row = rows[k % len(rows)]
        metric.update(
            Mask.from_rle(row["p"]), Mask.from_rle(row["t"]), sample_ids=[row["id"]], image_ids=[row["image"]]
        )
    found = {"values": metric.compute(), "intervals": {k: [e.low, e.high] for k, e in metric.intervals().items()}}
    (Path(folder) / f"{world}-{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bits(pairs: tuple[Path, list[Any]], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rows = [{"p": p.to_rle(), "t": s.target.to_rle(), "id": s.sample_id, "image": s.image_id} for p, s in pairs[1]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = []
    for world in (1, 2, 4):
        torch.multiprocessing.spawn(_process, (world, str(tmp_path / f"store{world}"), str(tmp_path)), nprocs=world)
        found += [json.loads((tmp_path / f"{world}-{rank}.json").read_text()) for rank in range(world)]
    assert all(f == found[0] for f in found)
