"""Converts the boxes of a detector to the mask of an expression; shared by the adapters that prompt SAM with boxes."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from refbench.adapters.base import Staged
from refbench.adapters.pretrained import load_network, weights_sha256
from refbench.adapters.segment_anything import Embedded, PreparedImage, Prompts, SegmentAnything
from refbench.adapters.torch_settings import better_in_processes, computing, pinned
from refbench.errors import AdapterError
from refbench.records import Answer

# Which boxes are segmented: the best; all above the threshold; the best if it is above the threshold, else none.
TOP1, UNION, TOP1_IF = "top1", "union", "top1-if"
POLICIES = (TOP1, UNION, TOP1_IF)
# Embeddings that are kept: the image of this batch and its neighbours.
KEPT = 4
RAW_DIGITS = 4
# Expressions for several images, since a large GPU embeds a few images at once.
CUDA_BATCH_SIZE = 32


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

    def of(self, image: Image.Image, *arguments: Any) -> Any:
        """The result of `compute(image, *arguments)`, computed once."""
        found = self.kept(image)
        if found is None:
            found = self._compute(image, *arguments)
        self.keep(image, found)
        return found

    def kept(self, image: Image.Image) -> Any:
        """The result for an image if it is kept, otherwise None."""
        known, value = self._kept.get(id(image), (None, None))
        return value if known is image else None

    def keep(self, image: Image.Image, value: Any) -> None:
        """Cache the result for an image as the most recent entry."""
        # Keep the image too, so that its id is not reused for another object.
        self._kept[id(image)] = image, value
        self._kept.move_to_end(id(image))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


class BoxSegmenter:
    """SAM with box prompts. With share=False, every call embeds its image again; this is for measuring the gain of
    sharing.
    """

    def __init__(
        self,
        weights: str,
        device: str,
        revision: str,
        share: bool = True,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        self.network = SegmentAnything(weights, device, revision, precision=precision, compile=compile)
        self._share = share
        self._embedded = PerImage(lambda image, prepared: self.network.embed_prepared(prepared or self.prepare(image)))

    def prepare(self, image: Image.Image) -> PreparedImage:
        """The pixels that SAM sees of an image; may be called in a thread."""
        return self.network.prepare(np.asarray(image))

    def embedded(self, image: Image.Image, prepared: PreparedImage | None = None) -> Embedded:
        """The features of an image, which is prepared first if necessary."""
        if not self._share:
            return self.network.embed_prepared(prepared or self.prepare(image))
        found: Embedded = self._embedded.of(image, prepared)
        return found

    def embed_together(self, questions: Sequence[BoxQuestion]) -> list[Embedded]:
        """The features of the images of several questions; cached features are not computed again."""
        found: dict[int, Embedded] = {id(q.image): self._embedded.kept(q.image) for q in questions}
        new = [question for question in questions if found[id(question.image)] is None]
        computed = self.network.embed_together([question.prepared for question in new])
        for question, embedded in zip(new, computed, strict=True):
            found[id(question.image)] = embedded
            self._embedded.keep(question.image, embedded)
        return [found[id(question.image)] for question in questions]

    def masks(
        self, image: Image.Image, boxes: torch.Tensor, known: PreparedImage | Embedded | None = None
    ) -> torch.Tensor:
        """Masks for boxes, bool (N, H, W), one mask per box; `known` is the prepared or embedded image, if
        available.
        """
        if not len(boxes):
            return torch.zeros((0, image.height, image.width), dtype=torch.bool)
        embedded = known if isinstance(known, Embedded) else self.embedded(image, known)
        return self.network.decode(embedded, Prompts(boxes)).masks

    def answer(self, image: Image.Image, found: Detections, policy: str, threshold: float, note: str = "") -> Answer:
        """The mask of one expression; see `answers`."""
        return self.answers(image, [found], policy, threshold, [note])[0]

    def answers(
        self,
        image: Image.Image,
        found: Sequence[Detections],
        policy: str,
        threshold: float,
        notes: Sequence[str],
        known: PreparedImage | Embedded | None = None,
    ) -> list[Answer]:
        """The masks of expressions about one image, according to the policy; the boxes used for each mask are stored in
        `raw`.
        """
        # One copy from the device for each image; the choice of the boxes is made here.
        scores = torch.stack([one.scores for one in found]).float().cpu()
        boxes = torch.stack([one.boxes for one in found]).float().cpu()
        chosen = [_chosen(own, policy, threshold) for own in scores]
        together = torch.cat([own[k] for own, k in zip(boxes, chosen, strict=True)])
        masks = torch.split(self.masks(image, together, known), [len(k) for k in chosen])
        return [
            Answer(
                drawn.any(dim=0),
                # SAM may draw nothing in a box; only a policy with a threshold says that nothing is there.
                no_target=None if policy == TOP1 else not len(k),
                score=min(1.0, float(own_scores.max())) if len(own_scores) else 0.0,
                note=note,
                raw=_raw(own_boxes[k], own_scores[k]),
            )
            for own_boxes, own_scores, k, drawn, note in zip(boxes, scores, chosen, masks, notes, strict=True)
        ]


def _chosen(scores: torch.Tensor, policy: str, threshold: float) -> torch.Tensor:
    """The indices of the boxes that a policy selects, best first."""
    order = torch.argsort(scores, descending=True, stable=True)
    if policy == UNION:
        return order[scores[order] > threshold]
    best = order[:1]
    return best[scores[best] > threshold] if policy == TOP1_IF else best


def _raw(boxes: torch.Tensor, scores: torch.Tensor) -> str:
    return json.dumps(
        [
            {"box": [round(float(v), RAW_DIGITS) for v in box], "score": round(float(score), RAW_DIGITS)}
            for box, score in zip(boxes, scores, strict=True)
        ]
    )


@dataclass(frozen=True, slots=True)
class BoxQuestion:
    """An image with its expressions, prepared for a detector and for SAM; `inputs` are the inputs of the detector."""

    image: Image.Image
    inputs: dict[str, torch.Tensor]
    notes: list[str]
    prepared: PreparedImage


class DetectorWithSam(Staged):
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
        precision: float32, or mixed precision with float16 or bfloat16.
        compile: compile the image encoder of SAM with torch.compile.

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
        precision: str,
        compile: bool,
    ) -> None:
        self.policy = policy
        self.threshold = threshold
        self.precision = precision
        self.compiled = compile
        self.device = torch.device(device)
        self.prepare_in_processes = better_in_processes(self.device)
        if self.device.type == "cuda":
            self.batch_size = CUDA_BATCH_SIZE
        self.network: Any = load_network(kind, detector, revision, torch.float32).to(self.device)
        self.sam = BoxSegmenter(sam, device, sam_revision, precision=precision, compile=compile)
        self.weights_sha256 = f"{weights_sha256(detector, revision)} {self.sam.network.weights_sha256}"

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> BoxQuestion:
        """See the interface of adapters."""
        inputs, notes = self.detector_inputs(image, expressions)
        ready = {name: pinned(value, self.device) for name, value in inputs.items()}
        return BoxQuestion(image, ready, notes, self.sam.prepare(image))

    def forward(self, batch: list[BoxQuestion]) -> list[tuple[list[Detections], PreparedImage | Embedded]]:
        """See the interface of adapters. The boxes of each image, and its features for SAM."""
        with computing(self.device, self.sam.network.dtype):
            boxes = [self.detect(question) for question in batch]
        # A policy with a threshold may find no box, and then needs no features.
        known = self.sam.embed_together(batch) if self.policy == TOP1 else [question.prepared for question in batch]
        return list(zip(boxes, known, strict=True))

    def finish(
        self, batch: list[BoxQuestion], output: list[tuple[list[Detections], PreparedImage | Embedded]]
    ) -> list[Answer]:
        """See the interface of adapters."""
        answers: list[Answer] = []
        for question, (found, known) in zip(batch, output, strict=True):
            answers += self.sam.answers(question.image, found, self.policy, self.threshold, question.notes, known)
        return answers

    def detector_inputs(
        self, image: Image.Image, expressions: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Inputs of the detector for expressions about one image, and a note for each expression."""
        raise NotImplementedError

    def detect(self, question: BoxQuestion) -> list[Detections]:
        """The boxes of each expression."""
        raise NotImplementedError


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
