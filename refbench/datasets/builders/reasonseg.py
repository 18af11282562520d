"""ReasonSeg (LISA): expressions that need reasoning, each with a target mask.

Layout (github.com/dvlab-research/LISA): `ReasonSeg/{train,val,test}/<name>.jpg` and, next to it, `<name>.json` with
`shapes` (polygons with a label), `text` (one or more expressions) and `is_sentence`. The target follows
`utils/data_processing.py` of LISA: shapes are painted from the largest to the smallest. A label that contains `ignore`
marks pixels that LISA does not count. Shapes with the label `flag` are not painted. Any other label marks the target.
LISA rasterises with OpenCV from truncated vertices. refbench rasterises as in pycocotools, as for all datasets; the
polygons are stored for protocols that rasterise as LISA does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from refbench.datasets.builders.base import Built, Sources, refuse
from refbench.errors import DatasetError, MaskError
from refbench.masks.mask import Mask
from refbench.records import IGNORED_CATEGORY, IGNORED_TAG, AnnotatedObject, Sample
from refbench.storage.coco_rows import is_text
from refbench.storage.files import check_is_file, path_sha256
from refbench.storage.images import Photographs, image_size
from refbench.storage.manifest import Source
from refbench.storage.progress import Progress

VERSION = 2
LICENCE = "as stated by dvlab-research/LISA; images: from OpenImages and ScanNetv2, their own licences"
SPLITS = ("train", "val", "test")
NOT_DRAWN = "flag"


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read the splits that exist; see `refbench.datasets.builders.base.Builder`.

    Pixels to ignore are objects with the category `ignore` and with `crowd` set; their samples have the tag
    `ignore-region`. Each expression is a sample, with the tag `sentence` or `phrase`; the evaluation of LISA uses the
    first one.

    Raises:
        DatasetError: lists all invalid files.
    """
    if sources.annotations is None:
        raise DatasetError(
            f"{dataset} is built from its folder; pass --annotations FOLDER, where FOLDER contains ReasonSeg/val"
        )
    root = next((p for p in (sources.annotations / "ReasonSeg", sources.annotations) if _splits_of(p)), None)
    if root is None:
        raise DatasetError(
            f"{sources.annotations} contains none of ReasonSeg/train, ReasonSeg/val and ReasonSeg/test with "
            "*.json files; pass the folder ReasonSeg or its parent with --annotations"
        )
    problems: list[str] = []
    splits: dict[str, list[Sample]] = {}
    objects: list[AnnotatedObject] = []
    files = []
    by_code_page = 0
    for split in _splits_of(root):
        place = root / split
        given = sources.images or place
        photographs = Photographs(given / split if (given / split).is_dir() else given)
        paths = sorted(place.glob("*.json"))
        for done, path in enumerate(paths):
            try:
                content, is_utf8 = _read_json(path)
                samples, found = _read(dataset, split, path.stem, content, photographs)
            except (DatasetError, MaskError) as error:
                problems.append(f"{split}/{path.name}: {error}")
                continue
            by_code_page += not is_utf8
            splits.setdefault(split, []).extend(samples)
            objects += found
            if done % 50 == 49 or done + 1 == len(paths):
                progress(split, done + 1, len(paths))
        size = sum(p.stat().st_size for p in paths)
        files.append(Source(f"ReasonSeg/{split}/*.json", path_sha256(place, "*.json"), size))
    refuse(dataset, problems, "files")
    notes = [f"{by_code_page} files are not in UTF-8 and were read in code page 1252, as LISA reads them"]
    return Built("reasonseg", VERSION, splits, objects, files, LICENCE, notes if by_code_page else [], dataset, dataset)


def _splits_of(root: Path) -> list[str]:
    return [s for s in SPLITS if any((root / s).glob("*.json"))]


