"""The score table, with one row of integer counts per sample, its file, and the identities that the counts satisfy.

The module also defines `Measure`, for other quantities that are counted on pairs of masks. Under the protocol
`refbench`, every metric of a run is computed from this table alone, without masks or a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refbench.errors import RunError
from refbench.masks.pairs import COUNTS
from refbench.storage.columns import TextColumn, as_texts, column_of, numbers_of
from refbench.storage.files import read_table, write_table

SCORES_FILE = "scores.parquet"


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreTable:
    """The columns of scores.parquet in the order of samples: ids as sequences of N texts, other columns as arrays of
    shape (N,); counts are in pixels.
    """

    sample_id: Sequence[str]
    image_id: Sequence[str]
    failed: NDArray[np.bool_]
    no_target: NDArray[np.bool_]
    predicted_no_target: NDArray[np.bool_]
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    prediction_area: NDArray[np.int64]
    target_area: NDArray[np.int64]
    boundary_intersection: NDArray[np.int64]
    boundary_union: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.failed)

    def __repr__(self) -> str:
        return f"ScoreTable({len(self):,} samples, {int(np.sum(self.failed)):,} failed)"

    def sample_ids(self) -> list[str]:
        """The sample ids as a list of strings."""
        return list(self.sample_id)

    def sums(self) -> dict[str, int]:
        """The total of each count over all samples, in pixels."""
        return {name: int(getattr(self, name).sum()) for name in COUNTS}

    def take(self, rows: NDArray[np.int64]) -> ScoreTable:
        """The rows at these positions, in this order."""
        taken: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            column = getattr(self, f.name)
            taken[f.name] = column[rows] if isinstance(column, np.ndarray) else as_texts(column).take(rows)
        return ScoreTable(**taken)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Pairs of masks as checked compressed RLEs. Both masks of a pair have the same size."""

    predictions: Sequence[bytes]
    targets: Sequence[bytes]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    # The box that the annotation file gives, [left, top, width, height] in pixels, (B, 4).
    annotated_boxes: NDArray[np.float64]
    # All masks of a prediction that returns several; empty where it returned one.
    instances: Sequence[Sequence[bytes]]
    # Codes of annotated objects. For each pair, `others` holds the positions of the objects in its image that are not
    # its target. Both are empty unless a measure needs them.
    objects: Sequence[bytes] = ()
    others: Sequence[Sequence[int]] = ()
    # The confidences of `instances`.
    scores: Sequence[Sequence[float]] = ()
    # The annotated boxes of each sample's target objects, (n, 4); empty unless a measure needs them.
    boxes_of_objects: Sequence[NDArray[np.float64]] = ()


# What the measures of a call counted: name of the measure -> column -> array (N,).
Measured = Mapping[str, Mapping[str, NDArray[Any]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Measure:
    """A quantity that is counted on pairs of masks, besides the columns of the score table.

    `count` returns `columns` as arrays (B,); a protocol reads them as `measured[name][column]`.
    """

    name: str
    columns: tuple[str, ...]
    count: Callable[[Batch], Mapping[str, NDArray[Any]]]
    needs_objects: bool = False
    needs_boxes: bool = False


def scores_to_table(scores: ScoreTable) -> pa.Table:
    columns = {f.name: getattr(scores, f.name) for f in dataclasses.fields(ScoreTable)}
    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: Any) -> pa.Array | pa.ChunkedArray:
    return column_of(values) if isinstance(values, np.ndarray) else as_texts(values).column


def write_scores(path: Path, scores: ScoreTable) -> None:
    write_table(path, scores_to_table(scores))


def read_scores(path: Path | str) -> ScoreTable:
    """Read scores.parquet, or that of a scored folder.

    Raises:
        DatasetError: the file cannot be read.
        RunError: a column is missing or has another type, a sample occurs twice, or the counts of a row break an
            identity.

    Example:
        >>> from refbench import read_scores, run, score
        >>> scored = score(run("everything", "snapshots/test").folder)
        >>> len(read_scores(scored.folder))
        87
    """
    path = Path(path)
    path = path / SCORES_FILE if path.is_dir() else path
    table = read_table(path, whole=True)
    names = [f.name for f in dataclasses.fields(ScoreTable)]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise RunError(f"{path} has no column {missing[0]}; run `refbench score` again")
    arrays: dict[str, Any] = {}
    for name in names:
        column = table[name]
        wanted = (
            pa.types.is_string if name.endswith("_id") else pa.types.is_int64 if name in COUNTS else pa.types.is_boolean
        )
        if column.null_count or not wanted(column.type):
            gaps = f", with {column.null_count} gaps" if column.null_count else ""
            raise RunError(
                f"{path}: the column {name} was not written by refbench, because it has the type "
                f"{column.type}{gaps}; run `refbench score` again"
            )
        arrays[name] = TextColumn(column) if pa.types.is_string(column.type) else numbers_of(column)
    scores = ScoreTable(**arrays)
    check_scores(scores, str(path))
    row = as_texts(scores.sample_id).first_repeated()
    if row is not None:
        name = scores.sample_id[row]
        raise RunError(f"{path}, row {row}: the sample {name} occurs twice; run `refbench score` again")
    return scores


def check_scores(scores: ScoreTable, where: str, pixels: NDArray[np.int64] | None = None) -> None:
    """Raise RunError if the counts of a row break an identity; the message names the first such identity and the row.

    The identities hold for every possible prediction, so a file that breaks one was damaged or edited. `pixels` is
    height times width of each image, if the image sizes are known.
    """
    s = scores
    identities: list[tuple[str, NDArray[np.bool_]]] = [
        ("no count is negative", np.minimum.reduce([getattr(s, name) for name in COUNTS]) >= 0),
        ("union = prediction_area + target_area - intersection",
         s.union == s.prediction_area + s.target_area - s.intersection),
        ("intersection <= prediction_area and target_area",
         s.intersection <= np.minimum(s.prediction_area, s.target_area)),
        ("the boundary bands lie inside the masks: boundary_intersection <= intersection",
         s.boundary_intersection <= s.intersection),
        ("the boundary bands lie inside the masks: boundary_union <= union", s.boundary_union <= s.union),
        ("a mask that is not empty has a boundary", (s.boundary_union > 0) == (s.union > 0)),
        ("boundary_intersection <= boundary_union", s.boundary_intersection <= s.boundary_union),
        ("an expression without target has an empty target", ~s.no_target | (s.target_area == 0)),
        ("a failed sample has an empty prediction", ~s.failed | (s.prediction_area == 0)),
        ("a failed sample predicts nothing, not even no_target", ~s.failed | ~s.predicted_no_target),
    ]  # fmt: skip
    if pixels is not None:
        identities.append(("a mask has no more pixels than its image", s.union <= pixels))
    for identity, holds in identities:
        if not holds.all():
            row = int(np.argmin(holds))
            raise RunError(
                f"{where}, row {row} ({s.sample_id[row]}) contains impossible counts; expected: {identity}. The "
                "file was damaged or edited; run `refbench score` again"
            )
