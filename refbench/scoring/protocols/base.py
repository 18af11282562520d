"""The definition of a protocol: ten choices that turn masks into metrics, as data.

Seven of the choices can be reproduced from a stored mask: which samples count (`units`), how targets are rasterised
(`target`) and at what size (`canvas`), the formula for the IoU of a sample (`sample_iou`), the value for two empty
masks (`both_empty`), and how samples become a metric (aggregation and precision, in the metrics). The other three
describe, as text, how the original makes its masks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from refbench.records import Estimate, Summary
from refbench.scoring.counts import Measure, Measured, ScoreTable
from refbench.scoring.protocols.canvases import ORIGINAL, Canvas
from refbench.scoring.protocols.targets import UNION
from refbench.scoring.statistics.bootstrap import PERCENTILE, ImageSums, image_codes, intervals, sums_of_terms

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Terms = tuple[FloatArray, FloatArray]

MASK, BOUNDARY = "mask", "boundary"
REASONSEG = "reasonseg"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The input of a protocol: counts for one drawing of the targets, and the target objects of each sample.

    `dataset` is the name of the dataset. Four fields have one entry per sample: `objects` is the annotation ids of its
    target (a key of its ref if it has none), `refs` is its ref, `expressions` is its text, and `several` states whether
    its target is one object with several polygons. They can be omitted if the protocol does not use them. `measured`
    contains the arrays of the measures of the protocol. `ignored` is the number of samples with ignored pixels.
    """

    scores: ScoreTable
    refs: Sequence[str] = ()
    objects: Sequence[tuple[str, ...]] = ()
    measured: Measured = field(default_factory=dict)
    dataset: str = ""
    expressions: Sequence[str] = ()
    several: Sequence[bool] = ()
    ignored: int = 0

    def counts(self, which: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Intersection and union of the masks, of their boundary bands, or of a measure."""
        if which == MASK:
            return self.scores.intersection, self.scores.union
        if which == BOUNDARY:
            return self.scores.boundary_intersection, self.scores.boundary_union
        return self.measured[which]["intersection"], self.measured[which]["union"]


class Units(Interface):
    """Which samples the published evaluation uses."""

    @property
    def words(self) -> str: ...

    def choose(self, evidence: Evidence) -> BoolArray: ...


@dataclass(frozen=True, slots=True)
class Every:
    """Each sentence counts once."""

    words: str = "every sentence"

    def choose(self, evidence: Evidence) -> BoolArray:
        return np.ones(len(evidence.scores), bool)


@dataclass(frozen=True, slots=True)
class FirstOfObject:
    """Only the first sentence of the last ref of each annotation counts, because the loaders of the originals index
    refs by annotation.
    """

    words: str = "the first sentence of each annotation; if it has several refs, of the last"

    def choose(self, evidence: Evidence) -> BoolArray:
        last_ref: dict[tuple[str, ...], str] = dict(zip(evidence.objects, evidence.refs, strict=True))
        chosen = np.zeros(len(evidence.scores), bool)
        seen: set[tuple[str, ...]] = set()
        for row, (thing, ref) in enumerate(zip(evidence.objects, evidence.refs, strict=True)):
            if thing not in seen and last_ref[thing] == ref:
                seen.add(thing)
                chosen[row] = True
        return chosen


@dataclass(frozen=True, slots=True)
class FirstOfRef:
    """Only the first sentence of each ref counts, because the original puts all sentences of a ref into one prompt."""

    words: str = "one record per ref, represented here by its first sentence"

    def choose(self, evidence: Evidence) -> BoolArray:
        return _firsts(evidence.refs)


@dataclass(frozen=True, slots=True)
class FirstPhrasing:
    """Each sentence counts once; in ReasonSeg, only the first expression of each image."""

    words: str = "every sentence; of ReasonSeg the first phrasing of each image"

    def choose(self, evidence: Evidence) -> BoolArray:
        if evidence.dataset != REASONSEG:
            return np.ones(len(evidence.scores), bool)
        return _firsts(evidence.scores.image_id)


@dataclass(frozen=True, slots=True)
class DistinctOfObject:
    """Sentences of one annotation that are equal in lower case count once. If an annotation has several refs, only the
    sentences of the last ref count.
    """

    words: str = "each annotation's distinct sentences in lower case; if it has several refs, of the last"

    def choose(self, evidence: Evidence) -> BoolArray:
        last_ref: dict[tuple[str, ...], str] = dict(zip(evidence.objects, evidence.refs, strict=True))
        rows = zip(evidence.objects, evidence.refs, evidence.expressions, strict=True)
        keys = [(thing, text.lower()) if last_ref[thing] == ref else None for thing, ref, text in rows]
        asked: BoolArray = np.array([key is not None for key in keys], dtype=np.bool_)
        return _firsts(keys) & asked


def _firsts(values: Iterable[Any]) -> BoolArray:
    """The first position of each value."""
    seen: set[Any] = set()
    first = []
    for value in values:
        first.append(value not in seen)
        seen.add(value)
    return np.array(first, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class RandomOfImage:
    """At most `count` random sentences of each image, without replacement; `seed` makes the choice reproducible."""

    count: int
    seed: int = 0

    @property
    def words(self) -> str:
        return f"at most {self.count} random sentences of each image"

    def choose(self, evidence: Evidence) -> BoolArray:
        return next(self.choose_each(evidence, [self.seed]))

    def choose_each(self, evidence: Evidence, seeds: Iterable[int]) -> Iterator[BoolArray]:
        """The samples that each seed selects."""
        codes, images = image_codes(evidence.scores.image_id)
        # The order of the file does not matter: rows are numbered by their ids.
        numbered = np.empty(len(codes), np.int64)
        numbered[np.argsort(np.array(evidence.scores.sample_ids(), dtype=object), kind="stable")] = np.arange(
            len(codes)
        )
        starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=images))])
        for seed in seeds:
            keys = np.random.default_rng(seed).random(len(codes))[numbered]
            # Rows of one image stand together, in a random order among themselves.
            order = np.lexsort((keys, codes))
            place = np.arange(len(codes)) - starts[codes[order]]
            chosen = np.zeros(len(codes), bool)
            chosen[order[place < self.count]] = True
            yield chosen


@dataclass(frozen=True, slots=True)
class SampleIou:
    """(I + `over`) / (U + `under`), in float64 or, if the original does so, in float32."""

    over: float = 0.0
    under: float = 0.0
    single_precision: bool = False

    @property
    def words(self) -> str:
        top = f"(I + {self.over:g})" if self.over else "I"
        bottom = f"(U + {self.under:g})" if self.under else "U"
        return f"{top} / {bottom}{' in float32' if self.single_precision else ''}"

    def of(self, intersection: NDArray[np.int64], union: NDArray[np.int64]) -> FloatArray:
        """The IoU of each sample whose union is not empty; 0 for others."""
        top: NDArray[Any] = intersection.astype(np.float64)
        bottom: NDArray[Any] = np.maximum(union, 1).astype(np.float64)
        if self.single_precision:
            top, bottom = top.astype(np.float32), bottom.astype(np.float32)
        # A Python float does not widen an array of float32.
        shares = ((top + self.over) / (bottom + self.under)).astype(np.float64)
        return np.where(union > 0, shares, 0.0)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The counts after a rule was applied. Where `decided` is true, the IoU is `value` instead of the result of the
    formula.
    """

    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    decided: BoolArray
    value: FloatArray


class BothEmpty(Interface):
    """The IoU of special samples: those without target, with an empty prediction, or with a no-target flag."""

    @property
    def words(self) -> str: ...

    def judge(self, evidence: Evidence, intersection: NDArray[np.int64], union: NDArray[np.int64]) -> Judgement: ...


@dataclass(frozen=True, slots=True)
class Worth:
    """Two empty masks have the IoU `value`; a crash has IoU 0."""

    value: float

    @property
    def words(self) -> str:
        return f"{self.value:g}"

    def judge(self, evidence: Evidence, intersection: NDArray[np.int64], union: NDArray[np.int64]) -> Judgement:
        values = np.where(evidence.scores.failed, 0.0, self.value)
        return Judgement(intersection, union, union == 0, values)


Over = Callable[[ScoreTable], BoolArray]


def everyone(scores: ScoreTable) -> BoolArray:
    """all samples"""
    return np.ones(len(scores), bool)


def with_target(scores: ScoreTable) -> BoolArray:
    """samples with a target"""
    return ~scores.no_target


@dataclass(frozen=True, slots=True)
class Judged:
    """The samples as judged by one protocol, in arrays (N,); `counted` is true for the samples that a metric
    includes.
    """

    protocol: Protocol
    evidence: Evidence
    counted: BoolArray
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    values: FloatArray


class Metric(Interface):
    """A ratio of two sums over samples, in percent; `counts` names the counts, `over` selects the samples."""

    @property
    def words(self) -> str: ...

    @property
    def counts(self) -> str: ...

    @property
    def over(self) -> Over: ...

    def terms(self, judged: Judged) -> Terms: ...


def _spread(epsilon: float, counted: BoolArray) -> float:
    """The share of each sample in a constant that is added to the denominator of the ratio."""
    return epsilon / max(int(counted.sum()), 1)


def _beside(epsilon: float) -> str:
    return f" + {epsilon:g} in the denominator" if epsilon else ""


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean IoU of the samples; as in the original, `epsilon` is added to the number of samples in the
    denominator.
    """

    epsilon: float = 0.0
    counts: str = MASK
    over: Over = everyone

    @property
    def words(self) -> str:
        return f"mean over sentences{_beside(self.epsilon)}"

    def terms(self, judged: Judged) -> Terms:
        here = judged.counted.astype(np.float64)
        return np.where(judged.counted, judged.values, 0.0), here * (1 + _spread(self.epsilon, judged.counted))


@dataclass(frozen=True, slots=True)
class Cumulative:
    """The sum of intersections divided by the sum of unions plus `epsilon`."""

    epsilon: float = 0.0
    counts: str = MASK
    over: Over = everyone

    @property
    def words(self) -> str:
        return f"sum I / sum U{_beside(self.epsilon)}"

    def terms(self, judged: Judged) -> Terms:
        here = judged.counted.astype(np.float64)
        return judged.intersection * here, (judged.union + _spread(self.epsilon, judged.counted)) * here


@dataclass(frozen=True, slots=True)
class MeanOfImages:
    """The mean over images of the mean over the samples of each image; `epsilon` is added to the number of images."""

    epsilon: float = 0.0
    counts: str = MASK
    over: Over = everyone

    @property
    def words(self) -> str:
        return f"mean over images of means{_beside(self.epsilon)}"

    def terms(self, judged: Judged) -> Terms:
        codes, images = image_codes(judged.evidence.scores.image_id)
        here = judged.counted.astype(np.float64)
        of_image = np.bincount(codes, here, images)
        share: FloatArray = here / np.maximum(of_image, 1.0)[codes]
        return judged.values * share, share * (1 + self.epsilon / max(int(np.count_nonzero(of_image)), 1))


@dataclass(frozen=True, slots=True)
class Precision:
    """The share of samples whose IoU reaches `threshold` or, if `strict`, exceeds it."""

    threshold: float
    strict: bool = False
    counts: str = MASK
    over: Over = everyone

    @property
    def words(self) -> str:
        return f"share of sentences with IoU {'>' if self.strict else '>='} {self.threshold:.9g}"

    def terms(self, judged: Judged) -> Terms:
        # An IoU and a threshold like 0.6 are both rounded to the nearest float64, so an IoU of exactly 0.6 reaches the
        # threshold 0.6. If the original computes in float32, both are rounded to float32.
        single = judged.protocol.sample_iou.single_precision
        threshold = float(np.float32(self.threshold)) if single else self.threshold
        reached = judged.values > threshold if self.strict else judged.values >= threshold
        return (reached & judged.counted).astype(np.float64), judged.counted.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Own:
    """A metric with its own formula: `function` returns the terms; the terms of samples that do not count are set to
    zero.
    """

    words: str
    function: Callable[[Judged], Terms]
    counts: str = MASK
    over: Over = everyone

    def terms(self, judged: Judged) -> Terms:
        top, bottom = self.function(judged)
        here = judged.counted.astype(np.float64)
        return top * here, bottom * here


@dataclass(frozen=True, slots=True)
class Choices:
    """The ten choices of a protocol as text; two metrics are comparable only if all choices are equal."""

    units: str
    text: str
    target: str
    canvas: str
    binarisation: str
    resampling: str
    sample_iou: str
    both_empty: str
    aggregation: str
    precision: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """A published way to compute metrics from counts.

    `metrics` maps each metric name of the original to its formula. Values are in percent, whatever the original prints.
    `headline` is the metric that papers quote. `when_empty` is the value of a ratio whose denominator is zero; it is
    between 0 and 1. `sources` maps a choice to the file that makes it, if that file is not `source`. `caveats` list
    what cannot be reproduced from stored masks. If `datasets` is not empty, the protocol applies only to these
    datasets. If `splits` is not empty, it applies only to splits whose names end in one of these suffixes. `signed`
    metrics are between -100 and 100. If `leaves_out_ignored`, the ignored pixels of a dataset are excluded from both
    masks; otherwise they count as background. `same_as` names the protocol with the same rule, if this one differs only
    in its names.
    """

    name: str
    summary: str
    source: str
    metrics: Mapping[str, Metric]
    headline: str
    units: Units = Every()
    text: str = "sent"
    target: str = UNION
    canvas: Canvas = ORIGINAL
    binarisation: str = "not stated"
    resampling: str = "not stated"
    sample_iou: SampleIou = SampleIou()
    both_empty: BothEmpty = Worth(1.0)
    when_empty: float = 1.0
    sources: Mapping[str, str] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    datasets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    signed: tuple[str, ...] = ()
    leaves_out_ignored: bool = False
    same_as: str = ""

    @property
    def choices(self) -> Choices:
        thresholds = [m for m in self.metrics.values() if isinstance(m, Precision)]
        signs = {">" if m.strict else ">=" for m in thresholds}
        over = {"" if m.over is everyone else f", over {m.over.__doc__}" for m in thresholds}
        others = [m.words for m in self.metrics.values() if not isinstance(m, Precision)]
        return Choices(
            units=self.units.words,
            text=self.text,
            target=self.target + ("; pixels to ignore are left out" if self.leaves_out_ignored else ""),
            canvas=self.canvas.words,
            binarisation=self.binarisation,
            resampling=self.resampling,
            sample_iou=self.sample_iou.words,
            both_empty=self.both_empty.words,
            aggregation="; ".join(dict.fromkeys(others)),
            precision=" ".join([*sorted(signs), *(f"{m.threshold:.9g}" for m in thresholds)]) + "".join(over)
            if thresholds
            else "none",
        )

    def source_of(self, choice: str) -> str:
        """The file of the original that makes a choice (a field of `Choices`)."""
        return self.sources.get(choice, self.source)

    def terms(self, metric: Metric, evidence: Evidence) -> Terms:
        """Numerators and denominators of a metric, float64 (N,), zero for samples that do not count."""
        scores = evidence.scores
        intersection, union = evidence.counts(metric.counts)
        judgement = self.both_empty.judge(evidence, intersection, union)
        values = np.where(
            judgement.decided, judgement.value, self.sample_iou.of(judgement.intersection, judgement.union)
        )
        counted = self.units.choose(evidence) & metric.over(scores)
        return metric.terms(Judged(self, evidence, counted, judgement.intersection, judgement.union, values))


def value_of(protocol: Protocol, metric: Metric, evidence: Evidence) -> float:
    """One metric of a protocol, in percent. Sums are exactly rounded, so the order of rows does not matter."""
    top, bottom = protocol.terms(metric, evidence)
    total = math.fsum(bottom)
    return 100 * (math.fsum(top) / total if total > 0 else _when_empty(protocol, evidence.scores))


def _when_empty(protocol: Protocol, scores: ScoreTable) -> float:
    # If there is nothing to find, an empty prediction is right, but a failed sample is not.
    return 0.0 if scores.failed.any() else protocol.when_empty


def sums_of(protocol: Protocol, evidence: Evidence, metrics: Sequence[str] | None = None) -> ImageSums:
    """The terms of the metrics of a protocol, summed by image, as needed for the statistics."""
    chosen = [protocol.metrics[name] for name in (metrics or protocol.metrics)]
    images, count = image_codes(evidence.scores.image_id)
    # One metric at a time: all terms of a large split would take more memory than its counts.
    terms = (protocol.terms(metric, evidence) for metric in chosen)
    return sums_of_terms(terms, images, count, _when_empty(protocol, evidence.scores))


def summarise(protocol: Protocol, evidence: Evidence, interval: str = PERCENTILE) -> Summary:
    """Metrics with their 95 % intervals, bootstrapped by image."""
    metrics: dict[str, Estimate] = {}
    scores = evidence.scores
    if len(scores):
        low, high = intervals(sums_of(protocol, evidence), interval)
        for k, (name, metric) in enumerate(protocol.metrics.items()):
            metrics[name] = Estimate(value_of(protocol, metric, evidence), 100 * float(low[k]), 100 * float(high[k]))
    counted = int(protocol.units.choose(evidence).sum())
    return Summary(protocol.name, metrics, counted, int(scores.failed.sum()), _notes(protocol, evidence))


DRAWS_SHOWN = 100


def _notes(protocol: Protocol, evidence: Evidence) -> tuple[str, ...]:
    """Notes that depend on the scored samples: ignored pixels, and how much a random choice changes the result."""
    notes = []
    if evidence.ignored and not protocol.leaves_out_ignored:
        notes.append(
            f"{evidence.ignored} samples have pixels that the dataset marks as ignored; here they are background"
        )
    return (*notes, *_spread_of_draws(protocol, evidence))


def _spread_of_draws(protocol: Protocol, evidence: Evidence) -> tuple[str, ...]:
    units = protocol.units
    if not isinstance(units, RandomOfImage) or not len(evidence.scores):
        return ()
    whole = dataclasses.replace(protocol, units=Every())
    chosen = [c.astype(np.float64) for c in units.choose_each(evidence, range(DRAWS_SHOWN))]
    ranges = []
    for name, metric in protocol.metrics.items():
        top, bottom = whole.terms(metric, evidence)
        values = [100 * float(top @ c) / max(float(bottom @ c), 1e-300) for c in chosen]
        ranges.append(f"{name} {min(values):.2f} to {max(values):.2f}")
    return (f"the original draws its sentences without a seed; over {DRAWS_SHOWN} draws: {', '.join(ranges)}",)
