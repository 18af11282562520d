"""Splits in training loops: items, groups, workers, pickling, batches, and Hugging Face datasets."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refbench import ReferringMetric, as_hf, load_samples, torch_dataset
from refbench.errors import DatasetError
from refbench.storage.images import load_image
from refbench.storage.manifest import split_path

SPLIT = "scenes/val"


def test_an_item_is_a_sample_with_its_image(embedded: Path) -> None:
    data, samples = torch_dataset(SPLIT), load_samples(SPLIT)
    assert len(data) == len(samples)
    for k in (0, 17, -1):
        item, sample = data[k], samples[k]
        assert np.array_equal(item["mask"], sample.target.to_array())
        assert np.array_equal(item["image"], np.asarray(load_image(sample.image_path, sample.height, sample.width)))
        for name in ("expression", "sample_id", "image_id", "ref_id", "category", "no_target"):
            assert item[name] == getattr(sample, name)
    with pytest.raises(IndexError, match="has 500 items, so there is no item 500"):
        data[500]
    assert repr(data).startswith("TorchDataset('scenes/val'), 500 expressions, fingerprint ")


@pytest.mark.parametrize("by", ["ref", "image"])
def test_groups_have_every_expression_once(embedded: Path, by: str) -> None:
    data, samples = torch_dataset(SPLIT, by=by), load_samples(SPLIT)
    found = [i for k in range(len(data)) for i in data[k]["sample_ids"]]
    assert sorted(found) == sorted(s.sample_id for s in samples)
    by_id = {s.sample_id: s for s in samples}
    item = data[3]
    assert len({getattr(by_id[i], f"{by}_id") for i in item["sample_ids"]}) == 1
    for mask, expression, sample_id in zip(item["masks"], item["expressions"], item["sample_ids"], strict=True):
        assert np.array_equal(mask, by_id[sample_id].target.to_array())
        assert expression == by_id[sample_id].expression


def _size_of(item: dict[str, Any]) -> tuple[str, int]:
    return item["sample_id"], int(item["mask"].sum())


def test_a_pickled_dataset_gives_the_same_items(embedded: Path) -> None:
    data = torch_dataset(SPLIT, _size_of)
    again = pickle.loads(pickle.dumps(data))
    assert [again[k] for k in range(20)] == [data[k] for k in range(20)]


LOADER = """
import sys
from torch.utils.data import DataLoader
import refbench
from refbench import collate, torch_dataset

def small(item):
    return {"sample_id": item["sample_id"], "area": int(item["mask"].sum()), "mask": item["mask"][:8, :8]}

if __name__ == "__main__":
    data = torch_dataset("scenes/val", small)
    loader = DataLoader(data, batch_size=64, num_workers=2, collate_fn=collate, multiprocessing_context=sys.argv[1])
    found = [(i, a) for batch in loader for i, a in zip(batch["sample_id"], batch["area"])]
    assert found == [(small(data_item)["sample_id"], small(data_item)["area"]) for data_item in
                     (torch_dataset("scenes/val")[k] for k in range(len(data)))]
    print(len(found), tuple(next(iter(loader))["mask"].shape))
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_give_the_same_items(embedded: Path, tmp_path: Path, start: str) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    done = subprocess.run([sys.executable, str(script), start], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "500 (64, 8, 8)"


def test_batches_have_tensors_and_lists(embedded: Path) -> None:
    torch = pytest.importorskip("torch")
    collate = pytest.importorskip("refbench.datasets.collation").collate
    data = torch_dataset("snapshots/test")
    batch = collate([data[k] for k in range(3)])
    assert isinstance(batch["expression"], list)
    assert batch["no_target"].dtype == torch.bool
    same = collate([data[0], data[0]])
    assert same["image"].shape == (2, *data[0]["image"].shape)
    other = next(k for k in range(len(data)) if data[k]["mask"].shape != data[0]["mask"].shape)
    different = collate([data[0], data[other]])
    assert [tuple(m.shape) for m in different["mask"]] == [data[0]["mask"].shape, data[other]["mask"].shape]
    assert collate([]) == {}
    metric = ReferringMetric()
    metric.update(different["mask"], different["mask"], image_ids=different["image_id"])
    assert metric.compute()["mean_iou"] == 100


def test_a_split_without_images_or_another_group_is_named(embedded: Path) -> None:
    with pytest.raises(DatasetError, match="`by` must be one of expression, ref, image, got 'word'"):
        torch_dataset(SPLIT, by="word")
    with pytest.raises(DatasetError, match="has not been built"):
        torch_dataset("refcoco/val")
    assert split_path(SPLIT).is_file()


def test_rows_of_a_hugging_face_dataset_are_samples(embedded: Path) -> None:
    pytest.importorskip("datasets")
    data, samples = as_hf(SPLIT), load_samples(SPLIT)
    assert len(data) == len(samples)
    row = data[5]
    assert np.array_equal(row["mask"], samples[5].target.to_array())
    assert row["image"].size == (samples[5].width, samples[5].height)
    assert row["expression"] == samples[5].expression
    few = data.select(range(10)).filter(lambda r: not r["no_target"])
    assert set(few["sample_id"]) == {s.sample_id for s in samples[:10] if not s.no_target}
    areas = data.select(range(4)).map(lambda r: {"area": int(np.sum(r["mask"]))}, remove_columns=data.column_names)
    assert areas["area"][:] == [s.target.area for s in samples[:4]]
    assert "image" not in as_hf(SPLIT, with_images=False)[0]
