"""`sam3`: SAM 3 with the expression as the concept. It ignores positions ("on the left")."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoTokenizer, Sam3Model

from refbench.adapters.base import Staged
from refbench.adapters.box_prompts import RAW_DIGITS, TOP1, UNION, PerImage, check_policy, cut_note
from refbench.adapters.pretrained import SharedTokenizer, load_network, weights_sha256
from refbench.adapters.segment_anything import HALF, squeezed
from refbench.adapters.torch_settings import better_in_processes, computing, moved, pinned, precision_of
from refbench.records import Answer

SEMANTIC = "semantic"


@dataclass(frozen=True, slots=True)
class Sam3Question:
    """A prepared image with its expressions; `pixels` is float (1, 3, side, side), and `tokens` is int (N, length)."""

    image: Image.Image
    pixels: torch.Tensor
    tokens: dict[str, torch.Tensor]
    notes: list[str]


class Sam3(Staged):
    """SAM 3 through transformers, from a local folder or the hub. All expressions of an image share its embedding.

    Args:
        model: for example facebook/sam3 (gated: request access first).
        device: for example cpu or cuda:0.
        policy: top1 (the instance with the highest score), union (all instances above the threshold; AP and sa-co score
            them one by one), or semantic (the segmentation map of the concept).
        threshold: threshold on the score of an instance, between 0 and 1; the original code uses 0.5, transformers 0.3.
        revision: commit of the hub repository; set it to make results reproducible.
        precision: float32, or mixed precision with float16 or bfloat16.

    Source: Carion et al., "SAM 3: Segment Anything with Concepts", 2025, and facebookresearch/sam3.
    """

    name = "sam3"
    batch_size = 8

    def __init__(
        self,
        model: str,
        device: str = "cpu",
        policy: str = "top1",
        threshold: float = 0.5,
        revision: str = "main",
        precision: str = "float32",
    ) -> None:
        check_policy(policy, threshold, (TOP1, UNION, SEMANTIC))
        self.dtype = precision_of(precision)
        self.precision = precision
        self.policy = policy
        self.threshold = threshold
        self.device = torch.device(device)
        self.prepare_in_processes = better_in_processes(self.device)
        self.tokenizer = SharedTokenizer(AutoTokenizer.from_pretrained(model, revision=revision))
        self.network: Any = load_network(Sam3Model, model, revision, torch.float32).to(self.device)
        self.text_limit = int(self.network.config.text_config.max_position_embeddings)
        self.weights_sha256 = weights_sha256(model, revision)
        self._embedded = PerImage(self._embed)

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> Sam3Question:
        """See the interface of adapters."""
        # transformers pads to 32 tokens but does not cut, and the network refuses what is longer.
        tokens = self.tokenizer(
            list(expressions), padding="max_length", truncation=True, max_length=self.text_limit, return_tensors="pt"
        )
        lengths = [len(ids) for ids in self.tokenizer(list(expressions), verbose=False)["input_ids"]]
        side = int(self.network.config.vision_config.image_size)
        return Sam3Question(
            image,
            pinned(squeezed(np.asarray(image), side, HALF), self.device),
            {name: pinned(tokens[name], self.device) for name in ("input_ids", "attention_mask")},
            [cut_note(self.text_limit) if length > self.text_limit else "" for length in lengths],
        )

    def forward(self, batch: list[Sam3Question]) -> list[Any]:
        """See the interface of adapters."""
        with computing(self.device, self.dtype):
            return [self._output(question) for question in batch]

    @torch.inference_mode()
    def finish(self, batch: list[Sam3Question], output: list[Any]) -> list[Answer]:
        """See the interface of adapters."""
        answers = []
        for question, found in zip(batch, output, strict=True):
            scores = found.pred_logits.float().sigmoid()
            if found.presence_logits is not None:
                scores = scores * found.presence_logits.float().sigmoid()
            drawn = zip(scores.cpu(), found.pred_masks, found.semantic_seg, question.notes, strict=True)
            answers += [self._answer(question.image, *one) for one in drawn]
        return answers

    def _embed(self, image: Image.Image, pixels: torch.Tensor) -> Any:
        return self.network.get_vision_features(pixel_values=moved(pixels, self.device))

    def _output(self, question: Sam3Question) -> Any:
        tokens = {name: moved(value, self.device) for name, value in question.tokens.items()}
        embedded = self._embedded.of(question.image, question.pixels)
        return self.network(vision_embeds=_for_each(embedded, len(question.notes)), **tokens)

    def _answer(
        self, image: Image.Image, scores: torch.Tensor, masks: torch.Tensor, semantic: torch.Tensor, note: str
    ) -> Answer:
        best = int(scores.argmax())
        chosen = torch.tensor([best]) if self.policy == TOP1 else torch.nonzero(scores > self.threshold).reshape(-1)
        drawn = semantic if self.policy == SEMANTIC else masks[moved(chosen, masks.device)]
        raw = json.dumps([round(float(s), RAW_DIGITS) for s in scores[chosen]])
        if self.policy == UNION and not len(chosen):
            nothing = torch.zeros((image.height, image.width), dtype=torch.bool)
            return Answer(nothing, no_target=True, score=float(scores[best]), note=note, raw=raw)
        size = image.height, image.width
        # As the original does it: the logits are resized, then a sigmoid above one half; transformers' own processor
        # takes the sigmoid first, which moves outlines a little.
        resized = F.interpolate(drawn.float()[None], size, mode="bilinear", align_corners=False)[0]
        drawn_px = resized > 0
        union = self.policy == UNION
        return Answer(
            drawn_px.any(dim=0),
            no_target=False if union else None,
            score=float(scores[best]),
            # What the protocol sa-co matches one by one.
            instances=[(drawn_px[k], float(scores[i])) for k, i in enumerate(chosen)] if union else (),
            note=note,
            raw=raw,
        )


def _for_each(embedded: Any, count: int) -> Any:
    """The embedding of one image, repeated for `count` expressions without a copy."""
    made = type(embedded)(**embedded)
    for name in ("fpn_hidden_states", "fpn_position_encoding"):
        made[name] = tuple(v.expand(count, *v.shape[1:]) for v in embedded[name])
    if getattr(embedded, "last_hidden_state", None) is not None:
        last = embedded.last_hidden_state
        made["last_hidden_state"] = last.expand(count, *last.shape[1:])
    return made
