"""`grounded-sam`: Grounding DINO finds boxes for an expression; SAM, SAM-HQ or SAM 2 segments the objects in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    BoxQuestion,
    Detections,
    DetectorWithSam,
    PerImage,
    check_policy,
    corners,
    cut_note,
    padded,
    padded_size,
)
from refbench.adapters.pretrained import SharedTokenizer
from refbench.adapters.torch_settings import computing, moved
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
        precision: float32, or mixed precision with float16 or bfloat16.
        compile: compile the image encoder of SAM with torch.compile, which takes a minute at the first image.

    Source: Ren et al., "Grounded SAM", 2024. The policy `all-classes` follows `seginw/test_ap_on_seginw.py` of
    SysCV/sam-hq.
    """

    name = "grounded-sam"
    batch_size = 8

    def __init__(
        self,
        detector: str,
        sam: str,
        device: str = "cpu",
        policy: str = "top1",
        threshold: float = 0.25,
        revision: str = "main",
        sam_revision: str = "main",
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        check_policy(policy, threshold, (*POLICIES, ALL_CLASSES))
        self.processor: Any = _processor(detector, revision)
        kind = _architecture(detector, revision)
        self.tokenizer = SharedTokenizer(self.processor.tokenizer)
        super().__init__(kind, detector, sam, device, policy, threshold, revision, sam_revision, precision, compile)
        self.network.model.backbone = _OneImage(self.network.model.backbone)
        if policy == ALL_CLASSES:
            # It needs the dataset of a sample, not only its image and expression.
            self.segment_samples = self._segment_classes
        self._classes: dict[str, list[str]] = {}
        self._instances: dict[str, PerImage] = {}

    def detector_inputs(
        self, image: Image.Image, expressions: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """See `DetectorWithSam`. Every caption ends with a full stop; otherwise the processor would merge captions."""
        captions = [normalised(expression) for expression in expressions]
        lengths = [len(self.tokenizer(caption, verbose=False)["input_ids"]) for caption in captions]
        return self._inputs(image, captions), [cut_note(TEXT_TOKENS) if n > TEXT_TOKENS else "" for n in lengths]

    def detect(self, question: BoxQuestion) -> list[Detections]:
        """See `DetectorWithSam`. All queries, each with its highest score over the tokens.

        Images of different sizes are not padded to a common size, because padding affects the backbone, so the boxes
        would depend on the rest of the batch.
        """
        output = self._forward(question.inputs)
        scores = output.logits.float().sigmoid().amax(dim=-1)
        size = padded_size(question.image, THINNEST)
        return [Detections(corners(b, *size), s) for b, s in zip(output.pred_boxes, scores, strict=True)]

    def _inputs(self, image: Image.Image, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            list(captions), return_tensors="pt", padding=True, truncation=True, max_length=TEXT_TOKENS
        )
        pixels = self.processor.image_processor(images=[padded(image, THINNEST)], return_tensors="pt")
        return {**tokens, "pixel_values": pixels["pixel_values"], "pixel_mask": pixels["pixel_mask"]}

    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        """The output of the network for all captions; the image is copied to the device once and repeated on the
        device.
        """
        count = len(inputs["input_ids"])
        ready = {name: moved(value, self.device) for name, value in inputs.items()}
        ready |= {n: ready[n].expand(count, *ready[n].shape[1:]) for n in ("pixel_values", "pixel_mask")}
        return self.network(**ready)

    def _segment_classes(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[Answer]:
        with computing(self.device, self.sam.network.dtype):
            return [self._of_class(s, i) for s, i in zip(samples, images, strict=True)]

    def _of_class(self, sample: Sample, image: Image.Image) -> Answer:
        """The instances of the class of a sample that are among the 100 best instances of its image over all classes of
        the dataset.
        """
        address = sample.address
        if address not in self._classes:
            # Sets that are scored by AP ask for each class of each image, in the order of their annotation file.
            classes = list(dict.fromkeys(s.category for s in load_samples(address)))
            self._classes[address] = classes
            self._instances[address] = PerImage(lambda picture: self._all_instances(picture, classes))
        if sample.category not in self._classes[address]:
            raise AdapterError(
                f"the sample {sample.sample_id} has the category {sample.category!r}, which does not exist in {address}"
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
            output = self._forward(self._inputs(image, [caption]))
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
        tokenizer = self.tokenizer
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


class _OneImage(torch.nn.Module):
    """Wraps the backbone of the network for a batch that repeats one image: the features are computed once and repeated
    for each caption.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.position_embedding = backbone.position_embedding

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
        """As the backbone."""
        count = len(pixel_values)
        features, positions = self.backbone(pixel_values[:1], pixel_mask[:1])
        return (
            [tuple(part.expand(count, *part.shape[1:]) for part in level) for level in features],
            [level.expand(count, *level.shape[1:]) for level in positions],
        )


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
