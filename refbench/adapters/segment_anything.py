"""SAM, SAM-HQ, SAM 2 and the tracker of SAM 3 through transformers: an image is embedded once for all its prompts.

SAM and SAM-HQ use their own processors. The processors of SAM 2 and SAM 3 need torchvision, so their two steps
(resizing to a square, normalisation) are implemented here in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    Sam2Model,
    Sam3TrackerModel,
    SamHQModel,
    SamHQProcessor,
    SamModel,
    SamProcessor,
)

from refbench.adapters.pretrained import load_network, weights_sha256
from refbench.adapters.torch_settings import computing, moved, pinned, precision_of
from refbench.errors import AdapterError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Masks that are decoded at once.
DECODED_TOGETHER = 16
# Images that are embedded at once on CUDA.
EMBEDDED_TOGETHER = 4

MODELS: dict[str, Any] = {"sam": SamModel, "sam-hq": SamHQModel, "sam2": Sam2Model, "sam3": Sam3TrackerModel}
PROCESSORS: dict[str, Any] = {"sam": SamProcessor, "sam-hq": SamHQProcessor}
NORMALISATION = {"sam2": IMAGENET, "sam3": HALF}
# `model_type` of a checkpoint's config.json; those for videos hold the same image model.
KINDS = {
    "sam": "sam",
    "sam_hq": "sam-hq",
    "sam2": "sam2",
    "sam2_video": "sam2",
    "sam3_tracker": "sam3",
    "sam3_tracker_video": "sam3",
    "sam3_video": "sam3",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image is in the square that the network sees.

    `size` is the (height, width) of the original image, and `seen` is the (height, width) after padding, which applies
    only to narrow images. `scale` contains the (x, y) factors from pixels of the padded image to pixels of the square,
    and `inner` is the (height, width) of the square without its own padding.
    """

    size: tuple[int, int]
    seen: tuple[int, int]
    scale: tuple[float, float]
    inner: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """The pixels that the network sees of an image, float (1, 3, side, side), normalised."""

    pixels: torch.Tensor
    placement: Placement


