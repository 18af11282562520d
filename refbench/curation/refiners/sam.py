"""SAM and its kin through transformers, prompted by the box, points inside and outside, and the coarse mask itself.

An image is embedded once for all its masks. SAM and SAM-HQ are preprocessed by their own processor; SAM 2 and SAM 3,
whose processors need torchvision, by the two lines of torch that they amount to: a square, and a normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import (
    Sam2Model,
    Sam3TrackerModel,
    SamHQModel,
    SamHQProcessor,
    SamModel,
    SamProcessor,
)

from refbench.curation.refiners.base import Box, Refined, reach_px
from refbench.curation.surroundings import BoolArray, signed_distance
from refbench.pretrained import load_network, weights_sha256

# The logit of a pixel of the coarse mask, as a prompt: sure, but not certain.
MASK_LOGIT = 6.0
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Masks that are decoded at once.
DECODED_TOGETHER = 16


class _Prompted:
    """What they share: prompts of a coarse mask, a shared embedding, and a choice among several answers.

    Args:
        weights: a folder written by `save_pretrained`, or a hub id.
        device: e.g. cpu or cuda:0.
        revision: commit of the hub repository; pin it for results that are to be repeated.
        mask_prompt: also give the coarse mask; without it box and points alone.
    """

    name = ""
    model: Any = None

    def __init__(self, weights: str, device: str = "cpu", revision: str = "main", mask_prompt: bool = True) -> None:
        self.device = torch.device(device)
        self.mask_prompt = mask_prompt
        self.network = load_network(self.model, weights, revision, torch.float32).to(self.device)
        self.weights_sha256 = weights_sha256(weights, revision)
        prompts = self.network.config.prompt_encoder_config
        self.side_px = int(prompts.image_size)
        self.prompt_side_px = 4 * int(self.side_px // prompts.patch_size)

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is the IoU that the network expects of its answer."""
        return self.refine_many(image, [mask], [box])[0]

    @torch.inference_mode()
    def refine_many(self, image: NDArray[np.uint8], masks: Sequence[BoolArray], boxes: Sequence[Box]) -> list[Refined]:
        """All masks of an image: it is embedded once."""
        embedded, scale, inner = self._embed(image)
        out: list[Refined] = []
        for start in range(0, len(masks), DECODED_TOGETHER):
            some = slice(start, start + DECODED_TOGETHER)
            out += self._decode(image.shape[:2], embedded, scale, inner, masks[some], boxes[some])
        return out

    def _decode(
        self,
        size: tuple[int, ...],
        embedded: dict[str, Any],
        scale: tuple[float, float],
        inner: tuple[int, int],
        masks: Sequence[BoolArray],
        boxes: Sequence[Box],
    ) -> list[Refined]:
        count = len(masks)
        x, y = scale
        corners = [[left * x, top * y, (left + w) * x, (top + h) * y] for left, top, w, h in boxes]
        found = [_points(mask) for mask in masks]
        points = torch.tensor([[[[px * x, py * y] for px, py, _ in one]] for one in found], dtype=torch.float32)
        labels = torch.tensor([[[label for *_, label in one]] for one in found], dtype=torch.int64)
        output = self.network(
            **{name: _repeated(value, count) for name, value in embedded.items()},
            input_boxes=torch.tensor(corners, dtype=torch.float32)[:, None].to(self.device),
            input_points=points.to(self.device),
            input_labels=labels.to(self.device),
            input_masks=self._mask_prompts(masks, inner).to(self.device) if self.mask_prompt else None,
            multimask_output=True,
        )
        scores = output.iou_scores[:, 0].float()
        best = scores.argmax(dim=1)
        logits = output.pred_masks[:, 0].float()[torch.arange(count), best]
        whole = F.interpolate(logits[:, None], (self.side_px, self.side_px), mode="bilinear", align_corners=False)
        own = F.interpolate(whole[..., : inner[0], : inner[1]], size, mode="bilinear", align_corners=False)[:, 0]
        confidence = scores[torch.arange(count), best].clamp(0, 1)
        pixels = (own > 0).cpu().numpy()
        return [Refined(p, float(c)) for p, c in zip(pixels, confidence, strict=True)]

    def _mask_prompts(self, masks: Sequence[BoolArray], inner: tuple[int, int]) -> torch.Tensor:
        """The coarse masks as logits, float (B, 1, side, side) of the prompt's size; what is padding is background."""
        stacked = torch.from_numpy(np.stack(masks)).float()[:, None]
        fitted = F.interpolate(stacked, inner, mode="bilinear", align_corners=False)
        square = F.pad(fitted, (0, self.side_px - inner[1], 0, self.side_px - inner[0]))
        small = F.interpolate(square, (self.prompt_side_px, self.prompt_side_px), mode="area")
        return (2 * small - 1) * MASK_LOGIT

    def _embed(self, image: NDArray[np.uint8]) -> tuple[dict[str, Any], tuple[float, float], tuple[int, int]]:
        """Embeddings by the names of the network's arguments; x, y scale; the part of the square that is image."""
        raise NotImplementedError


