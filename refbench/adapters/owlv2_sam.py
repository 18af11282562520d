"""`owlv2-sam`: OWLv2 finds boxes for an expression; SAM, SAM-HQ or SAM 2 segments the objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import Owlv2ForObjectDetection, Owlv2Processor

from refbench.adapters.box_prompts import Detections, DetectorWithSam, check_policy, corners, cut_note
from refbench.adapters.torch_settings import moved
from refbench.records import Answer


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

    Source: Minderer et al., "Scaling Open-Vocabulary Object Detection", NeurIPS 2023.
    """

    name = "owlv2-sam"
    batch_size = 4

    def __init__(
        self,
        detector: str,
        sam: str,
        device: str = "cpu",
        policy: str = "top1",
        threshold: float = 0.1,
        revision: str = "main",
        sam_revision: str = "main",
    ) -> None:
        check_policy(policy, threshold)
        self.processor: Any = Owlv2Processor.from_pretrained(detector, revision=revision)
        super().__init__(Owlv2ForObjectDetection, detector, sam, device, policy, threshold, revision, sam_revision)
        self.text_limit = int(self.network.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Answer]:
        """See the interface of adapters."""
        tokenizer = self.processor.tokenizer
        tokens = tokenizer(
            list(expressions), padding="max_length", truncation=True, max_length=self.text_limit, return_tensors="pt"
        )
        lengths = [len(ids) for ids in tokenizer(list(expressions), verbose=False)["input_ids"]]
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        output = self.network(
            pixel_values=moved(pixels, self.device),
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        )
        out = []
        for image, logits, boxes, length in zip(images, output.logits, output.pred_boxes, lengths, strict=True):
            # The image was padded to a square below and to the right, so shares are of its longer side.
            side = max(image.height, image.width)
            found = Detections(corners(boxes, side, side), logits.float().amax(dim=-1).sigmoid())
            note = cut_note(self.text_limit) if length > self.text_limit else ""
            out.append(self.sam.answer(image, found, self.policy, self.threshold, note))
        return out
