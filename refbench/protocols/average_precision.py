"""Average precision of detections against a COCO or LVIS annotation file.

Matching and averaging are pycocotools' (COCO) and hotcoco's (LVIS); what is ours is reading the files with clear
errors, and the Boundary IoU that Boundary AP puts in place of the mask IoU. Values are in percent.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refbench.errors import MaskError, PredictionError, RefbenchError, summarise_problems
from refbench.mask import Mask, pair_counts
from refbench.plugins import load_attribute
from refbench.storage import read_json

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BOUNDARY_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class DetectionProtocol:
    """A rule that scores a list of detections against an annotation file.

    `evaluate` takes the ground truth (a COCO object of JSON) and the checked detections, and returns metrics by the
    names that the original prints, in percent.
    """

    name: str
    summary: str
    source: str
    evaluate: Callable[[dict[str, Any], list[dict[str, Any]]], dict[str, float]]


def read_detections(ground_truth: Path, results: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO annotation file and COCO results for it: `[{image_id, category_id, segmentation, score}, ...]`.

    Raises:
        DatasetError: the annotation file is none.
        PredictionError: lists every entry that cannot be used.
    """
    content = read_json(ground_truth)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        raise PredictionError(f"{ground_truth} is no COCO annotation file: it needs images, annotations and categories")
    try:
        sizes = {row["id"]: (row["height"], row["width"]) for row in content["images"]}
        categories = {row["id"] for row in content["categories"]}
        problems = [
            f"annotations[{k}]: {error}"
            for k, row in enumerate(content["annotations"])
            if (error := _problem(row, sizes, categories, scored=False))
        ]
    except (KeyError, TypeError) as error:
        raise PredictionError(f"{ground_truth}: an image or category lacks {error}") from None
    if problems:
        raise PredictionError(f"{ground_truth} cannot be scored against:\n{summarise_problems(problems)}")
    rows = read_json(results, PredictionError)
    if not isinstance(rows, list):
        raise PredictionError(f"{results} holds a {type(rows).__name__}, not the list of COCO results")
    problems = [f"entry {k}: {e}" for k, row in enumerate(rows) if (e := _problem(row, sizes, categories, scored=True))]
    if problems:
        raise PredictionError(
            f"{results}: {len(problems)} entries cannot be scored.\n{summarise_problems(problems)}\n"
            "Entries are counted from 0."
        )
    return content, rows


def _problem(row: Any, sizes: Mapping[Any, Any], categories: set[Any], scored: bool) -> str:
    if not isinstance(row, dict):
        return f"a {type(row).__name__} where an object was expected"
    if row.get("image_id") not in sizes:
        return f"image_id {row.get('image_id')!r} is not in the annotation file"
    if row.get("category_id") not in categories:
        return f"category_id {row.get('category_id')!r} is not in the annotation file"
    if scored and (isinstance(row.get("score"), bool) or not isinstance(row.get("score"), (int, float))):
        return "it has no score; AP needs one for every detection"
    if scored and not np.isfinite(row["score"]):
        return f"its score is {row['score']}, which ranks nowhere"
    segmentation = row.get("segmentation")
    try:
        size = sizes[row["image_id"]]
        if isinstance(segmentation, list) and segmentation:
            Mask.from_polygons(segmentation, *size)
        else:
            found = Mask.from_rle(segmentation or {})  # which says what is wrong with anything else
            if found.size != size:
                return f"its mask is {list(found.size)}, its image {list(size)} [height, width]"
    except MaskError as error:
        return str(error)
    return ""


def evaluate_coco(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, float]:
    """The twelve figures of COCOeval, iouType segm."""
    return _run(COCOeval, ground_truth, detections)


def evaluate_boundary(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, float]:
    """The same with min(mask IoU, Boundary IoU) as the overlap."""
    return _run(_BoundaryEval, ground_truth, detections)


def evaluate_lvis(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, float]:
    """Federated AP: of an image only the classes count that were searched for in it, at most 300 detections."""
    if any("neg_category_ids" not in row or "not_exhaustive_category_ids" not in row for row in ground_truth["images"]):
        raise PredictionError(
            "lvis-ap needs neg_category_ids and not_exhaustive_category_ids of every image: this is a COCO file, "
            "use --protocol coco-ap"
        )
    if not detections:
        return dict.fromkeys(("AP", "AP50", "AP75"), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        # hotcoco reads files only.
        places = Path(folder) / "ground_truth.json", Path(folder) / "results.json"
        for place, value in zip(places, (ground_truth, detections), strict=True):
            place.write_text(json.dumps(value))
        truth = load_attribute("hotcoco:LVIS")(str(places[0]))
        evaluation = load_attribute("hotcoco:LVISeval")(
            truth, load_attribute("hotcoco:LVISResults")(truth, str(places[1])), "segm"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summary_lines()
        return {name: _percent(value) for name, value in evaluation.get_results().items()}


def has_lvis_fields(ground_truth: Path) -> bool:
    """Whether the file tells, as LVIS does, which classes were searched for in each image."""
    content = read_json(ground_truth)
    images = content.get("images") if isinstance(content, dict) else None
    return isinstance(images, list) and all(isinstance(r, dict) and "neg_category_ids" in r for r in images)


def _percent(value: float) -> float:
    # COCO writes -1 where nothing is there to be found: no figure at all.
    return float("nan") if value < 0 else 100 * float(value)


def _run(kind: type[COCOeval], ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, float]:
    # pycocotools prints as it goes, and stdout belongs to the result.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        # loadRes and createIndex write into what they are given.
        truth.dataset = {
            **ground_truth,
            "annotations": [{"iscrowd": 0, **row, "area": _area(row, truth)} for row in ground_truth["annotations"]],
        }
        truth.createIndex()
        evaluation = kind(truth, truth.loadRes([dict(row) for row in detections]), "segm") if detections else None
        if evaluation is None:
            return dict.fromkeys(COCO_NAMES, 0.0)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: _percent(value) for name, value in zip(COCO_NAMES, evaluation.stats, strict=True)}


def _area(row: dict[str, Any], truth: COCO) -> float:
    if "area" not in row:
        raise PredictionError(
            f"annotation {row.get('id')} has no area, which the sizes small, medium and large go by; COCO's files have"
        )
    return float(row["area"])


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
)


def score_detections(
    ground_truth: Path, results: Path, protocols: list[DetectionProtocol]
) -> dict[str, dict[str, float]]:
    """Name of the protocol -> metrics, each in percent; NaN where the annotation file has nothing to find."""
    content, rows = read_detections(ground_truth, results)
    out = {}
    for protocol in protocols:
        try:
            out[protocol.name] = protocol.evaluate(content, rows)
        except RefbenchError:
            raise
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise PredictionError(
                f"{results} cannot be scored by {protocol.name}: {type(error).__name__}: {error}"
            ) from None
    return out
