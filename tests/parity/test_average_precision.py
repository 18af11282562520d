"""AP: the published results, other people's evaluators, and LVIS's federated rule restated in numpy."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detection_reference import code_of, federated_ap
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refbench.errors import DatasetError, PredictionError
from refbench.scoring.protocols.average_precision import (
    BOUNDARY_AP,
    COCO_AP,
    COCO_NAMES,
    LVIS_AP,
    DetectionProtocol,
    score_detections,
)
from refbench.scoring.protocols.coco_files import read_annotations

Call = Callable[..., subprocess.CompletedProcess[str]]


def scored(protocol: DetectionProtocol, ground_truth: Path, results: Path) -> dict[str, float]:
    return score_detections([read_annotations(ground_truth)], results, [protocol])[protocol.name].metrics


def perturbed(path: Path, out: Path, seed: int) -> Path:
    """Detections made of the annotations: shifted, dropped, doubled, mislabelled, with scores that tie at times."""
    rng = random.Random(seed)
    content = json.loads(path.read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    classes = sorted({a["category_id"] for a in content["annotations"]})
    rows = []
    for annotation in content["annotations"]:
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            mask = coco_mask.decode(code_of(annotation, *sizes[annotation["image_id"]]))
            mask = np.roll(mask, (rng.randrange(-4, 5), rng.randrange(-4, 5)), axis=(0, 1))
            code = coco_mask.encode(np.asfortranarray(mask))
            rows.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if rng.random() < 0.85 else rng.choice(classes),
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                    "score": round(rng.random(), 2),
                }
            )
    out.write_text(json.dumps(rows))
    return out


def test_the_published_figures_of_coco(test_data: Path) -> None:
    folder = test_data / "coco-results"
    found = scored(
        COCO_AP,
        folder / "instances_val2014_100.json",
        folder / "instances_val2014_fakesegm100_results.json",
    )
    text = (folder / "val2014_fake_eval_res.txt").read_text()
    masks = text.partition("type=segm")[2].partition("type=")[0]
    published = [float(v) for v in re.findall(r"\] = (\d\.\d+)", masks)]
    assert len(published) == 12
    assert [round(found[name] / 100, 3) for name in COCO_NAMES] == published


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_boundary_ap_against_two_other_evaluators(test_data: Path, tmp_path: Path, seed: int) -> None:
    faster = pytest.importorskip("faster_coco_eval")
    vernier = pytest.importorskip("vernier")
    truth = test_data / "coco128" / "annotations" / "instances_train2017.json"
    results = perturbed(truth, tmp_path / "results.json", seed)
    found = scored(BOUNDARY_AP, truth, results)
    peer = faster.COCO(str(truth))
    theirs = faster.COCOeval_faster(peer, peer.loadRes(str(results)), iouType="boundary")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    assert np.allclose([found[n] / 100 for n in COCO_NAMES], theirs.stats[:12], atol=1e-9)
    assert found["AP"] < scored(COCO_AP, truth, results)["AP"]
    loaded = COCO(str(truth)).loadRes(str(results))
    for row in loaded.dataset["annotations"]:
        # pycocotools makes arrays of the boxes, which vernier does not take.
        row["bbox"] = [float(v) for v in row["bbox"]]
    other = vernier.COCOeval(COCO(str(truth)), loaded, "boundary")
    other.evaluate()
    other.accumulate()
    other.summarize()
    assert np.allclose([found[n] / 100 for n in COCO_NAMES], other.stats[:12], atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_lvis_ap_against_its_rule(test_data: Path, tmp_path: Path, seed: int) -> None:
    pytest.importorskip("hotcoco")
    truth = test_data / "lvis" / "lvis_val_100.json"
    results = perturbed(truth, tmp_path / "results.json", seed)
    found = scored(LVIS_AP, truth, results)
    expected = federated_ap(json.loads(truth.read_text()), json.loads(results.read_text()))
    assert found["AP"] == pytest.approx(100 * expected["AP"], abs=1e-8)
    assert found["AP50"] == pytest.approx(100 * expected["AP50"], abs=1e-8)
    for group in "rcf":
        assert found[f"AP{group}"] == pytest.approx(100 * expected[f"AP{group}"], abs=1e-8)


@pytest.mark.slow
def test_the_command_on_plain_coco_files(test_data: Path, refbench: Call) -> None:
    folder = test_data / "coco-results"
    results, truth = folder / "instances_val2014_fakesegm100_results.json", folder / "instances_val2014_100.json"
    done = refbench("score", results, "--ground-truth", truth, "--protocol", "coco-ap", "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["protocols"]["coco-ap"]["metrics"]
    assert list(metrics) == list(COCO_NAMES)
    assert metrics["AP"] == pytest.approx(31.9545, abs=1e-3)
    every = refbench("score", results, "--ground-truth", truth, "--protocol", "all", "--json")
    assert set(json.loads(every.stdout)["protocols"]) == {"coco-ap", "boundary-ap"}
    assert "lvis-ap is left out" in every.stderr
    assert refbench("score", results, "--ground-truth", truth, "--protocol", "refbench").returncode == 2
    assert refbench("score", results, "--ground-truth", truth, "--dataset", "refcoco/val").returncode == 2
    lvis = refbench("score", results, "--ground-truth", truth, "--protocol", "lvis-ap")
    assert lvis.returncode == 3
    assert "use --protocol coco-ap" in lvis.stderr
    wrong = refbench("score", results, "--dataset", "scenes/test", "--protocol", "coco-ap")
    assert "pass --ground-truth" in wrong.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rows[1]['image_id'] = 5", "entry 1: its `image_id` 5 is not in"),
        ("rows[1]['category_id'] = 999", "entry 1: its `category_id` 999 is not in"),
        ("del rows[1]['score']", "entry 1: its `score` is missing; it is"),
        ("rows[1]['score'] = float('nan')", "entry 1: its `score` must be a finite number, got nan; it is the number"),
        (
            "rows[1]['segmentation'] = {'size': [2, 2], 'counts': '04'}",
            r"entry 1: its mask must have the same size as its image, .* got \[2, 2\]",
        ),
        ("rows[1]['segmentation']['counts'] = 'zz'", "entry 1:.*invalid run-length code"),
        ("rows[1]['segmentation'] = []", r"entry 1: its `segmentation` must be polygons .*, got \[\]"),
        ("rows[1] = 7", "entry 1: it must be an object, got 7"),
        ("del truth['annotations'][0]['area']", "its `area` is missing; it is"),
        (
            "truth['annotations'][0]['image_id'] = 1",
            r"annotations\[0\] \(id 1774\): its `image_id` 1 is not in",
        ),
        ("del truth['images']", "is not a COCO annotation file"),
        ("del truth['images'][0]['height']", "images\\[0\\] \\(id \\d+\\): it has no height"),
    ],
)
def test_files_that_cannot_be_scored(test_data: Path, tmp_path: Path, change: str, message: str) -> None:
    folder = test_data / "coco-results"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    rows = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())[:5]
    exec(change, {"rows": rows, "truth": truth})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises((PredictionError, DatasetError), match=message):
        scored(COCO_AP, tmp_path / "truth.json", tmp_path / "rows.json")


def test_no_detections_and_nothing_to_find(test_data: Path, tmp_path: Path) -> None:
    truth = test_data / "coco-results" / "instances_val2014_100.json"
    (tmp_path / "none.json").write_text("[]")
    assert scored(COCO_AP, truth, tmp_path / "none.json")["AP"] == 0.0
    content = json.loads(truth.read_text())
    # Large objects alone: of small ones there is no figure, which is not the same as 0.
    content["annotations"] = [a for a in content["annotations"] if a["area"] > 96**2 and not a["iscrowd"]][:20]
    (tmp_path / "large.json").write_text(json.dumps(content))
    results = perturbed(tmp_path / "large.json", tmp_path / "results.json", 1)
    found = scored(COCO_AP, tmp_path / "large.json", results)
    assert np.isnan(found["APs"])
    assert found["APl"] > 0


# SGinW: the files of a submission, here of three sets with the annotations and results published with pycocotools.


@pytest.fixture
def sets(test_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of annotation files, and one of results: all detections, every second one, and those of low scores."""
    place = test_data / "coco-results"
    rows = json.loads((place / "instances_val2014_fakesegm100_results.json").read_text())
    chosen = {"Elephants": rows, "Hand-Metal": rows[::2], "Cows": [r for r in rows if r["score"] < 0.5]}
    truth, results = tmp_path / "seginw", tmp_path / "results"
    results.mkdir()
    for name, detections in chosen.items():
        folder = truth / name / "valid"
        folder.mkdir(parents=True)
        shutil.copy(place / "instances_val2014_100.json", folder / "_annotations_min1cat.coco.json")
        # X-Decoder writes an underscore, sam-hq a hyphen.
        separator = "-" if name == "Cows" else "_"
        (results / f"seginw{separator}{name}_val.json").write_text(json.dumps(detections))
    return truth, results


