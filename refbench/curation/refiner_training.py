"""Trains a refiner on accurate masks: coarse outlines are drawn around them, as annotators in a hurry would."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch.nn import functional as F

from refbench._version import __version__
from refbench.curation.agreement import boundary_iou
from refbench.curation.folder import load_items
from refbench.curation.items import evenly
from refbench.curation.refiners.crops import crop_window
from refbench.curation.refiners.trained import (
    LARGEST_SIDE,
    SMALLEST_SIDE,
    STRIDE,
    WIDEST,
    RefinementNetwork,
    Settings,
    TrainedRefiner,
    crop_input,
    metadata_of,
    read_refiner,
)
from refbench.curation.surroundings import BoolArray
from refbench.datasets.builders.scenes_annotator import draw_outlines
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.masks.whole_numbers import Draws
from refbench.storage.files import atomic_file, file_sha256
from refbench.storage.images import load_image
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import Progress, silent

# Smaller objects have no outline that a network could learn from.
LEAST_AREA_PX = 400
# Crops are up to this much wider than the box, in percent of its sides.
LEAST_MARGIN, MOST_MARGIN = 5, 70
CROPS_PER_STEP = 8
# The learning rate rises over this share of the steps.
LEARNING_RATE, RISE = 2e-3, 0.1
# Pixels near the true outline count this much more than the others.
OUTLINE_WEIGHT, OUTLINE_PX = 4.0, 3
# One image in HELD_OUT is not trained on, unless the caller chooses the images.
HELD_OUT = 5
# Measuring more masks takes long on a CPU and hardly changes the mean.
MOST_MEASURED = 200


@dataclass(frozen=True, slots=True)
class AccurateMask:
    """An object with an accurate mask."""

    image_path: str
    image_id: str
    mask: Mask


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The result of a training.

    `held_out` masks were measured, at most MOST_MEASURED, spread evenly over those that were held out. `before` and
    `after` are the mean boundary IoU of coarse outlines and of the refiner's answers with the true masks, between 0 and
    1; `better` is the share of answers that are better than their outline. All three are NaN if nothing was held out.
    """

    file: Path
    masks: int
    held_out: int
    loss: float
    before: float
    after: float
    better: float


def accurate_masks(address: str) -> list[AccurateMask]:
    """The objects of a built split that can be trained on: no crowds, at least LEAST_AREA_PX pixels.

    Raises:
        DatasetError: the split is not built or was built without images.
    """
    out = []
    for image in load_items(address):
        if not image.image_path:
            raise DatasetError(f"{address} was built without images; build it again with --images")
        masks = {t.mask for t in image.masks} | {o.mask for o in image.objects if not o.crowd}
        chosen = sorted((m for m in masks if m.area >= LEAST_AREA_PX), key=lambda m: m.counts)
        out += [AccurateMask(image.image_path, image.image_id, mask) for mask in chosen]
    return out


def coarse_outline(mask: Mask, *seed: int) -> Mask | None:
    """A coarse mask as an annotator in a hurry would draw it; None if nothing of it is left.

    Its faults are those of the dataset `scenes-hurried`: missing vertices, outlines that are too wide, filled holes,
    and missing thin parts.
    """
    (outline,) = draw_outlines(Draws(*seed), [mask.to_array()])
    coarse = Mask.from_polygons(outline.polygons, mask.height, mask.width)
    return coarse if coarse.area else None


