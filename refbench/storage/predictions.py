"""Predictions from other programs: JSON lines, COCO results, a folder of PNG masks, or an NPZ file.

Every reader yields `(where, row, prediction)`: the position in the file for messages, the row of the sample in the
split, and what the file contains for this sample. Files may be malicious: nothing is unpickled, sizes are checked
before pixels are read, and one invalid entry is an error that names it.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from refbench.errors import DatasetError, MaskError, PredictionError
from refbench.masks.mask import Mask
from refbench.records import Instance, Prediction, Question
from refbench.storage.coco_rows import read_mask
from refbench.storage.files import check_is_file, read_json
from refbench.storage.images import MASK_FORMATS, image_size, open_image


@dataclass(frozen=True, slots=True)
class Claim:
    """A prediction read from a file. `counts` is a compressed run-length code that is not checked yet.

    Its text, of which digests are made, is that of every dataclass, in a third of the time.
    """

    counts: bytes
    score: float | None = None
    no_target: bool | None = None
    instances: tuple[tuple[bytes, float], ...] = ()
    error: str = ""

    def __repr__(self) -> str:
        return (
            f"Claim(counts={self.counts!r}, score={self.score!r}, no_target={self.no_target!r}, "
            f"instances={self.instances!r}, error={self.error!r})"
        )


class SampleIndex:
    """Looks up the row and the size of a sample by its id."""

    def __init__(self, sample_ids: Sequence[str], heights: Any, widths: Any) -> None:
        self.sample_ids = sample_ids
        # Most predictions come in the order of the split. A dictionary is made for the first that does not.
        self._next = 0
        self._rows: Mapping[str, int] | None = None
        self.heights = heights
        self.widths = widths

    @staticmethod
    def of(samples: Sequence[Question]) -> SampleIndex:
        """The index of these samples, in their order."""
        return SampleIndex(
            [s.sample_id for s in samples],
            np.array([s.height for s in samples], np.int64),
            np.array([s.width for s in samples], np.int64),
        )

    def row(self, where: str, sample_id: Any) -> int:
        row = self._next
        if self._rows is None and (row >= len(self.sample_ids) or self.sample_ids[row] != sample_id):
            self._rows = {s: k for k, s in enumerate(self.sample_ids)}
        if self._rows is not None:
            row = self._rows.get(sample_id, -1) if isinstance(sample_id, str) else -1
        if row < 0:
            example = self.sample_ids[0] if self.sample_ids else "none"
            raise PredictionError(
                f"{where}: the sample {sample_id!r} is not in this split (the first sample of the split is "
                f"{example!r}); score against the split for which the predictions were made"
            )
        self._next = row + 1
        return row

    def check_size(self, where: str, row: int, height: Any, width: Any) -> None:
        expected = int(self.heights[row]), int(self.widths[row])
        # A float that equals an integer is none: it comes from a program that may round elsewhere, too.
        if (height, width) != expected or not (type(height) is int and type(width) is int):
            raise PredictionError(
                f"{where}: the mask has {height} x {width} pixels, but the image of {self.sample_ids[row]} has "
                f"{expected[0]} x {expected[1]} (height x width); resize the mask to the size of the image"
            )


class HasEntries(Protocol):
    """Predictions that are not in a file, see `GivenPredictions`."""

    def entries(self, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]: ...


class Claims:
    """The predictions of a file or folder in any format, as `(where, row, claim)` tuples. Each sample occurs once.

    Evaluation on several GPUs often pads the data and writes some predictions twice. An entry that repeats an earlier
    one is skipped and counted in `repeated`.

    Raises (on iteration):
        PredictionError: the file is unreadable, or an entry has an unknown sample, a wrong size or an invalid mask, or
            differs from an earlier prediction for the same sample.
    """

    def __init__(self, path: Path | HasEntries, index: SampleIndex) -> None:
        self.path = path
        self.index = index
        self.repeated = 0

    def __iter__(self) -> Iterator[tuple[str, int, Claim]]:
        # Per sample, the number of its entry and a hash of the claim: keeping all claims would fill the memory.
        given_by = np.zeros(len(self.index.sample_ids), np.int64)
        said = np.zeros(len(self.index.sample_ids), np.int64)
        for number, (where, row, claim) in enumerate(self._entries(), start=1):
            # Its text is hashed, because the numbers -1.0 and -2.0 have the same hash.
            digest = hash(repr(claim))
            if not given_by[row]:
                given_by[row], said[row] = number, digest
                yield where, row, claim
            elif int(said[row]) == digest:
                self.repeated += 1
            else:
                raise PredictionError(
                    f"{where}: the sample {self.index.sample_ids[row]} already has a different prediction (entry "
                    f"{given_by[row]}); keep only one of the two"
                )

    def notes(self) -> tuple[str, ...]:
        """Remarks to print together with the scores. They are complete only after the iteration has finished."""
        if not self.repeated:
            return ()
        return (f"entries that repeat an earlier one, and were left out: {self.repeated}",)

    def _entries(self) -> Iterator[tuple[str, int, Claim]]:
        path, index = self.path, self.index
        if not isinstance(path, Path):
            return path.entries(index)
        if path.is_dir():
            return _read_png_folder(path, index)
        if not path.exists():
            raise PredictionError(f"{path} does not exist")
        check_is_file(path, PredictionError)
        if path.suffix == ".npz":
            return _read_npz(path, index)
        start = _first_bytes(path)
        if start.startswith(b"\x1f\x8b"):
            raise PredictionError(f"{path} is compressed with gzip; decompress it first: gunzip -k FILE")
        # Detect the format from the content: JSON lines are often named .json, and lists .jsonl.
        return self._coco_results(path) if start.startswith(b"[") else _read_json_lines(path, index)

    def _coco_results(self, path: Path) -> Iterator[tuple[str, int, Claim]]:
        """COCO results: a list of {image_id or sample_id, segmentation, score}, where the id is a sample id.

        Several results for one sample are its instances, as in COCO; the one with the highest score is its mask.
        """
        # Each instance once; a dict keeps their order.
        found: dict[int, dict[tuple[float, bytes], str]] = {}
        for position, entry in enumerate(read_json(path, PredictionError)):
            where = f"{path} entry {position}"
            if not isinstance(entry, dict) or "segmentation" not in entry:
                raise PredictionError(f"{where}: expected an object with sample_id, segmentation and score")
            row = self.index.row(where, entry.get("sample_id", entry.get("image_id")))
            height, width = int(self.index.heights[row]), int(self.index.widths[row])
            try:
                segmentation = entry["segmentation"]
                if isinstance(segmentation, dict):
                    # Before it is compared: a wrong size has a message of its own.
                    self.index.check_size(where, row, *Mask.from_rle(segmentation).size)
                mask = read_mask(segmentation, height, width)
            except MaskError as error:
                raise PredictionError(f"{where}: {error}") from None
            result = checked_score(where, entry.get("score", 1.0)), mask.counts
            self.repeated += result in found.get(row, ())
            found.setdefault(row, {}).setdefault(result, where)
        for row, results in found.items():
            score, counts = max(results, key=lambda r: r[0])
            yield results[score, counts], row, Claim(counts, score, None, tuple((c, s) for s, c in results))


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise PredictionError(f"{path} cannot be read: {error.strerror}") from error


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


class _Line(msgspec.Struct):
    """A line of a predictions file. The values are checked by `_claim_of`, whose messages name them."""

    sample_id: Any
    size: Any = None
    counts: Any = None
    score: Any = None
    no_target: Any = None
    instances: Any = None


def _read_json_lines(path: Path, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    decode = msgspec.json.Decoder(_Line).decode
    beginning = f"{path} line "
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{beginning}{number}"
                try:
                    entry = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    if not line.strip():
                        continue
                    entry = _line_of(where, line)
                row, claim = _claim_of(where, entry, index)
                yield where, row, claim
    except OSError as error:
        raise PredictionError(f"{path} cannot be read: {error.strerror}") from error


def _line_of(where: str, line: bytes) -> _Line:
    """A line that msgspec refuses. Python's reader has the last word, since it accepts more, such as NaN."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PredictionError(
            f"{where} is not valid JSON ({error}); expected one object per line, "
            '{"sample_id": ..., "size": [h, w], "counts": ...}, or one list of COCO results'
        ) from None
    if not isinstance(entry, dict) or "sample_id" not in entry:
        raise PredictionError(f"{where}: expected an object with sample_id, size and counts")
    return _Line(**{name: entry.get(name) for name in _Line.__struct_fields__})


