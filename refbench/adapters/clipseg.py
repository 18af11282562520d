"""`clipseg`: CLIPSeg (Lüddecke & Ecker, CVPR 2022) through transformers, from a local folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from refbench.adapters.pretrained import load_network, weights_sha256
from refbench.adapters.torch_settings import moved
from refbench.records import Answer


class ClipSeg:
    """CLIPSeg through transformers. Each batch is one forward pass; the heat maps are resized to the image and
    thresholded.

    Args:
        model: a folder written by `save_pretrained`, or a model id of the hub such as CIDAS/clipseg-rd64-refined.
        device: for example cpu or cuda:0; on CUDA, the network runs in half precision.
        threshold: threshold on the sigmoid, between 0 and 1; the default 0.5 is from the paper.
        revision: commit of the hub repository; set it to make results reproducible.
    """

    name = "clipseg"
    batch_size = 16

    def __init__(self, model: str, device: str = "cpu", threshold: float = 0.5, revision: str = "main") -> None:
        self.device = torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.threshold = threshold
        self.processor: Any = CLIPSegProcessor.from_pretrained(model, revision=revision)
        network = load_network(CLIPSegForImageSegmentation, model, revision, self.dtype)
        self.network: Any = network.to(self.device)
        self.text_limit = int(self.network.config.text_config.max_position_embeddings)
        self.weights_sha256 = weights_sha256(model, revision)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Answer]:
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        # An empty text has no token to pool; CLIPSeg was trained with this one for "anything".
        texts = [e.strip() or "a photo" for e in expressions]
        tokens = self.processor.tokenizer(
            texts, padding=True, truncation=True, max_length=self.text_limit, return_tensors="pt"
        )
        lengths = [len(ids) for ids in self.processor.tokenizer(texts, verbose=False)["input_ids"]]
        output = self.network(
            pixel_values=moved(pixels, self.device, self.dtype),
            input_ids=moved(tokens["input_ids"], self.device),
            attention_mask=moved(tokens["attention_mask"], self.device),
        )
        logits = output.logits.float()
        # A single image comes back without its batch axis.
        logits = logits.reshape(len(texts), *logits.shape[-2:])
        heats = [_resized(one, image).sigmoid() for one, image in zip(logits, images, strict=True)]
        # Copy all scores at once: copied one by one, each would wait for the device.
        scores = torch.stack([heat.max() for heat in heats]).tolist()
        notes = [f"text cut to {self.text_limit} tokens" if n > self.text_limit else "" for n in lengths]
        return [
            Answer(heat > self.threshold, score=score, note=note)
            for heat, score, note in zip(heats, scores, notes, strict=True)
        ]


def _resized(logits: torch.Tensor, image: Image.Image) -> torch.Tensor:
    size = image.height, image.width
    return F.interpolate(logits[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
