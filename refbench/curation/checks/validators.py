"""Checks masks and expressions with models: runs of any adapter on the split vote on which mask an expression means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pycocotools import mask as coco_mask

from refbench.curation.checks.base import NOTE, Reporter
from refbench.curation.checks.masks import LikeAnother
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.recipe import CONFIRMED, CONTRADICTED
from refbench.errors import DatasetError, RunError
from refbench.masks.mask import Mask
from refbench.records import Finding
from refbench.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Votes:
    """The answers of models about one mask: how many are on the mask, how many elsewhere, and which models answered."""

    here: int
    elsewhere: int
    models: str


@dataclass(frozen=True)
class _ByModels(Reporter):
    """What several runs say about the masks of a split.

    An answer is on the mask if its IoU with the mask is at least `agree`. It is also on the mask if this IoU is at
    least `least` and higher than the IoU of the answer with every other annotated object, because a coarse outline of a
    thin object has a low IoU with the object itself. Otherwise it is elsewhere if the IoU is below `deny`. All other
    answers, including empty and failed predictions, do not count.
    """

    runs: Sequence[str] = ()
    agree: float = 0.5
    deny: float = 0.3
    least: float = 0.1

    def votes(self, images: Sequence[ImageItems]) -> Iterator[tuple[TargetMask, Votes]]:
        """The votes on each mask for which at least one answer counts.

        Raises:
            DatasetError: no run is given, or one is on another split.
            RunError: a run is damaged or not complete.
        """
        if not self.runs:
            raise DatasetError(f"the check {self.code} needs runs; add them to the recipe as [[validators]]")
        targets = {s.sample_id: t for image in images for t in image.masks for s in t.samples}
        if not targets:
            return
        address = next(s.address for image in images for s in image.samples)
        images_by_id = {image.image_id: image for image in images}
        counts: dict[str, list[int]] = {t.mask_id: [0, 0] for t in targets.values()}
        named = []
        for place in self.runs:
            folder = RunFolder(Path(place).expanduser())
            info = folder.info
            if info.address != address:
                raise DatasetError(
                    f"{place} is a run on {info.address}, not on {address}; run the model on {address}, or remove this "
                    "run from [[validators]] in the recipe"
                )
            folder.check_complete()
            named.append(f"{info.adapter} {info.weights_sha256[:12]}".strip())
            for prediction in folder.predictions(targets):
                if prediction.error or not prediction.mask.area:
                    continue
                target = targets[prediction.sample_id]
                if prediction.mask.size != target.mask.size:
                    raise RunError(
                        f"{place}: the mask of {prediction.sample_id} has the size {prediction.mask.size}, but its "
                        f"image has {target.mask.size} (height, width); run the model again"
                    )
                iou, other = _ious(prediction.mask, target, images_by_id[target.image_id])
                on_mask = iou >= self.agree or (iou >= self.least and iou > other)
                vote = counts[target.mask_id]
                vote[0] += on_mask
                vote[1] += not on_mask and iou < self.deny
        for target in {t.mask_id: t for t in targets.values()}.values():
            here, elsewhere = counts[target.mask_id]
            if here or elsewhere:
                yield target, Votes(here, elsewhere, ", ".join(named))

    def _told(self, target: TargetMask, most: int, votes: Votes, where: str) -> Finding:
        count = votes.here + votes.elsewhere
        return self.on_mask(target, f"{most} of {count} answers are {where} ({votes.models})", most / count)


@dataclass(frozen=True)
class ConfirmedByModels(_ByModels):
    """For the expressions of a mask, more answers of models are on the mask than elsewhere.

    Another mask on the same object is no reason to leave such a mask to a person. Runs are added to a recipe as
    `[[validators]]`.
    """

    code: ClassVar[str] = CONFIRMED
    severity: ClassVar[str] = NOTE

    def find_in_split(self, images: Sequence[ImageItems]) -> Iterator[Finding]:
        for target, v in self.votes(images):
            if v.here > v.elsewhere:
                yield self._told(target, v.here, v, "on the mask")


@dataclass(frozen=True)
class ContradictedByModels(_ByModels):
    """For the expressions of a mask, more answers of models are elsewhere than on the mask.

    The mask or its expressions may mean another object. Runs are added to a recipe as `[[validators]]`.
    """

    code: ClassVar[str] = CONTRADICTED

    def find_in_split(self, images: Sequence[ImageItems]) -> Iterator[Finding]:
        for target, v in self.votes(images):
            if v.elsewhere > v.here:
                yield self._told(target, v.elsewhere, v, "elsewhere")


def _ious(answer: Mask, target: TargetMask, image: ImageItems) -> tuple[float, float]:
    """IoU of an answer with a mask, and the highest IoU of the answer with another object; objects at the same place as
    the mask are ignored.
    """
    others = [o.mask for o in image.others(target) if o.mask.area]
    codes = [target.mask.to_rle(), *(m.to_rle() for m in others)]
    found = coco_mask.iou([answer.to_rle()], codes, [0] * len(codes))[0]
    same = coco_mask.iou([target.mask.to_rle()], codes, [0] * len(codes))[0] >= LikeAnother.least
    return float(found[0]), float(max(found[~same], default=0.0))