def _claim_of(where: str, line: _Line, index: SampleIndex) -> tuple[int, Claim]:
    row = index.row(where, line.sample_id)
    size, no_target = line.size, line.no_target
    if not isinstance(size, list) or len(size) != 2:
        raise PredictionError(f"{where}: size must be [height, width], got {size!r}")
    index.check_size(where, row, *size)
    if no_target is not None and not isinstance(no_target, bool):
        raise PredictionError(f"{where}: no_target must be true or false, got {no_target!r}")
    instances = line.instances or []
    if not isinstance(instances, list) or not all(isinstance(i, dict) for i in instances):
        raise PredictionError(f"{where}: instances must be a list of objects with counts and score")
    return row, Claim(
        _code(where, line.counts, size),
        None if line.score is None else checked_score(where, line.score),
        no_target,
        tuple((_code(where, i.get("counts"), size), checked_score(where, i.get("score"))) for i in instances),
    )


def _code(where: str, counts: Any, size: list[int]) -> bytes:
    if isinstance(counts, str) and counts.isascii():
        return counts.encode("ascii")
    try:
        return Mask.from_rle({"size": size, "counts": counts}).counts
    except MaskError as error:
        raise PredictionError(f"{where}: {error}") from None


def checked_score(where: str, score: Any) -> float:
    """The score as a finite number; PredictionError otherwise."""
    try:
        value = math.nan if isinstance(score, (bool, str)) else float(score)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise PredictionError(f"{where}: score must be a finite number, got {repr(score)[:40]}")
    return value


