"""cgF1 of SA-Co against its counting restated: facebookresearch/sam3 `sam3/eval/cgf1_eval.py` (99d02f2)."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detection_files import box_polygon, detection_files
from detection_reference import sa_co

from refbench.errors import DatasetError
from refbench.scoring.protocols.average_precision import score_detections
from refbench.scoring.protocols.coco_files import read_annotations
from refbench.scoring.protocols.sa_co import SA_CO

Cli = Callable[..., subprocess.CompletedProcess[str]]
SIZE = 40


def scored(folder: Path, truths: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, float]:
    paths = [folder / f"annotator{k}.json" for k in range(len(truths))]
    for path, content in zip(paths, truths, strict=True):
        path.write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(rows))
    read = [read_annotations(path) for path in paths]
    return score_detections(read, folder / "results.json", [SA_CO])["sa-co"].metrics


@pytest.mark.slow
@pytest.mark.parametrize("annotators", [1, 2, 3])
def test_random_files(tmp_path: Path, annotators: int) -> None:
    """200 of each: 600 in all."""
    values = []
    for seed in range(200):
        truths, rows = detection_files(1000 * annotators + seed, annotators, most_images=20)
        found, expected = scored(tmp_path, truths, rows), sa_co(truths, rows)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True), seed
        values.append(found["cgF1"])
    assert len({round(v, 6) for v in values}) > 100


def pair(number: int, exhaustive: int = 1) -> dict[str, Any]:
    return {"id": number, "height": SIZE, "width": SIZE, "text_input": "x", "is_instance_exhaustive": exhaustive}


def box(image: int, x: float, side: float = 10, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "segmentation": [box_polygon(x, 0, side, side)], **more}


def files(pairs: list[dict[str, Any]], *annotators: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"images": pairs, "categories": [{"id": 1, "name": "object"}], "annotations": listed} for listed in annotators
    ]


def test_corners(tmp_path: Path) -> None:
    # Found where something is, silent where nothing is.
    truth = files([pair(1), pair(2)], [box(1, 0)])
    found = scored(tmp_path, truth, [box(1, 0, score=0.5)])
    assert found["cgF1"] == pytest.approx(100, abs=0.1)
    assert found["IL_MCC"] == pytest.approx(100, abs=0.01)
    # Below the score of 0.5 nothing is found: no presence is told, so the correlation is 0.
    silent = scored(tmp_path, truth, [box(1, 0, score=0.4999)])
    assert (silent["cgF1"], silent["IL_MCC"], silent["IL_recall"]) == (0, 0, 0)
    assert math.isnan(silent["positive_macro_F1"])
    assert scored(tmp_path, truth, []) == pytest.approx(silent, nan_ok=True)
    # An answer to a pair without instances costs precision and presence, but not the F1 over positive pairs.
    eager = scored(tmp_path, truth, [box(1, 0, score=0.9), box(2, 0, score=0.9)])
    assert eager["positive_micro_F1"] == pytest.approx(found["positive_micro_F1"])
    assert eager["precision"] == pytest.approx(50, abs=0.1)
    assert eager["IL_FPR"] == pytest.approx(100, abs=0.01)
    # Three answers for three instances in the other order match all the same.
    three = files([pair(1), pair(2)], [box(1, x) for x in (0, 14, 28)])
    found = scored(tmp_path, three, [box(1, x, score=s) for x, s in ((28, 0.6), (0, 0.7), (14, 0.9))])
    assert found["positive_micro_F1"] == pytest.approx(100, abs=0.1)
    # One answer over all of them is one match at most.
    assert scored(tmp_path, three, [box(1, 0, 38, score=0.9)])["recall@0.5"] == 0


def test_annotators_that_differ(tmp_path: Path) -> None:
    left, right, none = [box(1, 0)], [box(1, 20)], []
    said = [box(1, 20, score=0.9)]
    pairs = [pair(1), pair(2)]
    assert scored(tmp_path, files(pairs, left), said)["cgF1"] == 0
    for order in ((left, right, none), (none, left, right), (right, none, left)):
        assert scored(tmp_path, files(pairs, *order), said)["cgF1"] == pytest.approx(100, abs=0.1)
    # Who saw nothing makes silence right.
    silence = scored(tmp_path, files(pairs, left, none, right), [])
    assert (silence["IL_recall"], silence["IL_FPR"]) == (0, 0)
    assert scored(tmp_path, files(pairs, left, right), [])["IL_recall"] == 0
    # What one of them did not finish does not count; nor do groups, which an answer still meets as wrong.
    partial = files(pairs, [*left, box(2, 0)], right)
    partial[1]["images"] = [pair(1), pair(2, exhaustive=0)]
    assert scored(tmp_path, partial, said) == pytest.approx(
        scored(tmp_path, files([pair(1)], left, right), said), nan_ok=True
    )
    group = files(pairs, [box(1, 0), box(1, 20, iscrowd=1)])
    assert scored(tmp_path, group, [box(1, 0, score=0.9), *said])["precision"] == pytest.approx(50, abs=0.1)


def test_files_that_are_not_of_sa_co(tmp_path: Path) -> None:
    truth = files([pair(1), pair(2)], [box(1, 0)], [box(1, 0)])
    truth[1]["images"] = [pair(1)]
    with pytest.raises(DatasetError, match=r"lacks 1 of the images in .* \(the first is 2\); pass the files of"):
        scored(tmp_path, truth, [])
    truth[1]["images"] = [pair(1), pair(2) | {"is_instance_exhaustive": "yes"}]
    with pytest.raises(
        DatasetError,
        match=r"annotator1\.json .*\n  - images\[1\] \(id 2\): its `is_instance_exhaustive` must be 0 or 1",
    ):
        scored(tmp_path, truth, [])
    truth[1]["images"] = [pair(1), pair(2) | {"height": 39}]
    with pytest.raises(DatasetError, match=r"annotator1.json images\[1\] \(id 2\) has 39 x 40 px .*it has 40 x 40"):
        scored(tmp_path, truth, [])
    with pytest.raises(DatasetError, match=r"no .image, phrase. pair is exhaustively annotated"):
        scored(tmp_path, files([pair(1, exhaustive=0)], []), [])


@pytest.mark.slow
def test_the_command(tmp_path: Path, refbench: Cli) -> None:
    truths, rows = detection_files(7, 3)
    scored(tmp_path, truths, [*rows, rows[0]])
    options = [o for k in range(3) for o in ("--ground-truth", str(tmp_path / f"annotator{k}.json"))]
    done = refbench("score", tmp_path / "results.json", *options, "--protocol", "sa-co", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["protocols"]["sa-co"]
    assert told["metrics"]["cgF1@0.5"] == pytest.approx(sa_co(truths, rows)["cgF1@0.5"])
    assert any("1 detections are the same as an earlier one" in c for c in told["caveats"])
    every = json.loads(refbench("score", tmp_path / "results.json", *options, "--protocol", "all", "--json").stdout)
    assert set(every["protocols"]) == {"sa-co"}
    one = json.loads(refbench("score", tmp_path / "results.json", *options[:2], "--protocol", "all", "--json").stdout)
    assert {"sa-co", "coco-ap", "lvis-ap"} <= set(one["protocols"])
    wrong = refbench("score", tmp_path / "results.json", *options, "--protocol", "coco-ap")
    assert (wrong.returncode, "takes one annotation file" in wrong.stderr) == (2, True)
