"""RefCOCO-M: RefCOCO val (UNC) with redrawn masks, from the published Parquet files.

Source of the columns: the dataset card of `moondream/refcoco-m` (features). Each row is one image with its bytes and a
list of samples, which have sentences and a COCO run-length mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refbench.datasets.builders.base import Built, Sources, refuse, source_of
from refbench.datasets.builders.coco import read_segmentation
from refbench.datasets.builders.tables import ImageFiles, find_tables, split_word, table_rows
from refbench.errors import DatasetError, MaskError
from refbench.records import AnnotatedObject, Sample
from refbench.storage.coco_rows import is_id, is_text, read_box
from refbench.storage.progress import Progress

VERSION = 1
LICENCE = "MIT (card of moondream/refcoco-m); images: their Flickr licences, see COCO"
ORIGIN = "moondream/refcoco-m"
COLUMNS = ("image", "image_id", "file_name", "samples")
SPLIT_NAMES = {"validation": "val"}


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read the Parquet files, including images; see `refbench.datasets.builders.base.Builder`.

    Raises:
        DatasetError: lists all invalid rows.
    """
    if sources.annotations is None:
        raise DatasetError(f"{dataset} is built from its Parquet files; pass --annotations FOLDER")
    if sources.images is not None:
        raise DatasetError(f"the Parquet files of {dataset} contain the images; remove --images")
    tables = find_tables(sources.annotations)
    if not tables:
        raise DatasetError(
            f"{sources.annotations} contains no *.parquet and no data/*.parquet files; pass the folder from the "
            "Hugging Face hub with --annotations"
        )
    files = ImageFiles(folder)
    problems: list[str] = []
    splits: dict[str, list[Sample]] = {}
    objects: list[AnnotatedObject] = []
    seen: set[int] = set()
    for number, path in enumerate(tables):
        split = SPLIT_NAMES.get(split_word(path))
        if split is None:
            raise DatasetError(f"{path} is not a split of {ORIGIN}; the splits are {', '.join(SPLIT_NAMES)}")
        reader = _RowReader(dataset, split, files, seen, problems)
        for row, content in enumerate(table_rows(path, dataset, COLUMNS, ORIGIN)):
            samples, found = reader.read(f"{path.name} row {row}", content)
            splits.setdefault(split, []).extend(samples)
            objects += found
        progress("files", number + 1, len(tables))
    refuse(dataset, problems)
    return Built("refcoco_m", VERSION, splits, objects, [source_of(t) for t in tables], LICENCE, annotation_ids=dataset)


class _RowReader:
    def __init__(self, dataset: str, split: str, files: ImageFiles, seen: set[int], problems: list[str]) -> None:
        self.dataset = dataset
        self.split = split
        self.files = files
        self.problems = problems
        self._seen = seen

    def read(self, where: str, row: dict[str, Any]) -> tuple[list[Sample], list[AnnotatedObject]]:
        """Samples and objects of one image, whose bytes are written to the folder of the dataset."""
        try:
            image_path, size = self.files.write(row["file_name"], row["image"])
            if not is_id(row["image_id"]) or not isinstance(row["samples"], list):
                raise DatasetError("needs an integer image_id and a list of samples")
        except DatasetError as error:
            self.problems.append(f"{where}: {error}")
            return [], []
        samples: list[Sample] = []
        objects: list[AnnotatedObject] = []
        for k, item in enumerate(row["samples"]):
            try:
                found, sentences = self._object(item, str(row["image_id"]), size)
            except (DatasetError, MaskError) as error:
                self.problems.append(f"{where}, samples[{k}]: {error}")
                continue
            objects.append(found)
            for sent_id, sentence in enumerate(sentences):
                samples.append(
                    Sample(
                        sample_id=f"{self.dataset}/{self.split}/{found.ann_id}/{sent_id}",
                        image_id=found.image_id,
                        image_path=image_path,
                        height=size[0],
                        width=size[1],
                        expression=sentence,
                        raw_expression=sentence,
                        ref_id=found.ann_id,
                        sent_id=str(sent_id),
                        ann_ids=(found.ann_id,),
                        category=found.category,
                        target=found.mask,
                        no_target=False,
                        box_xywh=found.box_xywh,
                    )
                )
        return samples, objects

    def _object(self, item: Any, image_id: str, size: tuple[int, int]) -> tuple[AnnotatedObject, list[str]]:
        number = item.get("id") if isinstance(item, dict) else None
        if not is_id(number):
            raise DatasetError("needs an integer id")
        if number in self._seen:
            raise DatasetError(f"the sample id {number} occurs twice")
        self._seen.add(number)
        category, sentences = item.get("category"), item.get("sentences")
        if (
            not is_text(category)
            or not isinstance(sentences, list)
            or not sentences
            or not all(map(is_text, sentences))
        ):
            raise DatasetError("needs a category and a list of sentences, all strings")
        mask, _ = read_segmentation(item.get("mask"), *size)
        if mask.area == 0:
            raise MaskError("its mask is empty")
        box = read_box(item.get("bbox"), mask)
        return AnnotatedObject(str(number), image_id, category, False, mask, (), box), sentences