def _read_png_folder(path: Path, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    """PNG masks named `<sample_id>.png` (in subfolders) or with `__` instead of every `/`; non-zero is foreground."""
    files = sorted(path.rglob("*.png"))
    if not files:
        raise PredictionError(f"{path} is neither a run folder nor a folder with *.png files")
    for file in files:
        where = str(file)
        name = file.relative_to(path).with_suffix("").as_posix().replace("__", "/")
        row = index.row(where, name)
        try:
            index.check_size(where, row, *image_size(file, MASK_FORMATS))
            with open_image(file, MASK_FORMATS) as image:
                if image.mode not in ("1", "L", "P", "I", "I;16"):
                    raise PredictionError(f"{where} is an image of mode {image.mode}, but a mask must have one channel")
                pixels = _brightness(image) if image.mode == "P" else np.asarray(image)
        except (DatasetError, OSError, SyntaxError, ValueError) as error:
            raise PredictionError(f"{where}: {error}") from None
        values = np.unique(pixels)
        if len(values) > 2 or (len(values) == 2 and values[0] != 0):
            raise PredictionError(
                f"{where} contains the values {values[:4].tolist()}..., but a mask contains only 0 (black) and one "
                "other value; apply a threshold before saving"
            )
        yield where, row, Claim(Mask.from_array(pixels > 0).counts)


def _brightness(image: Image.Image) -> NDArray[np.int64]:
    """The colours of a palette image as integers, 0 for black; its palette indices have no meaning.

    Raises:
        ValueError: two of the used indices have the same colour, so they cannot be distinguished.
    """
    positions = np.asarray(image)
    colours: NDArray[np.int64] = np.asarray(image.convert("RGB")).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    if len(np.unique(colours)) < len(np.unique(positions)):
        raise ValueError(
            "two values have the same colour in the palette of the image; save the mask as a greyscale image"
        )
    return colours


def _read_npz(path: Path, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    """An NPZ file with one bool (H, W) array per sample, named by the sample id; `__` may replace `/`."""
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
                        raise PredictionError(
                            f"{where}: this NumPy file format is not supported; save the array with "
                            "numpy.savez_compressed"
                        )
                    shape, fortran, dtype = header(file)
                    if dtype != np.bool_ or len(shape) != 2:
                        raise PredictionError(f"{where}: expected a bool array of shape (H, W), got {dtype} {shape}")
                    index.check_size(where, row, *shape)
                    pixels = np.frombuffer(file.read(shape[0] * shape[1]), np.bool_)
            except PredictionError:
                raise
            except Exception as error:  # noqa: BLE001 (a damaged archive can fail in any way)
                raise PredictionError(f"{where} is damaged ({error}); save it again") from None
            if pixels.size != shape[0] * shape[1]:
                raise PredictionError(f"{where} is truncated; save it again")
            yield where, row, Claim(Mask.from_array(pixels.reshape(shape, order="F" if fortran else "C")).counts)


PREDICTION_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("counts", pa.string()),
        ("score", pa.float64()),
        ("no_target", pa.bool_()),
        ("instances", pa.list_(pa.struct([("counts", pa.string()), ("score", pa.float64())]))),
        ("error", pa.string()),
        ("note", pa.string()),
        ("raw", pa.string()),
    ]
)


