"""`florence2`: Florence-2 writes the outline of an object as polygons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from refbench.adapters.pretrained import load_network, weights_sha256
from refbench.masks.mask import Mask
from refbench.records import Answer

TASK = "<REFERRING_EXPRESSION_SEGMENTATION>"
LEAST_POINTS = 3
BINS = 1000
PLACE = re.compile(r"<loc_(\d{1,3})>")
SPECIAL = re.compile(r"</?s>|<pad>")
PLACES = re.compile(r"(?:<loc_\d{1,3}>)+")


class Florence2:
    """Florence-2 with the class of transformers, from a local folder or the hub; it never runs code from the hub.

    As on the model card, the prompt is that of the task ("Locate ... in the image with mask"), and decoding uses a beam
    search with 3 beams, without sampling. The model cannot predict that there is no target.

    Args:
        model: for example florence-community/Florence-2-large-ft.
        device: for example cpu or cuda:0; on CUDA, the network runs in half precision.
        beams: number of beams; 3 as published, 1 is greedy decoding.
        max_new_tokens: maximum length of an answer; if it is truncated, so is the mask, and the sample gets a note.
        revision: commit of the hub repository; set it to make results reproducible.

    Source: Xiao et al., "Florence-2", CVPR 2024.
    """

    name = "florence2"
    mode = "generate"
    batch_size = 4

    def __init__(
        self, model: str, device: str = "cpu", beams: int = 3, max_new_tokens: int = 1024, revision: str = "main"
    ) -> None:
        self.device = torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.beams = beams
        self.max_new_tokens = max_new_tokens
        self.processor: Any = Florence2Processor.from_pretrained(model, revision=revision)
        network = load_network(Florence2ForConditionalGeneration, model, revision, self.dtype)
        self.network: Any = network.to(self.device)
        self.weights_sha256 = weights_sha256(model, revision)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Answer]:
        """See the interface of adapters.

        Expressions are processed one by one: with padding in a batch, the result of the beam search would depend on the
        other expressions.
        """
        return [self._one(image, expression) for image, expression in zip(images, expressions, strict=True)]

    def _one(self, image: Image.Image, expression: str) -> Answer:
        tokenizer = self.processor.tokenizer
        # Tokens left for the expression, beside the image tokens and the prompt; more would be an error.
        prompt = self.processor.task_prompts_with_input[TASK].format(input="")
        taken = self.processor.num_image_tokens + len(tokenizer(prompt)["input_ids"]) + 1
        room = int(self.network.config.text_config.max_position_embeddings) - taken
        ids = tokenizer(expression, add_special_tokens=False, verbose=False)["input_ids"]
        cut = len(ids) > room
        words = tokenizer.decode(ids[:room]) if cut else expression
        ready = self.processor(images=image, text=f"{TASK}{words}", return_tensors="pt")
        written = self.network.generate(
            input_ids=ready["input_ids"].to(self.device),
            attention_mask=ready["attention_mask"].to(self.device),
            pixel_values=ready["pixel_values"].to(self.device, self.dtype),
            max_new_tokens=self.max_new_tokens,
            num_beams=self.beams,
            do_sample=False,
        )
        text = tokenizer.batch_decode(written, skip_special_tokens=False)[0]
        notes = [f"text cut to {room} tokens"] if cut else []
        if len(written[0]) > self.max_new_tokens:
            notes.append(f"answer cut at {self.max_new_tokens} tokens")
        return Answer(mask_of(text, image.height, image.width), note="; ".join(notes), raw=text)


def mask_of(text: str, height: int, width: int) -> Mask:
    """The union of the polygons in an answer."""
    return Mask.from_polygons(polygons_in(text, height, width), height, width)


def polygons_in(text: str, height: int, width: int) -> list[list[float]]:
    """The polygons in an answer, as x, y, x, y in pixels.

    Each unbroken sequence of location tokens is one polygon: x, y, x, y in thousandths of the sides of the image, at
    the centres of the bins. Polygons with fewer than three points are ignored.
    """
    polygons = []
    for row in PLACES.findall(SPECIAL.sub("", text)):
        bins = [int(k) for k in PLACE.findall(row)]
        points = list(zip(bins[0::2], bins[1::2], strict=False))
        if len(points) >= LEAST_POINTS:
            polygons.append([v for x, y in points for v in ((x + 0.5) * width / BINS, (y + 0.5) * height / BINS)])
    return polygons
