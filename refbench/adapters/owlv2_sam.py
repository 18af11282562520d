"""`owlv2-sam`: OWLv2 finds boxes for an expression; SAM, SAM-HQ or SAM 2 segments the objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import Owlv2ForObjectDetection, Owlv2Processor

from refbench.adapters.box_prompts import BoxQuestion, Detections, DetectorWithSam, check_policy, corners, cut_note
from refbench.adapters.pretrained import SharedTokenizer
from refbench.adapters.torch_settings import moved


class Owlv2Sam(DetectorWithSam):
    """OWLv2 with SAM, SAM-HQ or SAM 2 through transformers, from local folders or the hub.

    Args:
        detector: OWLv2, for example google/owlv2-large-patch14-ensemble.
        sam: SAM, SAM-HQ or SAM 2, for example facebook/sam-vit-huge.
        device: for example cpu or cuda:0.
        policy: top1 (always the box with the highest score), union (all boxes above the threshold), or top1-if (the box
            with the highest score if it is above the threshold, otherwise none).
        threshold: threshold on the score of a box, between 0 and 1.
        revision, sam_revision: commits of the hub repositories; set them to make results reproducible.
        precision: float32, or mixed precision with float16 or bfloat16.
        compile: compile the image encoder of SAM with torch.compile, which takes a minute at the first image.

    Source: Minderer et al., "Scaling Open-Vocabulary Object Detection", NeurIPS 2023.
    """

    name = "owlv2-sam"
    batch_size = 8

    def __init__(
        self,
        detector: str,
        sam: str,
        device: str = "cpu",
        policy: str = "top1",
        threshold: float = 0.1,
        revision: str = "main",
        sam_revision: str = "main",
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        check_policy(policy, threshold)
        self.processor: Any = Owlv2Processor.from_pretrained(detector, revision=revision)
        self.tokenizer = SharedTokenizer(self.processor.tokenizer)
        super().__init__(
            Owlv2ForObjectDetection,
            detector,
            sam,
            device,
            policy,
            threshold,
            revision,
            sam_revision,
            precision,
            compile,
        )
        self.text_limit = int(self.network.config.text_config.max_position_embeddings)

    def detector_inputs(
        self, image: Image.Image, expressions: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """See `DetectorWithSam`."""
        tokens = self.tokenizer(
            list(expressions), padding="max_length", truncation=True, max_length=self.text_limit, return_tensors="pt"
        )
        lengths = [len(ids) for ids in self.tokenizer(list(expressions), verbose=False)["input_ids"]]
        pixels = self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        notes = [cut_note(self.text_limit) if length > self.text_limit else "" for length in lengths]
        inputs = {
            "pixel_values": pixels,
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
        }
        return inputs, notes

    def detect(self, question: BoxQuestion) -> list[Detections]:
        """See `DetectorWithSam`. The network scores each box for all expressions of its image."""
        output = self.network(**{name: moved(value, self.device) for name, value in question.inputs.items()})
        # The image was padded to a square below and to the right, so shares are of its longer side.
        side = max(question.image.height, question.image.width)
        boxes = corners(output.pred_boxes[0], side, side)
        scores = output.logits[0].float().sigmoid()
        return [Detections(boxes, own) for own in scores.unbind(dim=-1)]
