"""Masks of PaliGemma: 16 tokens, each with one of 128 codes, which a small network decodes to 64 x 64.

Source: google-research/big_vision, `evaluators/proj/paligemma/transfers/segmentation.py`; the weights are published as
gs://big_vision/paligemma/vae-oid.npz.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from refbench.errors import AdapterError

TOKENS = 16
CODES = 128
GRID = 4
EMBEDDING = "_vq_vae._embedding"


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.net(x)
        return out


class TokenDecoder:
    """Decodes 16 codes to a soft mask inside its box, float (64, 64) between 0 and 1.

    Args:
        weights: vae-oid.npz; only its arrays are read, and no code in it is run.

    Raises:
        AdapterError: the file is not a readable vae-oid.npz, or lacks an array.
    """

    def __init__(self, weights: Path) -> None:
        try:
            with np.load(weights, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files if name.startswith(("decoder.", EMBEDDING))}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise AdapterError(f"{weights} cannot be read as vae-oid.npz: {error}") from error
        if EMBEDDING not in arrays:
            raise AdapterError(
                f"{weights} does not contain {EMBEDDING}; the original file is published as "
                "gs://big_vision/paligemma/vae-oid.npz"
            )
        self.codes = torch.from_numpy(arrays.pop(EMBEDDING).astype(np.float32))
        width = int(arrays["decoder.0.bias"].shape[0]) if "decoder.0.bias" in arrays else 128
        steps: list[nn.Module] = [
            nn.Conv2d(self.codes.shape[1], width, 1),
            nn.ReLU(),
            _Residual(width),
            _Residual(width),
        ]
        for _ in range(4):
            # Doubles the sides and halves the width, the first time from the full width to itself.
            narrower = width if len(steps) == 4 else width // 2
            steps += [nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1), nn.ReLU()]
            width = narrower
        self.decoder = nn.Sequential(*steps, nn.Conv2d(width, 1, 1))
        state = {k.removeprefix("decoder."): torch.from_numpy(v.astype(np.float32)) for k, v in arrays.items()}
        try:
            self.decoder.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise AdapterError(f"the weights in {weights} do not fit the decoder: {str(error)[:400]}") from None
        self.decoder.eval()

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Decode 16 codes; raises AdapterError unless there are 16 codes between 0 and 127."""
        if len(tokens) != TOKENS or not all(0 <= t < min(CODES, len(self.codes)) for t in tokens):
            raise AdapterError(f"a mask must have {TOKENS} codes between 0 and {CODES - 1}, got {list(tokens)}")
        grid = self.codes[torch.tensor(tokens)].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
        # The network answers in -1..1.
        shares = (self.decoder(grid)[0, 0] * 0.5 + 0.5).clamp(0, 1)
        return np.asarray(shares.numpy(), dtype=np.float64)
