"""`grounded-sam`: Grounding DINO finds boxes for an expression; SAM, SAM-HQ or SAM 2 segments the objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoProcessor,
    GroundingDinoForObjectDetection,
    MMGroundingDinoForObjectDetection,
)

from refbench.adapters.box_prompts import (
    POLICIES,
    Detections,
    DetectorWithSam,
    PerImage,
    check_policy,
    corners,
    cut_note,
    in_a_row,
    padded,
    padded_size,
)
from refbench.adapters.torch_settings import moved
from refbench.errors import AdapterError
from refbench.records import Answer, Sample
from refbench.storage.samples import load_samples

ALL_CLASSES = "all-classes"
TEXT_TOKENS = 256
# Thinner images are padded: the network selects its queries among feature map positions, and there would be fewer
# positions than queries.
THINNEST = 6
# As SGinW is published: so many pairs of a query and a class for an image.
INSTANCES = 100
ARCHITECTURES: dict[str, Any] = {
    "grounding-dino": GroundingDinoForObjectDetection,
    "mm-grounding-dino": MMGroundingDinoForObjectDetection,
}


class GroundedSam(DetectorWithSam):
    """Grounding DINO with SAM, SAM-HQ or SAM 2 through transformers, from local folders or the hub.

    Args:
        detector: Grounding DINO, for example IDEA-Research/grounding-dino-base.
        sam: SAM, SAM-HQ or SAM 2, for example facebook/sam-vit-huge.
        device: for example cpu or cuda:0.
        policy: top1 (always the box with the highest score), union (all boxes above the threshold), top1-if (the box
            with the highest score if it is above the threshold, otherwise none), or all-classes. all-classes is for
            datasets that are scored by AP: all classes form one caption, and each image has up to 100 instances, as
            published for SGinW.
        threshold: threshold on the score of a box, between 0 and 1.
        revision, sam_revision: commits of the hub repositories; set them to make results reproducible.

    Source: Ren et al., "Grounded SAM", 2024. The policy `all-classes` follows `seginw/test_ap_on_seginw.py` of
    SysCV/sam-hq.
    """

    name = "grounded-sam"
    batch_size = 4

    def __init__(
        self,
        detector: str,
        sam: str,
        device: str = "cpu",
        policy: str = "top1",
        threshold: float = 0.25,
        revision: str = "main",
        sam_revision: str = "main",
    ) -> None:
        check_policy(policy, threshold, (*POLICIES, ALL_CLASSES))
        self.processor: Any = _processor(detector, revision)
        kind = _architecture(detector, revision)
        super().__init__(kind, detector, sam, device, policy, threshold, revision, sam_revision)
        self._classes: dict[str, list[str]] = {}
        self._instances: dict[str, PerImage] = {}

    @torch.inference_mode()
    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[Answer]:
        """See the interface of adapters."""
        if self.policy == ALL_CLASSES:
            return [self._of_class(s, i) for s, i in zip(samples, images, strict=True)]
        captions = [normalised(s.expression) for s in samples]
        notes = [cut_note(TEXT_TOKENS) if self._is_cut(c) else "" for c in captions]
        found = self._detect(images, captions)
        return [
            self.sam.answer(image, one, self.policy, self.threshold, note)
            for image, one, note in zip(images, found, notes, strict=True)
        ]

    def _is_cut(self, caption: str) -> bool:
        return len(self.processor.tokenizer(caption, verbose=False)["input_ids"]) > TEXT_TOKENS

    def _forward(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Any:
        ready = self.processor(
            images=[padded(image, THINNEST) for image in images],
            text=list(captions),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=TEXT_TOKENS,
        )
        return self.network(**{name: moved(value, self.device) for name, value in ready.items()})

    def _detect(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[Detections]:
        """Boxes of all queries, with the highest score over the tokens.

        Every caption ends with a full stop; otherwise the processor would merge captions. Images of different sizes are
        not padded to a common size, because the backbone sees the padding, and a box would depend on the rest of the
        batch.
        """
        found: list[Detections] = []
        for image, together in in_a_row(images, captions):
            output = self._forward([image] * len(together), together)
            scores = output.logits.float().sigmoid().amax(dim=-1)
            size = padded_size(image, THINNEST)
            found += [Detections(corners(b, *size), s) for b, s in zip(output.pred_boxes, scores, strict=True)]
        return found

    def _of_class(self, sample: Sample, image: Image.Image) -> Answer:
        """The instances of the class of a sample, among the 100 best of its image over all classes of the dataset."""
        address = sample.address
        if address not in self._classes:
            # Sets that are scored by AP ask for each class of each image, in the order of their annotation file.
            classes = list(dict.fromkeys(s.category for s in load_samples(address)))
            self._classes[address] = classes
            self._instances[address] = PerImage(lambda picture: self._all_instances(picture, classes))
        if sample.category not in self._classes[address]:
            raise AdapterError(
                f"the sample {sample.sample_id} asks for the category {sample.category!r}, which {address} does not "
                "have"
            )
        instances = self._instances[address].of(image).get(sample.category, [])
        empty = torch.zeros((image.height, image.width), dtype=torch.bool)
        above = [m for m, score in instances if score > self.threshold]
        union = torch.stack(above).any(dim=0) if above else empty
        best = max((score for _, score in instances), default=0.0)
        return Answer(union, no_target=not above, score=best, instances=instances)

    def _all_instances(self, image: Image.Image, classes: Sequence[str]) -> dict[str, list[tuple[torch.Tensor, float]]]:
        boxes, scores, names = [], [], []
        for caption, spans in self._captions(classes):
            output = self._forward([image], [caption])
            tokens = output.logits[0].float().sigmoid()
            kinds = [tokens[:, list(place)].mean(dim=1) for place in spans.values()]
            boxes.append(corners(output.pred_boxes[0], *padded_size(image, THINNEST)))
            scores.append(torch.stack(kinds, dim=1))
            names.append(list(spans))
        flat = torch.cat([s.reshape(-1) for s in scores])
        top = torch.argsort(flat, descending=True, stable=True)[:INSTANCES]
        places = [
            (part, query, kind)
            for part, s in enumerate(scores)
            for query in range(len(s))
            for kind in range(s.shape[1])
        ]
        chosen = [places[k] for k in top.tolist()]
        drawn = self.sam.masks(image, torch.stack([boxes[part][query] for part, query, _ in chosen]))
        out: dict[str, list[tuple[torch.Tensor, float]]] = {}
        for (part, _, kind), mask, score in zip(chosen, drawn, flat[top].tolist(), strict=True):
            out.setdefault(names[part][kind], []).append((mask, min(1.0, score)))
        return out

    def _captions(self, classes: Sequence[str]) -> list[tuple[str, dict[str, range]]]:
        """Captions that contain as many classes as fit, each with the token range of every class."""
        out: list[tuple[str, dict[str, range]]] = []
        tokenizer = self.processor.tokenizer
        parts: list[str] = []
        spans: dict[str, range] = {}
        # Position 0 is the token that begins a text; the last one ends it.
        at = 1
        stop = len(tokenizer(" .", add_special_tokens=False)["input_ids"])
        for name in classes:
            words = normalised(name).removesuffix(".").strip()
            length = len(tokenizer(words, add_special_tokens=False)["input_ids"])
            if parts and at + length + stop + 1 > TEXT_TOKENS:
                out.append((" . ".join(parts) + " .", spans))
                parts, spans, at = [], {}, 1
            parts.append(words)
            spans[name] = range(at, at + length)
            at += length + stop
        out.append((" . ".join(parts) + " .", spans))
        return out


def normalised(expression: str) -> str:
    """The caption in the form that Grounding DINO was trained on: one phrase in lower case with a full stop at the end.

    Full stops inside the expression are removed, because they would split it.
    """
    words = expression.lower().replace(".", " ").split()
    return " ".join(words) + "."


def _processor(detector: str, revision: str) -> Any:
    try:
        return AutoProcessor.from_pretrained(detector, revision=revision)
    except (OSError, ValueError) as error:
        raise AdapterError(f"the processor of {detector} cannot be loaded: {error}") from error


def _architecture(detector: str, revision: str) -> Any:
    model_type = str(AutoConfig.from_pretrained(detector, revision=revision).model_type)
    if model_type not in ARCHITECTURES:
        raise AdapterError(f"{detector} is a model of type {model_type}; supported types: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model_type]
