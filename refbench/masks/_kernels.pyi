from typing import Any

from numpy.typing import NDArray

Buffer = NDArray[Any]

def decode_intervals(code: Buffer, size: int, starts: Buffer, ends: Buffer, /) -> int: ...
def encode_intervals(starts: Buffer, ends: Buffer, n: int, size: int, out: Buffer, /) -> int: ...
def array_changes(pixels: Buffer, apart: bool, /) -> bytes: ...
def code_of_polygons(corners: Buffer, counts: Buffer, height: int, width: int, /) -> bytes: ...
def area_of_code(code: bytes, size: int, /) -> int: ...
def subtract_intervals(
    starts_a: Buffer,
    ends_a: Buffer,
    n_a: int,
    starts_b: Buffer,
    ends_b: Buffer,
    n_b: int,
    starts: Buffer,
    ends: Buffer,
    /,
) -> int: ...
def resize_codes(
    codes: Buffer, at: Buffer, heights: Buffer, widths: Buffer,
    columns: Buffer, columns_at: Buffer, first_rows: Buffer, first_rows_at: Buffer,
    new_heights: Buffer, new_widths: Buffer, /,
) -> tuple[bytes, bytes]: ...  # fmt: skip
def read_masks(masks: list[Any], kind: type, /) -> tuple[bytes, bytes, bytes, bytes] | None: ...
def read_polygons(polygons: list[Any], most: float, /) -> tuple[bytes, bytes] | None: ...
def check_codes(codes: Buffer, at: Buffer, sizes: Buffer, out: Buffer, /) -> None: ...
def count_pairs(
    prediction_codes: Buffer, prediction_at: Buffer, target_codes: Buffer, target_at: Buffer,
    heights: Buffer, widths: Buffer, bands_px: Buffer, out: Buffer, /,
) -> int: ...  # fmt: skip
def count_bands(
    prediction_codes: Buffer, prediction_at: Buffer, target_codes: Buffer, target_at: Buffer,
    heights: Buffer, widths: Buffer, bands_px: Buffer, out: Buffer, /,
) -> None: ...  # fmt: skip
def count_outlines(
    prediction_codes: Buffer, prediction_at: Buffer, target_codes: Buffer, target_at: Buffer,
    heights: Buffer, widths: Buffer, radii_px: Buffer, out: Buffer, /,
) -> None: ...  # fmt: skip
def count_errors(
    prediction_codes: Buffer, prediction_at: Buffer, target_codes: Buffer, target_at: Buffer,
    object_codes: Buffer, object_at: Buffer, others: Buffer, others_at: Buffer,
    heights: Buffer, widths: Buffer, bands_px: Buffer, out: Buffer, /,
) -> None: ...  # fmt: skip

INTERFACE: int
