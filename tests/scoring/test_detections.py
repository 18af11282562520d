"""A run on a set that is scored by AP, from instances to the figure."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import miniatures as mini
import pytest

from refbench import run
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.builders.sginw import build as build_sginw
from refbench.errors import PredictionError
from refbench.masks.mask import Mask
from refbench.records import Answer, Sample
from refbench.scoring.detections import write_detections
from refbench.scoring.protocols.coco_files import read_annotations
from refbench.storage.progress import silent
from refbench.storage.samples import load_objects

Cli = Callable[..., subprocess.CompletedProcess[str]]


class Exact:
    """Finds the annotated instances of each class, and for `extra` one that is none, with a low score."""

    name = "exact"
    needs_images = False

    def __init__(self, instances: bool = True, extra: str = "") -> None:
        self.instances = instances
        self.extra = extra

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Any]) -> list[Answer]:
        objects = load_objects("sginw-Fruits")
        out = []
        for s in samples:
            masks = [o.mask for o in objects if o.image_id == s.image_id and o.category == s.category]
            found = [(m, 0.9 - 0.1 * k) for k, m in enumerate(masks)]
            if s.category == self.extra:
                found.append((Mask.full(s.height, s.width), 0.95))
            out.append(Answer(s.target, score=0.9, instances=found if self.instances else ()))
        return out


@pytest.fixture
def fruits(home: Path, tmp_path: Path) -> Path:
    content = mini.sginw()
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    root = mini.write_sginw(tmp_path, content)
    build_dataset("sginw-Fruits", build_sginw, Sources(root), silent)
    return root


def average_precision(refbench: Cli, source: Path, ground_truth: Path, protocol: str = "coco-ap") -> dict[str, float]:
    done = refbench("score", str(source), "--ground-truth", str(ground_truth), "--protocol", protocol, "--json")
    assert done.returncode == 0, done.stderr
    metrics: dict[str, float] = json.loads(done.stdout)["protocols"][protocol]["metrics"]
    return metrics


@pytest.mark.slow
def test_instances_of_a_run_are_scored_by_ap(refbench: Cli, fruits: Path, tmp_path: Path) -> None:
    truth = fruits / "Fruits" / "valid" / "_annotations_min1cat.coco.json"
    folder = run(Exact(), "sginw-Fruits/valid", out=tmp_path / "run").folder
    assert average_precision(refbench, folder, truth)["AP"] == pytest.approx(100)
    rows = json.loads((folder / "seginw_Fruits_val.json").read_text())
    assert [(r["image_id"], r["category_id"], r["score"]) for r in rows] == [(0, 3, 0.9), (0, 3, 0.8), (1, 5, 0.9)]
    # A false one above the right ones costs half of its class.
    wrong = run(Exact(extra="pear"), "sginw-Fruits/valid", out=tmp_path / "wrong").folder
    assert average_precision(refbench, wrong, truth)["AP"] < 80
    # The file is what a submission to SGinW holds.
    submission = tmp_path / "submission"
    submission.mkdir()
    (submission / "seginw_Fruits_val.json").write_bytes((folder / "seginw_Fruits_val.json").read_bytes())
    assert average_precision(refbench, submission, fruits, "sginw")["Fruits"] == pytest.approx(100)


def test_masks_count_as_instances_where_there_are_none(refbench: Cli, fruits: Path, tmp_path: Path) -> None:
    truth = fruits / "Fruits" / "valid" / "_annotations_min1cat.coco.json"
    folder = run(Exact(instances=False), "sginw-Fruits/valid", out=tmp_path / "run").folder
    rows = json.loads(write_detections(folder, read_annotations(truth)).path.read_text())
    assert [(r["image_id"], r["category_id"], r["score"]) for r in rows] == [(0, 3, 0.9), (1, 5, 0.9)]


def test_another_annotation_file_is_refused(fruits: Path, tmp_path: Path) -> None:
    folder = run(Exact(), "sginw-Fruits/valid", out=tmp_path / "run").folder
    other = mini.sginw()
    other["categories"][1]["name"] = "plum"
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(
        PredictionError, match=r"this run: the image .* or the category 'pear' of the sample .* is missing"
    ):
        write_detections(folder, read_annotations(tmp_path / "other.json"))
