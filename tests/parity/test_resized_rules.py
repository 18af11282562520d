"""Rules that compare on a canvas of their own, restated with the libraries that the originals resize with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from published_cases import (
    SIZE,
    Case,
    corners,
    filled,
    hole,
    random_cases,
    rectangle,
    refbench_says,
    union,
    with_names,
)
from pycocotools import mask as coco_mask

from refbench.masks.mask import Mask
from refbench.scoring.protocols.canvases import (
    LONG_384,
    LONG_640,
    SQUARE_320,
    SQUARE_384,
    SQUARE_448,
    SQUARE_480,
    SQUARE_512,
    Canvas,
)

Resize = Callable[[np.ndarray], np.ndarray]
TENTHS = (5, 6, 7, 8, 9)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return with_names(corners() + random_cases(2000, 8))


def by_pillow(side: int) -> Resize:
    def resize(mask: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(picture.resize((side, side), Image.Resampling.NEAREST)) > 0

    return resize


def by_opencv(height: int, width: int) -> Resize:
    return lambda mask: cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def by_torch(height: int, width: int) -> Resize:
    def resize(mask: np.ndarray) -> np.ndarray:
        picture = torch.from_numpy(mask.astype(np.float32))[None, None]
        return torch.nn.functional.interpolate(picture, size=(height, width), mode="nearest")[0, 0].numpy() > 0.5

    return resize


def pairs_of(
    cases: Sequence[Case], target: Callable[[Case], np.ndarray], resize: Resize
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(resize(c.prediction), resize(target(c))) for c in cases]


def sums(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, int]]:
    return [(int((p & t).sum()), int((p | t).sum())) for p, t in pairs]


def overall(counts: Sequence[tuple[int, int]]) -> float:
    below = sum(u for _, u in counts)
    return 100 * sum(i for i, _ in counts) / below if below else 0.0


def reached(counts: Sequence[tuple[int, int]], tenths: int) -> float:
    """The share whose I / U is at least so many tenths, as fractions."""
    return 100 * float(np.mean([u > 0 and Fraction(i, u) >= Fraction(tenths, 10) for i, u in counts]))


def caris(cases: Sequence[Case]) -> dict[str, float]:
    counts = sums(pairs_of(cases, hole, by_pillow(448)))
    iou = torch.tensor([i for i, _ in counts]).float() / torch.tensor([u for _, u in counts]).float()
    return {
        # The sum is the original's in float32; here its float32 values are summed in float64.
        "Mean IoU": 100 * iou.double().mean().item(),
        **{f"precision@0.{t}": 100 * (iou >= t / 10).sum().item() / len(cases) for t in (5, 7, 9)},
        "overall IoU": overall(counts),
    }


def polyformer(cases: Sequence[Case]) -> dict[str, float]:
    pairs = pairs_of(cases, hole, by_opencv(512, 512))
    counts = sums(pairs)
    ious = [i / u if u else 0.0 for i, u in counts]
    f_scores = []
    for (prediction, target), (i, _) in zip(pairs, counts, strict=True):
        precision, recall = (i + 1e-6) / (prediction.sum() + 1e-6), (i + 1e-6) / (target.sum() + 1e-6)
        f_scores.append(2 * precision * recall / (precision + recall))
    return {
        "mIoU score": 100 * float(np.mean(ious)),
        "oIoU score": overall(counts),
        "f score": 100 * float(np.mean(f_scores)),
        "J&F": 100 * (float(np.mean(f_scores)) + float(np.mean(ious))) / 2,
        **{f"prec@0.{t}": reached(counts, t) for t in TENTHS},
    }


def seqtr(cases: Sequence[Case]) -> dict[str, float]:
    """pycocotools' iou, asked for crowds where one object has several polygons; 40 x 50 becomes 512 x 640."""
    ious = []
    for case in cases:
        p, t = (
            coco_mask.encode(np.asfortranarray(by_opencv(512, 640)(m).astype(np.uint8)))
            for m in (case.prediction, union(case))
        )
        several = int(len(case.polygons) > 1 and not case.others)
        # Two empty masks, which the original has none of, are no number to pycocotools.
        ious.append(float(np.nan_to_num(coco_mask.iou([p], [t], [several]))[0, 0]))
    values = np.array(ious)
    return {
        "mIoU": 100 * values.mean(),
        **{f"MaskACC@0.{t}": 100 * float((values >= t / 10).mean()) for t in TENTHS},
    }


