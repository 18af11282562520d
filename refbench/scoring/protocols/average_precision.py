"""Average precision of detections against a COCO or LVIS annotation file.

Matching and averaging are done by pycocotools (COCO) and hotcoco (LVIS). refbench reads the files (`coco_files`) and
computes the Boundary IoU, which Boundary AP uses instead of the mask IoU. Values are in percent.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refbench.errors import DatasetError, MaskError
from refbench.masks.counting import pair_counts
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_attribute
from refbench.scoring.protocols.coco_files import Annotations, Category, Image, Results, fields_of, read_results
from refbench.storage.coco_rows import Key, is_text, read_area, read_key, shown

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BOUNDARY_SHARE = 0.02
# An area outside every size range: lvis-api ignores such annotations, as the file's `ignore` demands.
IGNORED_AREA_PX = 1e11


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of a detection protocol.

    Contains metrics with the names of the original, in percent (NaN without ground truth), and notes about properties
    of the files that the metrics do not show.
    """

    metrics: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectionProtocol:
    """A protocol that scores detections against one annotation file or, if `annotators` is true, against the annotation
    files of several annotators.

    `image_field` is a field that every image in the annotation files of the protocol must have; images in COCO files do
    not have it. If `silence_counts`, an image without detections counts as a prediction of no target, which can be
    correct.
    """

    name: str
    summary: str
    source: str
    evaluate: Callable[[Sequence[Annotations], Results], Evaluation]
    caveats: tuple[str, ...] = ()
    annotators: bool = False
    image_field: str = ""
    silence_counts: bool = False

    def fits(self, truth: Annotations) -> bool:
        """Whether the protocol is made for this kind of file."""
        return not self.image_field or all(self.image_field in image.row for image in truth.images.values())


def evaluate_coco(truths: Sequence[Annotations], results: Results) -> Evaluation:
    """The twelve metrics of COCOeval, iouType segm."""
    return _run(COCOeval, truths[0], results)


def evaluate_boundary(truths: Sequence[Annotations], results: Results) -> Evaluation:
    """The twelve metrics of COCOeval, with min(mask IoU, Boundary IoU) as the overlap."""
    return _run(_BoundaryEval, truths[0], results)


