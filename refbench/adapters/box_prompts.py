"""From the boxes of a detector to the mask of an expression; shared by the adapters that prompt SAM with boxes."""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from refbench.adapters.pretrained import load_network, weights_sha256
from refbench.adapters.segment_anything import Embedded, Prompts, SegmentAnything
from refbench.errors import AdapterError
from refbench.records import Answer

# Which boxes are segmented: the best; all above the threshold; the best if it is above the threshold, else none.
TOP1, UNION, TOP1_IF = "top1", "union", "top1-if"
POLICIES = (TOP1, UNION, TOP1_IF)
# Embeddings that are kept: the image of this batch and its neighbours.
KEPT = 4
RAW_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes of one image, float (N, 4) left, top, right, bottom in pixels, with scores between 0 and 1, float (N,)."""

    boxes: torch.Tensor
    scores: torch.Tensor


class PerImage:
    """Caches the results for the last few images, so that all expressions of an image share them.

    Images are compared by identity, because a run passes the same object for consecutive expressions of an image.
    """

    def __init__(self, compute: Any) -> None:
        self._compute = compute
        self._kept: OrderedDict[int, tuple[Image.Image, Any]] = OrderedDict()

    def of(self, image: Image.Image) -> Any:
        """The result of `compute(image)`, computed once."""
        found = self._kept.get(id(image))
        # Keep the image too, so that its id is not reused for another object.
        if found is None or found[0] is not image:
            found = image, self._compute(image)
            self._kept[id(image)] = found
        self._kept.move_to_end(id(image))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found[1]


def in_a_row(images: Sequence[Image.Image], expressions: Sequence[str]) -> Iterator[tuple[Image.Image, list[str]]]:
    """Each image with the consecutive expressions that refer to it."""
    for _, group in itertools.groupby(zip(images, expressions, strict=True), key=lambda pair: id(pair[0])):
        pairs = list(group)
        yield pairs[0][0], [expression for _, expression in pairs]


class BoxSegmenter:
    """SAM with box prompts. With share=False, every call embeds its image again; this is for measuring the gain of
    sharing.
    """

    def __init__(self, weights: str, device: str, revision: str, share: bool = True) -> None:
        self.network = SegmentAnything(weights, device, revision)
        self._share = share
        self._embedded = PerImage(lambda image: self.network.embed(np.asarray(image)))

    def embedded(self, image: Image.Image) -> Embedded:
        found: Embedded = self._embedded.of(image) if self._share else self.network.embed(np.asarray(image))
        return found

    def masks(self, image: Image.Image, boxes: torch.Tensor) -> torch.Tensor:
        """Masks for boxes, bool (N, H, W), one mask per box."""
        if not len(boxes):
            return torch.zeros((0, image.height, image.width), dtype=torch.bool)
        return self.network.decode(self.embedded(image), Prompts(boxes)).masks

    def answer(self, image: Image.Image, found: Detections, policy: str, threshold: float, note: str = "") -> Answer:
        """The mask of an expression according to the policy; the boxes that it was made from are stored as `raw`."""
        order = torch.argsort(found.scores, descending=True, stable=True)
        chosen = order[:1] if policy != UNION else order[found.scores[order] > threshold]
        best = float(found.scores[order[0]]) if len(order) else 0.0
        if policy == TOP1_IF and best <= threshold:
            chosen = order[:0]
        raw = json.dumps(
            [
                {"box": [round(float(v), RAW_DIGITS) for v in box], "score": round(float(score), RAW_DIGITS)}
                for box, score in zip(found.boxes[chosen], found.scores[chosen], strict=True)
            ]
        )
        masks = self.masks(image, found.boxes[chosen])
        # SAM may draw nothing in a box; only a policy with a threshold says that nothing is there.
        said_nothing = None if policy == TOP1 else not len(chosen)
        return Answer(masks.any(dim=0), no_target=said_nothing, score=min(1.0, best), note=note, raw=raw)


class DetectorWithSam:
    """An adapter in which a detector finds boxes for an expression, and SAM segments the objects in them.

    Args:
        kind: the transformers class of the detector.
        detector: weights of the detector, as a local folder or a model id of the hub.
        sam: weights of SAM, SAM-HQ or SAM 2.
        device: for example cpu or cuda:0.
        policy: see `check_policy`, which the adapter calls before it loads anything.
        threshold: threshold on the score of a box, between 0 and 1.
        revision: commit of the hub repository of the detector.
        sam_revision: commit of the hub repository of SAM.

    Raises:
        AdapterError: weights cannot be loaded.
    """

    def __init__(
        self,
        kind: Any,
        detector: str,
        sam: str,
        device: str,
        policy: str,
        threshold: float,
        revision: str,
        sam_revision: str,
    ) -> None:
        self.policy = policy
        self.threshold = threshold
        self.device = torch.device(device)
        self.network: Any = load_network(kind, detector, revision, torch.float32).to(self.device)
        self.sam = BoxSegmenter(sam, device, sam_revision)
        self.weights_sha256 = f"{weights_sha256(detector, revision)} {self.sam.network.weights_sha256}"


def padded_size(image: Image.Image, thinnest: int) -> tuple[int, int]:
    """(height, width) of the image, padded so that the longer side is at most `thinnest` times the shorter one."""
    least = -(-max(image.height, image.width) // thinnest)
    return max(image.height, least), max(image.width, least)


def padded(image: Image.Image, thinnest: int) -> Image.Image:
    """The image, padded with black below or to the right if it is too narrow for the network."""
    height, width = padded_size(image, thinnest)
    if (height, width) == (image.height, image.width):
        return image
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image)
    return canvas


def check_policy(policy: str, threshold: float, known: tuple[str, ...] = POLICIES) -> None:
    """Raise AdapterError if the policy is unknown or the threshold is not between 0 and 1."""
    if policy not in known:
        raise AdapterError(f"unknown policy {policy!r}; choose from {', '.join(known)}")
    if not 0 <= threshold <= 1:
        raise AdapterError(f"a threshold must be between 0 and 1, got {threshold}")


def corners(boxes: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """Convert boxes (..., 4) from relative center x, center y, width, height to corners in pixels."""
    x, y, w, h = boxes.float().unbind(-1)
    scaled = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    return scaled * torch.tensor([width, height, width, height], device=boxes.device)


def cut_note(limit: int) -> str:
    """The note for an expression that was truncated to the limit of the model."""
    return f"text cut to {limit} tokens"
