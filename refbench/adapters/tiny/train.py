"""Trains `tiny` on `scenes/train`: `refbench build scenes && python -m refbench.adapters.tiny.train`.

Under 20 minutes on two cores; the same seed, torch version and number of threads give the same weights.
Writes `weights.safetensors` (half precision, the vocabulary in its metadata) beside this file, or to --out.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
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
from refbench.records import AnnotatedObject, Sample
from refbench.storage import load_objects, load_samples, split_fingerprint

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


class ObjectHead(nn.Module):
    """What each cell of the trunk's H/8 map should know of the object it lies on: class, centre and size.

    Used in training only. Expressions alone teach the trunk slowly, since each one speaks of one object.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(features, classes + 1 + 3, 1)

    def loss(self, detail: Tensor, classes: Tensor, places: Tensor) -> Tensor:
        """`classes` int64 (B, h, w), 0 for ground; `places` (B, 3, h, w): offset to the centre, and size."""
        out = self.read(detail)
        entropy = F.cross_entropy(out[:, :-3], classes)
        on_object = (classes > 0).float()[:, None]
        distance = F.smooth_l1_loss(out[:, -3:], places, reduction="none", beta=0.1) * on_object
        return entropy + 4 * distance.sum() / (3 * on_object.sum() + 1)


def object_maps(objects: list[AnnotatedObject], classes: dict[str, int]) -> tuple[Tensor, Tensor]:
    """The targets of ObjectHead for one picture, lengths as shares of the picture."""
    width, height = INPUT_WIDTH_PX // 8, INPUT_HEIGHT_PX // 8
    labels = np.zeros((height, width), np.int64)
    places = np.zeros((3, height, width), np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for o in objects:
        small = Image.fromarray(o.mask.to_array()).resize((width, height), Image.Resampling.NEAREST)
        inside = np.asarray(small)
        left, top, box_width, box_height = o.box_xywh
        labels[inside] = classes[o.category]
        places[0][inside] = ((left + box_width / 2) / o.mask.width - (x + 0.5) / width)[inside]
        places[1][inside] = ((top + box_height / 2) / o.mask.height - (y + 0.5) / height)[inside]
        places[2][inside] = math.sqrt(box_width * box_height / (o.mask.width * o.mask.height))
    return torch.from_numpy(labels), torch.from_numpy(places)


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
    objects: dict[str, list[AnnotatedObject]] = {}
    for o in load_objects("scenes"):
        objects.setdefault(o.image_id, []).append(o)
    classes = {name: k for k, name in enumerate(sorted({o.category for o in chain(*objects.values())}), start=1)}
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image_path, []).append(sample)
    pictures, words, mirrored, targets, labels, places = [], [], [], [], [], []
    for path, group in track(by_image.items(), "Reading scenes/train"):
        with Image.open(path) as image:
            pictures.append(prepare_image(image))
        words.append(encode_words([s.expression for s in group], vocabulary))
        mirrored.append(encode_words([mirror_words(s.expression) for s in group], vocabulary))
        targets.append(torch.from_numpy(np.stack([small_target(s) for s in group])).half())
        label, place = object_maps(objects[group[0].image_id], classes)
        labels.append(label)
        places.append(place)

    network = TinyNetwork(len(vocabulary) + 2)
    head = ObjectHead(network.detail.out_channels, len(classes))
    learnt = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=2e-3, weight_decay=0.02)
    steps = epochs * math.ceil(len(pictures) / IMAGES_PER_STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    mirror = torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    shuffle = torch.Generator().manual_seed(seed)
    began = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(pictures), generator=shuffle).tolist()
        losses = []
        for first in range(0, len(order), IMAGES_PER_STEP):
            chosen = order[first : first + IMAGES_PER_STEP]
            flips = (torch.rand(len(chosen), generator=shuffle) < 0.5).tolist()
            views = list(zip(chosen, flips, strict=True))
            images = torch.stack([pictures[k].flip(-1) if f else pictures[k] for k, f in views])
            gain = 1 + 0.1 * torch.randn(len(chosen), 1, 1, 1, generator=shuffle)
            batch_words = torch.cat([mirrored[k] if f else words[k] for k, f in views])
            batch_targets = torch.cat([targets[k].flip(-1) if f else targets[k] for k, f in views])
            counts = [len(words[k]) for k in chosen]
            batch_labels = torch.stack([labels[k].flip(-1) if f else labels[k] for k, f in views])
            batch_places = torch.stack([places[k].flip(-1) * mirror if f else places[k] for k, f in views])
            seen = network.see(images * gain)
            loss = mask_loss(network.answer(*seen, counts, batch_words), batch_targets.float())
            loss = loss + head.loss(seen[1], batch_labels, batch_places)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
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
