"""Opens images in the form that masks refer to: upright, 8-bit RGB, in the size that the dataset states.

An image in a zip file is read without unpacking. The path of such an image continues inside the archive:
`/data/train2014.zip/train2014/COCO_train2014_000000000009.jpg`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from refbench.errors import DatasetError
from refbench.storage.files import check_is_file

EXIF_ORIENTATION = 0x0112
# The formats that are opened, by the names of Pillow. Pillow knows more, but starts another program for some of them
# (Ghostscript for EPS).
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MASK_FORMATS = ("PNG", "BMP")
# Far more than any image of these datasets; a larger file is refused.
MAX_FILE_BYTES = 2**28
MAX_NAME_LENGTH = 200
# What every browser and service decodes, by the names of Pillow.
WEB_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png"}
NAME_OF_2014 = re.compile(r"COCO_(?:train|val|test)2014_(\d{12}\.jpg)")
NAME_OF_2017 = re.compile(r"\d{12}\.jpg")
# Below the folder that a user names, where releases and people keep COCO's images.
PLACES = (
    "",
    *(f"{above}{folder}" for above in ("", "images/", "images/mscoco/images/") for folder in
      ("train2014", "val2014", "train2017", "val2017")),
)  # fmt: skip


class Photographs:
    """A folder of images, a folder of zip files, or one zip file, which is never unpacked."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._zips = [place] if place.is_file() else sorted(p for p in place.glob("*.zip") if p.is_file())
        self._members: dict[str, list[str]] | None = None
        if place.is_file() and place.suffix.lower() != ".zip":
            raise DatasetError(f"{place} is not a folder, and its name does not end in .zip")
        if place.is_file() and not zipfile.is_zipfile(place):
            raise DatasetError(f"{place} is neither a folder nor a complete zip file; copy or download it again")

    def find(self, file_name: str, height: int, width: int) -> str:
        """Absolute path of the image, whose header must state this size (upright, in pixels).

        Raises:
            DatasetError: the image does not exist, cannot be read or has another size.
        """
        path = self.locate(file_name)
        found = image_size(path)
        if found != (height, width):
            raise DatasetError(
                f"{path} has the size {found} (height, width), but the annotations state {(height, width)}"
            )
        # Links are not resolved: a zip may be a link to a file whose name does not end in .zip.
        return os.path.abspath(path)

    def locate(self, file_name: str) -> Path:
        """The path of the image, without opening it; DatasetError if it does not exist."""
        path = self._locate(file_name)
        if path is None:
            raise DatasetError(f"the image {file_name} is not in {self.place}")
        return path

    def holds(self, file_name: str) -> bool:
        return self._locate(file_name) is not None

    def _locate(self, file_name: str) -> Path | None:
        for name in _names_of(file_name):
            if self.place.is_dir():
                for folder in PLACES:
                    if (self.place / folder / name).is_file():
                        return self.place / folder / name
            found = self._member(name)
            if found is not None:
                return found
        return None

    def _member(self, name: str) -> Path | None:
        """The first member in the zip files whose path ends with the name."""
        if self._members is None:
            self._members = {}
            for archive in self._zips:
                for member in _open_zip(archive, archive.stat().st_mtime_ns).namelist():
                    parts = PurePosixPath(member).parts
                    # A member that climbs out of its folder is never looked at.
                    if member and not member.endswith("/") and ".." not in parts and not member.startswith("/"):
                        self._members.setdefault(parts[-1], []).append(f"{archive}/{member}")
        ending = f"/{name}"
        return next((Path(m) for m in self._members.get(PurePosixPath(name).name, ()) if m.endswith(ending)), None)


def _names_of(file_name: str) -> list[str]:
    """The possible names of an image in a folder: the given name, its last part, and its name in the other COCO
    release.

    Windows uses backslashes, and people add `train2014/` or a path of their own machine to a name. COCO 2017 contains
    the images of 2014 with only their numbers as names.
    """
    parts = PurePosixPath(file_name.replace("\\", "/")).parts
    names = ["/".join(parts)] if parts and all(map(is_plain_name, parts)) else []
    last = parts[-1] if parts else ""
    if is_plain_name(last):
        names.append(last)
        of_2014 = NAME_OF_2014.fullmatch(last)
        if of_2014:
            names.append(of_2014[1])
        elif NAME_OF_2017.fullmatch(last):
            names += [f"COCO_{split}2014_{last}" for split in ("train", "val")]
    return list(dict.fromkeys(names))


def is_plain_name(name: Any) -> TypeGuard[str]:
    """Whether a file name is a plain name without a folder."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= MAX_NAME_LENGTH
        and PurePosixPath(name).name == name
        and not name.startswith(".")
        and not any(c in "\\\0" or "\ud800" <= c <= "\udfff" for c in name)
    )


@lru_cache(maxsize=8)
def _open_zip(path: Path, changed_ns: int) -> zipfile.ZipFile:
    """An opened zip file; it stays open, because reading the contents list of COCO's 82,783 images takes a second."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DatasetError(f"{path} is not a complete zip file ({error}); copy or download it again") from None


