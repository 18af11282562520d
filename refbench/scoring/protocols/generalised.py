"""Published protocols for expressions that may have no target or several objects (gRefCOCO)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refbench.errors import PredictionError
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import (
    BoolArray,
    Cumulative,
    Evidence,
    Judged,
    Judgement,
    Mean,
    Own,
    Precision,
    Protocol,
    SampleIou,
    Terms,
    with_target,
)
from refbench.scoring.protocols.canvases import SQUARE_480
from refbench.scoring.protocols.caveats import RESIZED, STORED_MASK
from refbench.scoring.protocols.targets import SCALED

WHOLE_NUMBERS = (
    "polygons that the annotation file gives in whole numbers lose their fractions when the original scales them; "
    "reproduced where the split marks these polygons (tag integer-polygons)"
)
EMPTY_IS_FLAG = "a prediction without a flag of its own counts as flagged if its mask is empty"
WITHOUT_CROWDS = "crowd annotations are not in the original's targets: build grefcoco with its default"


@dataclass(frozen=True, slots=True)
class ByFlag:
    """GRES: only the no-target flag counts, whatever the mask contains.

    By default, the flag of the prediction is used. If `pixels` is given, a prediction counts as flagged if its mask has
    fewer than `pixels` foreground pixels on the canvas.
    """

    pixels: int | None = None

    @property
    def words(self) -> str:
        return "by the flag for no target" if self.pixels is None else f"by fewer than {self.pixels} pixels"

    def nothing(self, scores: ScoreTable) -> BoolArray:
        """The samples without target."""
        return scores.no_target

    def said(self, scores: ScoreTable) -> BoolArray:
        """The predictions that state that there is no target."""
        if self.pixels is None:
            return scores.predicted_no_target
        return (scores.prediction_area < self.pixels) & ~scores.failed

    def judge(self, evidence: Evidence, intersection: NDArray[np.int64], union: NDArray[np.int64]) -> Judgement:
        said, nothing = self.said(evidence.scores), self.nothing(evidence.scores)
        spared = nothing & said
        credited = ~nothing & ~said & (union > 0)
        return Judgement(
            np.where(credited, intersection, 0), np.where(spared, 0, union), ~credited, spared.astype(np.float64)
        )


@dataclass(frozen=True, slots=True)
class ByRejection:
    """GSVA and MLLMSeg: if an expression has no target, the rejection token decides; if it has a target, the IoU of the
    mask counts even if the target is rejected.

    If the token is missing for an expression without target, the pixels of the predicted mask are added to the
    cumulative union, but only on the datasets in `missed_count_on`; None means all datasets.
    """

    missed_count_on: tuple[str, ...] | None = None

    @property
    def words(self) -> str:
        if self.missed_count_on is None:
            return "by the [REJ] token"
        return f"by the [REJ] token; a missed no-target adds its union on {', '.join(self.missed_count_on)} alone"

    def nothing(self, scores: ScoreTable) -> BoolArray:
        """The samples whose target has no pixels."""
        empty: BoolArray = scores.target_area == 0
        return empty

    def said(self, scores: ScoreTable) -> BoolArray:
        """The predictions that state that there is no target."""
        return scores.predicted_no_target

    def judge(self, evidence: Evidence, intersection: NDArray[np.int64], union: NDArray[np.int64]) -> Judgement:
        nothing = self.nothing(evidence.scores)
        spared = nothing & evidence.scores.predicted_no_target
        missed_count = self.missed_count_on is None or evidence.dataset in self.missed_count_on
        uncounted = spared if missed_count else nothing
        return Judgement(intersection, np.where(uncounted, 0, union), nothing, spared.astype(np.float64))


def _flags(judged: Judged) -> tuple[BoolArray, BoolArray]:
    """The samples without target, and the predictions that state that there is no target."""
    rule, scores = judged.protocol.both_empty, judged.evidence.scores
    # Under another rule (in a step of `explain`), only the prediction's own flag is available.
    known = rule if isinstance(rule, (ByFlag, ByRejection)) else ByFlag()
    return known.nothing(scores), known.said(scores)


def _no_target_accuracy(judged: Judged) -> Terms:
    nothing, said = _flags(judged)
    return (nothing & said).astype(np.float64), nothing.astype(np.float64)


def _target_accuracy(judged: Judged) -> Terms:
    nothing, said = _flags(judged)
    return (~nothing & ~said).astype(np.float64), (~nothing).astype(np.float64)


def _gres_target_accuracy(judged: Judged) -> Terms:
    """Like `_target_accuracy`, but 0 if every sample has a target, because the original then leaves both accuracies
    at 0.
    """
    right, something = _target_accuracy(judged)
    return right * bool((something == 0).any()), something


def _legacy(predicted_side: bool) -> Own:
    """TP / (TP + FP + 1) if `predicted_side`, otherwise TP / (TP + FN + 1), where "no target" is the positive class."""

    def terms(judged: Judged) -> Terms:
        nothing, said = _flags(judged)
        beside = said if predicted_side else nothing
        return (nothing & said).astype(np.float64), beside.astype(np.float64) + 1.0 / max(len(said), 1)

    return Own(f"TP / (TP + {'FP' if predicted_side else 'FN'} + 1)", terms)


def _flagged_where_nothing(judged: Judged) -> Terms:
    """Like `_no_target_accuracy`, but always computed from the `no_target` flags of the annotation and of the
    prediction.
    """
    scores = judged.evidence.scores
    return (scores.no_target & scores.predicted_no_target).astype(np.float64), scores.no_target.astype(np.float64)


T_ACC_IF_ANY = Own("share of targets not flagged, 0 if all samples have a target", _gres_target_accuracy)
FLAGGED_EMPTY = Own("share of no-targets flagged", _flagged_where_nothing)
T_ACC = Own("share of targets not flagged", _target_accuracy)
N_ACC = Own("share of no-targets flagged", _no_target_accuracy)


def _gres(name: str, summary: str, source: str, pixels: int | None, caveats: tuple[str, ...], legacy: bool) -> Protocol:
    return Protocol(
        name=name,
        summary=summary,
        source=source,
        text="raw, 20 tokens",
        target=SCALED,
        canvas=SQUARE_480,
        binarisation="argmax of two channels",
        resampling="none",
        both_empty=ByFlag(pixels),
        metrics={
            "gIoU": Mean(),
            "cIoU": Cumulative(),
            "T_acc": _legacy(predicted_side=True) if legacy else T_ACC_IF_ANY,
            "N_acc": _legacy(predicted_side=False) if legacy else N_ACC,
            **{f"Pr@{t}": Precision(t, over=with_target) for t in (0.7, 0.8, 0.9)},
        },
        headline="gIoU",
        when_empty=0.0,
        caveats=caveats,
    )


RELA = "henghuiding/ReLA gres_model/evaluation/refer_evaluation.py"
GRES = _gres(
    "gres",
    summary="generalised: the flag for no target decides, whatever the mask holds; ReLA's canvas",
    source=f"{RELA} (3ca9551)",
    pixels=None,
    caveats=(RESIZED, EMPTY_IS_FLAG, WITHOUT_CROWDS, WHOLE_NUMBERS),
    legacy=False,
)
GRES_LEGACY_TACC = _gres(
    "gres-legacy-tacc",
    summary="gres before August 2023: T_acc was TP / (TP + FP + 1), N_acc TP / (TP + FN + 1)",
    source=f"{RELA}, branch original, changed by commit 884ef17",
    pixels=None,
    caveats=(RESIZED, EMPTY_IS_FLAG, WITHOUT_CROWDS, WHOLE_NUMBERS),
    legacy=True,
)


def gres_mask_empty(k: float = 50) -> Protocol:
    """gres for models without a flag: fewer than k pixels on the canvas mean that there is no target.

    Raises:
        PredictionError: k is not a number of pixels.
    """
    if k < 0 or k != int(k):
        raise PredictionError(f"the k in gres-mask-empty(k) must be a number of pixels, got {k:g}")
    return _gres(
        f"gres-mask-empty({int(k)})",
        summary="gres for models without a flag: fewer than k pixels on the canvas say that there is no target",
        source="Liu et al., GRES, CVPR 2023 (the rule is in no code that was read)",
        pixels=int(k),
        caveats=(RESIZED, WITHOUT_CROWDS, WHOLE_NUMBERS),
        legacy=False,
    )


def _by_rejection(
    name: str, source: str, loader: str, mean: str, cumulative: str, rule: ByRejection, binarisation: str
) -> Protocol:
    return Protocol(
        name=name,
        summary="generalised: a flag for no target; a rejected target keeps the credit of its mask",
        source=source,
        sources=dict.fromkeys(("text", "target"), loader),
        leaves_out_ignored=True,
        binarisation=binarisation,
        resampling="bilinear",
        sample_iou=SampleIou(under=1e-8),
        both_empty=rule,
        metrics={mean: Mean(1e-5), cumulative: Cumulative(1e-10), "N_acc": N_ACC, "T_acc": T_ACC},
        headline=mean,
        when_empty=0.0,
        caveats=(
            STORED_MASK,
            "a prediction without a flag of its own counts as rejected if its mask is empty; the original reads the "
            "[REJ] token with the true answer in context",
            "crowd annotations belong to the original's targets: build grefcoco with -o crowd=use",
        ),
    )


GSVA_GRES = _by_rejection(
    "gsva-gres",
    "LeapLabTHU/GSVA solver.py:eval_gres (618dc79)",
    "LeapLabTHU/GSVA data/dataset.py:ValDataset (618dc79)",
    "giou",
    "ciou",
    ByRejection(missed_count_on=("grefcoco",)),
    "logit >= 0",
)
MLLMSEG_GRES = _by_rejection(
    "mllmseg-gres",
    "jcwang0602/MLLMSeg mllmseg/test_mllmseg_gres.py (a8fceda)",
    "jcwang0602/MLLMSeg mllmseg/dataset_vg.py:ValDataset (a8fceda)",
    "g_iou",
    "c_iou",
    ByRejection(),
    "sigmoid >= 0.5",
)