def train_refiner(
    addresses: Sequence[str],
    out: Path,
    *,
    hold_out: Sequence[str] = (),
    steps: int = 2000,
    side: int = 192,
    width: int = 16,
    seed: int = 0,
    start: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> TrainedOn:
    """Train a refiner on the accurate masks of built splits, and measure it on images that were held out.

    The same masks, settings, version of torch and number of threads give the same file on the CPU.

    Args:
        addresses: splits with accurate masks, for example "scenes/train".
        out: the file to write, for the option `weights` of the refiner `trained`.
        hold_out: images whose file name contains one of these texts are held out; by default one in five.
        steps: number of steps of eight crops.
        side: size of the crops for the network, in pixels; a multiple of 16.
        width: number of channels of the network, a multiple of 8.
        start: weights of an earlier training to start from; their side and width replace `side` and `width`.

    Raises:
        DatasetError: the side or the width is out of range; a split is not built, has no images, or has no mask that is
            large enough; or nothing remains to train on.
    """
    if side % STRIDE or not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise DatasetError(
            f"the side must be a multiple of {STRIDE} between {SMALLEST_SIDE} and {LARGEST_SIDE}, got {side}"
        )
    if width % 8 or not 8 <= width <= WIDEST:
        raise DatasetError(f"the width must be a multiple of 8 between 8 and {WIDEST}, got {width}")
    if steps < 1:
        raise DatasetError(f"the number of steps must be at least 1, got {steps}")
    masks = [mask for address in addresses for mask in accurate_masks(address)]
    learned, tested = _divided(masks, hold_out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RefinementNetwork(width)
    if start is not None:
        earlier, network = read_refiner(start)
        side, width = earlier.side, earlier.width
    settings = Settings(
        side, width, {a: split_fingerprint(a) for a in addresses}, steps, seed, torch.get_num_threads(),
        str(torch.__version__), __version__, "" if start is None else file_sha256(start),
    )  # fmt: skip
    with _deterministic():
        loss = _fit(network.to(device), learned, settings, progress)
    content = save({n: v.contiguous() for n, v in network.cpu().state_dict().items()}, metadata_of(settings))
    with atomic_file(out) as temporary:
        temporary.write_bytes(content)
    before, after = _measure(TrainedRefiner(os.fspath(out), device), evenly(tested, MOST_MEASURED), seed, progress)
    better = float(np.mean(after > before)) if len(after) else float("nan")
    before_mean, after_mean = (float(v.mean()) if len(v) else float("nan") for v in (before, after))
    return TrainedOn(out, len(learned), len(before), loss, before_mean, after_mean, better)


def _divided(masks: Sequence[AccurateMask], texts: Sequence[str]) -> tuple[list[AccurateMask], list[AccurateMask]]:
    """The masks to train on and those that are held out; all masks of an image are on one side."""
    order = {image_id: k for k, image_id in enumerate(sorted({m.image_id for m in masks}))}

    def held(mask: AccurateMask) -> bool:
        if texts:
            return any(text in Path(mask.image_path).name for text in texts)
        return order[mask.image_id] % HELD_OUT == HELD_OUT - 1

    tested = [m for m in masks if held(m)]
    learned = [m for m in masks if not held(m)]
    for text in texts:
        if not any(text in Path(m.image_path).name for m in tested):
            raise DatasetError(f"no image has {text!r} in its file name, so nothing is held out for it")
    if not learned:
        raise DatasetError(f"there is no mask of at least {LEAST_AREA_PX} px to train on")
    return learned, tested


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels of torch, and afterwards whatever the caller had set."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _fit(network: RefinementNetwork, masks: Sequence[AccurateMask], settings: Settings, progress: Progress) -> float:
    """Train the network; returns its mean loss over the last tenth of the steps."""
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, settings.steps))
    losses = []
    examples = _examples(masks, settings)
    for step in range(settings.steps):
        crops, targets = (torch.from_numpy(np.stack(v)).to(device) for v in zip(*_batch(examples), strict=True))
        loss = _loss(network(crops), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        progress("train", step + 1, settings.steps)
    return float(np.mean(losses[-max(1, settings.steps // 10) :]))


def _pace(step: int, steps: int) -> float:
    """The learning rate as a share of the highest one: it rises over the first tenth of the steps, then falls to 0."""
    done = (step + 1) / (steps + 1)
    if done < RISE:
        return done / RISE
    return 0.5 * (1 + math.cos(math.pi * (done - RISE) / (1 - RISE)))


Example = tuple[NDArray[np.float32], NDArray[np.float32]]


def _batch(examples: Iterator[Example]) -> list[Example]:
    return [next(examples) for _ in range(CROPS_PER_STEP)]


def _examples(masks: Sequence[AccurateMask], settings: Settings) -> Iterator[Example]:
    """Crops (4, side, side) with their true masks (side, side), without end; each pass has all masks in a new order."""
    epoch = 0
    while True:
        for k in Draws(settings.seed, epoch).shuffled(range(len(masks))):
            example = _example(masks[k], settings, epoch, k)
            if example is not None:
                yield example
        epoch += 1
        if epoch > settings.steps * CROPS_PER_STEP:
            raise DatasetError("no coarse outline can be drawn around any of the masks, so nothing can be learned")


def _example(accurate: AccurateMask, settings: Settings, epoch: int, number: int) -> Example | None:
    seed = (settings.seed, epoch, number)
    coarse = coarse_outline(accurate.mask, *seed, 0)
    if coarse is None:
        return None
    draws = Draws(*seed, 1)
    image = _pixels(accurate)
    window = crop_window(coarse.box_xywh, draws.between(LEAST_MARGIN, MOST_MARGIN) / 100, coarse.size)
    crop = crop_input(image, coarse.to_array(), window, settings.side)
    target = crop_input(image, accurate.mask.to_array(), window, settings.side)[3]
    # Colours vary between cameras; an outline does not depend on them.
    gain = np.array([draws.between(80, 120) for _ in range(3)], np.float32)[:, None, None] / 100
    crop[:3] *= gain
    if draws.percent(50):
        crop, target = crop[..., ::-1], target[..., ::-1]
    return np.ascontiguousarray(crop), np.ascontiguousarray(target)


def _pixels(accurate: AccurateMask) -> NDArray[np.uint8]:
    return np.asarray(load_image(accurate.image_path, accurate.mask.height, accurate.mask.width))


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, with more weight near the true outline, plus soft Dice per mask."""
    reach = 2 * OUTLINE_PX + 1
    grown = F.max_pool2d(targets[:, None], reach, 1, OUTLINE_PX)[:, 0]
    shrunk = 1 - F.max_pool2d(1 - targets[:, None], reach, 1, OUTLINE_PX)[:, 0]
    weight = 1 + OUTLINE_WEIGHT * (grown - shrunk)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, weight=weight)
    shares = logits.sigmoid()
    overlap = 2 * (shares * targets).sum((1, 2)) + 1
    dice = 1 - overlap / (shares.sum((1, 2)) + targets.sum((1, 2)) + 1)
    return entropy + dice.mean()


def _measure(
    refiner: TrainedRefiner, masks: Sequence[AccurateMask], seed: int, progress: Progress
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boundary IoU of coarse outlines and of the answers to them with the true masks, float (N,) each."""
    sources, answers, truths = [], [], []
    for number, accurate in enumerate(masks):
        coarse = coarse_outline(accurate.mask, seed, number, 2)
        if coarse is not None:
            image = _pixels(accurate)
            pixels: BoolArray = coarse.to_array()
            sources.append(coarse)
            answers.append(Mask.from_array(refiner.refine(image, pixels, coarse.box_xywh).mask))
            truths.append(accurate.mask)
        progress("measure", number + 1, len(masks))
    return boundary_iou(sources, truths), boundary_iou(answers, truths)
