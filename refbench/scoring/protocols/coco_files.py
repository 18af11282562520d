"""COCO annotation files and results for the detection evaluators: validated, typed and renumbered.

The evaluators treat an id of 0 as "no match", replace a row by a later row with the same id, take sizes from an
unchecked `bbox`, and fail with unclear errors on many other inputs. Therefore they never read a file themselves. This
module numbers images, classes and annotations from 1, in the order of their ids, and encodes masks as RLE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from refbench.errors import DatasetError, MaskError, PredictionError, summarise_problems
from refbench.masks.mask import Mask
from refbench.masks.rle import check_size
from refbench.storage.coco_rows import Key, is_id, read_crowd, read_key, read_mask, read_number, shown
from refbench.storage.files import read_json

T = TypeVar("T")
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the annotation file; `height` and `width` are in pixels, and `where` names its row in error
    messages.
    """

    number: int
    height: int
    width: int
    where: str
    row: Row


@dataclass(frozen=True, slots=True)
class Category:
    """A class of the annotation file."""

    number: int
    where: str
    row: Row


@dataclass(frozen=True, slots=True)
class Truth:
    """An annotation: the numbers of its image and class, and its mask. `ignored` is the value of `ignore` in the
    file.
    """

    image: int
    category: int
    mask: Mask
    crowd: bool
    ignored: bool
    where: str
    row: Row


@dataclass(frozen=True, slots=True)
class Detection:
    """A result: the numbers of its image and class, its mask and its score."""

    image: int
    category: int
    mask: Mask
    score: float


@dataclass(frozen=True, slots=True)
class Annotations:
    """An annotation file. `images` and `categories` map ids to images and classes, in the order of their numbers 1, 2,
    ...
    """

    path: Path
    images: dict[Key, Image]
    categories: dict[Key, Category]
    truths: tuple[Truth, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """A file of COCO results for an annotation file. `repeated` is the number of results that equal an earlier one;
    these are ignored.
    """

    path: Path
    detections: tuple[Detection, ...]
    repeated: int


def read_annotations(path: Path) -> Annotations:
    """Read an annotation file of COCO, LVIS or SA-Co. Fields that only some protocols need are read by those protocols.

    Raises:
        DatasetError: the file is not an annotation file, or rows are invalid; lists all such rows.
    """
    content = read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in parts):
        raise DatasetError(f"{path} is not a COCO annotation file; it needs images, annotations and categories")
    problems: list[str] = []
    images = _numbered(content["images"], "images", _image, problems)
    categories = _numbered(content["categories"], "categories", Category, problems)
    # Stop before reading annotations: each annotation of a broken image would be reported as another problem.
    _refuse(path, problems)
    truths = []
    seen: dict[Key, int] = {}
    for position, row in enumerate(content["annotations"]):
        where = _where("annotations", position, row)
        try:
            if not isinstance(row, dict):
                raise MaskError(f"it must be an object, got {shown(row)}")
            if "id" in row:
                # Evaluators do not need this id, but a repeated id is an error in the file.
                _once(read_key(row, "id"), position, "annotations", seen)
            truths.append(_truth(row, where, images, categories))
        except MaskError as error:
            problems.append(f"{where}: {error}")
    _refuse(path, problems)
    return Annotations(path, images, categories, tuple(truths))


def read_results(path: Path, annotations: Annotations) -> Results:
    """Read COCO results: a list of {image_id, category_id, segmentation, score}; other keys are ignored.

    Raises:
        PredictionError: the file is not a list, or entries cannot be scored; the message lists all such entries.
    """
    rows = read_json(path, PredictionError)
    if not isinstance(rows, list):
        raise PredictionError(f"{path} contains a {type(rows).__name__} instead of a list of COCO results")
    problems: list[str] = []
    # Repeated (image, class, mask, score) are kept once: runs on several GPUs are padded with repeated samples.
    found: dict[tuple[int, int, bytes, float], Detection] = {}
    for position, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise MaskError(f"it must be an object, got {shown(row)}")
            one = _detection(row, annotations)
        except MaskError as error:
            problems.append(f"entry {position}: {error}")
        else:
            found.setdefault((one.image, one.category, one.mask.counts, one.score), one)
    if problems:
        raise PredictionError(
            f"{path}: {len(problems)} of {len(rows)} entries cannot be scored against {annotations.path}.\n"
            f"{summarise_problems(problems)}\nEntries are counted from 0."
        )
    return Results(path, tuple(found.values()), len(rows) - len(found))


