"""Trains `tiny` on `scenes/train`: `refbench build scenes && python -m refbench.adapters.tiny.train`.

Takes less than 20 minutes on two cores. The same seed, torch version and number of threads give the same weights.
Writes `weights.safetensors` (in half precision, with the vocabulary in its metadata) next to this file, or to --out.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
    MIRRORED,
    PAD,
    UNKNOWN,
    TinyNetwork,
    encode_words,
    prepare_image,
    split_words,
    swap_words,
)
from refbench.records import AnnotatedObject, Sample
from refbench.storage.images import open_image
from refbench.storage.manifest import split_fingerprint
from refbench.storage.samples import load_objects, load_samples

WEIGHTS = Path(__file__).parent / "weights.safetensors"
IMAGES_PER_STEP = 8
UPSIDE_DOWN = {"top": "bottom", "bottom": "top", "above": "below", "below": "above"}


def make_vocabulary(samples: list[Sample]) -> dict[str, int]:
    counts = Counter(w for s in samples for w in split_words(s.expression))
    words = sorted({*counts, *MIRRORED, *UPSIDE_DOWN})
    return {word: number for number, word in enumerate(words, start=max(PAD, UNKNOWN) + 1)}


def small_target(sample: Sample) -> np.ndarray:
    """The target at the size of the logits: the share of each cell that it covers, float32."""
    pixels = Image.fromarray(sample.target.to_array().astype(np.uint8) * 255)
    resized = pixels.resize((INPUT_WIDTH_PX // 2, INPUT_HEIGHT_PX // 2), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.float32) / 255


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per pixel plus soft Dice per mask; Dice counts only for samples that have a target."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
    shares = logits.sigmoid()
    overlap = 2 * (shares * targets).sum((1, 2)) + 1
    dice = 1 - overlap / (shares.sum((1, 2)) + targets.sum((1, 2)) + 1)
    has_target = (targets.amax((1, 2)) > 0).float()
    return (4 * entropy + dice * has_target).mean()


class ObjectHead(nn.Module):
    """Predicts, for each cell of the H/8 map, the class, the centre and the size of the object at this position.

    It is used only in training. Expressions alone would train the backbone slowly, because each expression names a
    single object.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(features, classes + 1 + 3, 1)

    def loss(self, detail: Tensor, classes: Tensor, places: Tensor) -> Tensor:
        """The loss. `classes` are int64 (B, h, w), with 0 for background; `places` are (B, 3, h, w): the x and y
        offsets to the centre, and the size.
        """
        out = self.read(detail)
        entropy = F.cross_entropy(out[:, :-3], classes)
        on_object = (classes > 0).float()[:, None]
        distance = F.smooth_l1_loss(out[:, -3:], places, reduction="none", beta=0.1) * on_object
        return entropy + 4 * distance.sum() / (3 * on_object.sum() + 1)


def object_maps(objects: list[AnnotatedObject], classes: dict[str, int]) -> tuple[Tensor, Tensor]:
    """The training targets of ObjectHead for one image; lengths are relative to the image."""
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


@dataclass(frozen=True, slots=True)
class Example:
    """An image with its expressions, their targets (N, h, w), and the result of `object_maps`."""

    picture: Tensor
    expressions: list[str]
    targets: Tensor
    labels: Tensor
    places: Tensor


def turned(example: Example, mirrored: bool, upside_down: bool) -> Example:
    """The example flipped horizontally, vertically or both, with its position words adapted."""
    axes = [axis for axis, turn in ((-1, mirrored), (-2, upside_down)) if turn]
    if not axes:
        return example
    swaps = (MIRRORED if mirrored else {}) | (UPSIDE_DOWN if upside_down else {})
    signs = torch.tensor([-1.0 if mirrored else 1.0, -1.0 if upside_down else 1.0, 1.0])[:, None, None]
    return Example(
        example.picture.flip(axes),
        [swap_words(e, swaps) for e in example.expressions],
        example.targets.flip(axes),
        example.labels.flip(axes),
        example.places.flip(axes) * signs,
    )


def read_examples() -> tuple[list[Example], dict[str, int], int]:
    """One example per image of scenes/train, the vocabulary, and the number of categories."""
    samples = load_samples("scenes/train")
    objects: dict[str, list[AnnotatedObject]] = {}
    for o in load_objects("scenes"):
        objects.setdefault(o.image_id, []).append(o)
    classes = {name: k for k, name in enumerate(sorted({o.category for o in chain(*objects.values())}), start=1)}
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image_path, []).append(sample)
    examples = []
    for path, group in track(by_image.items(), "Reading scenes/train"):
        with open_image(Path(path)) as image:
            pixels = prepare_image(image)
        masks = torch.from_numpy(np.stack([small_target(s) for s in group])).half()
        texts = [s.expression for s in group]
        examples.append(Example(pixels, texts, masks, *object_maps(objects[group[0].image_id], classes)))
    return examples, make_vocabulary(samples), len(classes)


def fit(
    network: TinyNetwork,
    head: ObjectHead,
    examples: Sequence[Example],
    vocabulary: dict[str, int],
    epochs: int,
    shuffle: torch.Generator,
) -> None:
    """Train the network and the head; `shuffle` determines the order of images and their augmentation."""
    learnt = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=2e-3, weight_decay=0.02)
    steps = epochs * math.ceil(len(examples) / IMAGES_PER_STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    began = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(examples), generator=shuffle).tolist()
        losses = []
        for first in range(0, len(order), IMAGES_PER_STEP):
            chosen = [examples[k] for k in order[first : first + IMAGES_PER_STEP]]
            loss = _loss(network, head, chosen, vocabulary, shuffle)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        click.echo(
            f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.4f}  {time.monotonic() - began:.0f} s", err=True
        )


def _loss(
    network: TinyNetwork,
    head: ObjectHead,
    chosen: Sequence[Example],
    vocabulary: dict[str, int],
    shuffle: torch.Generator,
) -> torch.Tensor:
    turns = (torch.rand(len(chosen), 2, generator=shuffle) < torch.tensor([0.5, 0.3])).tolist()
    views = [turned(e, *turn) for e, turn in zip(chosen, turns, strict=True)]
    gain = 1 + 0.1 * torch.randn(len(views), 3, 1, 1, generator=shuffle)
    words = encode_words([text for v in views for text in v.expressions], vocabulary)
    seen = network.see(torch.stack([v.picture for v in views]) * gain)
    logits = network.answer(*seen, [len(v.expressions) for v in views], words)
    loss = mask_loss(logits, torch.cat([v.targets for v in views]).float())
    labels, places = torch.stack([v.labels for v in views]), torch.stack([v.places for v in views])
    return loss + head.loss(seen[1], labels, places)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, show_default=True)
@click.option("--epochs", default=16, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(out: Path, epochs: int, seed: int, threads: int) -> None:
    """Train tiny on scenes/train and write its weights."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    examples, vocabulary, classes = read_examples()
    network = TinyNetwork(len(vocabulary) + 2)
    head = ObjectHead(network.detail.out_channels, classes)
    fit(network, head, examples, vocabulary, epochs, torch.Generator().manual_seed(seed))
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
