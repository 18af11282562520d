"""Rules of newer systems at the image's own size, boxes of GREC, and papers that follow a rule that is here already."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from published_cases import (
    Case,
    areas,
    box_of,
    corners,
    filled,
    hole,
    random_cases,
    rectangle,
    refbench_says,
    union,
    with_names,
)

from refbench.plugins.loading import available, load
from refbench.scoring.protocols.base import Protocol


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return with_names(corners() + random_cases(2400, 11))


def cris_family(cases: Sequence[Case]) -> tuple[float, float, dict[str, float]]:
    pairs = [areas(c, union(c)) for c in cases]
    ious = torch.from_numpy(np.array([i / (u + 1e-6) for i, u in pairs]))
    names = ("Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90")
    thresholds = torch.arange(0.5, 1.0, 0.1)
    shares = {n: 100 * (ious > t).double().mean().item() for n, t in zip(names, thresholds, strict=True)}
    below = sum(u for _, u in pairs)
    return 100 * ious.mean().item(), 100 * sum(i for i, _ in pairs) / below if below else 0.0, shares


def cgformer(cases: Sequence[Case]) -> dict[str, float]:
    mean, overall, precision = cris_family(cases)
    return {"oIoU": overall, "mIoU": mean, **precision}


def detris(cases: Sequence[Case]) -> dict[str, float]:
    mean, overall, precision = cris_family(cases)
    return {"Mean IoU": mean, **precision, "Overall IoU": overall}


def etris(cases: Sequence[Case]) -> dict[str, float]:
    mean, _, precision = cris_family(cases)
    return {"IoU": mean, **precision}


def mlcd_seg(cases: Sequence[Case]) -> dict[str, float]:
    """Each record, here an image, counts its mean once."""
    records: dict[str, list[float]] = {}
    pairs = [areas(c, union(c)) for c in cases]
    for case, (i, u) in zip(cases, pairs, strict=True):
        records.setdefault(case.image, []).append(i / (u + 1e-5) if u else 1.0)
    return {
        "class_iou": 100 * sum(i for i, _ in pairs) / (sum(u for _, u in pairs) + 1e-10),
        "global_iou": 100 * float(np.mean([np.mean(v) for v in records.values()])),
    }


def x_sam(cases: Sequence[Case]) -> dict[str, float]:
    """annToRef keeps the last ref of each annotation; its sentences are a set in lower case."""
    last = {c.annotation: c.ref for c in cases}
    units: dict[tuple[str, str], Case] = {}
    for case in cases:
        if last[case.annotation] == case.ref:
            units.setdefault((case.annotation, case.text.lower()), case)
    pairs = [areas(c, union(c)) for c in units.values()]
    below = sum(u for _, u in pairs)
    return {
        "cIoU": 100 * sum(i for i, _ in pairs) / below if below else 100.0,
        "gIoU": 100 * float(np.mean([i / u if u else 1.0 for i, u in pairs])),
    }


def seg_zero(cases: Sequence[Case]) -> dict[str, float]:
    """Where both masks are empty, compute_iou returns one number instead of two, and the sample is passed over."""
    pairs = [areas(c, union(c)) for c in cases]
    values = [i / u for i, u in pairs if u]
    return {"gIoU": 100 * float(np.mean(values)) if values else 0.0}


def lisa_sums(cases: Sequence[Case], over: float, below: float) -> tuple[float, float]:
    pairs = [areas(c, hole(c)) for c in cases]
    total = sum(i / (u + 1e-5) if u else 1.0 for i, u in pairs)
    return 100 * total / (len(cases) + over), 100 * sum(i for i, _ in pairs) / (sum(u for _, u in pairs) + below)


def pixellm(cases: Sequence[Case]) -> dict[str, float]:
    return dict(zip(("giou", "ciou"), lisa_sums(cases, 1e-5, 1e-10), strict=True))


def text4seg(cases: Sequence[Case]) -> dict[str, float]:
    return dict(zip(("giou", "ciou"), lisa_sums(cases, 0, 1e-10), strict=True))


def segagent(cases: Sequence[Case]) -> dict[str, float]:
    giou, ciou = lisa_sums(cases, 1e-5, 1e-5)
    return {"class_iou": ciou, "global_iou": giou}


def unipixel(cases: Sequence[Case]) -> dict[str, float]:
    pairs = [areas(c, union(c)) for c in cases]
    below = sum(u for _, u in pairs)
    return {
        "CIoU": 100 * sum(i for i, _ in pairs) / below if below else 100.0,
        "GIoU": 100 * float(np.mean([1 if u == 0 else i / u for i, u in pairs])),
    }


def f_lmm(cases: Sequence[Case]) -> dict[str, float]:
    last = {c.annotation: c.ref for c in cases}
    units: dict[str, Case] = {}
    for case in cases:
        if last[case.annotation] == case.ref:
            units.setdefault(case.annotation, case)
    pairs = [areas(c, union(c)) for c in units.values()]
    below = sum(u for _, u in pairs)
    return {
        "cIoU": 100 * sum(i for i, _ in pairs) / below if below else 0.0,
        "mIoU": 100 * float(np.mean([i / u if u else 0.0 for i, u in pairs])),
    }


def boxes_given(case: Case) -> torch.Tensor:
    """Boxes that score at least 0.7: of the instances, or of the mask where there are none."""
    masks = [m for m, s in zip(case.answers, case.scores or [0.5] * 9, strict=False) if s >= 0.7]
    found = []
    for mask in masks if case.answers else [case.prediction]:
        rows, columns = np.where(mask)
        if len(rows):
            found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return torch.tensor(np.array(found, np.float32).reshape(-1, 4))


def box_overlaps(a: torch.Tensor, b: torch.Tensor, generalised: bool) -> torch.Tensor:
    """MDETR's box_iou and generalized_box_iou."""
    area = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    sides = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0)
    both = sides[..., 0] * sides[..., 1]
    either = area[0][:, None] + area[1] - both
    iou = both / either
    if not generalised:
        return iou
    hull = (torch.max(a[:, None, 2:], b[:, 2:]) - torch.min(a[:, None, :2], b[:, :2])).clamp(min=0)
    hull_area = hull[..., 0] * hull[..., 1]
    return iou - (hull_area - either) / hull_area


