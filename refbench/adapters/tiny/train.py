"""Trains `tiny` on `scenes/train`: `refbench build scenes && python -m refbench.adapters.tiny.train`.

Under 20 minutes on two cores; the same seed, torch version and number of threads give the same weights.
Writes `weights.safetensors` (half precision, the vocabulary in its metadata) beside this file, or to --out.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from refbench.adapters.tiny.model import (
    INPUT_HEIGHT_PX,
    INPUT_WIDTH_PX,
    PAD,
    UNKNOWN,
    TinyNetwork,
    encode_words,
    prepare_image,
    split_words,
)
from refbench.records import Sample
from refbench.storage import load_samples, split_fingerprint

WEIGHTS = Path(__file__).parent / "weights.safetensors"
IMAGES_PER_STEP = 8
MIRRORED = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}


def mirror_words(expression: str) -> str:
    """The expression for the picture seen in a mirror."""
    return " ".join(MIRRORED.get(word, word) for word in split_words(expression))


def make_vocabulary(samples: list[Sample]) -> dict[str, int]:
    counts = Counter(w for s in samples for w in split_words(s.expression))
    words = sorted(set(counts) | set(MIRRORED))
    return {word: number for number, word in enumerate(words, start=max(PAD, UNKNOWN) + 1)}


def small_target(sample: Sample) -> np.ndarray:
    """The target at the size of the logits, as the share of each cell that it covers, float32."""
    pixels = Image.fromarray(sample.target.to_array().astype(np.uint8) * 255)
    resized = pixels.resize((INPUT_WIDTH_PX // 2, INPUT_HEIGHT_PX // 2), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.float32) / 255


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy a pixel plus soft Dice a mask; Dice counts for samples that have a target only."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
    shares = logits.sigmoid()
    overlap = 2 * (shares * targets).sum((1, 2)) + 1
    dice = 1 - overlap / (shares.sum((1, 2)) + targets.sum((1, 2)) + 1)
    has_target = (targets.amax((1, 2)) > 0).float()
    return (4 * entropy + dice * has_target).mean()


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, show_default=True)
@click.option("--epochs", default=18, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(out: Path, epochs: int, seed: int, threads: int) -> None:
    """Train tiny on scenes/train and write its weights."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    samples = load_samples("scenes/train")
    vocabulary = make_vocabulary(samples)
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image_path, []).append(sample)
    pictures, words, mirrored, targets = [], [], [], []
    for path, group in track(by_image.items(), "Reading scenes/train"):
        with Image.open(path) as image:
            pictures.append(prepare_image(image))
        words.append(encode_words([s.expression for s in group], vocabulary))
        mirrored.append(encode_words([mirror_words(s.expression) for s in group], vocabulary))
        targets.append(torch.from_numpy(np.stack([small_target(s) for s in group])).half())

    network = TinyNetwork(len(vocabulary) + 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    steps = epochs * math.ceil(len(pictures) / IMAGES_PER_STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    shuffle = torch.Generator().manual_seed(seed)
    began = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(pictures), generator=shuffle).tolist()
        losses = []
        for first in range(0, len(order), IMAGES_PER_STEP):
            chosen = order[first : first + IMAGES_PER_STEP]
            flips = (torch.rand(len(chosen), generator=shuffle) < 0.5).tolist()
            images = torch.stack(
                [pictures[k].flip(-1) if f else pictures[k] for k, f in zip(chosen, flips, strict=True)]
            )
            gain = 1 + 0.1 * torch.randn(len(chosen), 1, 1, 1, generator=shuffle)
            batch_words = torch.cat([mirrored[k] if f else words[k] for k, f in zip(chosen, flips, strict=True)])
            batch_targets = torch.cat(
                [targets[k].flip(-1) if f else targets[k] for k, f in zip(chosen, flips, strict=True)]
            )
            counts = [len(words[k]) for k in chosen]
            loss = mask_loss(network(images * gain, counts, batch_words), batch_targets.float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        click.echo(
            f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.4f}  {time.monotonic() - began:.0f} s", err=True
        )

    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    metadata = {
        "vocabulary": json.dumps(vocabulary),
        "trained_on": f"scenes/train {split_fingerprint('scenes/train')}",
        "recipe": json.dumps({"epochs": epochs, "seed": seed, "threads": threads, "torch": torch.__version__}),
    }
    save_file(weights, out, metadata=metadata)
    click.echo(f"wrote {out}, {out.stat().st_size / 1e6:.2f} MB", err=True)


if __name__ == "__main__":
    main()
