"""The interface of a refiner, and how its answer becomes a proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import disk

from refbench.curation.surroundings import (
    BoolArray,
    FloatArray,
    edge_strength,
    lab_of,
    misfit_px,
    signed_distance,
    window_of,
)
from refbench.masks.mask import Mask
from refbench.records import Proposal

Box = tuple[float, float, float, float]
# How far from the outline of a coarse mask the true one may lie, as a share of the square root of its area.
REACH_SHARE, LEAST_REACH_PX, MOST_REACH_PX = 0.12, 3, 12
# A refiner that takes the whole image for the object has lost it.
WHOLE_SHARE = 0.98


@dataclass(frozen=True, slots=True)
class Refined:
    """The answer of a refiner: `mask` is bool (H, W) in the size of the image, `confidence` is between 0 and 1."""

    mask: Any
    confidence: float


@dataclass(frozen=True, eq=False, slots=True)
class Target:
    """The mask that a refiner is to improve.

    `mask` is the coarse mask, bool (H, W) and not empty, `box` its [left, top, width, height]; `category` is "" if it
    is unknown. `expressions` are those that refer to the mask.
    """

    mask: BoolArray
    box: Box
    category: str = ""
    expressions: tuple[str, ...] = ()


class Refiner(Protocol):
    """Proposes a new mask with one method: `refine(image, mask, box)`.

    `image` is uint8 (H, W, 3) RGB, `mask` is the coarse mask, bool (H, W) and not empty, and `box` is its [left, top,
    width, height]. If a refiner varies its own prompts, or needs the category or the expressions, it has a method
    `refine_target(image, target, variants)`, which returns one answer per variant. Other refiners are called again with
    shifted masks. All masks of an image are passed consecutively with the same array, so that a network can embed it
    once. `weights_sha256` identifies the weights.
    """

    name: str

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined: ...


def propose(
    refiner: Any,
    picture: NDArray[np.uint8],
    mask_ids: Sequence[str],
    sources: Sequence[Mask],
    variants: int,
    categories: Sequence[str] = (),
    expressions: Sequence[Sequence[str]] = (),
) -> list[Proposal]:
    """Ask a refiner `variants` times for each mask of an image; errors of the refiner become failed proposals."""
    category_of = dict(zip(mask_ids, categories, strict=True)) if categories else {}
    expressions_of = dict(zip(mask_ids, map(tuple, expressions), strict=True)) if expressions else {}

    def target_of(mask_id: str, start: BoolArray, source: Mask) -> Target:
        return Target(start, source.box_xywh, category_of.get(mask_id, ""), expressions_of.get(mask_id, ()))

    asked: list[tuple[str, int, Mask, BoolArray]] = []
    out = []
    for mask_id, source in zip(mask_ids, sources, strict=True):
        if source.area == 0:
            error = "there is no source mask to start from"
            out.append(Proposal(mask_id, refiner.name, 0, Mask.empty(*source.size), 0.0, error=error))
            continue
        pixels = source.to_array()
        own = hasattr(refiner, "refine_target")
        asked += [(mask_id, v, source, pixels if own else jittered(pixels, v)) for v in range(variants)]
    if hasattr(refiner, "refine_target"):
        answers = [
            answer
            for mask_id, _, source, start in asked[::variants]
            for answer in _ask_target(refiner, picture, target_of(mask_id, start, source), variants)
        ]
    else:
        answers = _ask(refiner, picture, [start for *_, start in asked])
    strength = edge_strength(lab_of(picture))
    misfits = {m: _misfit(m.to_array(), strength) for m in {source for _, _, source, _ in asked}}
    for (mask_id, variant, source, _), answer in zip(asked, answers, strict=True):
        out.append(_proposal(refiner.name, mask_id, variant, source, strength, misfits[source], answer))
    return out


def _misfit(mask: BoolArray, strength: FloatArray) -> float:
    window = window_of(mask, 8)
    # Rounded, so that a last bit of another processor does not change a decision.
    return round(misfit_px(mask[window], strength[window]), 4)


def _ask_target(refiner: Any, picture: NDArray[np.uint8], target: Target, variants: int) -> list[Refined | Exception]:
    try:
        answers = list(refiner.refine_target(picture, target, variants))
    except Exception as error:  # noqa: BLE001 (a refiner may raise anything; it is told and counted)
        return [error] * variants
    if len(answers) != variants:
        return [ValueError(f"{len(answers)} answers for {variants} variants")] * variants
    return answers


def _ask(refiner: Any, picture: NDArray[np.uint8], starts: Sequence[BoolArray]) -> list[Refined | Exception]:
    answers: list[Refined | Exception] = []
    for start in starts:
        try:
            answers.append(refiner.refine(picture, start, Mask.from_array(start).box_xywh))
        except Exception as error:  # noqa: BLE001 (a refiner may raise anything; it is told and counted)
            answers.append(error)
    return answers


def _proposal(
    name: str,
    mask_id: str,
    variant: int,
    source: Mask,
    strength: FloatArray,
    source_misfit: float,
    answer: Refined | Exception,
) -> Proposal:
    def failed(error: str) -> Proposal:
        return Proposal(mask_id, name, variant, Mask.empty(*source.size), 0.0, error=error[:300])

    if isinstance(answer, Exception):
        return failed(f"{type(answer).__name__}: {answer}")
    try:
        mask = Mask.from_array(np.asarray(answer.mask))
        confidence = float(answer.confidence)
    except Exception as error:  # noqa: BLE001 (a tensor, a lazy property: whatever it is, it is not an answer)
        return failed(f"no mask and confidence: {error}")
    if mask.size != source.size:
        return failed(f"its mask is {mask.height} x {mask.width}, the image {source.height} x {source.width}")
    if mask.area == 0:
        return failed("it returned the empty mask")
    if mask.area >= WHOLE_SHARE * mask.height * mask.width > source.area:
        return failed("it returned the whole image")
    if not 0 <= confidence <= 1:
        return failed(f"its confidence {confidence} is not in 0..1")
    misfit = _misfit(mask.to_array(), strength)
    return Proposal(mask_id, name, variant, mask, round(confidence, 6), misfit, source_misfit)


def jittered(mask: BoolArray, variant: int) -> BoolArray:
    """The mask for one variant: the source mask for variant 0, and a slightly dilated, eroded or shifted mask for the
    others.

    A stable refiner returns the same mask for all variants.
    """
    step = max(1, reach_px(mask) // 3)
    if variant == 0:
        return mask
    if variant == 1:
        return np.asarray(ndimage.binary_dilation(mask, disk(step)))
    if variant == 2:
        inner = core_of(mask, step)
        return inner if inner.any() else mask
    directions = ((0, step), (step, 0), (0, -step), (-step, 0))
    shifted = ndimage.shift(mask.astype(np.uint8), directions[(variant - 3) % 4], order=0).astype(bool)
    return shifted if shifted.any() else mask


def reach_px(mask: BoolArray) -> int:
    """The distance from the outline of the mask, in pixels, within which the true outline is searched for."""
    side = float(np.sqrt(np.count_nonzero(mask)))
    return int(np.clip(REACH_SHARE * side, LEAST_REACH_PX, MOST_REACH_PX))


def core_of(mask: BoolArray, depth_px: float) -> BoolArray:
    """The pixels whose depth inside the mask is more than `depth_px`, or more than half of the maximum depth if that is
    less.
    """
    depth = -signed_distance(np.pad(mask, 1))[1:-1, 1:-1]
    return np.asarray(depth > min(depth_px, 0.5 * float(depth.max())))


def unfold(part: BoolArray, window: tuple[slice, slice], shape: tuple[int, int]) -> BoolArray:
    """Convert a mask of a window to a mask of the whole image."""
    whole = np.zeros(shape, bool)
    whole[window] = part
    return whole