if hasattr(os, "register_at_fork"):
    # A forked process shares the position in an open file: both would read the wrong bytes.
    os.register_at_fork(after_in_child=_open_zip.cache_clear)


def read_through_zip(path: Path) -> bytes | None:
    """The bytes of a file inside a zip file, or None if the path does not lead into a zip file."""
    archive = next((p for p in path.parents if p.suffix.lower() == ".zip" and p.is_file()), None)
    if archive is None:
        return None
    member = path.relative_to(archive).as_posix()
    try:
        opened = _open_zip(archive, archive.stat().st_mtime_ns)
        with opened.open(member) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except KeyError:
        raise DatasetError(f"{archive} does not contain {member}; build the dataset again with --images") from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DatasetError(
            f"{member} cannot be read from {archive} ({error}); copy or download the zip file again"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise DatasetError(
            f"{member} in {archive} is larger than {MAX_FILE_BYTES} bytes, which is too large for an image"
        )
    return content


def load_image(path: str | Path, height: int, width: int) -> Image.Image:
    """The image as RGB, rotated upright by its EXIF tag; `height` and `width` are the expected size.

    The size is read from the header and compared before any pixel is decoded, so a decompression bomb is refused
    because of its size. 16-bit grey becomes 8-bit by dropping the low byte; alpha is dropped.

    Raises:
        DatasetError: the image is missing, empty, truncated, not an image, or has another size; the message names the
            file.
    """
    path = Path(path)
    with open_image(path) as image:
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


def image_bytes(path: str | Path, height: int, width: int) -> bytes:
    """The bytes of an image file, after decoding it to check that it is an image of this size.

    Raises:
        DatasetError: as `load_image`.
    """
    load_image(path, height, width)
    place = Path(path)
    content = place.read_bytes() if place.is_file() else read_through_zip(place)
    if content is None:
        raise DatasetError(f"the image {path} does not exist any more")
    return content


def original_for_web(path: str | Path) -> tuple[bytes, str] | None:
    """The unmodified file and its media type, if every program decodes the file to the same image as refbench.

    This holds for upright JPEG and PNG files in RGB or grey. None for other files, for missing ones and for members of
    zip files.
    """
    place = Path(path)
    if not path or not place.is_file():
        return None
    try:
        with Image.open(place, formats=tuple(WEB_TYPES)) as opened:
            kind = WEB_TYPES[opened.format or ""]
            upright = opened.getexif().get(274, 1) == 1 if opened.format == "JPEG" else not opened.info.get("exif")
            plain = opened.mode in ("RGB", "L") and "transparency" not in opened.info
        return (place.read_bytes(), kind) if upright and plain else None
    except (OSError, ValueError, KeyError, SyntaxError, Image.DecompressionBombError):
        return None


def image_sha256(path: str | Path) -> str:
    """The sha256 of an unmodified image file; "" if it cannot be read."""
    place = Path(path)
    try:
        content = place.read_bytes() if place.is_file() else read_through_zip(place)
    except (DatasetError, OSError):
        content = None
    return hashlib.sha256(content).hexdigest() if content is not None else ""


def image_size(path: Path, formats: tuple[str, ...] = PHOTO_FORMATS) -> tuple[int, int]:
    """(height, width) of the upright image, from its header only; raises DatasetError like `load_image`."""
    with open_image(path, formats) as image:
        try:
            turned = _orientation(image) in (5, 6, 7, 8)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise _undecodable(path, error) from error
        return (image.width, image.height) if turned else (image.height, image.width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB, as returned by `load_image`."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values at 255, which turns the image white.
        deep = np.asarray(upright).astype(np.int64)
        upright = Image.fromarray(np.clip(deep >> 8, 0, 255).astype(np.uint8))
    return upright.convert("RGB")


def _orientation(image: Image.Image) -> int:
    # Reading the EXIF tags of a PNG decodes the whole file; tags before the pixels are already in `info`.
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


def open_image(path: Path, formats: tuple[str, ...] = PHOTO_FORMATS) -> Image.Image:
    """The opened image, as Pillow returns it: the header is read, the pixels are not decoded yet.

    Args:
        path: an image file, or an image in a zip file.
        formats: the accepted formats, by the names of Pillow.

    Raises:
        DatasetError: the image is missing, or is not a file in one of these formats; the message names the file.
    """
    content = None
    try:
        with warnings.catch_warnings():
            # The size is checked against the dataset, which is stricter than Pillow's warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            content = None if path.is_file() else read_through_zip(path)
            if content is None:
                check_is_file(path, DatasetError)
            return Image.open(path if content is None else io.BytesIO(content), formats=formats)
    except FileNotFoundError:
        raise DatasetError(f"the image {path} does not exist; check --images, or build without images") from None
    except UnidentifiedImageError:
        size = path.stat().st_size if path.is_file() else len(content or b"")
        known = f"{', '.join(formats[:-1])} or {formats[-1]}"
        what = "is empty" if size == 0 else f"is not an image in the format {known}"
        raise DatasetError(f"{path} {what} ({size} bytes); copy or download it again") from None
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path} is refused: {error}") from None
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 (a damaged file can fail in any way)
        raise DatasetError(f"{path} cannot be opened ({error}); copy or download it again") from None
