"""The adapter for the network of `tiny`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from refbench.adapters.tiny.model import MIRRORED, TinyNetwork, encode_words, prepare_image, swap_words
from refbench.errors import AdapterError
from refbench.records import Answer
from refbench.storage.files import file_sha256

WEIGHTS = Path(__file__).parent / "weights.safetensors"


class Tiny:
    """A small network trained on `scenes/train`. It is an example of an adapter, not a good model.

    Args:
        device: device of torch, for example cpu or cuda:0.
        weights: a safetensors file written by `python -m refbench.adapters.tiny.train`.
    """

    name = "tiny"
    batch_size = 16

    def __init__(self, device: str = "cpu", weights: Path = WEIGHTS) -> None:
        try:
            with safe_open(str(weights), "pt") as file:
                self.vocabulary: dict[str, int] = json.loads(file.metadata()["vocabulary"])
                state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"{weights} is not a weights file of the adapter `tiny`: {error}") from None
        self.weights_sha256 = file_sha256(Path(weights))
        self.device = torch.device(device)
        self.network = TinyNetwork(len(self.vocabulary) + 2)
        self.network.load_state_dict(state)
        self.network.eval().to(self.device)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Answer]:
        # Expressions of one image arrive one after another: the trunk sees each image once.
        different: list[Image.Image] = []
        counts: list[int] = []
        for image in images:
            if different and different[-1] is image:
                counts[-1] += 1
            else:
                different.append(image)
                counts.append(1)
        pixels = torch.stack([prepare_image(i) for i in different]).to(self.device)
        words = encode_words(expressions, self.vocabulary).to(self.device)
        mirrored = [swap_words(e, MIRRORED) for e in expressions]
        mirrored_words = encode_words(mirrored, self.vocabulary).to(self.device)
        # Mirror test-time augmentation: the mean of both logits is right a little more often.
        logits = self.network(pixels, counts, words)
        logits = (logits + self.network(pixels.flip(-1), counts, mirrored_words).flip(-1)) / 2
        return [self._answer(one, image) for one, image in zip(logits, images, strict=True)]

    def _answer(self, logits: Tensor, image: Image.Image) -> Answer:
        size = (image.height, image.width)
        mask = F.interpolate(logits[None, None], size=size, mode="bilinear", align_corners=False)[0, 0] > 0
        return Answer(mask, no_target=not bool(mask.any()), score=float(logits.max().sigmoid()))
