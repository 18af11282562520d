"""Scores a run or a predictions file: one pass over the masks to integers, then folds over the integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refbench.errors import MaskError, PredictionError, RunError
from refbench.interchange import Claim, SampleIndex, read_claims
from refbench.kernels import COLUMNS
from refbench.mask import Mask, check_code, count_codes
from refbench.plugins import load
from refbench.progress import Progress, silent
from refbench.protocols.audit import check_metrics, check_scores
from refbench.protocols.base import Protocol, ScoreTable, summarise
from refbench.protocols.targets import CANVAS, UNION, on_canvas, redrawn, resized
from refbench.records import Summary
from refbench.runner import planned_paths, read_run
from refbench.storage import read_table, split_fingerprint, split_path, write_json, write_table
from refbench.version import __version__

BATCH_PAIRS = 4096
RUN_COLUMNS = ["sample_id", "height", "width", "counts", "no_target", "error"]


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """A scored split: the counts, a summary a protocol, and the folder that holds both (None: not written)."""

    address: str
    fingerprint: str
    scores: ScoreTable
    summaries: dict[str, Summary]
    folder: Path | None


def score(
    source: Path | str,
    dataset: str | None = None,
    *,
    protocols: Sequence[str] = ("refbench",),
    out: Path | None = None,
    progress: Progress = silent,
) -> Scored:
    """Score a run folder, or a predictions file against a split.

    Args:
        source: a folder of `refbench run`, a .jsonl, COCO results .json or .npz file, or a folder of PNGs.
        dataset: the split, e.g. "refcoco/val"; needed for anything but a run folder.
        protocols: names from `refbench list protocols`.
        out: where scores.parquet and summary.json go; a run folder by default keeps them itself.

    Raises:
        PredictionError: the predictions do not fit the split; names file, entry and cure.
        RunError: the run is unfinished, or was made on another version of the dataset.
        DatasetError: the split is not built.
    """
    source = Path(source)
    rules: list[Protocol] = [load("protocols", name) for name in protocols]
    for rule in rules:
        if not isinstance(rule, Protocol):
            raise PredictionError(f"{rule.name} scores detections against an annotation file: pass --ground-truth")
    info: dict[str, Any] = {}
    is_run = (source / "run.json").is_file()
    if is_run:
        info = read_run(source)
        address = f"{info['dataset']}/{info['split']}"
        if dataset is not None and dataset != address:
            raise RunError(f"{source} is a run on {address}, not on {dataset}")
        check_run(source, info)
        limit = info.get("limit")
    elif dataset is None:
        raise PredictionError(f"{source} is no run folder: say which split it answers with --dataset DATASET/SPLIT")
    else:
        address, limit = dataset, None
    targets = _Targets(address, limit)
    claims = _claims_of_run(source, info, targets.index) if is_run else read_claims(source, targets.index)
    tables = _count(claims, targets, sorted({UNION, *(rule.target for rule in rules)}), progress)
    scores = tables[UNION]
    check_scores(scores, address)
    summaries = {rule.name: summarise(rule, tables[rule.target]) for rule in rules}
    for name, summary in summaries.items():
        check_metrics({m: (e.value, e.low, e.high) for m, e in summary.metrics.items()}, f"{address}, protocol {name}")
    folder = Path(out) if out else source if is_run else None
    fingerprint = split_fingerprint(address)
    if folder is not None:
        write_table(folder / "scores.parquet", scores_to_table(scores))
        first = next(iter(summaries.values()))
        content = summary_json(first, address, fingerprint)
        if len(summaries) > 1:
            content["protocols"] = {n: summary_json(s, address, fingerprint) for n, s in summaries.items()}
        write_json(folder / "summary.json", content)
    return Scored(address, fingerprint, scores, summaries, folder)


def summary_json(summary: Summary, address: str, fingerprint: str) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "protocol": summary.protocol,
        "dataset": address,
        "fingerprint": fingerprint,
        "refbench_version": __version__,
        "samples": summary.samples,
        "failures": summary.failures,
        "metrics": {name: dataclasses.asdict(estimate) for name, estimate in summary.metrics.items()},
    }


def scores_to_table(scores: ScoreTable) -> pa.Table:
    return pa.table({f.name: getattr(scores, f.name) for f in dataclasses.fields(ScoreTable)})


def read_scores(path: Path) -> ScoreTable:
    """Read scores.parquet back.

    Raises:
        DatasetError: it cannot be read.
        RunError: a column is missing, or a row breaks an identity of counts.
    """
    table = read_table(path)
    missing = [f.name for f in dataclasses.fields(ScoreTable) if f.name not in table.column_names]
    if missing:
        raise RunError(f"{path} has no column {missing[0]}; run `refbench score` again")
    columns = {f.name: table[f.name] for f in dataclasses.fields(ScoreTable)}
    arrays = {
        name: column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy()
        for name, column in columns.items()
    }
    scores = ScoreTable(**arrays)
    check_scores(scores, str(path))
    return scores


class _Targets:
    """The columns of a split that scoring needs; masks stay Arrow text until their batch comes."""

    def __init__(self, address: str, limit: int | None) -> None:
        self.path = split_path(address)
        names = ["sample_id", "image_id", "height", "width", "target_counts", "no_target"]
        table = read_table(self.path, names).slice(0, limit)
        self.sample_id = table["sample_id"]
        self.image_id = table["image_id"].to_pylist()
        self.heights = table["height"].to_numpy().astype(np.int64)
        self.widths = table["width"].to_numpy().astype(np.int64)
        self.no_target = table["no_target"].to_numpy()
        self.counts = table["target_counts"]
        self._limit = limit
        self.index = SampleIndex(self.sample_id.to_pylist(), self.heights, self.widths)

    def redrawn(self, drawing: str) -> dict[int, bytes]:
        """Row -> code of the target, for those of one object that `drawing` draws otherwise than as the union."""
        if drawing in CANVAS:
            return self._on_canvas(drawing)
        table = read_table(self.path, ["polygons", "ann_ids"]).slice(0, self._limit)
        several = pc.greater(pc.list_value_length(table["polygons"]), 1)
        single = pc.equal(pc.list_value_length(table["ann_ids"]), 1)
        rows = np.flatnonzero(pc.and_(several, single).to_numpy(zero_copy_only=False)).tolist()
        polygons = table["polygons"].take(pa.array(rows, pa.int64())).to_pylist()
        out: dict[int, bytes] = {}
        made: dict[tuple[bytes, str], bytes] = {}
        for row, code, parts in zip(rows, self.codes(rows), polygons, strict=True):
            key = code, repr(parts)
            if key not in made:
                mask = Mask(int(self.heights[row]), int(self.widths[row]), code)
                made[key] = redrawn(parts, mask, drawing).counts
            if made[key] != code:
                out[row] = made[key]
        return out

    def _on_canvas(self, drawing: str) -> dict[int, bytes]:
        table = read_table(self.path, ["polygons", "ann_ids"]).slice(0, self._limit)
        single = pc.equal(pc.list_value_length(table["ann_ids"]), 1).to_pylist()
        out: dict[int, bytes] = {}
        made: dict[tuple[bytes, int, int, str], bytes] = {}
        codes = self.codes(range(len(single)))
        for row, (code, parts) in enumerate(zip(codes, table["polygons"].to_pylist(), strict=True)):
            height, width = int(self.heights[row]), int(self.widths[row])
            key = code, height, width, f"{single[row]} {parts}"
            if key not in made:
                made[key] = on_canvas(parts, bool(single[row]), Mask(height, width, code), drawing).counts
            out[row] = made[key]
        return out

    def codes(self, rows: Sequence[int]) -> list[bytes]:
        return [text.encode("ascii") for text in self.counts.take(pa.array(rows, pa.int64())).to_pylist()]


def check_run(folder: Path, info: dict[str, Any]) -> None:
    """Raise RunError unless a run is finished, whole, and made on the dataset as it is built now."""
    address = f"{info['dataset']}/{info['split']}"
    now = split_fingerprint(address)
    if info["fingerprint"] != now:
        raise RunError(
            f"{folder} was made on another version of {address} (fingerprint {str(info['fingerprint'])[:12]}..., "
            f"built now: {now[:12]}...); build that version again, or run the model on this one"
        )
    if not info.get("finished"):
        raise RunError(f"{folder} is not finished; run the same `refbench run` command again to complete it")
    missing = [p.name for p in planned_paths(folder, int(info.get("shards", 0))) if not p.is_file()]
    if missing:
        raise RunError(f"{folder} lacks {', '.join(missing)}; run the same `refbench run` command again to complete it")


def _claims_of_run(folder: Path, info: dict[str, Any], index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    for path in planned_paths(folder, int(info["shards"])):
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH_PAIRS, columns=RUN_COLUMNS):
                    yield from _claims_of_batch(path, batch, index)
        except (OSError, pa.ArrowException, KeyError, AttributeError, UnicodeEncodeError) as error:
            raise RunError(f"{path} is damaged ({error}); remove it and run the same command again") from None


def _claims_of_batch(path: Path, batch: pa.RecordBatch, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    columns = (batch.column(name).to_pylist() for name in RUN_COLUMNS)
    for sample_id, height, width, counts, no_target, error in zip(*columns, strict=True):
        where = f"{path} sample {sample_id}"
        row = index.row(where, sample_id)
        index.check_size(where, row, height, width)
        yield where, row, Claim(counts.encode("ascii"), None, no_target, (), error or "")


def _count(
    claims: Iterator[tuple[str, int, Claim]], targets: _Targets, drawings: Sequence[str], progress: Progress
) -> dict[str, ScoreTable]:
    """Counts against the targets as each of `drawings` draws them; "union" is among them."""
    n = len(targets.heights)
    others = {drawing: targets.redrawn(drawing) for drawing in drawings if drawing != UNION}
    counts = {drawing: np.zeros((n, len(COLUMNS)), np.int64) for drawing in drawings}
    failed = np.ones(n, bool)
    flags = np.full(n, -1, np.int8)
    batch: list[tuple[str, int, Claim]] = []
    done = 0
    for item in claims:
        batch.append(item)
        if len(batch) == BATCH_PAIRS:
            _count_batch(batch, targets, others, counts, failed, flags)
            done += len(batch)
            progress("scoring", done, n)
            batch.clear()
    _count_batch(batch, targets, others, counts, failed, flags)
    missing = np.flatnonzero(flags == -1)
    for first in range(0, len(missing), BATCH_PAIRS):
        # A missing sample is a failure with an empty mask: its target still counts in the union.
        rows = missing[first : first + BATCH_PAIRS].tolist()
        empty = [
            ("missing", row, Claim(_empty_code(targets, row), error="missing from the predictions")) for row in rows
        ]
        _count_batch(empty, targets, others, counts, failed, flags)
    progress("scoring", n, n)
    empty_mask = counts[UNION][:, COLUMNS.index("prediction_area")] == 0
    predicted_no_target = np.where(flags == 2, empty_mask, flags == 1) & ~failed
    return {
        drawing: ScoreTable(
            sample_id=targets.sample_id,
            image_id=targets.image_id,
            failed=failed,
            no_target=targets.no_target,
            predicted_no_target=predicted_no_target,
            **{name: np.ascontiguousarray(table[:, k]) for k, name in enumerate(COLUMNS)},
        )
        for drawing, table in counts.items()
    }


def _empty_code(targets: _Targets, row: int) -> bytes:
    return Mask.empty(int(targets.heights[row]), int(targets.widths[row])).counts


def _count_batch(
    batch: list[tuple[str, int, Claim]],
    targets: _Targets,
    others: Mapping[str, Mapping[int, bytes]],
    counts: Mapping[str, np.ndarray],
    failed: np.ndarray,
    flags: np.ndarray,
) -> None:
    """Count one batch into the rows of `counts`. Flags: 0 and 1 as predicted, 2 if the mask has to tell."""
    if not batch:
        return
    rows = [row for _, row, _ in batch]
    codes = [claim.counts for _, _, claim in batch]
    heights, widths = targets.heights[rows], targets.widths[rows]
    try:
        counts[UNION][rows] = count_codes(codes, targets.codes(rows), heights, widths)
        for drawing, drawn in others.items():
            if drawing in CANVAS:
                counts[drawing][rows] = _count_on_canvas(codes, [drawn[row] for row in rows], heights, widths, drawing)
                continue
            counts[drawing][rows] = counts[UNION][rows]
            at = [k for k, row in enumerate(rows) if row in drawn]
            if at:
                again = [drawn[rows[k]] for k in at]
                counted = count_codes([codes[k] for k in at], again, heights[at], widths[at])
                counts[drawing][[rows[k] for k in at]] = counted
    except MaskError as error:
        _name_broken_code(batch, heights, widths)
        raise MaskError(f"{targets.path}: {error}; build the dataset again") from None
    for _, row, claim in batch:
        for code, _ in claim.instances:
            _check_instance(batch, code, int(targets.heights[row]), int(targets.widths[row]))
        failed[row] = bool(claim.error)
        flags[row] = 2 if claim.no_target is None else int(claim.no_target)


def _count_on_canvas(
    predictions: Sequence[bytes], drawn: Sequence[bytes], heights: np.ndarray, widths: np.ndarray, drawing: str
) -> np.ndarray:
    side = CANVAS[drawing]
    masks = Mask.from_codes(predictions, heights.tolist(), widths.tolist())
    small: dict[Mask, bytes] = {}
    for mask in masks:
        if mask not in small:
            small[mask] = resized(mask, side).counts
    sides = np.full(len(masks), side, np.int64)
    return count_codes([small[mask] for mask in masks], drawn, sides, sides)


def _name_broken_code(batch: list[tuple[str, int, Claim]], heights: np.ndarray, widths: np.ndarray) -> None:
    for (where, _, claim), height, width in zip(batch, heights.tolist(), widths.tolist(), strict=True):
        try:
            check_code(claim.counts, height, width)
        except MaskError as error:
            raise PredictionError(f"{where}: {error}; encode masks with pycocotools or refbench.Mask") from None


def _check_instance(batch: list[tuple[str, int, Claim]], code: bytes, height: int, width: int) -> None:
    try:
        check_code(code, height, width)
    except MaskError as error:
        places = [where for where, _, claim in batch if any(c == code for c, _ in claim.instances)]
        raise PredictionError(f"{places[0]}: an instance: {error}") from None
