"""A split of bright discs on dark ground with coarse outlines, whose true masks a brightness network finds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from refbench.datasets.builders.base import Sources, build_dataset
from refbench.masks.mask import Mask
from refbench.plugins.loading import load
from refbench.storage.progress import silent

HEIGHT, WIDTH, RADIUS = 120, 160, 30


def build_bright(folder: Path, dataset: str, count: int, wrong: int = 0, seed: int = 0) -> Path:
    """Build `<dataset>/val` with one disc an image; the last `wrong` outlines lie beside it. Returns truth.json.

    The coarse outline is an octagon around the disc, shifted and scaled by chance.
    """
    random = np.random.default_rng(seed)
    release, images = folder / "refer" / dataset, folder / "images"
    release.mkdir(parents=True)
    images.mkdir()
    rows, annotations, refs, truth = [], [], [], {}
    angles = np.arange(8) * np.pi / 4
    for k in range(1, count + 1):
        x, y = random.uniform(55, WIDTH - 55), random.uniform(50, HEIGHT - 50)
        true = np.hypot(*(np.indices((HEIGHT, WIDTH))[::-1] - np.array([x, y])[:, None, None])) < RADIUS
        pixels = np.where(true[..., None], 215, 40) + random.normal(0, 4, (HEIGHT, WIDTH, 1))
        name = f"COCO_train2014_{k:012d}.jpg"
        Image.fromarray(np.repeat(np.clip(pixels, 0, 255), 3, axis=2).astype(np.uint8)).save(images / name, quality=95)
        is_wrong = k > count - wrong
        shift = np.array([-30.0, -25.0]) if is_wrong else random.normal(0, 2, 2)
        size = (0.4 if is_wrong else 1.0) * RADIUS * random.uniform(0.95, 1.1)
        corners = np.array([x, y]) + shift + size * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        left, top = corners.min(axis=0)
        right, bottom = corners.max(axis=0)
        rows.append({"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH})
        annotations.append(
            {
                "id": k, "image_id": k, "category_id": 7, "iscrowd": 0, "segmentation": [corners.ravel().tolist()],
                "bbox": [left, top, right - left, bottom - top],
            }
        )  # fmt: skip
        sentence = {"sent_id": k, "sent": "the disc", "raw": "the disc", "tokens": ["the", "disc"]}
        refs.append({"ref_id": k, "ann_id": k, "image_id": k, "split": "val", "sentences": [sentence]})
        code = Mask.from_array(true)
        truth[str(k)] = {"size": list(code.size), "counts": code.counts.decode("ascii"), "wrong": is_wrong}
    (release / "instances.json").write_text(
        json.dumps({"images": rows, "annotations": annotations, "categories": [{"id": 7, "name": "disc"}]})
    )
    (release / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    path = folder / "truth.json"
    path.write_text(json.dumps(truth))
    build_dataset(dataset, load("builders", dataset), Sources(folder / "refer", images), silent)
    return path
