"""SA-Co (Segment Anything with Concepts): cgF1 of all instances of a noun phrase, against one or several annotators.

An "image" in its files is a pair of an image and a noun phrase. cgF1 is the F1 of matched instances over the pairs with
instances (`positive_micro_F1`), multiplied by the Matthews correlation of the predicted presence over all pairs
(`IL_MCC`). Source: facebookresearch/sam3 `sam3/eval/cgf1_eval.py` (99d02f2).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refbench.errors import DatasetError, MaskError
from refbench.masks.counting import pair_counts
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_attribute
from refbench.scoring.protocols.average_precision import DetectionProtocol, Evaluation, repeated_detections
from refbench.scoring.protocols.coco_files import Annotations, Image, Results, fields_of
from refbench.storage.coco_rows import Key, shown

# A detection counts from this score on.
SCORE = 0.5
THRESHOLDS = np.linspace(0.5, 0.95, 10)
SHOWN = {"": slice(None), "@0.5": slice(0, 1), "@0.75": slice(5, 6)}
INSTANCES = (
    "cgF1", "precision", "recall", "F1", "positive_macro_F1", "positive_micro_F1", "positive_micro_precision",
)  # fmt: skip
# What the original adds to the denominators of counts of instances, and of pairs.
OF_INSTANCES, OF_PAIRS = 1e-4, 1e-6

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One pair against one annotator.

    Contains the number of annotated instances, of predicted instances, and of matches at each threshold, int64 (10,).
    """

    there: int
    found: int
    matched: Counts

    @property
    def f1(self) -> Floats:
        return _f1(_share(self.matched, self.found), _share(self.matched, self.there))


def evaluate_sa_co(truths: Sequence[Annotations], results: Results) -> Evaluation:
    """The metrics of CGF1Evaluator, iou_type segm, in percent, including IL_MCC.

    Raises:
        DatasetError: a file is not a SA-Co file or lacks a pair of the first file, or no pair is annotated
            exhaustively.
    """
    counted = _exhaustive_pairs(truths)
    found: dict[int, list[Mask]] = defaultdict(list)
    for one in results.detections:
        if one.score >= SCORE:
            found[one.image].append(one.mask)
    pairs = truths[0].images
    masks = [found[pairs[key].number] for key in counted]
    by_annotator = [_outcomes(counted, truth, masks) for truth in truths]
    outcomes = [_best(of_pair) for of_pair in zip(*by_annotator, strict=True)]
    left = len(pairs) - len(counted)
    note = f"{left} of {len(pairs)} pairs of an image and a phrase are not annotated exhaustively and do not count"
    return Evaluation(_metrics(outcomes), (*([note] if left else []), *repeated_detections(results)))


def _exhaustive_pairs(truths: Sequence[Annotations]) -> list[Key]:
    """The pairs of the first file that are annotated exhaustively in all files, in the order of their ids."""
    partial: set[Key] = set()
    for truth in truths:
        exhaustive = fields_of(list(truth.images.values()), _is_exhaustive, lambda i: i.where, truth.path)
        partial |= {key for key, whole in zip(truth.images, exhaustive, strict=True) if not whole}
        lacking = [key for key in truths[0].images if key not in truth.images]
        if lacking:
            raise DatasetError(
                f"{truth.path} lacks {len(lacking)} of the images in {truths[0].path} (the first is "
                f"{shown(lacking[0])}); pass the files of several annotators of the same subset"
            )
        for key, image in truths[0].images.items():
            other = truth.images[key]
            if (image.height, image.width) != (other.height, other.width):
                raise DatasetError(
                    f"{truth.path} {other.where} has {other.height} x {other.width} px (height x width), but in "
                    f"{truths[0].path} it has {image.height} x {image.width}"
                )
    counted = [key for key in truths[0].images if key not in partial]
    if not counted:
        names = ", ".join(str(truth.path) for truth in truths)
        raise DatasetError(f"{names}: no (image, phrase) pair is exhaustively annotated in all of these files")
    return counted


def _is_exhaustive(image: Image) -> bool:
    value = image.row.get("is_instance_exhaustive")
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise MaskError(f"its `is_instance_exhaustive` must be 0 or 1, as in SA-Co files, got {shown(value)}")


def _outcomes(counted: Sequence[Key], truth: Annotations, found: Sequence[Sequence[Mask]]) -> list[_Outcome]:
    by_image: dict[int, list[Mask]] = defaultdict(list)
    for one in truth.truths:
        # A group that is not divided into instances does not count as an instance to find.
        if not one.crowd:
            by_image[one.image].append(one.mask)
    there = [by_image[truth.images[key].number] for key in counted]
    compared = [(a, b) for ours, theirs in zip(found, there, strict=True) for a in ours for b in theirs]
    counts = pair_counts([a for a, _ in compared], [b for _, b in compared])
    # Two masks without a pixel overlap by 0, as pycocotools has it.
    overlaps = counts["intersection"] / np.maximum(counts["union"], 1)
    out, start = [], 0
    for ours, theirs in zip(found, there, strict=True):
        end = start + len(ours) * len(theirs)
        out.append(_outcome(overlaps[start:end].reshape(len(ours), len(theirs))))
        start = end
    return out