class _Squared(_Prompted):
    """SAM 2 and SAM 3: the image is squeezed into a square."""

    normal: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET

    def _embed(self, image: NDArray[np.uint8]) -> tuple[dict[str, Any], tuple[float, float], tuple[int, int]]:
        side = self.side_px
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        squeezed = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
        mean, spread = (torch.tensor(v).reshape(1, 3, 1, 1) for v in self.normal)
        embedded = self.network.get_image_embeddings(((squeezed - mean) / spread).to(self.device))
        height, width = image.shape[:2]
        return {"image_embeddings": list(embedded)}, (side / width, side / height), (side, side)


class Sam(_Prompted):
    """SAM through transformers, prompted by box, points and mask.

    Source: Kirillov et al., "Segment Anything", ICCV 2023.
    """

    name = "sam"
    model = SamModel

    def __init__(self, weights: str, device: str = "cpu", revision: str = "main", mask_prompt: bool = True) -> None:
        super().__init__(weights, device, revision, mask_prompt)
        self.processor: Any = _processor(SamProcessor, weights, revision)

    def _embed(self, image: NDArray[np.uint8]) -> tuple[dict[str, Any], tuple[float, float], tuple[int, int]]:
        pixels, scale, inner = _padded(self.processor, image)
        return {"image_embeddings": self.network.get_image_embeddings(pixels.to(self.device))}, scale, inner


class SamHq(_Prompted):
    """SAM-HQ through transformers: SAM with a token for boundaries.

    Source: Ke et al., "Segment Anything in High Quality", NeurIPS 2023.
    """

    name = "sam-hq"
    model = SamHQModel

    def __init__(self, weights: str, device: str = "cpu", revision: str = "main", mask_prompt: bool = True) -> None:
        super().__init__(weights, device, revision, mask_prompt)
        self.processor: Any = _processor(SamHQProcessor, weights, revision)

    def _embed(self, image: NDArray[np.uint8]) -> tuple[dict[str, Any], tuple[float, float], tuple[int, int]]:
        pixels, scale, inner = _padded(self.processor, image)
        embedded, between = self.network.get_image_embeddings(pixels.to(self.device))
        return {"image_embeddings": embedded, "intermediate_embeddings": list(between)}, scale, inner


class Sam2(_Squared):
    """SAM 2 through transformers, prompted by box, points and mask.

    Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024.
    """

    name = "sam2"
    model = Sam2Model


class Sam3(_Squared):
    """SAM 3 through transformers: its tracker, which takes boxes, points and masks.

    Source: Carion et al., "SAM 3: Segment Anything with Concepts", 2025.
    """

    name = "sam3"
    model = Sam3TrackerModel
    normal = HALF


def _processor(kind: Any, weights: str, revision: str) -> Any:
    return kind.from_pretrained(weights, revision=revision).image_processor


def _padded(processor: Any, image: NDArray[np.uint8]) -> tuple[torch.Tensor, tuple[float, float], tuple[int, int]]:
    """SAM's preprocessing: the longer side fills the square, the rest is padding."""
    ready = processor(images=image, return_tensors="pt")
    inner_height, inner_width = (int(v) for v in ready["reshaped_input_sizes"][0])
    height, width = image.shape[:2]
    return ready["pixel_values"], (inner_width / width, inner_height / height), (inner_height, inner_width)


def _repeated(value: Any, count: int) -> Any:
    if isinstance(value, list):
        return [_repeated(v, count) for v in value]
    return value.expand(count, *value.shape[1:])


def _points(mask: BoolArray) -> list[tuple[float, float, int]]:
    """(x, y, label): the deepest point inside, the deepest one far from it, and one of the ground beside the mask."""
    distance = signed_distance(np.pad(mask, 1))[1:-1, 1:-1]
    first = _place(distance == distance.min())
    rows, columns = np.indices(mask.shape)
    apart = np.hypot(rows - first[0], columns - first[1])
    deep = distance <= 0.5 * distance.min()
    second = _place(deep & (apart == apart[deep].max()))
    ring = np.abs(distance - 2 * reach_px(mask))
    outside = _place((ring == ring.min()) & ~mask) if not mask.all() else first
    label = 0 if not mask.all() else 1
    return [(float(c), float(r), k) for (r, c), k in ((first, 1), (second, 1), (outside, label))]


def _place(where: BoolArray) -> tuple[int, int]:
    rows, columns = np.nonzero(where)
    return int(rows[0]), int(columns[0])
