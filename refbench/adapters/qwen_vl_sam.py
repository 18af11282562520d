"""`qwen-vl-sam`: Qwen-VL writes boxes for an expression as JSON, and SAM segments the objects in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from refbench.adapters.base import Staged
from refbench.adapters.box_prompts import BoxSegmenter, padded, padded_size
from refbench.adapters.pretrained import SharedTokenizer, load_network, weights_sha256
from refbench.adapters.segment_anything import PreparedImage
from refbench.adapters.torch_settings import better_in_processes, moved, pinned
from refbench.errors import AdapterError
from refbench.records import Answer

PROMPT = 'Locate "{expression}", output its bbox coordinates in JSON format.'
ARCHITECTURES: dict[str, Any] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
# What a coordinate means: pixels of the image as the model saw it, or thousandths of its side. Fixed by the family;
# to score both readings and keep the better one would use the ground truth.
ABSOLUTE = ("qwen2_5_vl",)
THOUSANDTHS = 1000.0
MOST_WORDS = 300
# Qwen-VL's processor refuses images that are 200 times as long as wide.
THINNEST = 100
IMAGE_TOKEN = "<|image_pad|>"
BOX = re.compile(
    r'"bbox_2d"\s*:\s*\[\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*\]'
)
PAIR = re.compile(r"\((\d+)\s*,\s*(\d+)\)\s*,\s*\((\d+)\s*,\s*(\d+)\)")
EMPTY = re.compile(r"\[\s*\]")


@dataclass(frozen=True, slots=True)
class QwenQuestion:
    """An image with its expressions, prepared for the language model and for SAM; `grid` is the grid of image
    patches.
    """

    image: Image.Image
    pixels: torch.Tensor
    grid: torch.Tensor
    token_ids: list[torch.Tensor]
    notes: list[str]
    prepared: PreparedImage


class QwenVlSam(Staged):
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL with SAM through transformers, from local folders or the hub.

    The prompt is fixed and decoding is greedy. The masks of all boxes in the answer are joined. An empty list of boxes
    is an empty mask; an answer without a list is a failed sample.

    Args:
        model: for example Qwen/Qwen2.5-VL-7B-Instruct.
        sam: SAM, SAM-HQ or SAM 2, for example facebook/sam-vit-huge.
        device: for example cpu or cuda:0; on CUDA, the language model runs in bfloat16.
        max_new_tokens: maximum length of an answer; the complete boxes of a truncated answer are used, with a note.
        revision, sam_revision: commits of the hub repositories; set them to make results reproducible.

    Source: Bai et al., "Qwen2.5-VL Technical Report", 2025, for prompt and coordinates.
    """

    name = "qwen-vl-sam"
    mode = "generate"
    batch_size = 4

    def __init__(
        self,
        model: str,
        sam: str,
        device: str = "cpu",
        max_new_tokens: int = 512,
        revision: str = "main",
        sam_revision: str = "main",
    ) -> None:
        self.device = torch.device(device)
        self.prepare_in_processes = better_in_processes(self.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.max_new_tokens = max_new_tokens
        self.family = str(AutoConfig.from_pretrained(model, revision=revision).model_type)
        if self.family not in ARCHITECTURES:
            raise AdapterError(f"{model} is a model of type {self.family}; supported types: {', '.join(ARCHITECTURES)}")
        # The whole processor would bring one for videos along, which needs torchvision.
        self.pictures: Any = AutoImageProcessor.from_pretrained(model, revision=revision)
        self.tokenizer = SharedTokenizer(AutoTokenizer.from_pretrained(model, revision=revision))
        network = load_network(ARCHITECTURES[self.family], model, revision, self.dtype)
        self.network: Any = network.to(self.device)
        self.sam = BoxSegmenter(sam, device, sam_revision)
        self.weights_sha256 = f"{weights_sha256(model, revision)} {self.sam.network.weights_sha256}"

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> QwenQuestion:
        """See the interface of adapters."""
        seen = self.pictures(images=[padded(image, THINNEST)], return_tensors="pt")
        words = [expression.split() for expression in expressions]
        prompts = [PROMPT.format(expression=" ".join(w[:MOST_WORDS])) for w in words]
        grid = seen["image_grid_thw"]
        return QwenQuestion(
            image,
            pinned(seen["pixel_values"], self.device, self.dtype),
            grid,
            [self.tokenizer(self._asked(p, grid), return_tensors="pt")["input_ids"] for p in prompts],
            [f"text cut to {MOST_WORDS} words" if len(w) > MOST_WORDS else "" for w in words],
            self.sam.prepare(image),
        )

    @torch.inference_mode()
    def forward(self, batch: list[QwenQuestion]) -> list[torch.Tensor]:
        """See the interface of adapters. The tokens of each answer.

        Expressions are processed one by one, because padding would make an answer depend on the rest of the batch.
        """
        return [self._written(question, ids) for question in batch for ids in question.token_ids]

    def finish(self, batch: list[QwenQuestion], output: list[torch.Tensor]) -> list[Answer]:
        """See the interface of adapters."""
        asked = [(question, note) for question in batch for note in question.notes]
        return [self._read(q, note, written) for (q, note), written in zip(asked, output, strict=True)]

    def _written(self, question: QwenQuestion, ids: torch.Tensor) -> torch.Tensor:
        written: torch.Tensor = self.network.generate(
            input_ids=ids.to(self.device),
            attention_mask=torch.ones_like(ids).to(self.device),
            pixel_values=moved(question.pixels, self.device),
            image_grid_thw=question.grid.to(self.device),
            # Without it all tokens get the positions of a text, and the image none.
            mm_token_type_ids=(ids == self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).int().to(self.device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
        )[0][ids.shape[1] :]
        return written

    def _read(self, question: QwenQuestion, note: str, written: torch.Tensor) -> Answer:
        said = self.tokenizer.decode(written, skip_special_tokens=True)
        if len(written) >= self.max_new_tokens:
            note = "; ".join(n for n in (note, f"answer cut at {self.max_new_tokens} tokens") if n)
        return self.answer(said, question.image, self.seen_size(question.grid), note, question.prepared)

    def _asked(self, prompt: str, grid: torch.Tensor) -> str:
        """The conversation, with one token for each merged patch of the image."""
        talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        text = str(self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
        return text.replace(IMAGE_TOKEN, IMAGE_TOKEN * (int(grid[0].prod()) // int(self.pictures.merge_size) ** 2), 1)

    def seen_size(self, grid: torch.Tensor) -> tuple[int, int]:
        """(height, width) in pixels of the image that the model sees; its processor resizes images to whole patches."""
        _, rows, columns = (int(v) for v in grid[0])
        patch = int(self.pictures.patch_size)
        return rows * patch, columns * patch

    def answer(
        self,
        said: str,
        image: Image.Image,
        seen: tuple[int, int],
        note: str = "",
        prepared: PreparedImage | None = None,
    ) -> Answer:
        """The mask of a text answer.

        Raises:
            AdapterError: the answer contains no list of boxes.
        """
        boxes = boxes_in(said)
        if boxes is None:
            raise AdapterError(f"the answer contains no boxes: {said[:200]!r}")
        height, width = seen if self.family in ABSOLUTE else (THOUSANDTHS, THOUSANDTHS)
        whole_height, whole_width = padded_size(image, THINNEST)
        scale = torch.tensor([whole_width / width, whole_height / height] * 2)
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) * scale
        masks = self.sam.masks(image, corners, prepared)
        return Answer(masks.any(dim=0), no_target=not boxes, note=note, raw=said)


def boxes_in(said: str) -> list[list[float]] | None:
    """The boxes [left, top, right, bottom] in an answer.

    Text around the list of boxes is ignored, and the list may be truncated. None if there is no list; an empty list
    means that there is no object.
    """
    boxes = [[float(v) for v in match] for match in BOX.findall(said)]
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in boxes]
    if boxes:
        return boxes
    # Qwen2-VL's own form: (left,top),(right,bottom), in thousandths as its JSON.
    pairs = [[float(v) for v in match] for match in PAIR.findall(said)]
    if pairs:
        return [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in pairs]
    return [] if EMPTY.search(said) else None
