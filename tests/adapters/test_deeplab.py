"""A real pretrained model on real images, through path/to/file.py:Class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapters.deeplab_adapter import DeepLab
from PIL import Image

from refbench import run, score
from refbench.adapters.contract import FAILED, check_adapter
from refbench.reports.pages import write_report

ADAPTER = f"{Path(__file__).parent / 'deeplab_adapter.py'}:DeepLab"


# The masks that come with the model: a trimap of Oxford Pets (0 pet, 1 ground, 2 rim) and Pascal VOC classes.
@pytest.mark.parametrize(("animal", "foreground", "ignored"), [("dog", 0, 2), ("bird", 3, 1)])
def test_its_own_photographs(test_data: Path, animal: str, foreground: int, ignored: int) -> None:
    folder = test_data / "deeplab"
    picture = Image.open(folder / f"{animal}_segmentation.bmp").convert("RGB")
    truth = np.asarray(Image.open(folder / f"{animal}_segmentation_mask.bmp").convert("L"))
    (answer,) = DeepLab(folder).segment([picture], [f"the {animal}"])
    target, counted = truth == foreground, truth != ignored
    assert (answer.mask & target & counted).sum() / ((answer.mask | target) & counted).sum() > 0.85


# It knows people, but no zebras, beds or cups: where they are asked for, only a whole run is expected.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "samples", "knows"),
    [
        ("refcoco/val", 15, True),
        ("refcoco/testA", 12, True),
        ("refcoco/testB", 20, False),
        ("refcoco+/val", 18, True),
        ("refcocog-umd/val", 11, True),
    ],
)
def test_real_photographs_end_to_end(
    photos: Path, test_data: Path, tmp_path: Path, address: str, samples: int, knows: bool
) -> None:
    result = run(ADAPTER, address, options={"folder": str(test_data / "deeplab")}, out=tmp_path / "run")
    assert (result.samples, result.failures) == (samples, 0)
    metrics = score(result.folder).summaries["refbench"].metrics
    floor = score(run("everything", address, out=tmp_path / "floor").folder).summaries["refbench"].metrics
    if knows:
        assert metrics["mean_boundary_iou"].value > floor["mean_boundary_iou"].value
    page = write_report(result.folder).read_text()
    assert page.count("data:image/jpeg") == samples


@pytest.mark.slow
def test_the_contract(test_data: Path) -> None:
    checks = check_adapter(DeepLab(test_data / "deeplab"))
    assert [c for c in checks if c.verdict == FAILED] == []
