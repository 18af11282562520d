"""Predictions from elsewhere: JSON lines, COCO results, a folder of PNG masks, or an NPZ file.

Every reader yields `(where, row, prediction)`: the place for messages, the number of the sample in the
split, and what the file says about it. Files come from strangers: nothing is unpickled, sizes are checked
before pixels are read, and one wrong entry is an error that names it.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refbench.errors import DatasetError, MaskError, PredictionError
from refbench.images import image_size
from refbench.mask import Mask
from refbench.records import Prediction
from refbench.storage import read_json


@dataclass(frozen=True, slots=True)
class Claim:
    """A prediction as a file gives it. `counts` is a compressed code that nobody has checked yet."""

    counts: bytes
    score: float | None = None
    no_target: bool | None = None
    instances: tuple[tuple[bytes, float], ...] = ()
    error: str = ""


class SampleIndex:
    """Finds the row of a sample by its id, and its size."""

    def __init__(self, sample_ids: list[str], heights: Any, widths: Any) -> None:
        self.rows: Mapping[str, int] = {s: k for k, s in enumerate(sample_ids)}
        self.sample_ids = sample_ids
        self.heights = heights
        self.widths = widths

    def row(self, where: str, sample_id: Any) -> int:
        row = self.rows.get(sample_id) if isinstance(sample_id, str) else None
        if row is None:
            example = self.sample_ids[0] if self.sample_ids else "none"
            raise PredictionError(
                f"{where}: the sample {sample_id!r} is not in this split (its first is {example!r}); "
                "score against the split that the predictions were made for"
            )
        return row

    def check_size(self, where: str, row: int, height: Any, width: Any) -> None:
        expected = int(self.heights[row]), int(self.widths[row])
        if (height, width) != expected:
            raise PredictionError(
                f"{where}: the mask is {height} x {width} (height x width), the image of "
                f"{self.sample_ids[row]} is {expected[0]} x {expected[1]}; resize masks back to the original size"
            )


def read_claims(path: Path, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    """Read a predictions file or folder, whatever its format; each sample at most once.

    Raises:
        PredictionError: unreadable, or an entry that is unknown, given twice, of the wrong size or broken.
    """
    if path.is_dir():
        entries = _read_png_folder(path, index)
    elif not path.exists():
        raise PredictionError(f"{path} does not exist")
    elif path.suffix == ".npz":
        entries = _read_npz(path, index)
    elif path.suffix == ".json":
        entries = _read_coco_results(path, index)
    else:
        entries = _read_json_lines(path, index)
    # The number of the entry that gave a sample: a text for each of a million samples would fill the memory.
    given_by = np.zeros(len(index.sample_ids), np.int64)
    for number, (where, row, claim) in enumerate(entries, start=1):
        if given_by[row]:
            raise PredictionError(
                f"{where}: the sample {index.sample_ids[row]} was given before (entry {given_by[row]}); "
                "keep one of the two"
            )
        given_by[row] = number
        yield where, row, claim


def json_line(prediction: Prediction) -> str:
    """One line of `predictions.jsonl`."""
    line: dict[str, Any] = {
        "sample_id": prediction.sample_id,
        "size": list(prediction.mask.size),
        "counts": prediction.mask.counts.decode("ascii"),
    }
    if prediction.score is not None:
        line["score"] = prediction.score
    if prediction.no_target is not None:
        line["no_target"] = prediction.no_target
    if prediction.instances:
        line["instances"] = [{"counts": i.mask.counts.decode("ascii"), "score": i.score} for i in prediction.instances]
    return json.dumps(line, separators=(",", ":"))


def _read_json_lines(path: Path, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path} line {number}"
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise PredictionError(
                        f"{where} is not JSON ({error}); expected one object a line: "
                        '{"sample_id": ..., "size": [h, w], "counts": ...}'
                    ) from None
                row, claim = _claim_of(where, entry, index)
                yield where, row, claim
    except OSError as error:
        raise PredictionError(f"{path} cannot be read: {error.strerror}") from error


def _claim_of(where: str, entry: Any, index: SampleIndex) -> tuple[int, Claim]:
    if not isinstance(entry, dict) or "sample_id" not in entry:
        raise PredictionError(f"{where}: expected an object with sample_id, size and counts")
    row = index.row(where, entry["sample_id"])
    size = entry.get("size")
    if not isinstance(size, list) or len(size) != 2:
        raise PredictionError(f"{where}: size must be [height, width], not {size!r}")
    index.check_size(where, row, *size)
    no_target = entry.get("no_target")
    if no_target is not None and not isinstance(no_target, bool):
        raise PredictionError(f"{where}: no_target must be true or false, not {no_target!r}")
    instances = entry.get("instances") or []
    if not isinstance(instances, list) or not all(isinstance(i, dict) for i in instances):
        raise PredictionError(f"{where}: instances must be a list of objects with counts and score")
    score = entry.get("score")
    return row, Claim(
        _code(where, entry.get("counts"), size),
        None if score is None else _score(where, score),
        no_target,
        tuple((_code(where, i.get("counts"), size), _score(where, i.get("score"))) for i in instances),
    )


def _code(where: str, counts: Any, size: list[int]) -> bytes:
    if isinstance(counts, str) and counts.isascii():
        return counts.encode("ascii")
    try:
        return Mask.from_rle({"size": size, "counts": counts}).counts
    except MaskError as error:
        raise PredictionError(f"{where}: {error}") from None


def _score(where: str, score: Any) -> float:
    try:
        value = math.nan if isinstance(score, (bool, str)) else float(score)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise PredictionError(f"{where}: score must be a finite number, not {repr(score)[:40]}")
    return value


def _read_coco_results(path: Path, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    """COCO results: a list of {image_id or sample_id, segmentation, score}, where the id is a sample id.

    Several results of one sample are its instances, as COCO means them; the best-scored one is its mask.
    """
    content = read_json(path, PredictionError)
    if not isinstance(content, list):
        raise PredictionError(f"{path} is no COCO results file: expected a list; JSON lines end in .jsonl")
    found: dict[int, list[tuple[float, bytes, str]]] = {}
    for position, entry in enumerate(content):
        where = f"{path} entry {position}"
        if not isinstance(entry, dict) or not isinstance(entry.get("segmentation"), dict):
            raise PredictionError(f"{where}: expected an object with sample_id, segmentation (RLE) and score")
        row = index.row(where, entry.get("sample_id", entry.get("image_id")))
        try:
            mask = Mask.from_rle(entry["segmentation"])
        except MaskError as error:
            raise PredictionError(f"{where}: {error}") from None
        index.check_size(where, row, *mask.size)
        found.setdefault(row, []).append((_score(where, entry.get("score", 1.0)), mask.counts, where))
    for row, results in found.items():
        score, counts, where = max(results, key=lambda r: r[0])
        yield where, row, Claim(counts, score, None, tuple((c, s) for s, c, _ in results))


def _read_png_folder(path: Path, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    """PNG masks named `<sample_id>.png` (in subfolders) or with `__` for every `/`; non-zero is foreground."""
    files = sorted(path.rglob("*.png"))
    if not files:
        raise PredictionError(f"{path} holds no *.png and is no run folder either")
    for file in files:
        where = str(file)
        name = file.relative_to(path).with_suffix("").as_posix().replace("__", "/")
        row = index.row(where, name)
        try:
            index.check_size(where, row, *image_size(file))
            with Image.open(file) as image:
                if image.mode not in ("1", "L", "P", "I", "I;16"):
                    raise PredictionError(f"{where} is a {image.mode} picture; a mask has one channel")
                pixels = np.asarray(image)
        except (DatasetError, OSError, SyntaxError, ValueError) as error:
            raise PredictionError(f"{where}: {error}") from None
        values = np.unique(pixels)
        if len(values) > 2 or (len(values) == 2 and values[0] != 0):
            raise PredictionError(
                f"{where} holds the values {values[:4].tolist()}...; a mask holds 0 and one other value: "
                "threshold it before saving"
            )
        yield where, row, Claim(Mask.from_array(pixels > 0).counts)


def _read_npz(path: Path, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    """An NPZ with one bool (H, W) array a sample, the sample id (or it with `__` for `/`) as its name."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # noqa: BLE001 (a damaged archive can fail in any way)
        raise PredictionError(f"{path} is not an NPZ file: {error}") from None
    with archive:
        for member in archive.infolist():
            where = f"{path} array {member.filename!r}"
            row = index.row(where, member.filename.removesuffix(".npy").replace("__", "/"))
            try:
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                    if header is None:
                        raise PredictionError(f"{where}: saved by an unusual numpy; use numpy.savez_compressed")
                    shape, fortran, dtype = header(file)
                    if dtype != np.bool_ or len(shape) != 2:
                        raise PredictionError(f"{where}: expected bool (H, W), found {dtype} {shape}")
                    index.check_size(where, row, *shape)
                    pixels = np.frombuffer(file.read(shape[0] * shape[1]), np.bool_)
            except PredictionError:
                raise
            except Exception as error:  # noqa: BLE001 (a damaged archive can fail in any way)
                raise PredictionError(f"{where} is damaged ({error}); save it again") from None
            if pixels.size != shape[0] * shape[1]:
                raise PredictionError(f"{where} is cut short; save it again")
            yield where, row, Claim(Mask.from_array(pixels.reshape(shape, order="F" if fortran else "C")).counts)
