"""`clipseg`: CLIPSeg (Lüddecke & Ecker, CVPR 2022) through transformers, from a local folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from refbench.adapters.base import Staged
from refbench.adapters.pixel_values import PixelValues, load_image_processor
from refbench.adapters.pretrained import SharedTokenizer, load_network, weights_sha256
from refbench.adapters.torch_settings import better_in_processes, moved, pinned, precision_of
from refbench.records import Answer

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ClipSegQuestion:
    """A prepared image with its expressions; `pixels` has the shape (1, 3, side, side), and `size` is (height,
    width).
    """

    pixels: torch.Tensor
    size: tuple[int, int]
    token_ids: list[list[int]]
    notes: list[str]


class ClipSeg(Staged):
    """CLIPSeg through transformers. An image is encoded once for all its expressions in a batch; the heat maps are
    resized to the image and thresholded.

    Args:
        model: a folder written by `save_pretrained`, or a model id of the hub such as CIDAS/clipseg-rd64-refined.
        device: for example cpu or cuda:0.
        threshold: threshold on the sigmoid, between 0 and 1; the default 0.5 is from the paper.
        revision: commit of the hub repository; set it to make results reproducible.
        precision: dtype of the network: float32, float16 or bfloat16; auto is float16 on CUDA and float32 elsewhere.
        compile: compile the image encoder with torch.compile, which takes a minute at the first batch.
    """

    name = "clipseg"
    batch_size = 64
    # A large GPU needs more work for each kernel that is started.
    cuda_batch_size = 256

    def __init__(
        self,
        model: str,
        device: str = "cpu",
        threshold: float = 0.5,
        revision: str = "main",
        precision: str = AUTO,
        compile: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.prepare_in_processes = better_in_processes(self.device)
        if precision == AUTO:
            precision = "float16" if self.device.type == "cuda" else "float32"
        self.dtype = precision_of(precision)
        self.precision = precision
        self.compiled = compile
        if self.device.type == "cuda":
            self.batch_size = self.cuda_batch_size
        self.threshold = threshold
        self.processor: Any = CLIPSegProcessor.from_pretrained(model, revision=revision)
        self.pixel_values = PixelValues(load_image_processor(model, revision), self.dtype)
        self.tokenizer = SharedTokenizer(self.processor.tokenizer)
        network = load_network(CLIPSegForImageSegmentation, model, revision, self.dtype)
        self.network: Any = network.to(self.device)
        # The decoder reads no layer after the last of these.
        layers = self.network.clip.vision_model.encoder.layers
        del layers[max(self.network.extract_layers) + 1 :]
        if compile:
            self.network.clip.vision_model.compile(dynamic=True)
        self.text_limit = int(self.network.config.text_config.max_position_embeddings)
        self.weights_sha256 = weights_sha256(model, revision)

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> ClipSegQuestion:
        """See the interface of adapters."""
        pixels = self.pixel_values(image)
        # An empty text has no token to pool; CLIPSeg was trained with this one for "anything".
        texts = [e.strip() or "a photo" for e in expressions]
        token_ids = self.tokenizer(texts, verbose=False)["input_ids"]
        cut = [len(ids) > self.text_limit for ids in token_ids]
        if any(cut):
            token_ids = self.tokenizer(texts, truncation=True, max_length=self.text_limit)["input_ids"]
        return ClipSegQuestion(
            pinned(pixels, self.device),
            (image.height, image.width),
            token_ids,
            [f"text cut to {self.text_limit} tokens" if c else "" for c in cut],
        )

    @torch.inference_mode()
    def forward(self, batch: list[ClipSegQuestion]) -> torch.Tensor:
        """See the interface of adapters. The logits, float (expressions, side, side)."""
        token_ids = [ids for question in batch for ids in question.token_ids]
        tokens = self.tokenizer.pad({"input_ids": token_ids}, padding=True, return_tensors="pt")
        images = torch.cat([moved(question.pixels, self.device) for question in batch])
        encoded = self.network.clip.get_image_features(pixel_values=images, output_hidden_states=True).hidden_states
        condition = self.network.get_conditional_embeddings(
            batch_size=len(token_ids),
            input_ids=moved(tokens["input_ids"], self.device),
            attention_mask=moved(tokens["attention_mask"], self.device),
        )
        image_of = torch.tensor([k for k, question in enumerate(batch) for _ in question.token_ids])
        chosen = moved(image_of, self.device)
        # The first hidden state is the embedding before the first layer.
        layers = [encoded[layer + 1][chosen] for layer in self.network.extract_layers]
        logits: torch.Tensor = self.network.decoder(layers, condition).logits
        # A single answer comes back without its batch axis.
        return logits.float().reshape(len(token_ids), *logits.shape[-2:])

    @torch.inference_mode()
    def finish(self, batch: list[ClipSegQuestion], output: torch.Tensor) -> list[Answer]:
        """See the interface of adapters. Heat maps of the same size are resized together."""
        places: dict[tuple[int, int], list[int]] = {}
        for k, size in enumerate(question.size for question in batch for _ in question.token_ids):
            places.setdefault(size, []).append(k)
        # Choosing rows copies their places to the device, which is needless if all images have one size.
        own_of = {size: output if len(places) == 1 else output[chosen] for size, chosen in places.items()}
        heats = {
            size: F.interpolate(own[:, None], size, mode="bilinear", align_corners=False)[:, 0].sigmoid()
            for size, own in own_of.items()
        }
        masks = {k: m for size, own in places.items() for k, m in zip(own, heats[size] > self.threshold, strict=True)}
        # Copy all scores at once: copied one by one, each would wait for the device.
        copied = torch.cat([heat.amax(dim=(1, 2)) for heat in heats.values()]).tolist()
        scores = dict(zip((k for own in places.values() for k in own), copied, strict=True))
        notes = [note for question in batch for note in question.notes]
        return [Answer(masks[k], score=scores[k], note=note) for k, note in enumerate(notes)]
