"""`snapshots`: images that are included in scikit-image and matplotlib, with masks drawn for refbench.

This is a small dataset of real images that needs no download. The outlines and expressions are in
`datasets/snapshots/annotations.json`. The images are read from the installed packages. Their sha256 must match the
images on which the outlines were drawn.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from refbench.datasets.builders.base import Built, Sources, source_of
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.records import AnnotatedObject, Sample
from refbench.storage.files import project_data, read_json
from refbench.storage.images import load_image
from refbench.storage.progress import Progress

VERSION = 1
LICENCE = "annotations: CC0-1.0; images: as stated by scikit-image (skimage/data/README) and matplotlib"


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read the outlines and copy the images as PNG; see `refbench.datasets.builders.base.Builder`."""
    if sources.annotations or sources.images:
        raise DatasetError(f"{dataset} is included in refbench, so remove --annotations and --images")
    path = project_data("datasets") / "snapshots" / "annotations.json"
    content = read_json(path)
    (folder / "images").mkdir()
    images: dict[int, tuple[str, int, int]] = {}
    for done, image in enumerate(content["images"]):
        images[image["id"]] = _copy_image(image, folder), image["height"], image["width"]
        progress("images", done + 1, len(content["images"]))
    objects = {row["id"]: _object(row, images) for row in content["annotations"]}
    splits: dict[str, list[Sample]] = {}
    for ref in content["refs"]:
        targets = [objects[i] for i in ref["ann_ids"]]
        image_path, height, width = images[ref["image_id"]]
        mask = Mask.empty(height, width).union(*(t.mask for t in targets))
        for sent_id, expression in enumerate(ref["expressions"]):
            splits.setdefault(ref["split"], []).append(
                Sample(
                    sample_id=f"{dataset}/{ref['split']}/{ref['ref_id']}/{sent_id}",
                    image_id=str(ref["image_id"]),
                    image_path=image_path,
                    height=height,
                    width=width,
                    expression=expression,
                    raw_expression=expression,
                    ref_id=str(ref["ref_id"]),
                    sent_id=str(sent_id),
                    ann_ids=tuple(t.ann_id for t in targets),
                    category=targets[0].category if targets else "",
                    target=mask,
                    no_target=not targets,
                    polygons=tuple(p for t in targets for p in t.polygons),
                    box_xywh=mask.box_xywh,
                )
            )
    return Built("snapshots", VERSION, splits, list(objects.values()), [source_of(path)], LICENCE)


def _copy_image(image: dict[str, Any], folder: Path) -> str:
    package = find_spec(image["package"])
    if package is None or package.origin is None:
        raise DatasetError(f"{image['package']} is not installed; run `pip install {image['package']}`")
    source = Path(package.origin).parent / image["file"]
    picture = load_image(source, image["height"], image["width"])
    found = hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()
    if found != image["pixels_sha256"]:
        raise DatasetError(
            f"{source} differs from the image on which the masks were drawn (the sha256 of its pixels is "
            f"{found}); install the package versions listed in constraints.txt"
        )
    name = f"images/{source.stem}.png"
    picture.save(folder / name)
    return name


def _object(row: dict[str, Any], images: dict[int, tuple[str, int, int]]) -> AnnotatedObject:
    _, height, width = images[row["image_id"]]
    pixels = Mask.from_polygons(row["polygons"], height, width).to_array()
    if row.get("holes"):
        pixels &= ~Mask.from_polygons(row["holes"], height, width).to_array()
    mask = Mask.from_array(pixels)
    polygons = tuple(tuple(float(v) for v in p) for p in row["polygons"])
    image_id, category = str(row["image_id"]), row["category"]
    return AnnotatedObject(str(row["id"]), image_id, category, False, mask, polygons, mask.box_xywh)