def _outcome(overlaps: Floats) -> _Outcome:
    """The one-to-one matching of detections (rows) with instances (columns) that maximises the sum of their IoU."""
    # Importing SciPy's optimisers takes half a second, and few splits need them.
    assign = load_attribute("scipy.optimize:linear_sum_assignment")
    scores = overlaps[assign(-overlaps)]
    matched = (scores[None, :] >= THRESHOLDS[:, None]).sum(axis=1)
    return _Outcome(overlaps.shape[1], overlaps.shape[0], matched)


def _best(outcomes: Sequence[_Outcome]) -> _Outcome:
    """The outcome for the annotator that best fits the prediction. If nothing is predicted, an annotator without
    instances fits best.
    """
    best = outcomes[0]
    for current in outcomes[1:]:
        if (best.there or best.found) and (current.there or current.found):
            if current.f1.mean() > best.f1.mean():
                best = current
        elif not (current.there or current.found):
            best = current
    return best


def _metrics(outcomes: Sequence[_Outcome]) -> dict[str, float]:
    there, found = np.array([o.there for o in outcomes]), np.array([o.found for o in outcomes])
    matched = np.array([o.matched for o in outcomes])
    positive = there > 0
    hits = matched.sum(axis=0)
    missed, wrong = int(there.sum()) - hits, found.sum() - hits
    wrong_on_positives = found[positive].sum() - hits
    recall = hits / (hits + missed + OF_INSTANCES)
    both = positive & (found > 0)
    local = [o.f1 for o in outcomes if o.there and o.found]
    micro_precision = hits / (hits + wrong_on_positives + OF_INSTANCES)
    values: dict[str, Floats] = {
        "precision": hits / (hits + wrong + OF_INSTANCES),
        "recall": recall,
        "positive_macro_F1": np.sum(local, axis=0) / both.sum() if local else np.full(len(THRESHOLDS), math.nan),
        "positive_micro_precision": micro_precision,
        "positive_micro_F1": _f1(micro_precision, recall),
    }
    values["F1"] = _f1(values["precision"], recall)
    of_pairs = _presence(int(both.sum()), int((~positive & (found > 0)).sum()), int((~positive & (found == 0)).sum()),
                         int((positive & (found == 0)).sum()))  # fmt: skip
    values["cgF1"] = values["positive_micro_F1"] * of_pairs["IL_MCC"]
    metrics: dict[str, float] = {}
    for suffix, thresholds in SHOWN.items():
        metrics |= {name + suffix: 100 * _mean(values[name][thresholds]) for name in INSTANCES}
        if not suffix:
            metrics |= {name: 100 * value for name, value in of_pairs.items()}
    return metrics


def _presence(tp: int, fp: int, tn: int, fn: int) -> dict[str, float]:
    """How well the predictions separate pairs with instances from pairs without instances."""
    precision, recall = tp / (tp + fp + OF_PAIRS), tp / (tp + fn + OF_PAIRS)
    sides = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    return {
        "IL_precision": precision,
        "IL_recall": recall,
        "IL_F1": 2 * precision * recall / (precision + recall + OF_PAIRS),
        "IL_FPR": fp / (fp + tn + OF_PAIRS),
        "IL_MCC": float(tp * tn - fp * fn) / (math.sqrt(sides) + OF_PAIRS),
    }


def _share(matched: Counts, of: int) -> Floats:
    return matched / (of + OF_INSTANCES)


def _f1(precision: Floats, recall: Floats) -> Floats:
    return 2 * precision * recall / (precision + recall + OF_INSTANCES)


def _mean(values: Floats) -> float:
    # The original leaves out values of -1 or less; NaN means that no pair has both instances and detections.
    kept = values[values > -1]
    return float(kept.mean()) if len(kept) else math.nan


SA_CO = DetectionProtocol(
    "sa-co",
    "cgF1: F1 of matched instances over .50:.95, times MCC of predicted presence; the best-fitting annotator counts",
    "facebookresearch/sam3 sam3/eval/cgf1_eval.py (99d02f2)",
    evaluate_sa_co,
    caveats=("IL_MCC is in percent here, as all metrics are; SAM 3's tables print it between -1 and 1",),
    annotators=True,
    image_field="is_instance_exhaustive",
    silence_counts=True,
)