def grec_by(cases: Sequence[Case], generalised: bool) -> dict[str, float]:
    correct = 0
    nt = {"TP": 0, "TN": 0, "FP": 0, "FN": 0}
    for case in cases:
        found = boxes_given(case)
        if not case.polygons:
            nt["FN" if len(found) else "TP"] += 1
            correct += not len(found)
            continue
        nt["TN" if len(found) else "FP"] += 1
        boxes = [box_of(polygons) for polygons in case.objects]
        meant = torch.stack([torch.tensor([x, y, w + x, h + y]) for x, y, w, h in boxes])
        left = box_overlaps(found, meant, generalised)
        tp = 0
        for _ in range(min(len(found), len(meant))):
            value, place = torch.topk(left.flatten(), 1)
            if value < 0.5:
                break
            tp += 1
            left[place[0] // len(meant), :] = 0.0
            left[:, place[0] % len(meant)] = 0.0
        correct += 2 * tp / (2 * tp + (len(found) - tp) + (len(meant) - tp)) >= 1.0
    return {
        "F1_score": 100 * correct / len(cases),
        "T_acc": 100 * nt["TN"] / max(nt["TN"] + nt["FP"], 1),
        "N_acc": 100 * nt["TP"] / max(nt["TP"] + nt["FN"], 1),
    }


RULES = {
    "cgformer": cgformer,
    "detris": detris,
    "etris": etris,
    "mlcd-seg": mlcd_seg,
    "x-sam": x_sam,
    "seg-zero": seg_zero,
    "pixellm": pixellm,
    "text4seg": text4seg,
    "segagent": segagent,
    "unipixel": unipixel,
    "f-lmm": f_lmm,
    "grec": lambda cases: grec_by(cases, True),
    "grec-iou": lambda cases: grec_by(cases, False),
}


@pytest.mark.slow
def test_every_rule_on_all_cases(cases: list[Case], home: Path, tmp_path: Path) -> None:
    found = refbench_says(cases, tmp_path, list(RULES))
    for name, rule in RULES.items():
        expected = rule(cases)
        assert list(found[name]) == list(expected), name
        assert found[name] == pytest.approx(expected, abs=1e-9), name
    # The cases tell the rules apart.
    assert found["grec"]["F1_score"] != found["grec-iou"]["F1_score"]
    assert found["x-sam"]["gIoU"] != found["unipixel"]["GIoU"]
    assert 0 < found["grec"]["F1_score"] < 100


@pytest.mark.parametrize("name", list(RULES))
def test_each_corner_alone(name: str, home: Path, tmp_path: Path) -> None:
    groups: dict[str, list[Case]] = {}
    for case in with_names(corners()):
        groups.setdefault(case.image, []).append(case)
    for image, group in groups.items():
        some = group if any(c.polygons for c in group) else group + groups["pixel"]
        found = refbench_says(some, tmp_path, [name])[name]
        assert found == pytest.approx(RULES[name](some), abs=1e-9), image


def test_boxes_of_grec_are_of_instances_that_score(home: Path, tmp_path: Path) -> None:
    one, other = rectangle(0, 0, 10, 10), rectangle(20, 20, 30, 30)
    both = [filled(0, 0, 10, 10), filled(20, 20, 30, 30)]

    def says(answers: list[np.ndarray], scores: list[float], flag: bool = False) -> float:
        mask = np.logical_or.reduce(answers) if answers else filled(0, 0, 0, 0)
        case = Case("a", [one], mask, flag, answers=answers, scores=scores, others=[[other]])
        return refbench_says(with_names([case]), tmp_path, ["grec"])["grec"]["F1_score"]

    assert says(both, [0.9, 0.7]) == 100
    assert says(both, [0.9, 0.69]) == 0
    assert says([*both, filled(40, 30, 44, 33)], [0.9, 0.9, 0.9]) == 0
    assert says([*both, filled(40, 30, 44, 33)], [0.9, 0.9, 0.2]) == 100
    # The box of the whole mask is no answer for two objects.
    assert says([], [], True) == 0


@pytest.mark.slow
def test_papers_that_follow_a_known_rule_are_found_by_their_names(home: Path, tmp_path: Path) -> None:
    rules = {name: load("protocols", name) for name in available("protocols")}
    same = {n: r.same_as for n, r in rules.items() if isinstance(r, Protocol) and r.same_as}
    assert same == {
        "etris": "cris",
        "pixellm": "lisa",
        "text4seg": "lisa",
        "segagent": "lisa",
        "f-lmm": "mmdet-refseg",
        "unipixel": "refbench",
    }
    # They say once what "all" says already.
    found = refbench_says(with_names(corners()), tmp_path, ["all"])
    assert not set(found) & set(same)
    for name, other in same.items():
        rule, known = rules[name], rules[other]
        assert rule.source != known.source
        for a, b in itertools.zip_longest(rule.choices.__slots__, known.choices.__slots__):
            if a != "aggregation" and a != "precision":
                assert getattr(rule.choices, a) == getattr(known.choices, b), (name, a)
