"""`paligemma`: PaliGemma writes a box and 16 tokens, which a small decoder turns into a mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from refbench.adapters.paligemma_tokens import TokenDecoder
from refbench.adapters.pretrained import load_network, weights_sha256
from refbench.masks.mask import Mask
from refbench.records import Answer
from refbench.storage.files import path_sha256

ANSWER = re.compile(r"((?:<loc\d{4}>){4})\s*((?:<seg\d{3}>){16})")
BINS = 1024
HALF = 0.5
MOST_WORDS = 200
# A mask takes 20 tokens and its label a few: room for ten masks.
MOST_TOKENS = 256


class PaliGemma:
    """PaliGemma or PaliGemma 2 through transformers, from a local folder or the hub.

    The prompt is "segment ..." in lower case, as in training, and decoding is greedy. If the output has no box with 16
    tokens, or if the box has no area, the mask is empty and the sample gets a note; the official metric counts this as
    0.

    Args:
        model: for example google/paligemma2-3b-mix-448 (gated: accept its licence first).
        decoder: vae-oid.npz, the weights of the mask decoder (gs://big_vision/paligemma/vae-oid.npz).
        device: for example cpu or cuda:0; on CUDA, the network runs in bfloat16.
        revision: commit of the hub repository; set it to make results reproducible.

    Source: Beyer et al., "PaliGemma", 2024, and google-research/big_vision.
    """

    name = "paligemma"
    mode = "generate"
    batch_size = 4

    def __init__(self, model: str, decoder: Path, device: str = "cpu", revision: str = "main") -> None:
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.decode = TokenDecoder(decoder)
        self.processor: Any = PaliGemmaProcessor.from_pretrained(model, revision=revision)
        network = load_network(PaliGemmaForConditionalGeneration, model, revision, self.dtype)
        self.network: Any = network.to(self.device)
        self.weights_sha256 = f"{weights_sha256(model, revision)} {path_sha256(Path(decoder))}"

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Answer]:
        """See the interface of adapters. Expressions are processed one by one, because padding would make an
        answer depend on the rest of the batch.
        """
        return [self._one(image, expression) for image, expression in zip(images, expressions, strict=True)]

    def _one(self, image: Image.Image, expression: str) -> Answer:
        words = expression.lower().split()
        note = f"text cut to {MOST_WORDS} words" if len(words) > MOST_WORDS else ""
        # The processor puts the places of the image before it, and a line break after it.
        prompt = f"<image>segment {' '.join(words[:MOST_WORDS])}"
        ready = self.processor(images=image, text=prompt, return_tensors="pt")
        written = self.network.generate(
            input_ids=ready["input_ids"].to(self.device),
            attention_mask=ready["attention_mask"].to(self.device),
            pixel_values=ready["pixel_values"].to(self.device, self.dtype),
            max_new_tokens=MOST_TOKENS,
            do_sample=False,
        )[0][ready["input_ids"].shape[1] :]
        said = self.processor.tokenizer.decode(written, skip_special_tokens=False)
        answer = to_answer(said, image.height, image.width, self.decode)
        cut = f"answer cut at {MOST_TOKENS} tokens" if len(written) >= MOST_TOKENS else ""
        return Answer(answer.mask, note="; ".join(n for n in (note, answer.note, cut) if n), raw=said)


def to_answer(said: str, height: int, width: int, decode: Any) -> Answer:
    """The mask of an answer with tokens. If the answer has several entries, the mask is their union; `decode` converts
    16 codes to a soft mask (64, 64).

    Boxes are y, x, y, x in 1024ths of the image. A soft mask is resized to its box (bilinear) and thresholded at 0.5.
    """
    masks = []
    for places, codes in ANSWER.findall(said):
        y0, x0, y1, x1 = (int(k) / BINS for k in re.findall(r"<loc(\d{4})>", places))
        top, left, bottom, right = (round(v) for v in (y0 * height, x0 * width, y1 * height, x1 * width))
        top, bottom = (min(max(v, 0), height) for v in (top, bottom))
        left, right = (min(max(v, 0), width) for v in (left, right))
        if bottom <= top or right <= left:
            continue
        shares = decode([int(k) for k in re.findall(r"<seg(\d{3})>", codes)])
        small = Image.fromarray(shares.astype(np.float32))
        fitted = small.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        masks.append(Mask.from_crop(np.ascontiguousarray(np.asarray(fitted) > HALF), top, left, height, width))
    note = "" if masks else "no mask in the answer"
    return Answer(Mask.empty(height, width).union(*masks), note=note, raw=said)
