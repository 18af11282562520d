"""RefCOCO-M: RefCOCO's UNC val with re-drawn masks, from the published Parquet files.

Source of the columns: the dataset card of `moondream/refcoco-m` (features block): one row an image with its
bytes, and in it a list of samples with sentences and a COCO run-length mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refbench.builders.base import Built, Sources, source_of
from refbench.errors import DatasetError, MaskError, summarise_problems
from refbench.images import image_size
from refbench.mask import Mask
from refbench.progress import Progress
from refbench.records import AnnotatedObject, Sample

VERSION = 1
LICENCE = "as on the card of moondream/refcoco-m; photographs: their Flickr licences, see COCO"
SPLIT_NAMES = {"validation": "val"}


def find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob("data/*.parquet")) or sorted(path.glob("*.parquet"))
    if not files:
        raise DatasetError(f"{path} holds no *.parquet and no data/*.parquet; --annotations takes the hub's folder")
    return files


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read the Parquet files, images included; see `refbench.builders.base.Builder`.

    Raises:
        DatasetError: lists every row that cannot be used.
    """
    if sources.annotations is None:
        raise DatasetError(f"{dataset} is read from its Parquet files: pass --annotations FOLDER")
    if sources.images is not None:
        raise DatasetError(f"{dataset} carries its images in the Parquet files; leave --images out")
    files = find_files(sources.annotations)
    (folder / "images").mkdir()
    problems: list[str] = []
    splits: dict[str, list[Sample]] = {}
    objects: list[AnnotatedObject] = []
    for number, path in enumerate(files):
        split_word = path.name.partition("-")[0].removesuffix(".parquet")
        split = SPLIT_NAMES.get(split_word, split_word)
        reader = _RowReader(dataset, split, folder, problems)
        for row, content in enumerate(_rows(path)):
            samples, found = reader.read(f"{path.name} row {row}", content)
            splits.setdefault(split, []).extend(samples)
            objects += found
        progress("files", number + 1, len(files))
    if problems:
        raise DatasetError(
            f"{dataset} was not built: {len(problems)} rows cannot be used.\n{summarise_problems(problems)}\n"
            "Download the files again; rows are counted from 0."
        )
    return Built("refcoco_m", VERSION, splits, objects, [source_of(f) for f in files], LICENCE)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            missing = {"image", "image_id", "file_name", "samples"} - set(file.schema_arrow.names)
            if missing:
                raise DatasetError(f"{path} lacks the columns {', '.join(sorted(missing))} of moondream/refcoco-m")
            for batch in file.iter_batches(batch_size=32):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"{path} is not a readable Parquet file ({error}); download it again") from None


class _RowReader:
    def __init__(self, dataset: str, split: str, folder: Path, problems: list[str]) -> None:
        self.dataset = dataset
        self.split = split
        self.folder = folder
        self.problems = problems
        self._seen: set[int] = set()

    def read(self, where: str, row: dict[str, Any]) -> tuple[list[Sample], list[AnnotatedObject]]:
        """Samples and objects of one image, whose bytes are written to the dataset's folder."""
        try:
            image_path, size = self._write_image(row)
        except (DatasetError, KeyError, TypeError, AttributeError) as error:
            self.problems.append(f"{where}: {error}")
            return [], []
        samples: list[Sample] = []
        objects: list[AnnotatedObject] = []
        for k, item in enumerate(row["samples"] or ()):
            try:
                found = self._object(item, str(row["image_id"]), size)
                sentences = list(item["sentences"] or ())
            except (DatasetError, MaskError, KeyError, TypeError, ValueError) as error:
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

    def _write_image(self, row: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        name = str(row["file_name"])
        if Path(name).name != name or name.startswith(".") or "\\" in name:
            raise DatasetError(f"{name!r} is no plain file name")
        content = (row["image"] or {}).get("bytes")
        if not content:
            raise DatasetError(f"the image {name} is missing: its column holds no bytes")
        path = self.folder / "images" / name
        if path.exists():
            raise DatasetError(f"the file name {name} was given before")
        path.write_bytes(content)
        try:
            return f"images/{name}", image_size(path)
        except DatasetError:
            raise DatasetError(f"the bytes of {name} are no readable image") from None

    def _object(self, item: dict[str, Any], image_id: str, size: tuple[int, int]) -> AnnotatedObject:
        number = int(item["id"])
        if number in self._seen:
            raise DatasetError(f"the sample id {number} was given before")
        self._seen.add(number)
        mask = Mask.from_rle(item["mask"])
        if mask.size != size:
            raise MaskError(f"its mask is {mask.size}, its image {size} (height, width)")
        if mask.area == 0:
            raise MaskError("its mask is empty")
        left, top, width, height = (float(v) for v in item["bbox"])
        return AnnotatedObject(
            str(number), image_id, str(item["category"]), False, mask, (), (left, top, width, height)
        )
