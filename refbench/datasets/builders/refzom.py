"""Ref-ZOM: expressions for one object, several objects or none, on COCO train2014 and val2014.

Layout (github.com/toggle1995/RIS-DMMI, and the loaders of GSVA and MLLMSeg): `refzom/Ref_ZOM.p`, a pickle with one dict
per ref, whose `ann_id` is an integer or a list and whose `source` is `zero` if there is no target, and
`refzom/instances.json` in COCO format.
"""

from __future__ import annotations

from pathlib import Path

from refbench.datasets.builders.base import Built, Sources, find_annotations, source_of
from refbench.datasets.builders.coco import CheckedImages, CocoInstances
from refbench.datasets.builders.pickles import read_plain_pickle
from refbench.datasets.builders.refs import RefReader, RefStyle, built_from_refs
from refbench.errors import DatasetError
from refbench.storage.files import read_json
from refbench.storage.progress import Progress

VERSION = 2
LICENCE = "annotations: as stated by toggle1995/RIS-DMMI; images: their Flickr licences, see COCO"
NAMES = ("Ref_ZOM.p", "refs(final).p", "Ref-ZOM(final).p")
FOLDERS = ("refzom", "ref-zom", "")
STYLE = RefStyle(("train", "val", "test"), several=True, sources=True)


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read the release; see `refbench.datasets.builders.base.Builder`.

    Raises:
        DatasetError: lists all invalid rows with their positions in the file.
    """
    if sources.annotations is None:
        raise DatasetError(
            f"{dataset} is built from its release; pass --annotations FOLDER, where FOLDER contains "
            f"refzom/{NAMES[0]} and refzom/instances.json"
        )
    given = sources.annotations
    inside = next((f for f in FOLDERS if (given / f).is_dir()), FOLDERS[0])
    path = find_annotations(given, inside, NAMES, "the Ref-ZOM release")
    refs = read_plain_pickle(path)
    if not isinstance(refs, list):
        raise DatasetError(f"{path} contains a {type(refs).__name__} instead of the list of refs in the release")
    instances_path = path.with_name("instances.json")
    coco = CocoInstances(read_json(instances_path), instances_path, [])
    reader = RefReader(dataset, STYLE, coco, CheckedImages(coco, sources.images, folder), sources.splits)
    rows = [(f"{path.name} row {row}", ref) for row, ref in enumerate(refs)]
    files = [source_of(path), source_of(instances_path)]
    return built_from_refs(reader, rows, "refzom", VERSION, files, LICENCE, progress)
