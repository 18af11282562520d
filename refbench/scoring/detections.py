"""Converts the instances of a run to COCO results, which AP protocols score against an annotation file."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbench.errors import PredictionError
from refbench.records import Instance, Prediction, Sample
from refbench.runs.folder import RunFolder
from refbench.scoring.protocols.coco_files import Annotations
from refbench.storage.coco_rows import Key
from refbench.storage.files import write_json
from refbench.storage.predictions import SampleIndex
from refbench.storage.samples import load_samples

SETS_OF_SGINW = "sginw-"


@dataclass(frozen=True, slots=True)
class Written:
    """A file of COCO results and what is missing from it: samples that failed, and pairs for which the run has no
    sample.
    """

    path: Path
    failed: tuple[str, ...]
    unasked: tuple[str, ...]

    def gaps(self) -> str:
        """A text that lists the samples and pairs without results; "" if nothing is missing."""
        parts = []
        if self.failed:
            parts.append(f"samples of the run that failed: {len(self.failed)}, the first is {self.failed[0]}")
        if self.unasked:
            parts.append(f"pairs without a sample in the run: {len(self.unasked)}, the first is {self.unasked[0]}")
        return "; ".join(parts)


def write_detections(folder: Path, truth: Annotations) -> Written:
    """Write the instances of a run as COCO results to its folder.

    For a set of SGinW, the file is named `seginw_<set>_val.json`, as a submission requires; otherwise
    `coco-results.json`. The instances of a sample are written under its class or, for SA-Co, under its pair of image
    and phrase. If no prediction of the run has instances, each non-empty mask is written as one instance, with the
    score of its prediction (1 if it has no score).

    Raises:
        PredictionError: the annotation file lacks the image or class of a sample; the message names the first such
            sample.
        RunError: the run does not exist or is not complete.
    """
    run = RunFolder(folder)
    run.check_complete()
    info = run.info
    places = _Pairs(truth) if _is_sa_co(truth) else _Classes(truth, info.split)
    asked = load_samples(info.address)[: info.limit]
    samples = {s.sample_id: s for s in asked}
    # Each sample once, in its size.
    deque(run.claims(SampleIndex.of(asked)), maxlen=0)
    predictions = list(run.predictions())
    bare = not any(p.instances for p in predictions)
    rows: list[dict[str, Any]] = []
    for prediction in predictions:
        sample = samples[prediction.sample_id]
        image, category = places.of(sample)
        if image is None or category is None:
            raise PredictionError(
                f"{truth.path} is not the annotation file of this run: the image {sample.image_id} or the category "
                f"{sample.category!r} of the sample {sample.sample_id} is missing"
            )
        rows += [_row(image, category, one) for one in _instances(prediction, sample, bare)]
    name = info.dataset
    is_set = name.startswith(SETS_OF_SGINW)
    path = folder / (f"seginw_{name.removeprefix(SETS_OF_SGINW)}_val.json" if is_set else "coco-results.json")
    write_json(path, rows)
    failed = tuple(p.sample_id for p in predictions if p.error)
    return Written(path, failed, places.unasked([samples[p.sample_id] for p in predictions]))


class _Classes:
    """Finds the image id and class id of a sample in an annotation file with classes; None if they are unknown."""

    def __init__(self, truth: Annotations, split: str) -> None:
        self.images = {str(key): key for key in truth.images}
        self.categories = {str(category.row.get("name")): key for key, category in truth.categories.items()}
        # Builders write the split before an image's number, since each split counts from 0.
        self.prefix = f"{split}-"

    def of(self, sample: Sample) -> tuple[Key | None, Key | None]:
        return self.images.get(sample.image_id.removeprefix(self.prefix)), self.categories.get(sample.category)

    def unasked(self, asked: Sequence[Sample]) -> tuple[str, ...]:
        """Always empty, because in LVIS not every class is evaluated on every image, so a missing pair is not a gap."""
        return ()


class _Pairs:
    """Like `_Classes`, but for SA-Co files, where an "image" is a pair of an image and a phrase, and there is only one
    class.
    """

    def __init__(self, truth: Annotations) -> None:
        self.pairs = {(str(key), image.row["text_input"]): key for key, image in truth.images.items()}
        self.category = next(iter(truth.categories), None)
        if self.category is None:
            raise PredictionError(
                f"{truth.path} has no category; a SA-Co file has exactly one category for all annotations"
            )
        self.counted = {pair for pair, key in self.pairs.items() if truth.images[key].row.get("is_instance_exhaustive")}

    def of(self, sample: Sample) -> tuple[Key | None, Key | None]:
        return self.pairs.get((sample.ref_id, sample.raw_expression)), self.category

    def unasked(self, asked: Sequence[Sample]) -> tuple[str, ...]:
        """The exhaustively annotated pairs for which the run has no sample."""
        lacking = self.counted - {(s.ref_id, s.raw_expression) for s in asked}
        return tuple(f"{pair} ({phrase!r})" for pair, phrase in sorted(lacking))


def _is_sa_co(truth: Annotations) -> bool:
    return bool(truth.images) and all(isinstance(i.row.get("text_input"), str) for i in truth.images.values())


def _instances(prediction: Prediction, sample: Sample, bare: bool) -> tuple[Instance, ...]:
    if not bare:
        return prediction.instances
    if prediction.error or not prediction.mask.area:
        return ()
    return (Instance(prediction.mask, 1.0 if prediction.score is None else prediction.score),)


def _row(image: Any, category: Any, instance: Instance) -> dict[str, Any]:
    mask = instance.mask
    code = {"size": [mask.height, mask.width], "counts": mask.counts.decode("ascii")}
    return {"image_id": image, "category_id": category, "segmentation": code, "score": instance.score}
