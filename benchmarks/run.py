"""`run` with an adapter that costs nothing, against a bare loop that decodes the same images and calls it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.data import test_data
from refbench.datasets.builders.base import Built, Sources, build_dataset
from refbench.masks.mask import Mask
from refbench.records import Sample
from refbench.runs.runner import run
from refbench.storage.progress import Progress, silent
from refbench.storage.samples import load_samples


class Free:
    """Answers at once."""

    name = "free"

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Mask]:
        return [Mask.empty(i.height, i.width) for i in images]


def build_coco128(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Each image with one expression."""
    place = test_data() / "coco128"
    content = json.loads((place / "annotations" / "instances_train2017.json").read_text())
    samples = [
        Sample(
            sample_id=f"{dataset}/all/{image['id']}/0",
            image_id=str(image["id"]),
            image_path=str((place / "train2017" / image["file_name"]).resolve()),
            height=image["height"],
            width=image["width"],
            expression="the object",
            raw_expression="the object",
            ref_id=str(image["id"]),
            sent_id="0",
            ann_ids=(),
            category="",
            target=Mask.empty(image["height"], image["width"]),
            no_target=True,
        )
        for image in content["images"]
    ]
    return Built("coco128", 1, {"all": samples}, [], [], "")


def bare_loop(samples: list[Sample]) -> None:
    adapter = Free()
    for first in range(0, len(samples), 8):
        batch = samples[first : first + 8]
        images = [Image.open(s.image_path).convert("RGB") for s in batch]
        adapter.segment(images, [s.expression for s in batch])


def measure() -> dict[str, Any]:
    """Images a second of both, the best of five taken in turns."""
    before = os.environ.get("REFBENCH_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REFBENCH_HOME"] = folder
        try:
            build_dataset("coco128", build_coco128, Sources(), silent)
            samples = load_samples("coco128/all")
            bare = ours = float("inf")
            for attempt in range(5):
                began = time.perf_counter()
                bare_loop(samples)
                bare = min(bare, time.perf_counter() - began)
                began = time.perf_counter()
                run(Free(), "coco128/all", out=Path(folder) / str(attempt))
                ours = min(ours, time.perf_counter() - began)
        finally:
            if before is None:
                del os.environ["REFBENCH_HOME"]
            else:
                os.environ["REFBENCH_HOME"] = before
    return {
        "pictures": len(samples),
        "bare loop, images a second": len(samples) / bare,
        "refbench run, images a second": len(samples) / ours,
        "run against the bare loop (wanted 0.95)": bare / ours,
    }
