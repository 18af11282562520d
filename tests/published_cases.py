"""Pairs of masks that evaluators disagree about, and what refbench makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from refbench import score
from refbench.datasets.builders.base import Built, Sources, build_dataset
from refbench.masks.mask import Mask
from refbench.records import AnnotatedObject, Instance, Prediction, Sample
from refbench.storage.predictions import json_line
from refbench.storage.progress import silent

SIZE = (40, 50)
Polygon = list[float]


@dataclass
class Case:
    """A prediction and the polygons of its target (none: there is no target), in pixels.

    `polygons` are those of one object; `others` are the polygons of further objects that are meant too.
    """

    image: str
    polygons: list[Polygon]
    prediction: np.ndarray
    flag: bool
    # Which ref of which annotation the sentence belongs to; "" stands for one of its own.
    ref: str = ""
    annotation: str = ""
    answers: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    others: list[list[Polygon]] = field(default_factory=list)
    text: str = "x"
    # Which polygons, counted over all objects, the annotation file gives in whole numbers.
    whole_numbers: tuple[int, ...] = ()

    @property
    def objects(self) -> list[list[Polygon]]:
        return [self.polygons, *self.others] if self.polygons else []

    @property
    def all_polygons(self) -> list[Polygon]:
        return [p for polygons in self.objects for p in polygons]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The box that an annotation file gives: around the corners, left, top, width, height."""
        return box_of(self.all_polygons)

    @cached_property
    def layers(self) -> np.ndarray:
        """How many polygons cover each pixel, as REFER's getMask adds them up; of several objects bit by bit or-ed."""
        out = np.zeros(SIZE, np.uint8)
        for polygons in self.objects:
            out |= coco_mask.decode(coco_mask.frPyObjects(polygons, *SIZE)).sum(axis=2).astype(np.uint8)
        return out


def box_of(polygons: Sequence[Polygon]) -> tuple[float, float, float, float]:
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons]) if polygons else np.zeros((1, 2))
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right - left), float(bottom - top)


