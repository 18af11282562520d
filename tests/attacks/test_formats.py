"""Files named like images whose content makes Pillow start another program, or waits for ever."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refbench.adapters.worker import SDK
from refbench.errors import DatasetError, PredictionError
from refbench.storage.files import file_sha256, read_json, read_table
from refbench.storage.images import Photographs, image_size, load_image
from refbench.storage.predictions import Claims, SampleIndex

HEIGHT, WIDTH = 40, 60
EPS = f"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 {WIDTH} {HEIGHT}
%%EndComments
(ran) print
%%EOF
""".encode()


def as_format(kind: str) -> bytes:
    """An image of this format, as Pillow writes it."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


# Formats that Pillow opens, but that no dataset of this field is published in.
FOREIGN = {"EPS": EPS, **{kind: as_format(kind) for kind in ("GIF", "PPM", "PCX", "TGA", "SGI", "ICO", "PDF")}}


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `gs` on PATH that notes that it was started."""
    note, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{note}'\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return note


def index() -> SampleIndex:
    return SampleIndex(["a"], np.array([HEIGHT]), np.array([WIDTH]))


def as_photograph(path: Path) -> None:
    load_image(path, HEIGHT, WIDTH)


def by_its_size(path: Path) -> None:
    image_size(path)


def in_a_zip(path: Path) -> None:
    archive = path.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as opened:
        opened.write(path, "train2014/a.png")
    load_image(Photographs(archive).find("a.png", HEIGHT, WIDTH), HEIGHT, WIDTH)


def as_mask(path: Path) -> None:
    list(Claims(path.parent, index()))


READERS: list[Callable[[Path], None]] = [as_photograph, by_its_size, in_a_zip, as_mask]


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("read", READERS)
def test_no_other_program_reads_an_image(
    kind: str, read: Callable[[Path], None], tmp_path: Path, ghostscript: Path
) -> None:
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    path.write_bytes(FOREIGN[kind])
    with pytest.raises((DatasetError, PredictionError), match=r"a\.png is not an image in the format .*PNG"):
        read(path)
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_the_formats_of_photographs_and_of_masks(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(as_format(kind))
    assert load_image(path, HEIGHT, WIDTH).mode == "RGB"
    if kind in ("PNG", "BMP"):
        assert len(list(Claims(tmp_path, index()))) == 1
    else:
        with pytest.raises(PredictionError, match="is not an image in the format PNG or BMP"):
            as_mask(path)


def test_workers_open_the_same_formats(tmp_path: Path, ghostscript: Path) -> None:
    """In a process of their own, without refbench: by a path and by bytes that were sent."""
    path = tmp_path / "a.png"
    program = """
import json, sys, worker_sdk
server = worker_sdk._Server.__new__(worker_sdk._Server)
server.picture = (None, None)
for item in json.loads(sys.argv[1]):
    try:
        print(server.open(item).mode)
    except Exception as error:
        print(type(error).__name__)
"""
    for content, said in ((FOREIGN["EPS"], "UnidentifiedImageError"), (as_format("PNG"), "RGB")):
        path.write_bytes(content)
        sent = {"image_b64": base64.b64encode(content).decode()}
        items = [{**item, "size": [HEIGHT, WIDTH]} for item in ({"image": str(path)}, sent)]
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(items)],
            env={**os.environ, "PYTHONPATH": str(SDK)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.split() == [said, said], done.stderr
    assert not ghostscript.exists()


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


SPECIAL = {
    "a named pipe": named_pipe, "a socket": bound_socket, "a device": link_to_a_device, "a folder": folder,
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    """Each of these would wait for ever, or read without end."""
    path = tmp_path / "a"
    SPECIAL[kind](path)
    for read in (as_photograph, by_its_size, read_json, read_table, file_sha256):
        with pytest.raises(DatasetError, match=f"is {kind}, but a regular file is expected"):
            read(path)
    if kind != "a folder":
        with pytest.raises(PredictionError, match=f"is {kind}, but a regular file is expected"):
            list(Claims(path, index()))
