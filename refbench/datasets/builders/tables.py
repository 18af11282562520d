"""Finds Parquet files of the hub that contain images, reads them in small batches, and unpacks the images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refbench.errors import DatasetError
from refbench.storage.files import check_is_file
from refbench.storage.images import image_size, is_plain_name

ROWS_AT_ONCE = 32
# Columns that name the image of a row.
NAMES = ("file_name", "image_file")
# The columns of lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg.
FLAT_SETS = {"question_id", "answer", "segmentation"}
FLAT_SETS_REFUSED = (
    "{path} is one of the lmms-lab/RefCOCO* tables, which cannot be a ground truth for masks: `segmentation` is one "
    "flat list a row, so an object of several polygons is lost or joined across its parts; and in RefCOCO and "
    "RefCOCOg `val` joins two split authors (8,811 = 3,811 UNC + 5,000 Google; 7,573 = 2,573 UMD + 5,000 Google). "
    "Use `refbench build {dataset} --from hub`, which reads jxu124/refcoco-benchmark, or the REFER release"
)


def find_tables(path: Path) -> list[Path]:
    """The Parquet files of a folder in the layout of the hub, or the file itself; empty if there are none."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted(path.glob("data/*.parquet")) or sorted(path.glob("*.parquet"))


def split_word(path: Path) -> str:
    """`data/refcoco_unc_val-00000-of-00001-350d.parquet` -> `refcoco_unc_val`."""
    return path.name.partition("-")[0].removesuffix(".parquet")


def table_rows(
    path: Path, dataset: str, columns: tuple[str, ...], origin: str, optional: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    """The rows as dicts of these columns, and of the optional columns that exist.

    Raises:
        DatasetError: the file is not readable Parquet, belongs to another dataset, or is damaged.
    """
    try:
        check_is_file(path)
        with pq.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            if names >= FLAT_SETS:
                raise DatasetError(FLAT_SETS_REFUSED.format(path=path, dataset=dataset))
            missing = set(columns) - names
            if missing:
                raise DatasetError(f"{path} lacks the columns {', '.join(sorted(missing))} of {origin}")
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[*columns, *(names & set(optional))]):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not a readable Parquet file ({error}); download it again") from None


class ImageFiles:
    """Writes the bytes of image columns to `<folder>/images`, one file per image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir(exist_ok=True)

    def write(self, name: Any, column: Any, again: bool = False) -> tuple[str, tuple[int, int]]:
        """Write an image; returns its path relative to the folder of the dataset, and (height, width).

        If `again` is true, a name may occur twice, provided that the bytes are the same.

        Raises:
            DatasetError: the name is not a plain file name or already exists, or the bytes are not an image.
        """
        if not is_plain_name(name):
            raise DatasetError(f"{str(name)[:80]!r} must be a file name without a folder")
        content = column.get("bytes") if isinstance(column, dict) else None
        if not isinstance(content, bytes) or not content:
            raise DatasetError(f"the image {name} is missing: its entry in the image column contains no bytes")
        path = self.folder / "images" / name
        if path.exists():
            if not again or path.read_bytes() != content:
                raise DatasetError(f"the file name {name} occurs twice")
        else:
            path.write_bytes(content)
        try:
            return f"images/{name}", image_size(path)
        except DatasetError:
            raise DatasetError(f"the bytes of {name} are not a readable image") from None


def unpack_images(tables: Sequence[Path], wanted: Collection[str], folder: Path) -> dict[str, str]:
    """Write the images with these names from hub tables, and return their paths by name, relative to the folder of the
    dataset.

    The file name of an image is in the column `file_name`, `image_file` or `image_info.file_name` of the table.
    """
    files = ImageFiles(folder)
    found: dict[str, str] = {}
    for table in tables:
        for row in table_rows(table, "", ("image",), "a table of images", ("file_name", "image_file", "image_info")):
            info = row.get("image_info")
            name = (
                row.get("file_name")
                or row.get("image_file")
                or (info.get("file_name") if isinstance(info, dict) else None)
            )
            if isinstance(name, str) and name in wanted and name not in found:
                found[name] = files.write(name, row["image"])[0]
    return found
