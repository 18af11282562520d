"""Kinds of errors: they add up to the last pixel, agree with a restatement on pixels, and name what was injected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.ndimage import maximum_filter, minimum_filter

from refbench import load_samples, run
from refbench.adapters.baselines import NoisyOracle
from refbench.masks.counting import count_errors
from refbench.masks.mask import Mask
from refbench.masks.pairs import ERROR_COLUMNS
from refbench.records import Prediction
from refbench.reports.diagnosis import Diagnosis, diagnose, facts_of
from refbench.reports.error_kinds import KINDS
from refbench.reports.slices import Facts, slices_of
from refbench.storage.predictions import json_line
from refbench.storage.samples import load_objects

EXPECTED = {"swap": "wrong_object", "miss": "missed", "part": "part", "merge": "merged", "invent": "false_alarm"}
EVERYTHING = {"swap": "0.2", "miss": "0.15", "part": "0.2", "merge": "0.2", "invent": "1"}


def check_sums(found: Diagnosis) -> None:
    scores, pixels = found.scores, found.errors.pixels
    assert np.array_equal(pixels.sum(axis=1), scores.union - scores.intersection)
    assert pixels.min() >= 0
    assert sum(x.cumulative_iou for x in found.losses) == pytest.approx(100 - found.metrics["cumulative_iou"], abs=1e-9)
    assert sum(x.mean_iou for x in found.losses) == pytest.approx(100 - found.metrics["mean_iou"], abs=1e-9)
    for part in found.slices:
        assert sum(part.losses.values()) == pytest.approx(100 - part.metrics["mean_iou"].value, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("options", [EVERYTHING, {**EVERYTHING, "dilate": "1"}, {"dilate": "2"}, {"dilate": "3"}])
def test_the_injected_kind_is_the_attributed_kind(embedded: Path, tmp_path: Path, options: dict[str, str]) -> None:
    found = diagnose(run("noisy-oracle", "scenes/test", options=options, out=tmp_path / "run").folder)
    check_sums(found)
    numbers = {k: float(v) if k in EXPECTED else int(v) for k, v in options.items()}
    oracle = NoisyOracle(**numbers)  # type: ignore[arg-type]
    spoilt = right = 0
    for sample, kind in zip(load_samples("scenes/test"), found.errors.names(), strict=True):
        fault = oracle.fault(sample)
        expected = "false_alarm" if sample.no_target else EXPECTED.get(fault, "boundary" if "dilate" in options else "")
        # What an error leaves unchanged (a swap with a twin in the same place) is none.
        if kind:
            spoilt += 1
            right += kind == expected
    assert spoilt > 500
    assert right / spoilt >= 0.95


def test_real_masks_and_crashes_add_up(photos: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    samples = load_samples("refcoco/testB")
    lines = []
    for s in samples[:-2]:
        pixels = np.roll(s.target.to_array(), random.integers(-40, 41, 2), axis=(0, 1))
        pixels ^= random.random(pixels.shape) < 0.01
        lines.append(json_line(Prediction(s.sample_id, Mask.from_array(pixels))))
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    found = diagnose(tmp_path / "p.jsonl", "refcoco/testB", out=tmp_path / "out")
    check_sums(found)
    # The last two are missing from the file: crashes.
    assert found.errors.names()[-2:] == ["failed", "failed"]
    table = pq.read_table(tmp_path / "out" / "errors.parquet")
    assert table.column_names == ["sample_id", "kind", *(f"{kind}_px" for kind in KINDS)]
    assert table.num_rows == len(samples)


def test_a_crash_where_nothing_is_meant_costs_a_sample_and_no_pixel(embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("")
    found = diagnose(tmp_path / "p.jsonl", "scenes/val")
    check_sums(found)
    assert set(found.errors.names()) == {"failed"}
    assert next(x for x in found.losses if x.kind == "failed").mean_iou == pytest.approx(100)


def restated(prediction: np.ndarray, target: np.ndarray, others: list[np.ndarray], band: int) -> dict[str, int]:
    """What the kernel counts, on pixels; windows are cut at the image's border, half-widths see background there."""

    def eroded(d: int, mode: str) -> np.ndarray:
        return minimum_filter(target.astype(np.uint8), size=2 * d + 1, mode=mode) > 0

    half = max((d for d in range(1, 2 * band + 1) if eroded(d, "constant").any()), default=0)
    inside = eroded(min(band, max(1, (half + 1) // 2)), "nearest")
    outside = maximum_filter(target.astype(np.uint8), size=2 * min(band, max(1, half)) + 1, mode="nearest") > 0
    far = prediction & ~outside
    on_others = np.logical_or.reduce(others) if others else np.zeros_like(target)
    found = {
        "deep": inside.sum(),
        "deep_missing": (inside & ~prediction).sum(),
        "band_missing": (target & ~inside & ~prediction).sum(),
        "band_extra": (prediction & outside & ~target).sum(),
        "far_on_others": (far & on_others).sum(),
        "far_elsewhere": (far & ~on_others).sum(),
        **dict.fromkeys(("other_intersection", "other_union", "joint_intersection", "joint_union"), 0),
    }
    hit = [o for o in others if (o & prediction).any()]
    if hit:
        # The first of equally good ones.
        best = max(hit, key=lambda o: (o & prediction).sum() / (o | prediction).sum())
        found["other_intersection"], found["other_union"] = (best & prediction).sum(), (best | prediction).sum()
        joint = best | target
        found["joint_intersection"], found["joint_union"] = (joint & prediction).sum(), (joint | prediction).sum()
    return {name: int(value) for name, value in found.items()}


def test_counts_of_errors_on_pixels() -> None:
    random = np.random.default_rng(1)

    def shape(height: int, width: int) -> np.ndarray:
        mask = np.zeros((height, width), bool)
        for _ in range(random.integers(1, 4)):
            top, bottom = np.sort(random.integers(0, height + 1, 2))
            left, right = np.sort(random.integers(0, width + 1, 2))
            mask[top:bottom, left:right] ^= True
        return mask ^ (random.random((height, width)) < random.choice([0, 0.05]))

    for _ in range(600):
        height, width = (int(v) for v in random.integers(1, 40, 2))
        prediction, target, *others = (shape(height, width) for _ in range(random.integers(2, 6)))
        band = int(random.integers(1, 6))
        codes = [Mask.from_array(o).counts for o in others]
        sizes = np.array([height]), np.array([width]), np.array([band])
        pair = [Mask.from_array(prediction).counts], [Mask.from_array(target).counts]
        (row,) = count_errors(*pair, codes, [range(len(codes))], *sizes)
        assert dict(zip(ERROR_COLUMNS, row.tolist(), strict=True)) == restated(prediction, target, others, band)


def facts(**changes: object) -> Facts:
    n = 24
    base: dict[str, object] = {
        "expressions": ["man"] * 12 + ["the woman to the left of the tall man in front of a car"] * 12,
        "categories": ["person"] * n,
        "split": "val",
        "tagged": {"a": np.arange(n) % 2 == 0},
        "target_area": np.array([100] * 11 + [5000] * 13),
        "at_border": np.zeros(n, bool),
        "look_alikes": np.array([0] * 10 + [1] * 10 + [4] * 4),
    }
    return Facts(**{**base, **changes})  # type: ignore[arg-type]


def test_slices_are_what_they_say() -> None:
    found = {(s.dimension, s.label): int(s.rows.sum()) for s in slices_of(facts())}
    assert found == {
        ("words", "1"): 12,
        ("words", "8+"): 12,
        ("target size", "small"): 11,
        ("target size", "medium"): 13,
        ("position words", "no"): 12,
        ("position words", "yes"): 12,
        ("relation words", "no"): 12,
        ("relation words", "yes"): 12,
        # Four samples with three and more look-alikes are too few to show; the border splits nothing.
        ("look-alikes", "0"): 10,
        ("look-alikes", "1"): 10,
        ("tag", "a"): 12,
    }


def test_look_alikes_and_borders_of_real_annotations(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("")
    scores = diagnose(tmp_path / "p.jsonl", "refcoco/testB").scores
    found = facts_of("refcoco/testB", scores)
    objects = load_objects("refcoco")
    assert found.look_alikes is not None
    for k, s in enumerate(load_samples("refcoco/testB")):
        pixels = s.target.to_array()
        touches = pixels[0].any() or pixels[-1].any() or pixels[:, 0].any() or pixels[:, -1].any()
        assert found.at_border[k] == touches
        alike = [o for o in objects if o.image_id == s.image_id and o.category == s.category]
        assert found.look_alikes[k] == len([o for o in alike if o.ann_id not in s.ann_ids])
    # Both kinds occur, so neither comparison is one of constants.
    assert 0 < found.at_border.sum() < len(found.at_border) or len(set(found.look_alikes.tolist())) > 1
