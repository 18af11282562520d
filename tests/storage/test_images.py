"""Images are opened one way: upright, 8-bit RGB, at the expected size, or not at all."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refbench.errors import DatasetError
from refbench.storage.images import image_size, load_image, original_for_web


def ramp(mode: str) -> Image.Image:
    return Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"image.{'tiff' if mode == 'CMYK' else 'png'}"
    ramp(mode).save(path)
    picture = load_image(path, 40, 60)
    assert (picture.mode, picture.size) == ("RGB", (60, 40))


def test_sixteen_bit_keeps_its_tones(tmp_path: Path) -> None:
    deep = (np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    picture = np.asarray(load_image(tmp_path / "deep.png", 40, 60))
    assert np.array_equal(picture[..., 0], deep >> 8)


def test_exif_turns_the_picture_before_the_size_is_checked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp("RGB").save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg", 60, 40).size == (40, 60)
    with pytest.raises(DatasetError, match="is 60 x 40 px"):
        load_image(tmp_path / "turned.jpg", 40, 60)


def test_the_size_is_compared_before_pixels_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp("RGB").save(tmp_path / "picture.png")
    ramp("RGB").save(tmp_path / "picture.jpg")

    def decoded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    for name in ("picture.png", "picture.jpg"):
        assert image_size(tmp_path / name) == (40, 60)
        with pytest.raises(DatasetError, match="is 40 x 60 px"):
            load_image(tmp_path / name, 41, 60)


def test_an_orientation_in_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    ramp("RGB").save(tmp_path / "turned.png", exif=exif)
    assert image_size(tmp_path / "turned.png") == (60, 40)
    assert load_image(tmp_path / "turned.png", 60, 40).size == (40, 60)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]), st.data())
def test_mutated_pictures_never_escape(kind: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    ramp("RGB").save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(bytes(content))
        for read in (lambda: image_size(path), lambda: load_image(path, 60, 40)):
            with contextlib.suppress(DatasetError):
                read()


def test_truncated_missing_and_wrong(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"picture.jpg cannot be decoded .*copy or download it again"):
        load_image(path, 64, 64)
    with pytest.raises(DatasetError, match="does not exist"):
        load_image(tmp_path / "none.jpg", 1, 1)
    with pytest.raises(DatasetError, match="is a folder, but a regular file"):
        load_image(tmp_path, 1, 1)


def test_files_that_a_browser_decodes_alike(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))
    for name, kind in (("a.jpg", "image/jpeg"), ("a.png", "image/png")):
        picture.save(tmp_path / name)
        assert original_for_web(tmp_path / name) == ((tmp_path / name).read_bytes(), kind)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=turned)
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.convert("CMYK").save(tmp_path / "ink.jpg")
    picture.save(tmp_path / "other.bmp")
    (tmp_path / "text.jpg").write_text("this is no image")
    for name in ("turned.jpg", "alpha.png", "ink.jpg", "other.bmp", "text.jpg", "nowhere.jpg", ""):
        assert original_for_web(tmp_path / name if name else "") is None
