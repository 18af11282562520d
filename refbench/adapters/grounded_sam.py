"""`grounded-sam`: Grounding DINO finds the box of an expression; SAM, SAM-HQ or SAM 2 segments the object in it."""

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
    """Grounding DINO with SAM, SAM-HQ or SAM 2, through transformers, from local folders or the hub.

    Args:
        detector: Grounding DINO, e.g. IDEA-Research/grounding-dino-base.
        sam: a SAM, SAM-HQ or SAM 2, e.g. facebook/sam-vit-huge.
        device: e.g. cpu or cuda:0.
        policy: top1 (the best box, always one), union (all boxes above the threshold), top1-if (the best box if it is
            above the threshold, else nothing), or all-classes, for sets that are scored by AP: the classes of the
            dataset in one caption, 100 instances an image, as SGinW is published.
        threshold: on the score of a box, in 0..1.
        revision, sam_revision: commits of the hub repositories; pin them for results that are to be repeated.

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
        """See the adapter contract."""
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
        """Boxes of all queries, with the highest score of any token.

        Every caption ends in a full stop; otherwise the processor would merge them. Images of different sizes are
        never padded to one size: the backbone sees the padding, and a box would depend on the rest of the batch.
        """
        found: list[Detections] = []
        for image, together in in_a_row(images, captions):
            output = self._forward([image] * len(together), together)
            scores = output.logits.float().sigmoid().amax(dim=-1)
            size = padded_size(image, THINNEST)
            found += [Detections(corners(b, *size), s) for b, s in zip(output.pred_boxes, scores, strict=True)]
        return found

    def _of_class(self, sample: Sample, image: Image.Image) -> Answer:
        """The instances of a sample's class among the 100 best of its image, over all classes of the dataset."""
        address = sample.address
        if address not in self._classes:
            # Sets that are scored by AP ask for each class of each image, in the order of their annotation file.
            classes = list(dict.fromkeys(s.category for s in load_samples(address)))
            self._classes[address] = classes
            self._instances[address] = PerImage(lambda picture: self._all_instances(picture, classes))
        if sample.category not in self._classes[address]:
            raise AdapterError(f"{sample.sample_id} asks for {sample.category!r}, no class of {address}")
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
        """Captions that hold as many classes as fit, each with the token range of every class in it."""
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
    """A caption as Grounding DINO was trained on them: small letters, one phrase, a full stop at its end.

    A full stop within would cut the expression into several phrases.
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
        raise AdapterError(f"{detector} is a {model_type}, not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model_type]
