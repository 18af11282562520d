"""Protocols, resampling, error kinds and the gate on the published RefCOCO val: seconds, and ratios against peers."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import moved_targets, process_cost, temporary_home, test_data
from refbench.datasets.builders import refer
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.plugins.loading import load
from refbench.records import Prediction
from refbench.reports.diagnosis import diagnose
from refbench.scoring.counting import Drawing, count
from refbench.scoring.counts import ScoreTable, read_scores
from refbench.scoring.protocols.base import Evidence, sums_of
from refbench.scoring.protocols.canvases import ORIGINAL
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.scorer import score
from refbench.scoring.statistics.bootstrap import ImageSums, _kept_draws, replicates_of
from refbench.storage.predictions import json_line
from refbench.storage.progress import silent
from refbench.storage.samples import load_samples

CORE = (
    "refbench lavt-480 magnet-480 cris vlt lisa evf-sam sa2va mllmseg-res glamm-3 psalm xdecoder uninext mmdet-refseg "
    "refcoco-m samtok-bench"
).split()
REPLICATES = 2000
# So many resamples of the peer are timed, which takes long enough.
PEER_REPLICATES = 20


def measure() -> dict[str, Any]:
    """Medians of turns; the gate as a whole process."""
    with temporary_home() as folder:
        return _measure(folder)


def _measure(folder: Path) -> dict[str, Any]:
    build_dataset("refcoco", refer.build, Sources(test_data() / "whole-splits" / "refer"), silent)
    samples = load_samples("refcoco/val")
    moved = moved_targets(samples)
    with (folder / "predictions.jsonl").open("w") as file:
        for s in samples:
            file.write(json_line(Prediction(s.sample_id, moved[s.ref_id])) + "\n")
    source = folder / "predictions.jsonl"
    original = [name for name in CORE if load("protocols", name).canvas == ORIGINAL]
    score(source, "refcoco/val", out=folder / "scored")
    scores = read_scores(folder / "scored" / "scores.parquet")
    sums = sums_of(REFBENCH, Evidence(scores))
    ours = _seconds(lambda: _afresh([sums]), 5)
    rules = [load("protocols", name) for name in CORE]
    counted = count(source, "refcoco/val", [Drawing.of(r) for r in rules], list(rules[-1].measures))
    of_all = [sums_of(rule, counted.evidence(rule)) for rule in rules]
    peer = _seconds(lambda: _rows_resampled(scores, PEER_REPLICATES), 1) * REPLICATES / PEER_REPLICATES
    run = str(folder / "scored")
    gate, gate_megabytes = process_cost([sys.executable, "-m", "refbench", "gate", run, "--baseline", run])
    return {
        "expressions": len(samples),
        f"{len(original)} core protocols on the original canvas, s (wanted at most 3)": _seconds(
            lambda: score(source, "refcoco/val", protocols=original), 3
        ),
        f"all {len(CORE)} core protocols, s (wanted at most 60)": _seconds(
            lambda: score(source, "refcoco/val", protocols=CORE), 1
        ),
        "every protocol that applies, s": _seconds(lambda: score(source, "refcoco/val", protocols=["all"]), 1),
        f"{REPLICATES} resamples of {len(REFBENCH.metrics)} metrics by image, s (wanted at most 0.5)": ours,
        f"{REPLICATES} resamples of the {sum(len(s.top) for s in of_all)} metrics of the core protocols, s": _seconds(
            lambda: _afresh(of_all), 5
        ),
        f"the {len(REFBENCH.metrics)} metrics by indexing rows in numpy, s": peer,
        "times faster than indexing rows": peer / ours,
        "diagnose, s": _seconds(lambda: diagnose(source, "refcoco/val"), 3),
        "refbench gate as a process, s (wanted at most 2)": gate,
        "refbench gate, peak memory, MB": gate_megabytes,
    }


def _afresh(sums: list[ImageSums]) -> None:
    """Resample as a process does that has drawn nothing yet."""
    _kept_draws.cache_clear()
    for one in sums:
        replicates_of(one, REPLICATES)


def _seconds(call: Callable[[], object], turns: int) -> float:
    """The median of some turns, after one that compiles and fills caches."""
    found = []
    for turn in range(turns + 1):
        began = time.perf_counter()
        call()
        if turn or turns == 1:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def _rows_resampled(scores: ScoreTable, replicates: int) -> float:
    """What a script does: draw images, gather their rows, compute every metric of the default protocol again."""
    images: dict[str, list[int]] = {}
    for row, image in enumerate(scores.image_id):
        images.setdefault(image, []).append(row)
    groups = [np.array(rows) for rows in images.values()]
    random = np.random.default_rng(0)
    total = 0.0
    for _ in range(replicates):
        rows = np.concatenate([groups[k] for k in random.integers(0, len(groups), len(groups))])
        top, bottom = scores.intersection[rows], scores.union[rows]
        band, either = scores.boundary_intersection[rows], scores.boundary_union[rows]
        iou = np.where(bottom > 0, top / np.maximum(bottom, 1), 1.0)
        total += top.sum() / bottom.sum() + iou.mean() + band.sum() / either.sum()
        total += np.where(either > 0, band / np.maximum(either, 1), 1.0).mean()
        total += sum(float((iou >= t).mean()) for t in (0.5, 0.6, 0.7, 0.8, 0.9))
    return float(total)
