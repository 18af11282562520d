"""The score that perfect masks reach on a split whose own masks are not perfect.

RefCOCO's masks are coarse polygons. A model that draws exact masks is judged by them, so it cannot reach 100: its score
is that of the exact masks. A model above this score imitates the annotators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refbench.errors import DatasetError
from refbench.masks.counting import count_codes, pair_counts
from refbench.masks.mask import Mask
from refbench.masks.pairs import PairCounts
from refbench.records import Estimate, Sample
from refbench.reports.diagnosis import facts_of
from refbench.reports.slices import slices_of
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Evidence, summarise
from refbench.scoring.protocols.exact import REFBENCH
from refbench.storage.samples import load_samples


@dataclass(frozen=True, slots=True)
class CeilingSlice:
    """The ceiling in a slice of the split."""

    dimension: str
    label: str
    samples: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The score of the masks of one version of a split, judged by the masks of another version.

    `metrics` are those of the protocol `refbench`, in percent with 95 % intervals by image. `samples` are the samples
    of the judging version that have a mask in the other one; `left_out` is the number of those that have none.
    """

    address: str
    samples: int
    left_out: int
    metrics: dict[str, Estimate]
    slices: list[CeilingSlice]
    scores: ScoreTable


def ceiling(address: str, masks: Mapping[str, Mask]) -> Ceiling:
    """The score of perfect masks on a split.

    Args:
        address: the split that judges, for example "refcoco/val".
        masks: the perfect mask of each sample, by sample id; an empty mask means that there is no target. Samples
            without a mask are left out.

    Raises:
        DatasetError: the split is not built, no sample has a mask, or a mask has another size than its image.
    """
    samples = load_samples(address)
    judged = [s for s in samples if s.sample_id in masks]
    if not judged:
        raise DatasetError(f"no sample of {address} has a mask in the other version, so the two have nothing in common")
    perfect = [masks[s.sample_id] for s in judged]
    for sample, mask in zip(judged, perfect, strict=True):
        if mask.size != sample.target.size:
            raise DatasetError(
                f"{sample.sample_id} has the size {sample.target.size}, but {mask.size} in the other version; the "
                "images are different"
            )
    counts = count_codes(
        [m.counts for m in perfect], [s.target.counts for s in judged],
        np.array([s.height for s in judged]), np.array([s.width for s in judged]),
    )  # fmt: skip
    scores = ScoreTable(
        sample_id=[s.sample_id for s in judged],
        image_id=[s.image_id for s in judged],
        failed=np.zeros(len(judged), bool),
        no_target=np.array([s.no_target for s in judged], bool),
        predicted_no_target=np.array([m.area == 0 for m in perfect], bool),
        **PairCounts.of(counts).by_name(),
    )
    slices = []
    for part in slices_of(facts_of(address, scores)):
        rows = np.flatnonzero(part.rows)
        slices.append(CeilingSlice(part.dimension, part.label, len(rows), _metrics(scores.take(rows))))
    return Ceiling(address, len(judged), len(samples) - len(judged), _metrics(scores), slices, scores)


def _metrics(scores: ScoreTable) -> dict[str, Estimate]:
    return summarise(REFBENCH, Evidence(scores)).metrics


def masks_of_version(address: str, other: str) -> dict[str, Mask]:
    """The masks of another version of a split, by the sample ids of this one.

    Two samples are the same if their image and the words of their expression are the same. If there are several of this
    kind in an image, the one with the same numbers of annotation and expression is taken, otherwise the one whose mask
    overlaps most. Each sample of the other version is taken once.

    Raises:
        DatasetError: one of the splits is not built.
    """
    left: dict[tuple[str, str], list[Sample]] = {}
    for sample in load_samples(other):
        left.setdefault(_words(sample), []).append(sample)
    out: dict[str, Mask] = {}
    rest = []
    for sample in load_samples(address):
        found = left.get(_words(sample), [])
        same = next((s for s in found if _numbers(s) == _numbers(sample)), None)
        if same is None:
            rest.append(sample)
            continue
        found.remove(same)
        out[sample.sample_id] = same.target
    for sample in rest:
        fitting = [s for s in left.get(_words(sample), []) if s.no_target == sample.no_target]
        overlaps = [_overlap(sample.target, s.target) for s in fitting]
        if overlaps and (sample.no_target or max(overlaps) > 0):
            best = fitting[overlaps.index(max(overlaps))]
            left[_words(sample)].remove(best)
            out[sample.sample_id] = best.target
    return out


def _words(sample: Sample) -> tuple[str, str]:
    return sample.image_id, " ".join(sample.expression.casefold().split())


def _numbers(sample: Sample) -> str:
    """The id of a sample without its dataset and split."""
    return sample.sample_id.split("/", 2)[-1]


def _overlap(first: Mask, second: Mask) -> int:
    """The number of pixels in both masks; 0 if they have different sizes."""
    return int(pair_counts([first], [second])["intersection"][0]) if first.size == second.size else 0