def c3vg(cases: Sequence[Case]) -> dict[str, float]:
    counts = sums(pairs_of(cases, union, by_opencv(320, 320)))
    iou = torch.tensor([torch.tensor(i) / torch.tensor(u) if u >= 1 else 0 for i, u in counts])
    assert iou.dtype == torch.float32
    return {
        "mIoU": 100 * iou.double().mean().item(),
        "oIoU": overall(counts),
        **{f"MaskACC@0.{t}": 100 * (iou >= t / 10).float().mean().item() for t in TENTHS},
    }


def oneref(cases: Sequence[Case]) -> dict[str, float]:
    """40 x 50 becomes 307 x 384, in the middle of a square whose rest is background in both masks."""
    counts = sums(pairs_of(cases, union, by_torch(round(40 * 384 / 50), 384)))
    iou = torch.tensor([i for i, _ in counts]).float() / torch.tensor([u for _, u in counts]).float()
    return {"mIoU": 100 * iou.double().mean().item(), "oIoU": overall(counts)}


def deris_gres(cases: Sequence[Case]) -> dict[str, float]:
    counts = sums(pairs_of(cases, union, by_opencv(384, 384)))
    nt = {"TP": 0, "TN": 0, "FP": 0, "FN": 0}
    total = top = bottom = 0.0
    found = dict.fromkeys((7, 8, 9), 0)
    for case, (i, u) in zip(cases, counts, strict=True):
        if not case.polygons:
            nt["TP" if case.flag else "FN"] += 1
            total += case.flag
            bottom += 0 if case.flag else u
            continue
        nt["FP" if case.flag else "TN"] += 1
        i = 0 if case.flag else i
        top, bottom = top + i, bottom + u
        total += i / u if u else 0.0
        for t in found:
            found[t] += u > 0 and Fraction(i, u) >= Fraction(t, 10)
    targets = max(nt["TN"] + nt["FP"], 1)
    any_empty = nt["TP"] + nt["FN"] > 0
    return {
        "gIoU": 100 * total / len(cases),
        "cIoU": 100 * top / bottom if bottom else 0.0,
        "T_acc": 100 * nt["TN"] / targets if any_empty else 0.0,
        "N_acc": 100 * nt["TP"] / (nt["TP"] + nt["FN"]) if any_empty else 0.0,
        **{f"Pr@0.{t}": 100 * n / targets for t, n in found.items()},
    }


def deris_refzom(cases: Sequence[Case]) -> dict[str, float]:
    some = [c for c in cases if c.polygons]
    counts = sums(pairs_of(some, union, by_opencv(384, 384)))
    nothing = [c.flag for c in cases if not c.polygons]
    return {
        "mIoU": 100 * float(np.mean([i / u if u else 0.0 for i, u in counts])) if some else 0.0,
        "oIoU": overall(counts),
        "macc": 100 * float(np.mean(nothing)) if nothing else 0.0,
        **{f"MaskACC@0.{t}": reached(counts, t) if some else 0.0 for t in TENTHS},
    }


RULES = {
    "caris-448": caris,
    "polyformer-512": polyformer,
    "seqtr": seqtr,
    "c3vg": c3vg,
    "oneref": oneref,
    "deris-gres": deris_gres,
    "deris-refzom": deris_refzom,
}


# float32 means of the original, here averaged in float64: a last float32 multiplication by 100 is left out.
TOLERANCE = {"c3vg": 1e-5}


def same(found: dict[str, float], expected: dict[str, float], name: str) -> bool:
    assert list(found) == list(expected)
    return found == pytest.approx(expected, abs=TOLERANCE.get(name, 1e-9), nan_ok=True)


