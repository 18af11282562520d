"""Pixel values by a table against the image processors of transformers themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from refbench.adapters.pixel_values import PixelValues

# Through the class that picks the one that resizes with Pillow.
PLAIN = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "size": {"height": 37, "width": 50}, "resample": 2, "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
CROPPING = {
    **PLAIN, "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
}  # fmt: skip


def processor(tmp_path: Any, about: dict[str, Any]) -> Any:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    return AutoImageProcessor.from_pretrained(tmp_path, backend="pil")


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_bits(tmp_path: Any, dtype: torch.dtype, resample: int) -> None:
    made = processor(tmp_path, {**PLAIN, "resample": resample})
    values = PixelValues(made, dtype)
    assert values.by_table
    for seed, size in enumerate([(1, 1), (37, 50), (64, 200), (300, 41)]):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        theirs = made(images=[image], return_tensors="pt")["pixel_values"].to(dtype)
        assert torch.equal(values(image), theirs)


def test_other_processors_are_called(tmp_path: Any) -> None:
    made = processor(tmp_path, CROPPING)
    values = PixelValues(made, torch.float32)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    assert not values.by_table
    assert torch.equal(values(image), made(images=[image], return_tensors="pt")["pixel_values"])