@dataclass(frozen=True, slots=True)
class Embedded:
    """The features of an image, as tensors on the device of the network."""

    features: dict[str, Any]
    placement: Placement


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts for N masks.

    Boxes are float (N, 4) left, top, right, bottom in pixels of the image. Points are float (N, P, 2) x, y, with labels
    int (N, P), 1 for inside and 0 for outside. `logits` are the logits of an earlier answer, see `Decoded`.
    """

    boxes: torch.Tensor
    points: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class Decoded(NamedTuple):
    """The answer of the network to N prompts, on its device.

    `masks` are bool (N, H, W), and `confidences` are float (N,), the IoU that the network predicts. `logits` are float
    (N, 1, side, side), in the small size before resizing; they can be used as a prompt.
    """

    masks: torch.Tensor
    confidences: torch.Tensor
    logits: torch.Tensor


class SegmentAnything:
    """A model of the SAM family that embeds images and decodes prompts.

    Args:
        weights: a folder written by `save_pretrained`, or a model id of the hub.
        device: for example cpu or cuda:0.
        revision: commit of the hub repository.
        kind: "sam", "sam-hq", "sam2" or "sam3"; if empty, it is read from the checkpoint.
        precision: float32, or mixed precision with float16 or bfloat16.
        compile: compile the image encoder with torch.compile, which takes a minute at the first image.

    Raises:
        AdapterError: the checkpoint cannot be loaded, lacks weights, or is of another kind of model, or the precision
            is unknown.
    """

    def __init__(
        self,
        weights: str,
        device: str = "cpu",
        revision: str = "main",
        kind: str = "",
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        self.dtype = precision_of(precision)
        self.kind = kind or _kind_of(weights, revision)
        self.device = torch.device(device)
        self.network = load_network(MODELS[self.kind], weights, revision, torch.float32).to(self.device)
        if compile:
            self.network.vision_encoder.compile()
        self.weights_sha256 = weights_sha256(weights, revision)
        prompts = self.network.config.prompt_encoder_config
        self.side_px = int(prompts.image_size)
        self._processor: Any = None
        if self.kind in PROCESSORS:
            self._processor = PROCESSORS[self.kind].from_pretrained(weights, revision=revision).image_processor

    def embed(self, image: NDArray[np.uint8]) -> Embedded:
        """The features of an image, uint8 (H, W, 3)."""
        return self.embed_prepared(self.prepare(image))

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """The pixels that the network sees of an image, uint8 (H, W, 3)."""
        size = int(image.shape[0]), int(image.shape[1])
        # The longer side is scaled to the square's side; the shorter side of a thinner image would vanish.
        least = -(-max(size) // self.side_px)
        image = np.pad(image, ((0, max(0, least - size[0])), (0, max(0, least - size[1])), (0, 0)))
        height, width = image.shape[:2]
        if self._processor is None:
            pixels = squeezed(image, self.side_px, NORMALISATION[self.kind])
            inner = self.side_px, self.side_px
        else:
            ready = self._processor(images=image, return_tensors="pt")
            pixels = ready["pixel_values"]
            inner_height, inner_width = (int(v) for v in ready["reshaped_input_sizes"][0])
            inner = inner_height, inner_width
        placement = Placement(size, (height, width), (inner[1] / width, inner[0] / height), inner)
        return PreparedImage(pinned(pixels, self.device), placement)

    def embed_prepared(self, image: PreparedImage) -> Embedded:
        """The features of a prepared image."""
        with computing(self.device, self.dtype):
            features = self.network.get_image_embeddings(moved(image.pixels, self.device))
        named = {"image_embeddings": list(features) if self.kind in NORMALISATION else features}
        if self.kind == "sam-hq":
            named = {"image_embeddings": features[0], "intermediate_embeddings": list(features[1])}
        return Embedded(named, image.placement)

    def embed_together(self, images: Sequence[PreparedImage]) -> list[Embedded]:
        """The features of several prepared images. On CUDA, a few images are processed in one pass to keep the device
        busy; on a CPU, this would only take more memory.
        """
        if self.device.type != "cuda" or self.kind != "sam":
            return [self.embed_prepared(image) for image in images]
        out = []
        for start in range(0, len(images), EMBEDDED_TOGETHER):
            part = images[start : start + EMBEDDED_TOGETHER]
            with computing(self.device, self.dtype):
                pixels = torch.cat([moved(image.pixels, self.device) for image in part])
                features = self.network.get_image_embeddings(pixels)
            out += [
                Embedded({"image_embeddings": own[None]}, image.placement)
                for image, own in zip(part, features, strict=True)
            ]
        return out

    def decode(self, image: Embedded, prompts: Prompts) -> Decoded:
        """One mask per prompt."""
        with computing(self.device, self.dtype):
            parts = [
                self._decode(image, _some(prompts, start)) for start in range(0, len(prompts.boxes), DECODED_TOGETHER)
            ]
        if not parts:
            nothing = torch.zeros((0, *image.placement.size), dtype=torch.bool, device=self.device)
            return Decoded(nothing, torch.zeros(0), torch.zeros(0))
        with torch.inference_mode():
            return Decoded(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _decode(self, image: Embedded, prompts: Prompts) -> Decoded:
        count = len(prompts.boxes)
        x, y = image.placement.scale
        corners = torch.tensor([x, y, x, y], dtype=torch.float32)
        points = None if prompts.points is None else prompts.points.float() * torch.tensor([x, y])
        output = self.network(
            **{name: _repeated(value, count) for name, value in image.features.items()},
            input_boxes=(prompts.boxes.float() * moved(corners, prompts.boxes.device))[:, None].to(self.device),
            input_points=None if points is None else points[:, None].to(self.device),
            input_labels=None if prompts.labels is None else prompts.labels[:, None].to(self.device),
            input_masks=None if prompts.logits is None else prompts.logits.to(self.device),
            multimask_output=False,
        )
        small = logits = output.pred_masks[:, 0].float()
        if self._processor is not None:
            logits = F.interpolate(logits, (self.side_px, self.side_px), mode="bilinear", align_corners=False)
            logits = logits[..., : image.placement.inner[0], : image.placement.inner[1]]
        own = F.interpolate(logits, image.placement.seen, mode="bilinear", align_corners=False)[:, 0]
        own = own[:, : image.placement.size[0], : image.placement.size[1]]
        return Decoded(own > 0, output.iou_scores[:, 0, 0].float().clamp(0, 1), small)


def squeezed(
    image: NDArray[np.uint8], side_px: int, normal: tuple[tuple[float, ...], tuple[float, ...]]
) -> torch.Tensor:
    """The image, uint8 (H, W, 3), as float (1, 3, side, side): resized to a square, then normalised."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    square = F.interpolate(pixels, (side_px, side_px), mode="bilinear", align_corners=False, antialias=True)
    mean, spread = (torch.tensor(v).reshape(1, 3, 1, 1) for v in normal)
    return (square - mean) / spread


def _kind_of(weights: str, revision: str) -> str:
    try:
        model_type = str(AutoConfig.from_pretrained(weights, revision=revision).model_type)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{weights} cannot be loaded: {error}; pass a folder written by `save_pretrained` or a model id of "
            "the Hugging Face hub"
        ) from error
    if model_type not in KINDS:
        raise AdapterError(f"{weights} is a model of type {model_type}; supported types: {', '.join(KINDS)}")
    return KINDS[model_type]


def _some(prompts: Prompts, start: int) -> Prompts:
    part = slice(start, start + DECODED_TOGETHER)
    return Prompts(
        *(None if v is None else v[part] for v in (prompts.boxes, prompts.points, prompts.labels, prompts.logits))  # type: ignore[arg-type]
    )


def _repeated(value: Any, count: int) -> Any:
    if isinstance(value, list):
        return [_repeated(v, count) for v in value]
    return value.expand(count, *value.shape[1:])