@pytest.mark.slow
def test_every_rule_on_all_cases(cases: list[Case], home: Path, tmp_path: Path) -> None:
    found = refbench_says(cases, tmp_path, list(RULES))
    for name, rule in RULES.items():
        assert same(found[name], rule(cases), name), name
    # Two empty masks are among them, which leave these two without a mean.
    assert np.isnan(found["caris-448"]["Mean IoU"])
    assert np.isnan(found["oneref"]["mIoU"])


@pytest.mark.parametrize("name", list(RULES))
def test_each_corner_alone(name: str, home: Path, tmp_path: Path) -> None:
    groups: dict[str, list[Case]] = {}
    for case in with_names(corners()):
        groups.setdefault(case.image, []).append(case)
    for image, group in groups.items():
        assert same(refbench_says(group, tmp_path, [name])[name], RULES[name](group), name), image


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caris-448", "oneref"])
def test_without_empty_pairs_the_means_have_a_value(name: str, cases: list[Case], home: Path, tmp_path: Path) -> None:
    some = [c for c in cases if c.polygons]
    found = refbench_says(some, tmp_path, [name])[name]
    assert same(found, RULES[name](some), name)
    assert all(np.isfinite(v) for v in found.values())


def test_an_object_of_several_polygons_is_a_crowd_to_seqtr(home: Path, tmp_path: Path) -> None:
    parts = [rectangle(0, 0, 10, 10), rectangle(30, 0, 40, 10)]
    half = with_names([Case("a", parts, filled(0, 0, 10, 10), False)])
    found = refbench_says(half, tmp_path, ["seqtr", "c3vg"])
    # One of the two parts is found, and nothing else: all of what was found is right.
    assert found["seqtr"]["mIoU"] == 100
    assert found["c3vg"]["mIoU"] == pytest.approx(50, abs=1)
    # The same two parts as two objects are no crowd.
    two = with_names([Case("b", parts[:1], filled(0, 0, 10, 10), False, others=[parts[1:]])])
    assert refbench_says(two, tmp_path, ["seqtr"])["seqtr"]["mIoU"] == pytest.approx(50, abs=1)


SIDES = [*range(1, 70), 100, 127, 240, 319, 320, 321, 333, 375, 383, 427, 448, 479, 480, 500, 511, 512, 640, 641, 1023]


@pytest.mark.parametrize("canvas", [SQUARE_480, SQUARE_448, SQUARE_512, SQUARE_384, SQUARE_320, LONG_640, LONG_384])
def test_a_canvas_takes_the_pixels_that_its_library_takes(canvas: Canvas) -> None:
    random = np.random.default_rng(3)
    sizes = [(h, w) for h, w in zip(SIDES, random.permutation(SIDES).tolist(), strict=True)]
    for height, width in [*sizes, (1, 1), (1, 900), (900, 1), SIZE]:
        pixels = random.random((height, width)) < 0.5
        new = canvas.size_of(height, width)
        resize = {
            "pillow_nearest": lambda m, new=new: by_pillow(new[0])(m),
            "opencv_nearest": lambda m, new=new: by_opencv(*new)(m),
            "torch_nearest": lambda m, new=new: by_torch(*new)(m),
        }[canvas.nearest.__name__]
        assert np.array_equal(canvas.resized(Mask.from_array(pixels)).to_array(), resize(pixels)), (height, width)


def test_sides_of_a_canvas_that_keeps_proportions() -> None:
    # mmcv adds a half and cuts off; OneRef rounds, halves to even.
    assert LONG_640.size_of(480, 640) == (480, 640)
    assert LONG_640.size_of(333, 500) == (int(333 * (640 / 500) + 0.5), 640)
    assert LONG_384.size_of(375, 500) == (288, 384)
    assert LONG_384.size_of(500, 5) == (384, round(5 * (384 / 500)))
    assert LONG_640.size_of(4000, 1) == (640, 1)
