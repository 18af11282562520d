"""`scenes`: rendered pictures with exact masks, made from a seed alone, so nothing is downloaded.

Made to tell segmenters apart cheaply: look-alikes, thin parts, holes, occlusion, and expressions by class,
colour, pattern, size, position, relation and order, plus some that name nothing in the picture. Beside each
exact target lies the polygon that a hurried annotator would draw, as a model of coarse ground truth.
"""

from __future__ import annotations

import multiprocessing
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refbench.builders.base import Built, Sources
from refbench.builders.scenes_drawing import CANVASES_PX, DrawnObject, draw_objects, hurried_polygons
from refbench.builders.scenes_language import Phrase, write_phrases
from refbench.errors import DatasetError
from refbench.mask import Mask, available_cores
from refbench.progress import Progress
from refbench.records import AnnotatedObject, Sample

VERSION = 1
SEED = 20_260_101
SCENES_PER_SPLIT = {"train": 1100, "val": 50, "test": 130}
LICENCE = "CC0-1.0: rendered by refbench"


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, uint8 (H, W, 3) RGB, its objects, their hurried outlines, and expressions about them."""

    picture: NDArray[np.uint8]
    objects: list[DrawnObject]
    outlines: list[list[list[float]]]
    phrases: list[Phrase]


def draw_scene(split: str, index: int, seed: int = SEED) -> Scene:
    """Scene `index` of a split; depends on these three values only."""
    random = np.random.default_rng([seed, list(SCENES_PER_SPLIT).index(split), index])
    height, width = CANVASES_PX[int(random.integers(len(CANVASES_PX)))]
    picture, objects = draw_objects(random, height, width, int(random.integers(3, 9)))
    outlines = [hurried_polygons(random, o.mask) for o in objects]
    phrases = write_phrases(random, objects, height, width)
    return Scene(picture, objects, outlines, phrases)


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Render every split to `folder` and return its samples; see `refbench.builders.base.Builder`."""
    if sources.annotations or sources.images:
        raise DatasetError(f"{dataset} is rendered from a seed; it takes neither --annotations nor --images")
    jobs = [(split, i, folder) for split, count in SCENES_PER_SPLIT.items() for i in range(count)]
    splits: dict[str, list[Sample]] = {split: [] for split in SCENES_PER_SPLIT}
    objects: list[AnnotatedObject] = []
    for split in splits:
        (folder / "images" / split).mkdir(parents=True)
    # Spawned, not forked: a fork would copy the locks of threads that numba or torch may hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(available_cores(), mp_context=context) as pool:
        for done, (job, result) in enumerate(zip(jobs, pool.map(_render, jobs, chunksize=20), strict=True)):
            samples, found = result
            splits[job[0]] += samples
            objects += found
            progress("scenes", done + 1, len(jobs))
    return Built("scenes", VERSION, splits, objects, [], LICENCE)


def _render(job: tuple[str, int, Path]) -> tuple[list[Sample], list[AnnotatedObject]]:
    split, index, folder = job
    scene = draw_scene(split, index)
    image_id = f"{split}-{index:05d}"
    image_path = f"images/{split}/{index:05d}.png"
    # Noise has no repetitions to find: looking for them would cost half of the rendering.
    Image.fromarray(scene.picture).save(folder / image_path, compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
    height, width = scene.picture.shape[:2]
    objects = []
    for k, (drawn, outline) in enumerate(zip(scene.objects, scene.outlines, strict=True)):
        mask = Mask.from_array(drawn.mask)
        polygons = tuple(tuple(p) for p in outline)
        objects.append(AnnotatedObject(f"{image_id}-{k}", image_id, drawn.shape, False, mask, polygons, mask.box_xywh))
    samples = []
    sent_ids: dict[str, int] = {}
    for phrase in scene.phrases:
        found = None if phrase.target is None else objects[phrase.target]
        ref_id = f"{image_id}-none" if found is None else found.ann_id
        sent_id = sent_ids[ref_id] = sent_ids.get(ref_id, -1) + 1
        samples.append(
            Sample(
                sample_id=f"scenes/{split}/{ref_id}/{sent_id}",
                image_id=image_id,
                image_path=image_path,
                height=height,
                width=width,
                expression=phrase.text,
                raw_expression=phrase.text,
                ref_id=ref_id,
                sent_id=str(sent_id),
                ann_ids=() if found is None else (found.ann_id,),
                category="" if found is None else found.category,
                target=Mask.empty(height, width) if found is None else found.mask,
                no_target=found is None,
                polygons=() if found is None else found.polygons,
                box_xywh=(0.0, 0.0, 0.0, 0.0) if found is None else found.box_xywh,
                tags=(phrase.kind,),
            )
        )
    return samples, objects
