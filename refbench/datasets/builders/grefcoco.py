"""gRefCOCO: expressions that refer to no object, one object or several, on the images of RefCOCO.

Layout (github.com/henghuiding/gRefCOCO): `grefcoco/grefs(unc).json` (or the same as a pickle, `.p`), where `ann_id` is
a list, `[-1]` if there is no target, and `grefcoco/instances.json` in COCO format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refbench.datasets.builders.base import Built, Sources, find_annotations, source_of
from refbench.datasets.builders.coco import CheckedImages, CocoInstances
from refbench.datasets.builders.pickles import read_plain_pickle
from refbench.datasets.builders.refs import RefReader, RefStyle, built_from_refs
from refbench.errors import DatasetError
from refbench.storage.files import read_json
from refbench.storage.progress import Progress

VERSION = 2
LICENCE = "annotations: CC BY-NC-SA 4.0 as stated by henghuiding/gRefCOCO; images: their Flickr licences, see COCO"
SPLITS = ("train", "val", "testA", "testB")
NAMES = ("grefs(unc).json", "grefs(unc).p")
CROWDS = ("skip", "use")


def build(dataset: str, sources: Sources, folder: Path, progress: Progress, *, crowd: str = "skip") -> Built:
    """Read the release; see `refbench.datasets.builders.base.Builder`.

    Args:
        crowd: `skip` excludes crowd annotations from the target, as ReLA (`gres_model/data/datasets/grefer.py`,
            `getMaskByRef`) and Sa2VA do. `use` includes them, as the loaders of GSVA and MLLMSeg (`ValDataset`) do,
            which ignore `iscrowd`. The choice changes the targets of some expressions.

    Raises:
        DatasetError: lists all invalid rows with their positions in the file.
    """
    if crowd not in CROWDS:
        raise DatasetError(f"{dataset}: the value of -o crowd={crowd} must be {' or '.join(CROWDS)}")
    if sources.annotations is None:
        raise DatasetError(
            f"{dataset} is built from its release; pass --annotations FOLDER, where FOLDER contains "
            f"grefcoco/{NAMES[0]} and grefcoco/instances.json"
        )
    path = find_annotations(sources.annotations, "grefcoco", NAMES, "the gRefCOCO release")
    refs: Any = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(refs, list):
        raise DatasetError(f"{path} contains a {type(refs).__name__} instead of the list of refs in the release")
    instances_path = path.with_name("instances.json")
    coco = CocoInstances(read_json(instances_path), instances_path, [])
    style = RefStyle(SPLITS, several=True, skip_crowds=crowd == "skip")
    reader = RefReader(dataset, style, coco, CheckedImages(coco, sources.images, folder), sources.splits)
    rows = [(f"{path.name} row {row}", ref) for row, ref in enumerate(refs)]
    files = [source_of(path), source_of(instances_path)]
    return built_from_refs(reader, rows, "grefcoco", VERSION, files, LICENCE, progress)