def _read(
    dataset: str, split: str, name: str, content: dict[str, Any], photographs: Photographs
) -> tuple[list[Sample], list[AnnotatedObject]]:
    shapes, texts = content.get("shapes"), content.get("text")
    if not isinstance(shapes, list) or not isinstance(texts, list) or not texts or not all(map(is_text, texts)):
        raise DatasetError("needs a list 'shapes' and a list 'text' with at least one expression")
    image_path = photographs.locate(f"{name}.jpg")
    height, width = image_size(image_path)
    image_id = f"{split}-{name}"
    drawn: list[tuple[int, AnnotatedObject]] = []
    for k, shape in enumerate(shapes):
        label, polygon = _shape(shape, k)
        if polygon is None:
            continue
        ignored = IGNORED_CATEGORY in label.lower()
        mask = Mask.from_polygons([polygon], height, width)
        category = IGNORED_CATEGORY if ignored else ""
        found = AnnotatedObject(f"{image_id}-{k}", image_id, category, ignored, mask, (tuple(polygon),), mask.box_xywh)
        drawn.append((mask.area, found))
    mask = _target(drawn, height, width)
    meant = [found for _, found in drawn if not found.crowd]
    kind = "sentence" if content.get("is_sentence") else "phrase"
    tags = (kind, IGNORED_TAG) if len(meant) < len(drawn) else (kind,)
    samples = [
        Sample(
            sample_id=f"{dataset}/{split}/{name}/{k}",
            image_id=image_id,
            image_path=str(image_path.resolve()),
            height=height,
            width=width,
            expression=text.strip(),
            raw_expression=text,
            ref_id=name,
            sent_id=str(k),
            ann_ids=tuple(found.ann_id for found in meant),
            category="",
            target=mask,
            no_target=not meant,
            polygons=tuple(p for found in meant for p in found.polygons),
            box_xywh=mask.box_xywh,
            tags=tags,
        )
        for k, text in enumerate(texts)
    ]
    return samples, [found for _, found in drawn]


def _target(drawn: list[tuple[int, AnnotatedObject]], height: int, width: int) -> Mask:
    """The shapes with their areas, painted over each other from the largest to the smallest."""
    # In reverse, as in LISA: of two shapes with the same area, the later one comes first. LISA uses numpy's default
    # sort, which is stable for up to 16 shapes, but not on processors with AVX-512.
    order = np.argsort([area for area, _ in drawn], kind="stable")[::-1].tolist() if drawn else []
    target = np.zeros((height, width), bool)
    for k in order:
        found = drawn[k][1]
        target[found.mask.to_array()] = not found.crowd
    return Mask.from_array(target)


def _read_json(path: Path) -> tuple[dict[str, Any], bool]:
    """The content, and whether it is UTF-8: some of the published files use the Windows code page."""
    check_is_file(path)
    raw = path.read_bytes()
    is_utf8 = True
    try:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text, is_utf8 = raw.decode("cp1252"), False
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"is not valid JSON ({error}); if the file is truncated, copy it again") from None
    if not isinstance(content, dict):
        raise DatasetError(f"contains a {type(content).__name__} instead of a ReasonSeg object")
    return content, is_utf8


def _shape(shape: Any, k: int) -> tuple[str, list[float] | None]:
    """The label and polygon of a shape; the polygon is None for the label `flag`, even if it has points."""
    if isinstance(shape, dict) and is_text(shape.get("label")) and shape["label"].lower() == NOT_DRAWN:
        return shape["label"], None
    points = shape.get("points") if isinstance(shape, dict) else None
    if not isinstance(points, list) or not is_text(shape.get("label")):
        raise DatasetError(f"shapes[{k}] needs a label and points")
    try:
        polygon = [float(v) for x, y in points for v in (x, y)]
    except (TypeError, ValueError, OverflowError):
        raise DatasetError(f"shapes[{k}]: points must be a list of [x, y] pairs") from None
    if len(polygon) < 6:
        raise DatasetError(f"shapes[{k}] has {len(points)} points; a polygon needs at least three")
    return shape["label"], polygon
