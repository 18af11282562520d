"""What a notebook shows: short texts, tables and pictures, without anybody's HTML."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refbench import Mask, compare, diagnose, load_samples, read_run, read_scores, run, score, torch_dataset
from refbench.reports.overlays import TARGET_RGB
from refbench.storage.samples import load_objects

SPLIT = "snapshots/test"


@pytest.fixture
def objects(embedded: Path, tmp_path: Path) -> dict[str, Any]:
    first = run("noisy-oracle", SPLIT, options={"shift": "2"}, out=tmp_path / "a")
    second = run("everything", SPLIT, out=tmp_path / "b")
    scored = [score(r.folder, protocols=["refbench", "cris"]) for r in (first, second)]
    return {
        "sample": load_samples(SPLIT)[0],
        "object": load_objects("snapshots")[0],
        "mask": Mask.full(480, 640),
        "run": first,
        "folder": read_run(first.folder),
        "scored": scored[0],
        "scores": read_scores(first.folder),
        "diagnosis": diagnose(second.folder),
        "comparison": compare(first.folder, second.folder),
        "dataset": torch_dataset(SPLIT),
    }


def test_texts_are_short_and_say_what_matters(objects: dict[str, Any]) -> None:
    for name, thing in objects.items():
        text = repr(thing)
        assert len(text) < 260, name
        assert "\n" not in text
    assert repr(objects["mask"]) == "Mask(480 x 640, 307,200 px)"
    assert objects["sample"].expression in repr(objects["sample"])
    assert "refbench cumulative_iou" in repr(objects["scored"])
    assert "most mean IoU is lost by spill" in repr(objects["diagnosis"])
    assert "a and b on snapshots/test" in repr(objects["comparison"])


def test_a_sample_shows_its_picture_with_the_target(objects: dict[str, Any]) -> None:
    sample = objects["sample"]
    shown = sample._repr_html_()
    data = re.search(r"data:image/png;base64,([^\"]+)", shown, re.IGNORECASE)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGB"))
    rows, columns = np.nonzero((picture == TARGET_RGB).all(axis=-1))
    left, top, width, height = sample.target.box_xywh
    scale = picture.shape[0] / sample.height
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.allclose(drawn, [scale * v for v in (left, top, left + width, top + height)], atol=2)
    assert sample.expression in shown


def test_tables_have_the_figures(objects: dict[str, Any]) -> None:
    summary = objects["scored"].summaries["cris"]
    shown = objects["scored"]._repr_html_()
    for estimate in summary.metrics.values():
        assert f"<td>{estimate.value:.2f}</td>" in shown
    for loss in objects["diagnosis"].losses:
        assert f"<td>{loss.mean_iou:.2f}</td>" in objects["diagnosis"]._repr_html_()
    for difference in objects["comparison"].metrics:
        assert f"<td>{difference.difference:+.2f}</td>" in objects["comparison"]._repr_html_()


def test_hostile_texts_are_escaped(objects: dict[str, Any]) -> None:
    evil = '"><script>alert(1)</script>'
    sample = dataclasses.replace(objects["sample"], expression=evil, category=evil)
    assert "<script>" not in sample._repr_html_()
