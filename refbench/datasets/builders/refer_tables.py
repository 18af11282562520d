"""The RefCOCO family from jxu124/refcoco-benchmark: one row per image, with its refs, polygons and image.

Of the hub's copies this one keeps all polygons and tells the split authors apart (features and split names as
on its dataset card). It holds evaluation splits only, and of each image only the annotations that are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refbench.datasets.builders.base import Built, Sources, source_of
from refbench.datasets.builders.coco import CATEGORIES_2014, CocoInstances
from refbench.datasets.builders.refs import RefReader, RefStyle, built_from_refs
from refbench.datasets.builders.tables import ImageFiles, split_word, table_rows
from refbench.errors import DatasetError
from refbench.storage.coco_rows import is_id
from refbench.storage.progress import Progress

ORIGIN = "jxu124/refcoco-benchmark"
PREFIXES = {
    "refcoco": "refcoco_unc_",
    "refcoco+": "refcoco_plus_unc_",
    "refcocog-umd": "refcocog_umd_",
    "refcocog-google": "refcocog_google_",
}
LICENCE = "annotations: Apache-2.0 (lichengunc/refer), the hub's copy states none; images: their Flickr licences"


class _Unpacked:
    """The images that came with the tables."""

    def __init__(self, paths: dict[int, str]) -> None:
        self._paths = paths

    def path_of(self, image_id: int) -> str:
        return self._paths[image_id]

    def notes(self) -> list[str]:
        return []


def build_from_tables(
    dataset: str, style: RefStyle, version: int, tables: list[Path], sources: Sources, folder: Path, progress: Progress
) -> Built:
    """Every split of this dataset among the tables, its images unpacked.

    Raises:
        DatasetError: tables of another set, or rows that cannot be used, each named.
    """
    if sources.images is not None:
        raise DatasetError(f"{ORIGIN} carries its images in the Parquet files; drop --images")
    mine = [t for t in tables if split_word(t).startswith(PREFIXES[dataset])]
    if not mine:
        # Says what they are, if they can be told.
        for _ in table_rows(tables[0], dataset, ("ref_list", "image_info", "image"), ORIGIN):
            break
        there = ", ".join(sorted({split_word(t) for t in tables}))
        raise DatasetError(f"none of the tables is {PREFIXES[dataset]}<split>-*.parquet; there are: {there}")
    files = ImageFiles(folder)
    problems: list[str] = []
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": CATEGORIES_2014}
    paths: dict[int, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    refs: list[tuple[str, Any]] = []
    images_seen: set[int] = set()
    annotations_seen: set[int] = set()
    for number, table in enumerate(mine):
        split = split_word(table).removeprefix(PREFIXES[dataset])
        for row, line in enumerate(table_rows(table, dataset, ("ref_list", "image_info", "image"), ORIGIN)):
            where = f"{table.name} row {row}"
            info = line["image_info"]
            try:
                if not isinstance(info, dict) or not is_id(info.get("id")):
                    raise DatasetError("no image_info with an integer id")
                paths[info["id"]], sizes[info["id"]] = files.write(info.get("file_name"), line["image"], again=True)
            except DatasetError as error:
                problems.append(f"{where}: {error}")
                continue
            if info["id"] not in images_seen:
                content["images"].append(info)
                images_seen.add(info["id"])
            for k, item in enumerate(line["ref_list"] if isinstance(line["ref_list"], list) else ()):
                both = item if isinstance(item, dict) else {}
                annotation, ref = both.get("ann_info"), both.get("ref_info")
                if not isinstance(annotation, dict) or not isinstance(ref, dict) or not is_id(annotation.get("id")):
                    problems.append(f"{where}, ref_list[{k}]: needs ann_info with an integer id, and ref_info")
                    continue
                # Two refs may name one object; then it comes twice.
                if annotation["id"] not in annotations_seen:
                    content["annotations"].append(annotation)
                    annotations_seen.add(annotation["id"])
                if ref.get("split") != split:
                    problems.append(f"{where}, ref_list[{k}]: its split is {ref.get('split')!r}, the file's {split!r}")
                refs.append((f"{where}, ref_list[{k}]", ref))
        progress("tables", number + 1, len(mine))
    coco = CocoInstances(content, mine[0].with_name("ref_list of the tables"), problems)
    for image_id, (_, image) in coco.images.items():
        if sizes[image_id] != (image["height"], image["width"]):
            problems.append(f"image {image_id}: its bytes are {sizes[image_id]} (height, width), image_info differs")
    reader = RefReader(dataset, style, coco, _Unpacked(paths), sources.splits)
    built = built_from_refs(reader, refs, "refer", version, [source_of(t) for t in mine], LICENCE, progress)
    built.notes.append("the objects are those that an expression names: the hub's copy holds no others")
    return built
