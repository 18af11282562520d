"""A small network that redraws a coarse mask from the pixels around it. `refbench curate train-refiner` trains it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from refbench.curation.refiners.base import Box, Refined, Target
from refbench.curation.refiners.crops import MARGINS, Window, crop_window, reachable, refined_of, rounded
from refbench.curation.surroundings import BoolArray
from refbench.errors import DatasetError
from refbench.storage.weights import weights_file

# Metadata of the weights file.
SETTINGS = "refbench_refiner"
# Logits of the pixels in the coarse mask, and minus those outside it, from which an untrained network starts.
PRIOR = 2.0
SMALLEST_SIDE, LARGEST_SIDE = 32, 1024
# The smallest level is this much smaller than the crop.
STRIDE = 16
WIDEST = 256


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a weights file says about itself.

    `side` is the size in pixels to which crops are resized, `width` the number of channels of the first level. The
    other fields tell how the network was trained; `start_sha256` identifies the weights that it started from.
    """

    side: int
    width: int
    trained_on: dict[str, str] = {}
    steps: int = 0
    seed: int = 0
    threads: int = 0
    torch: str = ""
    refbench: str = ""
    start_sha256: str = ""


class RefinementNetwork(nn.Module):
    """A U-Net with four levels: RGB and the coarse mask in, logits of the refined mask out.

    Input: float (B, 4, S, S); colours between -1 and 1, the coarse mask 0 or 1; S is a multiple of STRIDE. Output:
    float (B, S, S). The network changes the logits that follow from the coarse mask alone. Its first level has half the
    size of the crop, with the pixels of each 2 x 2 block as channels.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 6 * width]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([4 * 4, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.shrink = nn.MaxPool2d(2)
        self.change = nn.Conv2d(width, 4, 1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)  # type: ignore[arg-type]

    def forward(self, crops: Tensor) -> Tensor:
        levels = [self.down[0](nn.functional.pixel_unshuffle(crops, 2))]
        for block in list(self.down)[1:]:
            levels.append(block(self.shrink(levels[-1])))
        x = levels.pop()
        for block in self.up:
            level = levels.pop()
            larger = nn.functional.interpolate(x, size=level.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([larger, level], dim=1))
        prior = PRIOR * (2 * crops[:, 3] - 1)
        logits: Tensor = prior + nn.functional.pixel_shuffle(self.change(x), 2)[:, 0]
        return logits


def _block(channels: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (channels, out):
        layers += [nn.Conv2d(size, out, 3, padding=1), nn.GroupNorm(8, out), nn.GELU()]
    return nn.Sequential(*layers)


def crop_input(image: NDArray[np.uint8], mask: BoolArray, window: Window, side: int) -> NDArray[np.float32]:
    """The input of the network for one crop, float32 (4, side, side).

    Args:
        image: uint8 (H, W, 3), RGB.
        mask: the coarse mask, bool (H, W).
    """
    size = (side, side)
    pixels = Image.fromarray(image[window]).resize(size, Image.Resampling.BILINEAR)
    coarse = Image.fromarray(mask[window]).resize(size, Image.Resampling.NEAREST)
    colours = np.asarray(pixels, np.float32).transpose(2, 0, 1) / 127.5 - 1
    return np.concatenate([colours, np.asarray(coarse, np.float32)[None]])


class TrainedRefiner:
    """A network that `refbench curate train-refiner` trained on accurate masks.

    The variants are crops of different widths around the coarse box. Pixels far outside the coarse mask are removed,
    because they belong to other objects.

    Args:
        weights: a name from `refbench weights list`, or a file of train-refiner.
        device: for example cpu or cuda:0.
    """

    name = "trained"

    def __init__(self, weights: str, device: str = "cpu") -> None:
        path, self.weights_sha256 = weights_file(weights)
        self._device = torch.device(device)
        self.settings, network = read_refiner(path)
        self._network = network.to(self._device).eval()

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner` and `refined_of`, which defines the confidence."""
        return self.refine_target(image, Target(mask, box), 1)[0]

    def refine_target(self, image: NDArray[np.uint8], target: Target, variants: int) -> Sequence[Refined]:
        """See `Refiner`; one answer per crop."""
        near = reachable(target.mask)
        windows = [crop_window(target.box, margin, target.mask.shape) for margin in MARGINS[:variants]]
        return [self._of_crop(image, target.mask, near, window) for window in windows]

    def _of_crop(self, image: NDArray[np.uint8], mask: BoolArray, near: BoolArray, window: Window) -> Refined:
        crop = torch.from_numpy(crop_input(image, mask, window, self.settings.side))[None].to(self._device)
        with torch.inference_mode():
            probability = self._network(crop)[0].sigmoid().float().cpu().numpy()
        height, width = mask[window].shape
        whole = Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR)
        return refined_of(rounded(np.asarray(whole, np.float64)), mask, near, window)


def read_refiner(path: Path) -> tuple[Settings, RefinementNetwork]:
    """The settings and the network of a weights file, on the CPU.

    Raises:
        DatasetError: the file was not written by train-refiner, or its weights do not fit its settings.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            about = (file.metadata() or {}).get(SETTINGS)
            if about is None:
                raise DatasetError(f"{path} was not written by `refbench curate train-refiner`")
            settings = msgspec.json.decode(about, type=Settings)
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        if not (SMALLEST_SIDE <= settings.side <= LARGEST_SIDE and settings.side % STRIDE == 0):
            raise ValueError(f"its side is {settings.side}")
        if not (8 <= settings.width <= WIDEST and settings.width % 8 == 0):
            raise ValueError(f"its width is {settings.width}")
        network = RefinementNetwork(settings.width)
        network.load_state_dict(weights)
        if not all(torch.isfinite(value).all() for value in weights.values()):
            raise ValueError("it contains values that are not finite")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read as a refiner: {error}; train it again with `refbench curate train-refiner`"
        ) from None
    return settings, network


def metadata_of(settings: Settings) -> dict[str, str]:
    """The metadata of a weights file."""
    return {SETTINGS: json.dumps(msgspec.to_builtins(settings), sort_keys=True)}
