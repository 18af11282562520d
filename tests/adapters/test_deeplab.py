"""A real pretrained model on real photographs, through path/to/file.py:Class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapters.deeplab_adapter import DeepLab
from PIL import Image

from refbench import run, score
from refbench.contract import FAILED, check_adapter
from refbench.report import write_report

ADAPTER = f"{Path(__file__).parent / 'deeplab_adapter.py'}:DeepLab"


@pytest.mark.parametrize("animal", ["dog", "bird"])
def test_its_own_photographs(test_data: Path, animal: str) -> None:
    folder = test_data / "deeplab"
    picture = Image.open(folder / f"{animal}_segmentation.bmp").convert("RGB")
    truth = Image.open(folder / f"{animal}_segmentation_mask.bmp").convert("L").resize(picture.size)
    (answer,) = DeepLab(folder).segment([picture], [f"the {animal}"])
    target = np.asarray(truth) > 0
    assert (answer.mask & target).sum() / (answer.mask | target).sum() > 0.8


@pytest.mark.parametrize(
    ("address", "samples"),
    [("refcoco/testB", 20), ("refcoco/val", 15), ("refcoco+/testA", 11), ("refcocog-umd/val", 11)],
)
def test_real_photographs_end_to_end(photos: Path, test_data: Path, tmp_path: Path, address: str, samples: int) -> None:
    result = run(ADAPTER, address, options={"folder": str(test_data / "deeplab")}, out=tmp_path / "run")
    assert (result.samples, result.failures) == (samples, 0)
    metrics = score(result.folder).summaries["refbench"].metrics
    floor = score(run("everything", address, out=tmp_path / "floor").folder).summaries["refbench"].metrics
    assert metrics["mean_boundary_iou"].value > floor["mean_boundary_iou"].value
    page = write_report(result.folder).read_text()
    assert page.count("data:image/jpeg") >= min(samples, 10)


def test_the_contract(test_data: Path) -> None:
    checks = check_adapter(DeepLab(test_data / "deeplab"))
    assert [c for c in checks if c.verdict == FAILED] == []
