"""A run's instances as COCO results, which the protocols of average precision score against an annotation file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refbench.errors import PredictionError
from refbench.execution.plan import planned_paths
from refbench.protocols.coco_files import Annotations
from refbench.records import Instance, Prediction, Sample
from refbench.runner import read_run
from refbench.storage import load_samples, predictions_from_table, read_table, write_json

SETS_OF_SGINW = "sginw-"


def write_detections(folder: Path, truth: Annotations) -> Path:
    """Write the instances of a run as COCO results into its folder, and return the file.

    It is named `seginw_<set>_val.json` for a set of SGinW, as a submission wants it, else `coco-results.json`.
    Instances of a sample belong to its class; in a run that has none at all, each mask that is not empty counts as one,
    with the score of its answer (1 if it has none).

    Raises:
        PredictionError: the annotation file is of other images or classes; names the first sample that shows it.
        RunError: the run is not there, or not whole.
    """
    info = read_run(folder)
    images = {str(key): key for key in truth.images}
    categories = {str(category.row.get("name")): key for key, category in truth.categories.items()}
    samples = {s.sample_id: s for s in load_samples(f"{info['dataset']}/{info['split']}")}
    paths = planned_paths(folder, int(info["shards"]))
    predictions = [p for path in paths for p in predictions_from_table(read_table(path))]
    bare = not any(p.instances for p in predictions)
    rows: list[dict[str, Any]] = []
    for prediction in predictions:
        sample = samples[prediction.sample_id]
        # Builders write the split before an image's number, since each split counts from 0.
        image = images.get(sample.image_id.removeprefix(f"{info['split']}-"))
        category = categories.get(sample.category)
        if image is None or category is None:
            raise PredictionError(
                f"{truth.path} does not belong to this run: {sample.sample_id} asks for {sample.category!r} on the "
                f"image {sample.image_id}"
            )
        rows += [_row(image, category, one) for one in _instances(prediction, sample, bare)]
    name = str(info["dataset"])
    is_set = name.startswith(SETS_OF_SGINW)
    path = folder / (f"seginw_{name.removeprefix(SETS_OF_SGINW)}_val.json" if is_set else "coco-results.json")
    write_json(path, rows)
    return path


def _instances(prediction: Prediction, sample: Sample, bare: bool) -> tuple[Instance, ...]:
    if not bare:
        return prediction.instances
    if prediction.error or not prediction.mask.area:
        return ()
    return (Instance(prediction.mask, 1.0 if prediction.score is None else prediction.score),)


def _row(image: Any, category: Any, instance: Instance) -> dict[str, Any]:
    mask = instance.mask
    code = {"size": [mask.height, mask.width], "counts": mask.counts.decode("ascii")}
    return {"image_id": image, "category_id": category, "segmentation": code, "score": instance.score}
