"""The RefCOCO family from jxu124/refcoco-benchmark: one row per image, with its refs, polygons and image.

Of the copies on the hub, this one keeps all polygons and does not mix the splits of different authors, according to the
features and split names on its dataset card. It contains only evaluation splits, and for each image only the
annotations that refs use.
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
COLUMNS = ("ref_list", "image_info", "image")
PREFIXES = {
    "refcoco": "refcoco_unc_",
    "refcoco+": "refcoco_plus_unc_",
    "refcocog-umd": "refcocog_umd_",
    "refcocog-google": "refcocog_google_",
}
LICENCE = "annotations: Apache-2.0 (lichengunc/refer), the hub's copy states none; images: their Flickr licences"


class _Unpacked:
    """The images from the tables."""

    def __init__(self, paths: dict[int, str]) -> None:
        self._paths = paths

    def path_of(self, image_id: int) -> str:
        return self._paths[image_id]

    def notes(self) -> list[str]:
        return []


class _Tables:
    """The content of the tables without duplicates: images, annotations, and refs with their positions."""

    def __init__(self, dataset: str, folder: Path) -> None:
        self.dataset = dataset
        self.files = ImageFiles(folder)
        self.problems: list[str] = []
        self.images: dict[int, Any] = {}
        self.annotations: dict[int, Any] = {}
        self.paths: dict[int, str] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        self.refs: list[tuple[str, Any]] = []

    def read(self, table: Path) -> None:
        split = split_word(table).removeprefix(PREFIXES[self.dataset])
        for row, line in enumerate(table_rows(table, self.dataset, COLUMNS, ORIGIN)):
            where = f"{table.name} row {row}"
            info = line["image_info"]
            try:
                if not isinstance(info, dict) or not is_id(info.get("id")):
                    raise DatasetError("image_info has no integer id")
                path, size = self.files.write(info.get("file_name"), line["image"], again=True)
            except DatasetError as error:
                self.problems.append(f"{where}: {error}")
                continue
            self.paths[info["id"]], self.sizes[info["id"]] = path, size
            self.images.setdefault(info["id"], info)
            for k, item in enumerate(line["ref_list"] if isinstance(line["ref_list"], list) else ()):
                self._read_ref(f"{where}, ref_list[{k}]", item, split)

    def _read_ref(self, where: str, item: Any, split: str) -> None:
        both = item if isinstance(item, dict) else {}
        annotation, ref = both.get("ann_info"), both.get("ref_info")
        if not isinstance(annotation, dict) or not isinstance(ref, dict) or not is_id(annotation.get("id")):
            self.problems.append(f"{where}: needs ann_info with an integer id, and ref_info")
            return
        # Two refs may have the same object; its annotation is then repeated.
        self.annotations.setdefault(annotation["id"], annotation)
        if ref.get("split") != split:
            self.problems.append(f"{where}: its split is {ref.get('split')!r}, the file's {split!r}")
        self.refs.append((where, ref))

    def instances(self, path: Path) -> CocoInstances:
        """The validated images and annotations; `path` names them in messages."""
        content = {
            "images": list(self.images.values()),
            "annotations": list(self.annotations.values()),
            "categories": CATEGORIES_2014,
        }
        coco = CocoInstances(content, path, self.problems)
        for image_id, (_, image) in coco.images.items():
            if self.sizes[image_id] != (image["height"], image["width"]):
                self.problems.append(
                    f"image {image_id}: its bytes are {self.sizes[image_id]} (height, width), image_info differs"
                )
        return coco


def build_from_tables(
    dataset: str, style: RefStyle, version: int, tables: list[Path], sources: Sources, folder: Path, progress: Progress
) -> Built:
    """Build all splits of this dataset in the tables, and unpack their images.

    Raises:
        DatasetError: the tables belong to another dataset, or rows are invalid; lists the rows.
    """
    if sources.images is not None:
        raise DatasetError(f"the Parquet files of {ORIGIN} contain the images; remove --images")
    mine = [t for t in tables if split_word(t).startswith(PREFIXES[dataset])]
    if not mine:
        # Raises an error that says which tables these are, if they are known.
        for _ in table_rows(tables[0], dataset, COLUMNS, ORIGIN):
            break
        there = ", ".join(sorted({split_word(t) for t in tables}))
        raise DatasetError(
            f"no table has a name of the form {PREFIXES[dataset]}<split>-*.parquet; the tables are {there}"
        )
    found = _Tables(dataset, folder)
    for number, table in enumerate(mine):
        found.read(table)
        progress("tables", number + 1, len(mine))
    coco = found.instances(mine[0].with_name("ref_list of the tables"))
    reader = RefReader(dataset, style, coco, _Unpacked(found.paths), sources.splits)
    built = built_from_refs(reader, found.refs, "refer", version, [source_of(t) for t in mine], LICENCE, progress)
    built.notes.append("the objects are those that an expression names: the hub's copy holds no others")
    return built
