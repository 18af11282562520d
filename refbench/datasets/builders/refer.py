"""RefCOCO, RefCOCO+ and both partitions of RefCOCOg, from the files of the original REFER release.

Layout (github.com/lichengunc/refer): `<root>/refcoco/refs(unc).p`, a Python 2 pickle with one dict per ref, and next to
it `instances.json`, in COCO format with polygons. Images: any folder or zip file with the train2014 images of COCO. The
Parquet files of jxu124/refcoco-benchmark on the hub can be read as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refbench.datasets.builders.base import Built, Sources, find_annotations, source_of
from refbench.datasets.builders.coco import CheckedImages, CocoInstances
from refbench.datasets.builders.pickles import read_plain_pickle
from refbench.datasets.builders.refer_tables import build_from_tables
from refbench.datasets.builders.refs import RefReader, RefStyle, built_from_refs
from refbench.datasets.builders.tables import find_tables
from refbench.errors import DatasetError
from refbench.storage.files import read_json
from refbench.storage.progress import Progress

VERSION = 2
LICENCE = "annotations: Apache-2.0 (lichengunc/refer); images: their Flickr licences, see COCO"
UNC = RefStyle(("train", "val", "testA", "testB"))
UMD = RefStyle(("train", "val", "test"))


@dataclass(frozen=True, slots=True)
class Layout:
    folder: str
    split_by: str
    style: RefStyle

    @property
    def refs_name(self) -> str:
        return f"refs({self.split_by}).p"


LAYOUTS = {
    "refcoco": Layout("refcoco", "unc", UNC),
    "refcoco+": Layout("refcoco+", "unc", UNC),
    "refcocog-umd": Layout("refcocog", "umd", UMD),
    "refcocog-google": Layout("refcocog", "google", UMD),
}


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read the REFER release; see `refbench.datasets.builders.base.Builder`.

    Raises:
        DatasetError: lists all invalid rows with their positions in the file.
    """
    layout = LAYOUTS[dataset]
    if sources.annotations is None:
        raise DatasetError(
            f"{dataset} is built from the REFER release; pass --annotations FOLDER, where FOLDER contains "
            f"{layout.folder}/{layout.refs_name} and {layout.folder}/instances.json, or pass --from hub"
        )
    tables = find_tables(sources.annotations)
    if tables:
        return build_from_tables(dataset, layout.style, VERSION, tables, sources, folder, progress)
    refs_path = find_annotations(sources.annotations, layout.folder, (layout.refs_name,), "the REFER release")
    others = {known.folder for known in LAYOUTS.values()} - {layout.folder}
    if refs_path.resolve().parent.name in others:
        raise DatasetError(
            f"{refs_path} is in the folder of another dataset; {dataset} is read from a folder named "
            f"{layout.folder}. If the files are the right ones, rename the folder"
        )
    instances_path = refs_path.with_name("instances.json")
    refs = read_plain_pickle(refs_path)
    if not isinstance(refs, list):
        raise DatasetError(
            f"{refs_path} contains a {type(refs).__name__} instead of the list of refs that REFER writes"
        )
    coco = CocoInstances(read_json(instances_path), instances_path, [])
    reader = RefReader(dataset, layout.style, coco, CheckedImages(coco, sources.images, folder), sources.splits)
    files = [source_of(refs_path), source_of(instances_path)]
    rows = [(f"{refs_path.name} row {row}", ref) for row, ref in enumerate(refs)]
    return built_from_refs(reader, rows, "refer", VERSION, files, LICENCE, progress)
