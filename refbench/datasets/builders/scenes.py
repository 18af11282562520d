"""`scenes`: rendered images with exact masks, made from a seed alone, so nothing is downloaded.

The dataset distinguishes good segmenters from bad ones at low cost. It has similar objects, thin parts, holes and
occlusion. Expressions name class, colour, pattern, size, position, relation and order, and some have no target. Each
exact target also has the polygon that an annotator in a hurry would draw, as a model of coarse ground truth.

`scenes-hurried`: the same images and expressions, with the masks of a simulated annotator whose errors are known.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refbench.datasets.builders.base import Built, Sources
from refbench.datasets.builders.scenes_annotator import Outline, draw_outlines
from refbench.datasets.builders.scenes_drawing import CANVASES_PX, DrawnObject, draw_objects, hurried_polygons
from refbench.datasets.builders.scenes_language import Phrase, write_phrases
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.masks.whole_numbers import Draws
from refbench.records import AnnotatedObject, Sample
from refbench.storage.process_pool import map_in_processes
from refbench.storage.progress import Progress

VERSION = 2
SEED = 20_260_101
ANNOTATOR_SEED = 20_260_102
SCENES_PER_SPLIT = {"train": 1100, "val": 50, "test": 130}
# As many as it takes to calibrate a recipe; nobody trains on them.
HURRIED_SCENES_PER_SPLIT = {**SCENES_PER_SPLIT, "train": 200}
LICENCE = "CC0-1.0: rendered by refbench"


_Job = tuple[str, int, Path]
_Rendered = tuple[list[Sample], list[AnnotatedObject]]


@dataclass(frozen=True, eq=False)
class Scene:
    """An image, uint8 (H, W, 3) RGB, its objects, their coarse outlines, and expressions about them."""

    picture: NDArray[np.uint8]
    objects: list[DrawnObject]
    outlines: list[list[list[float]]]
    phrases: list[Phrase]


def draw_scene(split: str, index: int, seed: int = SEED) -> Scene:
    """Scene `index` of a split. It depends only on `split`, `index` and `seed`."""
    draws = Draws(seed, list(SCENES_PER_SPLIT).index(split), index)
    height, width = draws.pick(CANVASES_PX)
    picture, objects = draw_objects(draws, height, width, draws.between(3, 8))
    outlines = [hurried_polygons(draws, o.mask) for o in objects]
    phrases = write_phrases(draws, objects, height, width)
    return Scene(picture, objects, outlines, phrases)


def hurried_outlines(
    split: str, index: int, masks: Sequence[NDArray[np.bool_]], *, chains: bool = False
) -> list[Outline]:
    """The outlines of a scene in `scenes-hurried` and their errors, computed from the exact masks of the scene, bool
    (H, W).

    `chains`: see `draw_outlines`.
    """
    return draw_outlines(Draws(ANNOTATOR_SEED, list(SCENES_PER_SPLIT).index(split), index), masks, chains=chains)


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Render all splits to `folder` and return their samples; see `refbench.datasets.builders.base.Builder`."""
    return _build(dataset, SCENES_PER_SPLIT, "scenes", _render, sources, folder, progress)


def build_hurried(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Build the scenes with coarse outlines; see `refbench.datasets.builders.base.Builder`."""
    return _build(dataset, HURRIED_SCENES_PER_SPLIT, "scenes_hurried", _render_hurried, sources, folder, progress)


def _build(
    dataset: str,
    scenes: Mapping[str, int],
    builder: str,
    render: Callable[[_Job], _Rendered],
    sources: Sources,
    folder: Path,
    progress: Progress,
) -> Built:
    if sources.annotations or sources.images:
        raise DatasetError(f"{dataset} is rendered from a seed, so remove --annotations and --images")
    counts = {s: n for s, n in scenes.items() if not sources.splits or s in sources.splits}
    jobs = [(split, i, folder) for split, count in counts.items() for i in range(count)]
    splits: dict[str, list[Sample]] = {split: [] for split in counts}
    objects: list[AnnotatedObject] = []
    for split in splits:
        (folder / "images" / split).mkdir(parents=True)
    for done, (job, result) in enumerate(
        zip(jobs, map_in_processes(render, jobs, chunk=20, of_script=False), strict=True)
    ):
        samples, found = result
        splits[job[0]] += samples
        objects += found
        progress(dataset, done + 1, len(jobs))
    return Built(builder, VERSION, splits, objects, [], LICENCE)


def _render(job: _Job) -> _Rendered:
    split, index, folder = job
    scene = draw_scene(split, index)
    masks = [Mask.from_array(o.mask) for o in scene.objects]
    return _rows("scenes", split, index, scene, masks, scene.outlines, _save(scene, folder, split, index))


def _render_hurried(job: _Job) -> _Rendered:
    split, index, folder = job
    scene = draw_scene(split, index)
    height, width = scene.picture.shape[:2]
    outlines = [o.polygons for o in hurried_outlines(split, index, [o.mask for o in scene.objects])]
    masks = [Mask.from_polygons(polygons, height, width) for polygons in outlines]
    return _rows("scenes-hurried", split, index, scene, masks, outlines, _save(scene, folder, split, index))


def _save(scene: Scene, folder: Path, split: str, index: int) -> str:
    path = f"images/{split}/{index:05d}.png"
    # Noise has no repetitions; the search for them would take half of the rendering time.
    Image.fromarray(scene.picture).save(folder / path, compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
    return path


def _rows(
    dataset: str,
    split: str,
    index: int,
    scene: Scene,
    masks: Sequence[Mask],
    outlines: Sequence[Sequence[Sequence[float]]],
    image_path: str,
) -> _Rendered:
    image_id = f"{split}-{index:05d}"
    height, width = scene.picture.shape[:2]
    objects = []
    for k, (drawn, mask, outline) in enumerate(zip(scene.objects, masks, outlines, strict=True)):
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
                sample_id=f"{dataset}/{split}/{ref_id}/{sent_id}",
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