def rectangle(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [float(v) for v in (left, top, right, top, right, bottom, left, bottom)]


def filled(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def corners() -> list[Case]:
    whole = rectangle(0, 0, 10, 10)
    none = np.zeros(SIZE, bool)
    out = []
    for tenths in (5, 6, 7, 8, 9, 10):
        # A part of the target: I / U is exactly tenths / 10.
        out.append(Case("exact", [whole], filled(0, 0, 10, tenths), False))
    out += [
        Case("empty", [], none, True),
        Case("empty", [], none, False),
        Case("empty", [], filled(3, 3, 9, 9), True),
        Case("empty", [], filled(3, 3, 9, 9), False),
        Case("rejected", [whole], filled(0, 0, 10, 9), True),
        Case("rejected", [whole], none, True),
        Case("missed", [whole], none, False),
        Case("overlap", [rectangle(5, 5, 25, 25), rectangle(15, 15, 35, 35)], filled(5, 5, 25, 25), False),
        Case("overlap", [rectangle(5, 5, 25, 25), rectangle(15, 15, 35, 35)], filled(14, 14, 26, 26), False),
        Case("nested", [rectangle(5, 5, 35, 35), rectangle(10, 10, 20, 20)], filled(5, 5, 35, 35), False),
        Case("apart", [rectangle(0, 0, 8, 8), rectangle(20, 20, 30, 30)], filled(0, 0, 8, 8), False),
        Case("pixel", [rectangle(7, 7, 8, 8)], filled(7, 7, 8, 8), False),
        Case("border", [rectangle(0, 0, 50, 40)], filled(0, 0, 50, 40), False),
        Case("border", [rectangle(45, 30, 50, 40)], filled(40, 30, 50, 40), False),
        # Two refs on one annotation, of three and of two sentences.
        *(Case("two refs", [whole], filled(0, 0, 10, k), False, f"first{k // 4}", "shared") for k in (1, 2, 3, 5, 6)),
        Case("answers", [whole], filled(0, 0, 10, 5), False, answers=[filled(0, 0, 10, 5), filled(0, 5, 10, 10), none]),
    ]
    out += [
        # Several objects are meant, whose polygons overlap within and between them.
        Case("group", [rectangle(2, 2, 22, 22)], filled(2, 2, 30, 30), False, others=[[rectangle(12, 12, 32, 32)]]),
        Case(
            "group",
            [rectangle(2, 2, 20, 20), rectangle(10, 10, 25, 25)],
            filled(0, 0, 40, 30),
            False,
            others=[[rectangle(15, 5, 40, 18), rectangle(30, 2, 45, 35)]],
        ),
        # One ref says the same twice, in other letters; two objects of one image are asked for in the same words.
        *(Case("said", [whole], filled(0, 0, 10, 3 * k), False, "said", "said", text=t)
          for k, t in ((1, "The Man"), (2, "the man"), (3, "a man"))),
        Case("said", [rectangle(20, 0, 30, 9)], filled(20, 0, 30, 5), False, "other", "other", text="the man"),
        # Whole numbers in the annotation file; moved to 480 x 480 their corners lose fractions.
        Case("whole", [rectangle(3, 3, 20, 20)], filled(3, 3, 19, 20), False, whole_numbers=(0,)),
        Case("whole", [rectangle(3, 3, 9, 9), [20.5, 3, 31, 3, 31, 17, 20, 17]], filled(3, 3, 9, 9), False,
             whole_numbers=(0,)),
    ]  # fmt: skip
    # A leaning rectangle with fractions, in part outside.
    leaning = [-3.7, 4.2, 30.9, -2.5, 47.3, 20.8, 12.6, 44.4]
    out.append(Case("fractions", [leaning], filled(2, 2, 40, 35), False))
    out += [Case("crowded", [whole], filled(0, 0, 10, 1 + k % 10), False) for k in range(20)]
    return out


def random_cases(count: int, seed: int) -> list[Case]:
    rng = random.Random(seed)
    out = []

    def instance() -> tuple[np.ndarray, float]:
        left, top = rng.randrange(48), rng.randrange(38)
        return filled(left, top, left + rng.randrange(1, 20), top + rng.randrange(1, 20)), rng.choice((0.3, 0.7, 0.9))

    for _ in range(count):
        parts = [
            [rng.uniform(0, side) for _ in range(rng.randrange(3, 8)) for side in (SIZE[1], SIZE[0])]
            for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))
        ]
        number = rng.randrange(count // 4)
        case = Case(f"image-{number}", parts, np.zeros(SIZE, bool), rng.random() < 0.3)
        if parts and rng.random() < 0.15:
            case.others = [[[rng.uniform(0, side) for _ in range(4) for side in (SIZE[1], SIZE[0])]]]
        if rng.random() < 0.85:
            shift = rng.randrange(-3, 4), rng.randrange(-3, 4)
            noise = filled(rng.randrange(40), rng.randrange(30), rng.randrange(50), rng.randrange(40))
            case.prediction = np.roll(case.layers > 0, shift, axis=(0, 1)) ^ noise
        if rng.random() < 0.3:
            found = [instance() for _ in range(rng.randrange(1, 4))]
            case.answers, case.scores = [m for m, _ in found], [s for _, s in found]
        case.text = rng.choice(("x", "X", "y"))
        # A polygon that covers no pixel is no target that a dataset could hold.
        out.append(
            case
            if not parts or all(_covers(o) for o in case.objects)
            else Case(case.image, [], case.prediction, case.flag)
        )
    return out


def _covers(polygons: list[Polygon]) -> bool:
    return bool(coco_mask.decode(coco_mask.frPyObjects(polygons, *SIZE)).any())


def with_names(cases: list[Case]) -> list[Case]:
    """Refs and annotations for cases that have none; what nobody annotated is an annotation of its own."""
    for k, case in enumerate(cases):
        case.ref = case.ref or f"r{k}"
        case.annotation = case.annotation or f"a{k}" if case.polygons else f"ref {case.ref}"
    return cases


def annotated(case: Case) -> list[AnnotatedObject]:
    """The objects that a case means."""
    names = [case.annotation, *(f"{case.annotation}+{k}" for k in range(len(case.others)))]
    return [
        AnnotatedObject(
            name, case.image, "", False, Mask.from_polygons(polygons, *SIZE), tuple(map(tuple, polygons)),
            box_of(polygons),
        )
        for name, polygons in zip(names, case.objects, strict=False)
    ]  # fmt: skip


def as_sample(case: Case, number: int, dataset: str = "cases") -> Sample:
    target = Mask.from_array(case.layers > 0)
    places = "-".join(["integer-polygons", *map(str, case.whole_numbers)])
    return Sample(
        sample_id=f"{dataset}/val/{case.ref}/{number}",
        image_id=case.image,
        image_path="",
        height=SIZE[0],
        width=SIZE[1],
        expression=case.text,
        raw_expression=case.text,
        ref_id=case.ref,
        sent_id=str(number),
        ann_ids=tuple(o.ann_id for o in annotated(case)),
        category="",
        target=target,
        no_target=not case.polygons,
        polygons=tuple(tuple(p) for p in case.all_polygons),
        box_xywh=case.box,
        tags=(places,) if case.whole_numbers else (),
    )


def write_cases(cases: Sequence[Case], folder: Path, dataset: str = "cases") -> Path:
    """Build the cases as `<dataset>/val`, and write their predictions; returns that file."""
    samples = [as_sample(case, k, dataset) for k, case in enumerate(cases)]
    objects = {o.ann_id: o for case in cases for o in annotated(case)}

    def builder(name: str, sources: Sources, place: Path, progress: object) -> Built:
        return Built("cases", 1, {"val": samples}, list(objects.values()), [], "")

    build_dataset(dataset, builder, Sources(), silent)
    lines = [
        json_line(
            Prediction(
                s.sample_id,
                Mask.from_array(c.prediction),
                no_target=c.flag,
                instances=tuple(
                    Instance(Mask.from_array(a), v)
                    for a, v in zip(c.answers, c.scores or [0.5] * len(c.answers), strict=True)
                ),
            )
        )
        for s, c in zip(samples, cases, strict=True)
    ]
    (folder / "predictions.jsonl").write_text("\n".join(lines))
    return folder / "predictions.jsonl"


def refbench_says(
    cases: Sequence[Case], folder: Path, protocols: Sequence[str], dataset: str = "cases"
) -> dict[str, dict[str, float]]:
    """Protocol -> metric -> percent."""
    scored = score(write_cases(cases, folder, dataset), f"{dataset}/val", protocols=protocols)
    return {name: {m: e.value for m, e in s.metrics.items()} for name, s in scored.summaries.items()}


# Parts of several rules, on pixels.


def areas(case: Case, target: np.ndarray) -> tuple[int, int]:
    return int((case.prediction & target).sum()), int((case.prediction | target).sum())


def union(case: Case) -> np.ndarray:
    return case.layers > 0


def hole(case: Case) -> np.ndarray:
    """Pixels of two polygons are background; loaders that do so know no targets of several objects."""
    return case.layers > 0 if case.others else case.layers == 1


def first_of_ref(cases: Sequence[Case]) -> list[Case]:
    """The first sentence of each ref."""
    return list({case.ref: case for case in reversed(cases)}.values())[::-1]
