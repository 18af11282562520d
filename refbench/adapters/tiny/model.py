"""The network of `tiny`, and how images and words are prepared for it.

A convolutional backbone processes each image once, and a GRU encodes each expression. A few attention layers between
the tokens of a coarse grid and the words locate the target. A dot product with the fine features of the backbone gives
the shape of the target, so the part of the network that depends on the expression is cheap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_HEIGHT_PX, INPUT_WIDTH_PX = 144, 176
MAX_WORDS = 16
PAD, UNKNOWN = 0, 1
MIRRORED = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}


def split_words(expression: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", expression.lower())


def swap_words(expression: str, swaps: dict[str, str]) -> str:
    """The expression with some words exchanged, for example for a mirrored image (MIRRORED)."""
    return " ".join(swaps.get(word, word) for word in split_words(expression))


def encode_words(expressions: Sequence[str], vocabulary: dict[str, int]) -> Tensor:
    """Word ids, int64 (N, MAX_WORDS), padded with PAD and truncated at the end; unknown words become UNKNOWN."""
    out = torch.full((len(expressions), MAX_WORDS), PAD, dtype=torch.int64)
    for row, expression in enumerate(expressions):
        numbers = [vocabulary.get(w, UNKNOWN) for w in split_words(expression)[:MAX_WORDS]] or [UNKNOWN]
        out[row, : len(numbers)] = torch.tensor(numbers)
    return out


def prepare_image(image: Image.Image) -> Tensor:
    """RGB between -1 and 1, float32 (3, INPUT_HEIGHT_PX, INPUT_WIDTH_PX); the aspect ratio is not kept."""
    resized = image.convert("RGB").resize((INPUT_WIDTH_PX, INPUT_HEIGHT_PX), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1) / 127.5 - 1.0


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU(inplace=True)
    )


class _Layer(nn.Module):
    """One layer: grid tokens attend to the grid and to the words, followed by a feed-forward step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_forward = nn.LayerNorm(width)
        self.forward_step = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(0.1)
        self.heads = 4

    def forward(self, grid: Tensor, words: Tensor, allowed: Tensor) -> Tensor:
        n, tokens, width = grid.shape
        normal = self.norm(grid)
        key, value = self.key_value(torch.cat([normal, words], dim=1)).chunk(2, dim=-1)

        def by_head(x: Tensor) -> Tensor:
            return x.reshape(n, -1, self.heads, width // self.heads).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            by_head(self.query(normal)), by_head(key), by_head(value), attn_mask=allowed[:, None, None]
        )
        grid = grid + self.dropout(self.out(attended.transpose(1, 2).reshape(n, tokens, width)))
        result: Tensor = grid + self.dropout(self.forward_step(self.norm_forward(grid)))
        return result


class TinyNetwork(nn.Module):
    """The network, with about 0.7 million weights; its logits have half the size of the input."""

    def __init__(self, words: int, width: int = 96, shape_width: int = 16) -> None:
        super().__init__()
        self.stem = _block(3, 24, 2)
        self.to4 = nn.Sequential(_block(24, 40, 2), _block(40, 40))
        self.to8 = nn.Sequential(_block(40, 72, 2), _block(72, 72))
        self.to16 = nn.Sequential(_block(72, width, 2), _block(width, width))
        self.up8 = nn.Conv2d(width, 72, 1)
        self.mix8 = _block(72, 72)
        self.up4 = nn.Conv2d(72, 40, 1)
        self.mix4 = _block(40, 40)
        self.up2 = nn.Conv2d(40, 24, 1)
        self.shape = nn.Sequential(_block(24, 24), nn.Conv2d(24, shape_width, 3, padding=1))
        self.grid = nn.Conv2d(width + 2, width, 1)
        self.detail = nn.Conv2d(72, width, 1)
        self.embedding = nn.Embedding(words, 48, padding_idx=PAD)
        self.reader = nn.GRU(48, width // 2, batch_first=True, bidirectional=True)
        self.layers = nn.ModuleList([_Layer(width) for _ in range(3)])
        self.tune = nn.Linear(width, 2 * width)
        self.where = nn.Conv2d(width, shape_width + 1, 1)

    def see(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> features at H/2 (B, shape_width, ..), H/8 and H/16 (B, width, ..)."""
        x2 = self.stem(images)
        x4 = self.to4(x2)
        x8 = self.to8(x4)
        x16 = self.to16(x8)
        up = nn.functional.interpolate
        x8 = self.mix8(x8 + up(self.up8(x16), size=x8.shape[-2:], mode="bilinear", align_corners=False))
        x4 = self.mix4(x4 + up(self.up4(x8), size=x4.shape[-2:], mode="bilinear", align_corners=False))
        fine = self.shape(x2 + up(self.up2(x4), size=x2.shape[-2:], mode="bilinear", align_corners=False))
        height, width = x16.shape[-2:]
        y = torch.linspace(-1, 1, height, device=x8.device, dtype=x8.dtype)[:, None].expand(height, width)
        x = torch.linspace(-1, 1, width, device=x8.device, dtype=x8.dtype)[None, :].expand(height, width)
        place = torch.stack([x, y]).expand(x16.shape[0], -1, -1, -1)
        return fine, self.detail(x8), self.grid(torch.cat([x16, place], dim=1))

    def answer(self, fine: Tensor, detail: Tensor, grid: Tensor, counts: Sequence[int], words: Tensor) -> Tensor:
        """Logits (N, H/2, W/2) of N expressions, int64 (N, MAX_WORDS).

        The first counts[0] expressions refer to the first image, the next counts[1] to the second, and so on.
        """
        read, _ = self.reader(self.embedding(words))
        present = words != PAD
        read = read * present[..., None]
        meaning = read.sum(1) / present.sum(1, keepdim=True)
        scale, shift = self.tune(meaning).chunk(2, dim=-1)
        image_of = torch.repeat_interleave(
            torch.arange(len(counts), device=words.device), torch.tensor(counts, device=words.device)
        )
        tokens = grid.flatten(2).transpose(1, 2).index_select(0, image_of)
        tokens = tokens * (1 + scale[:, None]) + shift[:, None]
        allowed = torch.cat([torch.ones_like(tokens[..., 0], dtype=torch.bool), present], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, read, allowed)
        coarse = tokens.transpose(1, 2).reshape(len(words), -1, *grid.shape[-2:])
        coarse = F.interpolate(coarse, size=detail.shape[-2:], mode="bilinear", align_corners=False)
        known = detail.index_select(0, image_of) * (1 + scale[..., None, None])
        coarse = self.where(F.relu(coarse + known))
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        parts = [
            (part[:, :-1] * fine[k]).sum(1) + part[:, -1] for k, part in enumerate(torch.split(coarse, list(counts)))
        ]
        return torch.cat(parts)

    def forward(self, images: Tensor, counts: Sequence[int], words: Tensor) -> Tensor:
        return self.answer(*self.see(images), counts, words)