def ap_by_pycocotools(truth: Path, results: Path) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


@pytest.mark.slow
def test_sginw_is_mean_and_median_over_the_sets(sets: tuple[Path, Path], tmp_path: Path, refbench: Call) -> None:
    truth, results = sets
    found = json.loads(refbench("score", results, "--ground-truth", truth, "--protocol", "sginw", "--json").stdout)
    metrics = found["protocols"]["sginw"]["metrics"]
    each = [
        ap_by_pycocotools(truth / name / "valid" / "_annotations_min1cat.coco.json", results / file)
        for name, file in (
            ("Cows", "seginw-Cows_val.json"),
            ("Elephants", "seginw_Elephants_val.json"),
            ("Hand-Metal", "seginw_Hand-Metal_val.json"),
        )
    ]
    assert metrics["Elephants"] == pytest.approx(32.0, abs=0.05)
    assert [metrics[n] for n in ("Cows", "Elephants", "Hand-Metal")] == pytest.approx(each)
    assert len(set(each)) == 3
    assert metrics["Average Score"] == pytest.approx(np.mean(each))
    assert metrics["Median Score"] == pytest.approx(np.median(each))
    assert len(found["missing"]) == 22
    # The zip of a submission says the same, whatever folders it holds.
    with zipfile.ZipFile(tmp_path / "submission.zip", "w") as archive:
        for path in results.iterdir():
            archive.write(path, f"../../somewhere/{path.name}")
    zipped = refbench("score", tmp_path / "submission.zip", "--ground-truth", truth, "--json")
    assert json.loads(zipped.stdout) == found
    assert "22 sets are missing" in zipped.stderr


