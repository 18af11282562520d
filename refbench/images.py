"""Opening photographs the one way that masks are drawn on: upright, 8-bit RGB, at the size the dataset says."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from refbench.errors import DatasetError

EXIF_ORIENTATION = 0x0112


def load_image(path: str | Path, height: int, width: int) -> Image.Image:
    """The picture as RGB, turned upright by its EXIF tag; `height` and `width` are what it must measure.

    The size is read from the header and compared before any pixel is decoded, so a decompression bomb is
    refused for its size. 16-bit grey becomes 8-bit by dropping the low byte; alpha is dropped.

    Raises:
        DatasetError: missing, empty, truncated, no image at all, or of another size; names the file.
    """
    path = Path(path)
    with _opened(path) as image:
        if (height, width) not in ((image.height, image.width), (image.width, image.height)):
            raise _wrong_size(path, (image.height, image.width), (height, width))
        try:
            picture = to_rgb(image)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise _undecodable(path, error) from error
    if (picture.height, picture.width) != (height, width):
        raise _wrong_size(path, (picture.height, picture.width), (height, width))
    return picture


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header alone; raises DatasetError like `load_image`."""
    with _opened(path) as image:
        try:
            turned = _orientation(image) in (5, 6, 7, 8)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise _undecodable(path, error) from error
        return (image.width, image.height) if turned else (image.height, image.width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB, as `load_image` hands it out."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values at 255, which turns the picture white.
        deep = np.asarray(upright).astype(np.int64)
        upright = Image.fromarray(np.clip(deep >> 8, 0, 255).astype(np.uint8))
    return upright.convert("RGB")


def _orientation(image: Image.Image) -> int:
    # Asking a PNG for its EXIF tags decodes all of it; those before the pixels are in `info` already.
    if image.format != "PNG":
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return int(exif.get(EXIF_ORIENTATION, 1))


def _wrong_size(path: Path, found: tuple[int, int], expected: tuple[int, int]) -> DatasetError:
    return DatasetError(
        f"{path} is {found[0]} x {found[1]} px (height x width), the dataset says {expected[0]} x {expected[1]}; "
        "use the images that the annotations were made for"
    )


def _undecodable(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path} cannot be decoded ({error}); copy or download it again")


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The size is checked against the dataset, which is stricter than Pillow's warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except FileNotFoundError:
        raise DatasetError(f"the image {path} does not exist; check --images, or build without images") from None
    except UnidentifiedImageError:
        size = path.stat().st_size
        what = "is empty" if size == 0 else "is not an image that can be read"
        raise DatasetError(f"{path} {what} ({size} bytes); copy or download it again") from None
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path} is refused: {error}") from None
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 (as above)
        raise DatasetError(f"{path} cannot be opened ({error}); copy or download it again") from None
