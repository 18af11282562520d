"""Draws masks over their image, for pages and contact sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.storage.images import load_image

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
TARGET_RGB, PREDICTION_RGB = (0, 190, 90), (255, 40, 120)
FILL_SHARE = 0.45
NO_PICTURE_GREY = 200


@dataclass(frozen=True, slots=True)
class Layer:
    """A mask to draw.

    Its outline is coloured: one pixel wide inside the mask, or wider if `thick`. If `filled`, its pixels are tinted.
    """

    mask: Mask
    colour: Colour
    filled: bool = False
    thick: bool = False


def picture_of(image_path: str, height: int, width: int) -> NDArray[np.uint8]:
    """The image, uint8 (H, W, 3); plain grey if it is missing or cannot be read."""
    try:
        if image_path:
            return np.asarray(load_image(image_path, height, width))
    except DatasetError:
        pass
    return np.full((height, width, 3), NO_PICTURE_GREY, np.uint8)


def overlay(
    picture: NDArray[np.uint8], layers: Sequence[Layer], longest_px: int, box: Box | None = None
) -> Image.Image:
    """Draw masks over an image, scaled so that its longer side has `longest_px` pixels.

    The image is first cropped to `box` (left, top, right, bottom). If the cropped image is smaller than `longest_px`,
    it is enlarged without smoothing, so that single pixels are visible.
    """
    height, width = picture.shape[:2]
    left, top, right, bottom = box or (0, 0, width, height)
    part = Image.fromarray(picture[top:bottom, left:right])
    scale = longest_px / max(part.size)
    size = max(1, round(part.width * scale)), max(1, round(part.height * scale))
    how = Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST
    canvas = np.asarray(part.resize(size, how)).astype(np.float64)
    for layer in layers:
        pixels = _resized(layer.mask.to_array()[top:bottom, left:right], size)
        if layer.filled:
            canvas[pixels] = (1 - FILL_SHARE) * canvas[pixels] + FILL_SHARE * np.array(layer.colour)
        canvas[find_boundaries(pixels, mode="thick" if layer.thick else "inner")] = layer.colour
    return Image.fromarray(canvas.astype(np.uint8))


def box_around(mask: Mask, margin: float = 0.35, least_px: int = 24) -> Box:
    """The box of a mask with a margin, clipped to the image; the whole image for an empty mask."""
    left, top, width, height = mask.box_xywh
    if mask.area == 0:
        return 0, 0, mask.width, mask.height
    space = max(least_px, margin * max(width, height))
    return (
        max(0, int(left - space)), max(0, int(top - space)),
        min(mask.width, int(left + width + space) + 1), min(mask.height, int(top + height + space) + 1),
    )  # fmt: skip


def contact_sheet(cells: Sequence[tuple[Sequence[Image.Image], str]], columns: int, path: Path) -> None:
    """Write a contact sheet.

    Each cell shows some images side by side above a line of text. The suffix of `path` selects JPEG or PNG.
    """
    if not cells:
        return
    side = max(max(p.size) for pictures, _ in cells for p in pictures)
    across = max(len(pictures) for pictures, _ in cells)
    cell_width, cell_height = across * side + 6, side + 18
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (pictures, text) in enumerate(cells):
        x, y = k % columns * cell_width, k // columns * cell_height
        for j, picture in enumerate(pictures):
            sheet.paste(picture, (x + j * side, y))
        draw.text((x + 2, y + side + 2), text[: cell_width // 6], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=88)


def data_uri(image: Image.Image, kind: str) -> str:
    """The image as a data URI; `kind` is "JPEG" or "PNG"."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=82)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    shares = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    return np.asarray(shares) > 127