@pytest.mark.slow
def test_an_empty_list_leaves_the_mean_without_a_value(sets: tuple[Path, Path], refbench: Call) -> None:
    truth, results = sets
    (results / "seginw-Cows_val.json").write_text("[]")
    found = json.loads(refbench("score", results, "--ground-truth", truth, "--json").stdout)
    metrics = found["protocols"]["sginw"]["metrics"]
    assert metrics["Cows"] is metrics["Average Score"] is metrics["Median Score"] is None


@pytest.mark.slow
def test_submissions_that_cannot_be_scored(sets: tuple[Path, Path], tmp_path: Path, refbench: Call) -> None:
    truth, results = sets

    def error(*arguments: str | Path) -> str:
        done = refbench("score", *arguments)
        assert done.returncode == 3, done.stdout + done.stderr
        return done.stderr

    (tmp_path / "empty").mkdir()
    assert "contains no file seginw_<name>_val.json" in error(tmp_path / "empty", "--ground-truth", truth)
    (tmp_path / "no.zip").write_text("no zip")
    assert "neither a folder of results nor a readable zip" in error(tmp_path / "no.zip", "--ground-truth", truth)
    shutil.copy(results / "seginw-Cows_val.json", results / "seginw_Cows_val.json")
    assert "contains two files for Cows" in error(results, "--ground-truth", truth)
    (results / "seginw_Cows_val.json").rename(results / "seginw_Horses_val.json")
    assert "seginw_Horses_val.json belongs to none of the 25 sets" in error(results, "--ground-truth", truth)
    (results / "seginw_Horses_val.json").rename(results / "seginw_Phones_val.json")
    assert "Phones/valid/_annotations_min1cat.coco.json does not exist" in error(results, "--ground-truth", truth)
    usage = refbench("score", results, "--ground-truth", truth, "--protocol", "coco-ap")
    assert (usage.returncode, "coco-ap needs" in usage.stderr) == (2, True)
