"""The score of perfect masks, computed directly; the order of runs on two versions of a split, by scipy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation.bright_objects import build_bright
from scipy.stats import kendalltau

from refbench import load_samples, run
from refbench.curation.differences import diff, rank_stability
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError, RunError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load
from refbench.reports import ceilings
from refbench.reports.ceilings import ceiling, masks_of_version
from refbench.scoring.scorer import score
from refbench.scoring.statistics.rank_correlation import kendall_tau
from refbench.storage.progress import silent

Cli = Callable[..., Any]


def direct(pairs: list[tuple[Mask, Mask]]) -> tuple[float, float]:
    """Cumulative and mean IoU of decoded masks, in percent; two empty masks are right."""
    inter = np.array([(a.to_array() & b.to_array()).sum() for a, b in pairs], float)
    union = np.array([(a.to_array() | b.to_array()).sum() for a, b in pairs], float)
    ious = np.where(union > 0, inter / np.maximum(union, 1), 1)
    return 100 * inter.sum() / union.sum(), 100 * ious.mean()


def test_scenes_judged_by_hurried_outlines(hurried: Path, refbench: Cli) -> None:
    done = refbench("ceiling", "scenes-hurried/val", "scenes/val", "--json")
    content = json.loads(done.stdout)
    perfect = {s.sample_id.split("/", 2)[2]: s for s in load_samples("scenes/val")}
    pairs = [
        (perfect[key].target, s.target)
        for s in load_samples("scenes-hurried/val")
        if (key := s.sample_id.split("/", 2)[2]) in perfect
    ]
    assert content["samples"] == len(pairs) > 100
    cumulative, mean = direct(pairs)
    assert content["metrics"]["cumulative_iou"]["value"] == pytest.approx(cumulative, abs=1e-9)
    assert content["metrics"]["mean_iou"]["value"] == pytest.approx(mean, abs=1e-9)
    estimate = content["metrics"]["mean_iou"]
    assert estimate["low"] < estimate["value"] < estimate["high"] < 100
    assert len(content["slices"]) > 5
    assert "slices" in refbench("ceiling", "scenes-hurried/val", "scenes/val").stdout


def test_true_masks_from_a_file(home: Path, tmp_path: Path, refbench: Cli) -> None:
    truth = build_bright(tmp_path / "a", "refcoco", 9)
    content = json.loads(refbench("ceiling", "refcoco/val", truth, "--json").stdout)
    known = {
        k: Mask.from_rle({"size": v["size"], "counts": v["counts"]}) for k, v in json.loads(truth.read_text()).items()
    }
    pairs = [(known[s.ann_ids[0]], s.target) for s in load_samples("refcoco/val")]
    assert content["metrics"]["mean_iou"]["value"] == pytest.approx(direct(pairs)[1], abs=1e-9)
    assert content["left_out"] == 0


@pytest.mark.slow
def test_photographs(test_data: Path, home: Path, refbench: Cli) -> None:
    folder = test_data / "truth-photos"
    build_dataset("refcoco", load("builders", "refcoco"), Sources(folder / "refer", folder / "images"), silent)
    content = json.loads(refbench("ceiling", "refcoco/val", folder / "truth.json", "--json").stdout)
    known = json.loads((folder / "truth.json").read_text())
    pairs = [
        (Mask.from_rle({k: known[s.ann_ids[0]][k] for k in ("size", "counts")}), s.target)
        for s in load_samples("refcoco/val")
        if len(s.ann_ids) == 1 and s.ann_ids[0] in known
    ]
    cumulative, mean = direct(pairs)
    assert content["metrics"]["cumulative_iou"]["value"] == pytest.approx(cumulative, abs=1e-9)
    assert content["metrics"]["mean_iou"]["value"] == pytest.approx(mean, abs=1e-9)
    assert 0.69 < content["metrics"]["mean_boundary_iou"]["value"] / 100 < 0.73


def test_versions_that_have_nothing_in_common(hurried: Path) -> None:
    with pytest.raises(DatasetError, match="have nothing in common"):
        ceiling("scenes/val", {})
    first = load_samples("scenes/val")[0]
    with pytest.raises(DatasetError, match="the images are different"):
        ceiling("scenes/val", {first.sample_id: Mask.full(3, 3)})
    same = ceiling("scenes/val", masks_of_version("scenes/val", "scenes/val"))
    assert same.metrics["cumulative_iou"].value == 100
    assert same.metrics["mean_boundary_iou"].value == 100


def test_versions_with_other_numbers_are_matched_by_image_words_and_mask(photos: Path) -> None:
    """RefCOCO-M numbers its masks and expressions anew."""
    samples = load_samples("refcoco/val")
    found = masks_of_version("refcoco/val", "refcoco/val")
    assert found == {s.sample_id: s.target for s in samples}
    renumbered = [
        dataclasses.replace(s, sample_id=f"refcoco-m/val/{900 + k}/{k % 3}", ref_id=str(k))
        for k, s in enumerate(samples)
    ]
    patch = pytest.MonkeyPatch()
    patch.setattr(ceilings, "load_samples", lambda a: samples if a == "refcoco/val" else renumbered[::-1])
    matched = masks_of_version("refcoco/val", "refcoco-m/val")
    patch.undo()
    assert matched == found


@pytest.mark.parametrize("ties", [False, True])
def test_kendalls_tau_is_that_of_scipy(ties: bool) -> None:
    random = np.random.default_rng(0)
    for n in (2, 3, 7, 20):
        for _ in range(20):
            a, b = (random.integers(0, 4, n).astype(float) if ties else random.random(n) for _ in range(2))
            assert kendall_tau(a, b) == pytest.approx(float(kendalltau(a, b).statistic), nan_ok=True)


def test_how_stable_a_ranking_is(hurried: Path, tmp_path: Path, refbench: Cli) -> None:
    folders = [
        run("noisy-oracle", "scenes-hurried/val", options=options, out=tmp_path / str(k)).folder
        for k, options in enumerate(({"dilate": "1"}, {"dilate": "4"}, {"shift": "3"}))
    ]
    found = diff("scenes-hurried/val", "scenes/val", folders)
    for metric, tau in found.stability.items():
        old, new = ([getattr(r, side)[metric].value for r in found.runs] for side in ("left", "second"))
        assert tau.value == pytest.approx(kendalltau(old, new).statistic)
        assert -1 <= tau.low <= tau.high <= 1
    done = refbench(
        "curate", "diff", "scenes-hurried/val", "scenes/val", *(w for f in folders for w in ("--run", f)), "--json"
    )
    told = json.loads(done.stdout)["kendall_tau"]
    assert {m: t["value"] for m, t in told.items()} == {m: e.value for m, e in found.stability.items()}
    short = run("center", "scenes-hurried/val", out=tmp_path / "short", limit=20).folder
    with pytest.raises(RunError, match="the runs have different samples"):
        diff("scenes-hurried/val", "scenes/val", [*folders, short])
    table = score(folders[0]).scores
    # With itself, every ranking of different runs is the same.
    other = score(folders[1]).scores
    assert rank_stability([(table, table), (other, other)])["mean_iou"].value == 1
