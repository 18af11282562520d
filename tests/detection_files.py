"""Small annotation files of COCO, LVIS and SA-Co with results for them, made by chance."""

from __future__ import annotations

import random
from typing import Any

from pycocotools import mask as coco_mask

CLASSES = (1, 2, 7)


def box_polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def segmentation(rng: random.Random, polygon: list[float], height: int, width: int) -> Any:
    """A polygon as it is, or as a compressed or uncompressed code."""
    form = rng.randrange(3)
    if form == 0:
        return [polygon]
    code = coco_mask.frPyObjects([polygon], height, width)[0]
    if form == 1:
        return {"size": list(code["size"]), "counts": code["counts"].decode()}
    flat = coco_mask.decode(code).ravel(order="F").tolist()
    counts, value = [0], 0
    for bit in flat:
        if bit != value:
            counts.append(0)
            value = bit
        counts[-1] += 1
    return {"size": list(code["size"]), "counts": counts}


def detection_files(
    seed: int, annotators: int = 1, most_images: int = 5
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Annotation files, one an annotator, that hold what COCO's, LVIS's and SA-Co's hold, and results for them."""
    rng = random.Random(seed)
    images = []
    for number in range(1, rng.randrange(2, most_images + 1)):
        height, width = rng.randrange(20, 140), rng.randrange(20, 140)
        negative = [c for c in CLASSES if rng.random() < 0.4]
        images.append(
            {
                "id": number, "height": height, "width": width, "file_name": f"{number}.jpg", "text_input": "a thing",
                "neg_category_ids": negative,
                "not_exhaustive_category_ids": [c for c in CLASSES if c not in negative and rng.random() < 0.2],
            }
        )  # fmt: skip
    places = [
        (image, rng.choice(CLASSES), _place(rng, image)) for image in images for _ in range(rng.choice((0, 1, 1, 2, 3)))
    ]
    files = []
    for k in range(annotators):
        annotations = []
        for image, category, place in places:
            if k and rng.random() < 0.3:
                continue
            place = _moved(rng, place, 1 if k else 0)
            annotations.append(
                {
                    "id": len(annotations), "image_id": image["id"], "category_id": category,
                    "segmentation": segmentation(rng, box_polygon(*place), image["height"], image["width"]),
                    "area": place[2] * place[3], "iscrowd": int(rng.random() < 0.1), "bbox": list(place),
                }
            )  # fmt: skip
        categories = [{"id": c, "name": f"class {c}", "frequency": "rcf"[n]} for n, c in enumerate(CLASSES)]
        # The first pair is, or there might be nothing to score.
        marked = [i | {"is_instance_exhaustive": int(i["id"] == 1 or rng.random() < 0.85)} for i in images]
        files.append({"images": marked, "annotations": annotations, "categories": categories})
    rows = []
    for image, category, place in places:
        for _ in range(rng.choice((0, 1, 1, 2))):
            moved = _moved(rng, place, 4)
            rows.append(
                {
                    "image_id": image["id"],
                    "category_id": category if rng.random() < 0.9 else rng.choice(CLASSES),
                    "segmentation": segmentation(rng, box_polygon(*moved), image["height"], image["width"]),
                    "score": rng.choice((0.25, 0.5, round(rng.random(), 2), rng.random())),
                }
            )
    return files, rows


def _place(rng: random.Random, image: dict[str, Any]) -> tuple[float, float, float, float]:
    width, height = rng.uniform(3, image["width"] - 6), rng.uniform(3, image["height"] - 6)
    return rng.uniform(0, image["width"] - width), rng.uniform(0, image["height"] - height), width, height


def _moved(rng: random.Random, place: tuple[float, ...], by: float) -> tuple[float, float, float, float]:
    x, y, width, height = (v + rng.uniform(-by, by) for v in place)
    return max(0.0, x), max(0.0, y), max(1.0, width), max(1.0, height)