def evaluate_lvis(truths: Sequence[Annotations], results: Results) -> Evaluation:
    """Federated AP: in each image, only the classes that were verified there count; at most 300 detections.

    Raises:
        DatasetError: the annotation file is invalid, or lacks the additional fields of LVIS.
    """
    (truth,) = truths
    content, notes = _lvis_content(truth)
    with tempfile.TemporaryDirectory() as folder:
        # hotcoco reads files only.
        places = Path(folder) / "ground_truth.json", Path(folder) / "results.json"
        for place, value in zip(places, (content, _rows_of(results)), strict=True):
            place.write_text(json.dumps(value))
        lvis = load_attribute("hotcoco:LVIS")(str(places[0]))
        evaluation = load_attribute("hotcoco:LVISeval")(
            lvis, load_attribute("hotcoco:LVISResults")(lvis, str(places[1])), "segm"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summary_lines()
        metrics = {name: _percent(value) for name, value in evaluation.get_results().items()}
    return Evaluation(metrics, (*notes, *repeated_detections(results)))


def _lvis_content(truth: Annotations) -> tuple[dict[str, Any], list[str]]:
    """The fields of an annotation file that lvis-api reads (`ignore`, but not `iscrowd`), and remarks about the
    file.
    """
    images = list(truth.images.values())
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    if not all(name in image.row for image in images for name in fields):
        raise DatasetError(
            f"{truth.path} is not an LVIS annotation file: lvis-ap needs neg_category_ids and "
            "not_exhaustive_category_ids for every image; for a COCO file, use --protocol coco-ap"
        )
    listed = {
        name: fields_of(images, partial(_classes, name=name, known=truth.categories), _where, truth.path)
        for name in fields
    }
    numbers = {key: category.number for key, category in truth.categories.items()}
    frequencies = fields_of(list(truth.categories.values()), _frequency, _where, truth.path)
    content = {
        "images": [
            {"id": i.number, "height": i.height, "width": i.width}
            | {
                name: [truth.categories[k].number for k in listed[name][row] if k in truth.categories]
                for name in fields
            }
            for row, i in enumerate(images)
        ],
        "categories": [
            {"id": c.number, "name": str(c.number), "frequency": frequency}
            for c, frequency in zip(truth.categories.values(), frequencies, strict=True)
        ],
        "annotations": [
            row | {"iscrowd": 0, "area": IGNORED_AREA_PX if one.ignored else row["area"]}
            for row, one in zip(_annotations_of(truth), truth.truths, strict=True)
        ],
    }
    unknown = sum(key not in numbers for name in fields for keys in listed[name] for key in keys)
    note = f"{unknown} ids in neg_category_ids and not_exhaustive_category_ids are of no category of the file"
    return content, [note] if unknown else []


def _classes(image: Image, name: str, known: Mapping[Key, Category]) -> list[Key]:
    value = image.row[name]
    if not isinstance(value, list):
        raise MaskError(f"its `{name}` must be a list of category ids, got {shown(value)}")
    keys = [read_key({name: key}, name) for key in value]
    as_text = {is_text(key) for key in known}
    for key in keys:
        if known and is_text(key) not in as_text:
            raise MaskError(
                f"its `{name}` contains {shown(key)}, whose type differs from the type of the category ids; use the "
                "same type for both"
            )
    return keys


def _frequency(category: Category) -> str:
    value = category.row.get("frequency")
    if value not in ("r", "c", "f"):
        raise MaskError(f"its `frequency` must be r, c or f (rare, common, frequent), got {shown(value)}")
    return str(value)


def _where(item: Image | Category) -> str:
    return item.where


def _percent(value: float) -> float:
    # COCO's evaluator writes -1 if there is nothing to find; this means that the metric has no value.
    return float("nan") if value < 0 else 100 * float(value)


def _run(kind: type[COCOeval], truth: Annotations, results: Results) -> Evaluation:
    ignored = sum(one.ignored for one in truth.truths)
    notes = (
        [f"{ignored} annotations have `ignore` set. COCO's evaluator does not read it: they count"] if ignored else []
    )
    # pycocotools prints as it goes, and stdout belongs to the result.
    with contextlib.redirect_stdout(io.StringIO()):
        images = [{"id": i.number, "height": i.height, "width": i.width} for i in truth.images.values()]
        categories = [{"id": c.number, "name": str(c.number)} for c in truth.categories.values()]
        ours, theirs = COCO(), COCO()
        ours.dataset = {"images": images, "categories": categories, "annotations": _annotations_of(truth)}
        theirs.dataset = {"images": images, "categories": categories, "annotations": _rows_of(results)}
        ours.createIndex()
        theirs.createIndex()
        evaluation = kind(ours, theirs, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {name: _percent(value) for name, value in zip(COCO_NAMES, evaluation.stats, strict=True)}
    return Evaluation(metrics, (*notes, *repeated_detections(results)))


def _annotations_of(truth: Annotations) -> list[dict[str, Any]]:
    """The annotations of a COCO file; the `area` in the file determines whether they are small, medium or large."""
    areas = fields_of(truth.truths, lambda one: read_area(one.row), lambda one: one.where, truth.path)
    return [
        {
            "id": number,
            "image_id": one.image,
            "category_id": one.category,
            "segmentation": _code(one.mask),
            "area": area,
            "iscrowd": int(one.crowd),
        }
        for number, (one, area) in enumerate(zip(truth.truths, areas, strict=True), start=1)
    ]


def _rows_of(results: Results) -> list[dict[str, Any]]:
    """Results, completed as in `loadRes`; their area is always that of the mask, never that of a box in the file."""
    return [
        {
            "id": number,
            "image_id": one.image,
            "category_id": one.category,
            "segmentation": _code(one.mask),
            "score": one.score,
            "area": one.mask.area,
            "bbox": list(one.mask.box_xywh),
            "iscrowd": 0,
        }
        for number, one in enumerate(results.detections, start=1)
    ]


def _code(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.size), "counts": mask.counts.decode("ascii")}


def repeated_detections(results: Results) -> tuple[str, ...]:
    """A remark about the repeated detections that were ignored, if there were any."""
    if not results.repeated:
        return ()
    return (
        f"{results.repeated} detections are the same as an earlier one (image, class, mask and score) and were left "
        "out, since padded runs on several GPUs write duplicates; the original counts them",
    )


class _BoundaryEval(COCOeval):  # type: ignore[misc]
    """COCOeval with the overlap of Boundary AP.

    Source: Cheng et al., Boundary IoU, CVPR 2021, section 5, and bowenc0221/boundary-iou-api `cocoeval.py`: the
    smaller of mask IoU and Boundary IoU; a crowd keeps the mask IoU.
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 (the name that pycocotools calls)
        overlaps = super().computeIoU(imgId, catId)
        if len(overlaps) == 0:
            return overlaps
        truths = self._gts[imgId, catId]
        found = sorted(self._dts[imgId, catId], key=lambda row: -row["score"])[: self.params.maxDets[-1]]
        # Python's sort keeps the order of equal scores, as the mergesort of pycocotools does.
        bands = self._band_overlaps([r["segmentation"] for r in found], [r["segmentation"] for r in truths])
        crowd = np.array([bool(row.get("iscrowd", 0)) for row in truths])
        return np.where(crowd[None, :], overlaps, np.minimum(overlaps, bands))

    def _band_overlaps(self, found: list[Any], truths: list[Any]) -> NDArray[np.float64]:
        ours, theirs = [Mask.from_rle(m) for m in found], [Mask.from_rle(m) for m in truths]
        pairs = [(a, b) for a in ours for b in theirs]
        counts = pair_counts([a for a, _ in pairs], [b for _, b in pairs], BOUNDARY_SHARE)
        union = counts["boundary_union"]
        share = np.where(union > 0, counts["boundary_intersection"] / np.maximum(union, 1), 0.0)
        return share.reshape(len(ours), len(theirs))


COCO_AP = DetectionProtocol(
    "coco-ap",
    "segm AP over IoU .50:.95, all areas, at most 100 detections an image and class",
    "cocodataset/cocoapi PythonAPI/pycocotools/cocoeval.py (8c9bcc3)",
    evaluate_coco,
)
BOUNDARY_AP = DetectionProtocol(
    "boundary-ap",
    "coco-ap with min(mask IoU, Boundary IoU at 2 % of the diagonal) as the overlap",
    "bowenc0221/boundary-iou-api boundary_iou/coco_instance_api/cocoeval.py (37d2558)",
    evaluate_boundary,
)
LVIS_AP = DetectionProtocol(
    "lvis-ap",
    "federated segm AP: absent and not exhaustively drawn classes honoured, at most 300 detections an image",
    "lvis-dataset/lvis-api lvis/eval.py (7d7f07d), by hotcoco",
    evaluate_lvis,
    image_field="neg_category_ids",
)


def score_detections(
    truths: Sequence[Annotations], results: Path, protocols: Sequence[DetectionProtocol]
) -> dict[str, Evaluation]:
    """The result of each protocol, by name, for COCO results against one annotation file, or one per annotator.

    Raises:
        DatasetError: an annotation file lacks something that a protocol needs.
        PredictionError: results are invalid; the message lists all of them.
    """
    read = read_results(results, truths[0])
    return {protocol.name: protocol.evaluate(truths, read) for protocol in protocols}