def fields_of(items: Sequence[T], read: Callable[[T], Any], where: Callable[[T], str], path: Path) -> list[Any]:
    """Additional fields of each image, class or annotation for a protocol; raises a DatasetError that lists
    problems.
    """
    values, problems = [], []
    for item in items:
        try:
            values.append(read(item))
        except MaskError as error:
            problems.append(f"{where(item)}: {error}")
    _refuse(path, problems)
    return values


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise DatasetError(f"{path} cannot be used as ground truth:\n{summarise_problems(problems)}")


def _numbered(rows: list[Any], part: str, made: Callable[[int, str, Row], T], problems: list[str]) -> dict[Key, T]:
    """The rows by their ids, numbered from 1 in the order of the COCO evaluation."""
    checked: dict[Key, tuple[str, Row]] = {}
    seen: dict[Key, int] = {}
    for position, row in enumerate(rows):
        where = _where(part, position, row)
        try:
            if not isinstance(row, dict):
                raise MaskError(f"it must be an object, got {shown(row)}")
            key = read_key(row, "id")
            _once(key, position, part, seen)
            if part == "images":
                _check_sides(row)
            checked[key] = where, row
        except MaskError as error:
            problems.append(f"{where}: {error}")
    ordered = sorted(checked) if all(map(is_id, checked)) else sorted(checked, key=str)
    return {key: made(number, *checked[key]) for number, key in enumerate(ordered, start=1)}


def _image(number: int, where: str, row: Row) -> Image:
    return Image(number, int(row["height"]), int(row["width"]), where, row)


def _check_sides(row: Row) -> None:
    for side in ("height", "width"):
        if side not in row:
            raise MaskError(f"it has no {side}")
    check_size(row["height"], row["width"])


def _once(key: Key, position: int, part: str, seen: dict[Key, int]) -> None:
    first = seen.setdefault(key, position)
    if first != position:
        raise MaskError(f"its id {shown(key)} is also the id of {part}[{first}]; ids must be unique")


def _where(part: str, position: int, row: Any) -> str:
    given = isinstance(row, dict) and "id" in row
    return f"{part}[{position}] (id {shown(row['id'])})" if given else f"{part}[{position}]"


def _truth(row: dict[str, Any], where: str, images: dict[Key, Image], categories: dict[Key, Category]) -> Truth:
    image = _known(row, "image_id", images, "the images of this file")
    category = _known(row, "category_id", categories, "the categories of this file")
    if "segmentation" not in row:
        raise MaskError("it has no segmentation; refbench compares masks, so boxes alone cannot be scored")
    mask = read_mask(row["segmentation"], image.height, image.width)
    ignored = row.get("ignore", 0)
    if not (isinstance(ignored, int) and ignored in (0, 1)):
        raise MaskError(f"its `ignore` must be 0 or 1, got {shown(ignored)}")
    return Truth(image.number, category.number, mask, read_crowd(row), bool(ignored), where, row)


def _detection(row: dict[str, Any], annotations: Annotations) -> Detection:
    image = _known(row, "image_id", annotations.images, "the annotation file")
    category = _known(row, "category_id", annotations.categories, "the annotation file")
    score = read_number(row, "score", "by which detections are ranked")
    if "segmentation" not in row:
        raise MaskError("it has no segmentation; refbench compares masks, so boxes alone cannot be scored")
    return Detection(image.number, category.number, read_mask(row["segmentation"], image.height, image.width), score)


def _known(row: dict[str, Any], name: str, known: Mapping[Key, T], place: str) -> T:
    key = read_key(row, name)
    found = known.get(key)
    if found is not None:
        return found
    hint = ""
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20 and int(key) in known:
        hint = f"; it has the number {int(key)}: write ids in one way"
    elif is_id(key) and abs(key) < 10**20 and str(key) in known:
        hint = f'; it has the text "{key}": write ids in one way'
    raise MaskError(f"its `{name}` {shown(key)} is not in {place}{hint}")
