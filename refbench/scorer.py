"""Scores a run or a predictions file: one pass over the masks to integers, then folds over the integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from refbench.errors import MaskError, PredictionError, RunError
from refbench.execution.plan import planned_paths
from refbench.interchange import Claim, SampleIndex, read_claims
from refbench.kernels import COLUMNS
from refbench.mask import Mask, check_code, count_codes
from refbench.plugins import available, load
from refbench.progress import Progress, silent
from refbench.protocols.audit import check_summary
from refbench.protocols.base import Evidence, Protocol, summarise
from refbench.protocols.explain import Walk, hybrids, walk
from refbench.protocols.targets import OF_SEVERAL_POLYGONS, OPENCV, ORIGINAL, SIDES_PX, UNION, drawn, resized
from refbench.records import Summary
from refbench.results import SUMMARY_FILE, summary_json
from refbench.runner import read_run
from refbench.scores import SCORES_FILE, Batch, Measure, ScoreTable, check_scores, write_scores
from refbench.statistics.bootstrap import PERCENTILE
from refbench.storage import load_objects, parse_address, read_table, split_fingerprint, split_path, write_json

BATCH_PAIRS = 4096
RUN_COLUMNS = ["sample_id", "height", "width", "counts", "no_target", "instances", "error"]
ALL = "all"


class Drawing(NamedTuple):
    """How targets are drawn, and on what pixels (see `refbench.protocols.targets`)."""

    target: str
    canvas: str


STORED = Drawing(UNION, ORIGINAL)


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """The masks of a source, counted under several drawings of the targets: all that protocols need."""

    address: str
    fingerprint: str
    is_run: bool
    tables: Mapping[Drawing, ScoreTable]
    measured: Mapping[str, NDArray[Any]]
    refs: Sequence[str]
    objects: Sequence[str]

    @property
    def scores(self) -> ScoreTable:
        return self.tables[STORED]

    def evidence(self, rule: Protocol) -> Evidence:
        table = self.tables[Drawing(rule.target, rule.canvas)]
        return Evidence(table, self.refs, self.objects, self.measured)


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """A scored split: the counts, a summary a protocol, and the folder that holds both (None: not written).

    `left_out` tells why a protocol of "all" was not applied.
    """

    address: str
    fingerprint: str
    scores: ScoreTable
    summaries: dict[str, Summary]
    folder: Path | None
    left_out: dict[str, str]


def score(
    source: Path | str,
    dataset: str | None = None,
    *,
    protocols: Sequence[str] = ("refbench",),
    out: Path | None = None,
    interval: str = PERCENTILE,
    progress: Progress = silent,
) -> Scored:
    """Score a run folder, or a predictions file against a split.

    Args:
        source: a folder of `refbench run`, a .jsonl, COCO results .json or .npz file, or a folder of PNGs.
        dataset: the split, e.g. "refcoco/val"; needed for anything but a run folder.
        protocols: names from `refbench list protocols`; "all" stands for every one that applies.
        out: where scores.parquet and summary.json go; a run folder by default keeps them itself.
        interval: "percentile" or "bca".

    Raises:
        PredictionError: the predictions do not fit the split; names file, entry and cure.
        RunError: the run is unfinished, or was made on another version of the dataset.
        DatasetError: the split is not built.
    """
    source = Path(source)
    address, info = address_of(source, dataset)
    rules, left_out = choose_protocols(protocols, address)
    drawings = [Drawing(rule.target, rule.canvas) for rule in rules]
    measures = {m.name: m for rule in rules for m in rule.measures}
    counted = count(source, address, info, drawings, list(measures.values()), progress)
    summaries = {}
    for done, rule in enumerate(rules):
        summaries[rule.name] = summarise(rule, counted.evidence(rule), interval)
        check_summary(summaries[rule.name], f"{address}, protocol {rule.name}", rule.signed)
        progress("protocols", done + 1, len(rules))
    folder = Path(out) if out else source if counted.is_run else None
    if folder is not None:
        write_scores(folder / SCORES_FILE, counted.scores)
        content = summary_json(summaries, counted.scores, address, counted.fingerprint, interval)
        write_json(folder / SUMMARY_FILE, content)
    return Scored(address, counted.fingerprint, counted.scores, summaries, folder, left_out)


def explain(
    source: Path | str, dataset: str | None, first: str, second: str, progress: Progress = silent
) -> tuple[str, Walk]:
    """The split, and the way from one protocol's number to another's, one choice at a time.

    Args:
        source, dataset: as for `score`.
        first, second: a protocol, whose headline is meant, or `NAME:METRIC`.

    Raises:
        PredictionError: a protocol or metric does not exist or does not fit the split; and as `score`.
    """
    source = Path(source)
    address, info = address_of(source, dataset)
    (name, metric), (other_name, other_metric) = (_protocol_and_metric(text) for text in (first, second))
    rule, other = (choose_protocols([n], address)[0][0] for n in (name, other_name))
    versions = [*(version for _, version in hybrids(rule, other)), other]
    measures = {m.name: m for version in (rule, other) for m in version.measures}
    drawings = [Drawing(v.target, v.canvas) for v in versions]
    counted = count(source, address, info, drawings, list(measures.values()), progress)
    return address, walk(rule, other, counted.evidence, metric, other_metric)


def _protocol_and_metric(text: str) -> tuple[str, str | None]:
    name, colon, metric = text.partition(":")
    return name, metric if colon else None


def choose_protocols(names: Iterable[str], address: str) -> tuple[list[Protocol], dict[str, str]]:
    """The protocols of these names for a split, and of those that "all" stands for, why some are left out.

    Raises:
        UnknownPlugin: there is none of a name.
        PredictionError: one is about other datasets, or scores detections.
    """
    rules: dict[str, Protocol] = {}
    left_out: dict[str, str] = {}
    for name in names:
        for one in available("protocols") if name == ALL else (name,):
            rule = load("protocols", one)
            reason = _reason_against(rule, address)
            if not reason:
                rules.setdefault(rule.name, rule)
            elif name != ALL:
                raise PredictionError(f"{rule.name} {reason}")
            elif isinstance(rule, Protocol):
                left_out[rule.name] = reason
    return list(rules.values()), left_out


def _reason_against(rule: Any, address: str) -> str:
    dataset, split = parse_address(address)
    if not isinstance(rule, Protocol):
        return "scores detections against an annotation file: pass --ground-truth"
    if rule.datasets and dataset not in rule.datasets:
        return f"is a rule for {', '.join(rule.datasets)}, not for {dataset}"
    if rule.splits and not split.endswith(rule.splits):
        return f"is a rule for splits that end in {' or '.join(rule.splits)}, not for {split}"
    if rule.target == OPENCV and find_spec("cv2") is None:
        return "draws targets with OpenCV: pip install 'refbench[opencv]'"
    return ""


def address_of(source: Path, dataset: str | None) -> tuple[str, dict[str, Any]]:
    """The split that a source answers, and the run.json of a run folder."""
    if not source.exists():
        raise PredictionError(f"{source} does not exist")
    if not (source / "run.json").is_file():
        if dataset is None:
            raise PredictionError(f"{source} is no run folder: say which split it answers with --dataset DATASET/SPLIT")
        return dataset, {}
    info = read_run(source)
    address = f"{info['dataset']}/{info['split']}"
    if dataset is not None and dataset != address:
        raise RunError(f"{source} is a run on {address}, not on {dataset}")
    check_run(source, info)
    return address, info


def count(
    source: Path,
    address: str,
    info: Mapping[str, Any],
    drawings: Iterable[Drawing],
    measures: Sequence[Measure],
    progress: Progress = silent,
) -> Counted:
    """One pass over the masks of a run (its `info` is not empty) or of a predictions file."""
    targets = _Targets(address, info.get("limit"))
    claims = _claims_of_run(source, info, targets.index) if info else read_claims(source, targets.index)
    counter = _Counter(targets, [d for d in dict.fromkeys(drawings) if d != STORED], measures)
    tables = counter.count(claims, progress)
    check_scores(tables[STORED], address, targets.heights * targets.widths)
    return Counted(
        address,
        split_fingerprint(address),
        bool(info),
        tables,
        counter.measured,
        targets.refs,
        targets.objects,
    )


class _Targets:
    """The columns of a split that scoring needs; masks stay Arrow text until their batch comes."""

    def __init__(self, address: str, limit: int | None) -> None:
        self.path = split_path(address)
        names = "sample_id image_id height width target_counts no_target ref_id ann_ids box_xywh".split()
        table = read_table(self.path, names).slice(0, limit)
        self.sample_id = table["sample_id"]
        self.image_id = table["image_id"].to_pylist()
        self.heights = table["height"].to_numpy().astype(np.int64)
        self.widths = table["width"].to_numpy().astype(np.int64)
        self.no_target = table["no_target"].to_numpy()
        self.counts = table["target_counts"]
        self.refs = table["ref_id"].to_pylist()
        # What nobody annotated is its ref's own: two refs that mean nothing do not mean the same.
        ids = table["ann_ids"].to_pylist()
        self.objects = [",".join(a) if a else f"ref {r}" for a, r in zip(ids, self.refs, strict=True)]
        self.one_object = np.array([len(a) == 1 for a in ids], bool)
        flat = [c.flatten().to_numpy() for c in table["box_xywh"].chunks]
        self.boxes = np.concatenate([*flat, np.empty(0)]).reshape(-1, 4)
        self._limit = limit
        self.index = SampleIndex(self.sample_id.to_pylist(), self.heights, self.widths)

    def drawn(self, drawing: Drawing) -> dict[int, bytes]:
        """Row -> code of the target, for those that `drawing` draws otherwise than they are stored.

        On a canvas of its own it draws all of them.
        """
        polygons = read_table(self.path, ["polygons"]).slice(0, self._limit)["polygons"]
        rows = list(range(len(self.refs)))
        if drawing.canvas == ORIGINAL and drawing.target in OF_SEVERAL_POLYGONS:
            # Few objects have several: only theirs are read.
            several = pc.greater(pc.list_value_length(polygons), 1).to_numpy()
            rows = np.flatnonzero(several & self.one_object).tolist()
            polygons = polygons.take(pa.array(rows, pa.int64()))
        out: dict[int, bytes] = {}
        made: dict[tuple[bytes, str, str], bytes] = {}
        codes = self.codes(rows)
        for row, code, parts in zip(rows, codes, polygons.to_pylist(), strict=True):
            key = code, self.image_id[row], self.objects[row]
            if key not in made:
                mask = Mask(int(self.heights[row]), int(self.widths[row]), code)
                made[key] = drawn(parts, bool(self.one_object[row]), mask, *drawing).counts
            if made[key] != code or drawing.canvas != ORIGINAL:
                out[row] = made[key]
        return out

    def objects_around(self) -> tuple[list[bytes], list[list[int]]]:
        """Codes of the dataset's objects and, for each row, the positions of those of its image that it does not mean.

        An object without a pixel is nobody's distractor.
        """
        dataset = self.path.parent.name
        objects = [o for o in load_objects(dataset) if o.mask.area]
        by_image: dict[str, list[int]] = {}
        for k, thing in enumerate(objects):
            by_image.setdefault(thing.image_id, []).append(k)
        meant = (set(a.split(",")) for a in self.objects)
        others = [
            [k for k in by_image.get(image, []) if objects[k].ann_id not in here]
            for image, here in zip(self.image_id, meant, strict=True)
        ]
        return [o.mask.counts for o in objects], others

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


def _claims_of_run(folder: Path, info: Mapping[str, Any], index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    for path in planned_paths(folder, int(info["shards"])):
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH_PAIRS, columns=RUN_COLUMNS):
                    yield from _claims_of_batch(path, batch, index)
        except (OSError, pa.ArrowException, KeyError, AttributeError, TypeError, UnicodeEncodeError) as error:
            raise RunError(f"{path} is damaged ({error}); remove it and run the same command again") from None


def _claims_of_batch(path: Path, batch: pa.RecordBatch, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    columns = (batch.column(name).to_pylist() for name in RUN_COLUMNS)
    for sample_id, height, width, counts, no_target, instances, error in zip(*columns, strict=True):
        where = f"{path} sample {sample_id}"
        row = index.row(where, sample_id)
        index.check_size(where, row, height, width)
        several = tuple((i["counts"].encode("ascii"), i["score"]) for i in instances or ())
        yield where, row, Claim(counts.encode("ascii"), None, no_target, several, error or "")


class _Counter:
    """Counts the claims of a source, a batch at a time, under every drawing; the stored one always."""

    def __init__(self, targets: _Targets, drawings: Sequence[Drawing], measures: Sequence[Measure]) -> None:
        n = len(targets.heights)
        self.targets = targets
        self.others = {drawing: targets.drawn(drawing) for drawing in drawings}
        self.measures = measures
        self.objects = targets.objects_around() if any(m.needs_objects for m in measures) else ((), ())
        self.counts = {drawing: np.zeros((n, len(COLUMNS)), np.int64) for drawing in (STORED, *drawings)}
        self.measured: dict[str, NDArray[Any]] = {}
        self.failed = np.ones(n, bool)
        # 0 and 1 as predicted, 2 if the mask has to tell, -1 before a prediction came.
        self.flags = np.full(n, -1, np.int8)

    def count(self, claims: Iterator[tuple[str, int, Claim]], progress: Progress) -> dict[Drawing, ScoreTable]:
        targets, n = self.targets, len(self.targets.heights)
        batch: list[tuple[str, int, Claim]] = []
        done = 0
        for item in claims:
            batch.append(item)
            if len(batch) == BATCH_PAIRS:
                self._count_batch(batch)
                done += len(batch)
                progress("scoring", done, n)
                batch.clear()
        self._count_batch(batch)
        missing = np.flatnonzero(self.flags == -1)
        for first in range(0, len(missing), BATCH_PAIRS):
            # A missing sample is a failure with an empty mask: its target still counts in the union.
            rows = missing[first : first + BATCH_PAIRS].tolist()
            empty = [("missing", r, Claim(_empty_code(targets, r), error="missing from the predictions")) for r in rows]
            self._count_batch(empty)
        progress("scoring", n, n)
        empty_mask = self.counts[STORED][:, COLUMNS.index("prediction_area")] == 0
        predicted_no_target = np.where(self.flags == 2, empty_mask, self.flags == 1) & ~self.failed
        return {
            drawing: ScoreTable(
                sample_id=targets.sample_id,
                image_id=targets.image_id,
                failed=self.failed,
                no_target=targets.no_target,
                predicted_no_target=predicted_no_target,
                **{name: np.ascontiguousarray(table[:, k]) for k, name in enumerate(COLUMNS)},
            )
            for drawing, table in self.counts.items()
        }

    def _count_batch(self, batch: list[tuple[str, int, Claim]]) -> None:
        if not batch:
            return
        targets = self.targets
        rows = [row for _, row, _ in batch]
        codes = [claim.counts for _, _, claim in batch]
        heights, widths = targets.heights[rows], targets.widths[rows]
        of_targets = targets.codes(rows)
        try:
            self.counts[STORED][rows] = count_codes(codes, of_targets, heights, widths)
            for drawing, other in self.others.items():
                if drawing.canvas != ORIGINAL:
                    side = SIDES_PX[drawing.canvas]
                    self.counts[drawing][rows] = _count_on_canvas(
                        codes, [other[r] for r in rows], heights, widths, side
                    )
                    continue
                self.counts[drawing][rows] = self.counts[STORED][rows]
                at = [k for k, row in enumerate(rows) if row in other]
                if at:
                    again = [other[rows[k]] for k in at]
                    counted = count_codes([codes[k] for k in at], again, heights[at], widths[at])
                    self.counts[drawing][[rows[k] for k in at]] = counted
        except MaskError as error:
            _name_broken_code(batch, heights, widths)
            raise MaskError(f"{targets.path}: {error}; build the dataset again") from None
        for _, row, claim in batch:
            for code, _ in claim.instances:
                _check_instance(batch, code, int(targets.heights[row]), int(targets.widths[row]))
            self.failed[row] = bool(claim.error)
            self.flags[row] = 2 if claim.no_target is None else int(claim.no_target)
        if self.measures:
            instances = [[code for code, _ in claim.instances] for _, _, claim in batch]
            objects, others = self.objects
            of_rows = [others[row] for row in rows] if others else ()
            boxes = targets.boxes[rows]
            self._measure(rows, Batch(codes, of_targets, heights, widths, boxes, instances, objects, of_rows))

    def _measure(self, rows: list[int], batch: Batch) -> None:
        for measure in self.measures:
            for column, values in measure.count(batch).items():
                name = f"{measure.name}.{column}"
                if name not in self.measured:
                    self.measured[name] = np.zeros(len(self.failed), values.dtype)
                self.measured[name][rows] = values


def _empty_code(targets: _Targets, row: int) -> bytes:
    return Mask.empty(int(targets.heights[row]), int(targets.widths[row])).counts


def _count_on_canvas(
    predictions: Sequence[bytes], targets: Sequence[bytes], heights: np.ndarray, widths: np.ndarray, side: int
) -> np.ndarray:
    masks = Mask.from_codes(predictions, heights.tolist(), widths.tolist())
    small: dict[Mask, bytes] = {}
    for mask in masks:
        if mask not in small:
            small[mask] = resized(mask, side).counts
    sides = np.full(len(masks), side, np.int64)
    return count_codes([small[mask] for mask in masks], targets, sides, sides)


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
