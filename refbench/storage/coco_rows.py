"""Reads the values of a row of a COCO file (annotations or results), each checked before a library uses it.

All functions raise MaskError with a message that is written to follow a prefix such as "annotations[3] (id 7): ".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from refbench.errors import MaskError
from refbench.masks.mask import Mask

# An id in a COCO file: of an image, a category or an annotation.
Key = int | str

# The upper limit of COCO's size classes; a larger area is in none of them (cocoeval.py, `areaRng`).
LARGEST_AREA_PX = 1e5**2


def is_id(value: Any) -> TypeGuard[int]:
    """Whether the value is an integer, like the ids in released annotation files."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether the value is a string that can be encoded: JSON and pickles can contain lone UTF-16 surrogates."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def shown(value: Any) -> str:
    """A value for a message: as JSON if it is short, otherwise its beginning."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to write integers of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_key(row: Mapping[str, Any], name: str) -> Key:
    """An id: an integer, a string, or a float that is an integer, as pandas writes for a column with missing values."""
    if name not in row:
        raise MaskError(f"it has no `{name}`")
    value = row[name]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if is_id(value) or is_text(value):
        return value
    raise MaskError(f"its `{name}` must be an integer or a string, got {shown(value)}")


def read_crowd(row: Mapping[str, Any]) -> bool:
    """`iscrowd`: 0 or 1, or false or true; 0 if it is missing."""
    value = row.get("iscrowd", 0)
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise MaskError(f"its `iscrowd` must be 0 or 1, got {shown(value)}")


def read_number(row: Mapping[str, Any], name: str, why: str) -> float:
    """A finite number; `why` states its purpose and follows "the number" in error messages."""
    if name not in row:
        raise MaskError(f"its `{name}` is missing; it is the number {why}")
    value = row[name]
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise MaskError(f"its `{name}` must be a finite number, got {shown(value)}; it is the number {why}")
    return number


def read_area(row: Mapping[str, Any]) -> float:
    """`area` in squared pixels, which COCO computes from the polygons, not from the mask."""
    area = read_number(
        row, "area", "by which objects are small, medium or large: write the number of pixels of its mask"
    )
    if not 0 <= area <= LARGEST_AREA_PX:
        raise MaskError(
            f"its `area` has the impossible value {shown(row['area'])}; set it to the number of pixels of the mask"
        )
    return area


def read_mask(segmentation: Any, height: int, width: int) -> Mask:
    """A COCO `segmentation`: polygons, or a run-length code, compressed or not."""
    if isinstance(segmentation, dict):
        mask = Mask.from_rle(segmentation)
        if mask.size != (height, width):
            raise MaskError(
                f"its mask must have the same size as its image, {[height, width]} [height, width], got "
                f"{list(mask.size)}"
            )
        return mask
    if isinstance(segmentation, list) and segmentation:
        return Mask.from_polygons(segmentation, height, width)
    raise MaskError(f"its `segmentation` must be polygons or run-length encoding, got {shown(segmentation)}")


def read_box(bbox: Any, mask: Mask) -> tuple[float, float, float, float]:
    """The published box if there is one, otherwise the bounding box of the mask."""
    if bbox is None:
        return mask.box_xywh
    try:
        if not isinstance(bbox, (list, tuple)):
            raise TypeError
        left, top, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        raise MaskError("its `bbox` must have four numbers [left, top, width, height]") from None
    # The sum of finite numbers can overflow, but then they are no pixels either.
    if not math.isfinite(left + top + width + height):
        raise MaskError("its `bbox` contains a value that is not a finite number")
    return left, top, width, height