# Runs of earlier versions lack these columns.
LATER_COLUMNS = ("note", "raw")


class PredictionColumnsError(PredictionError):
    """A table does not have the columns of PREDICTION_SCHEMA."""


def check_prediction_columns(schema: pa.Schema) -> None:
    """Raise PredictionColumnsError unless a table has the columns that a run writes, and no others."""
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise PredictionColumnsError(f"it has two columns with the name {twice[0]!r}")
    for field in PREDICTION_SCHEMA:
        if field.name in LATER_COLUMNS and field.name not in schema.names:
            continue
        if field.name not in schema.names or schema.field(field.name).type != field.type:
            raise PredictionColumnsError(f"it has no column {field.name} of type {field.type}")
    other = sorted(set(schema.names) - set(PREDICTION_SCHEMA.names))
    if other:
        raise PredictionColumnsError(f"it has a column that no run writes: {other[0]!r}")


def predictions_table(predictions: Sequence[Prediction]) -> pa.Table:
    rows = {
        "sample_id": [p.sample_id for p in predictions],
        "height": [p.mask.height for p in predictions],
        "width": [p.mask.width for p in predictions],
        "counts": [p.mask.counts.decode("ascii") for p in predictions],
        "score": [p.score for p in predictions],
        "no_target": [p.no_target for p in predictions],
        "instances": [
            [{"counts": i.mask.counts.decode("ascii"), "score": i.score} for i in p.instances] for p in predictions
        ],
        "error": [p.error for p in predictions],
        "note": [p.note for p in predictions],
        "raw": [p.raw for p in predictions],
    }
    return pa.table(rows, schema=PREDICTION_SCHEMA)


def predictions_from_table(table: pa.Table) -> list[Prediction]:
    out = []
    for row in table.to_pylist():
        size = row["height"], row["width"]
        instances = tuple(
            Instance(Mask(*size, i["counts"].encode("ascii")), i["score"]) for i in row["instances"] or ()
        )
        mask = Mask(*size, row["counts"].encode("ascii"))
        # Runs of earlier versions lack the columns `note` and `raw`.
        said = row.get("note", ""), row.get("raw", "")
        out.append(Prediction(row["sample_id"], mask, row["score"], row["no_target"], instances, row["error"], *said))
    return out
