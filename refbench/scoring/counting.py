"""Counts pixels in one pass over the masks of a run or a predictions file, for each way of rasterising targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from refbench.errors import MaskError, PredictionError
from refbench.lazy import Later
from refbench.masks.counting import count_codes
from refbench.masks.mask import Mask
from refbench.masks.pairs import COUNTS, PairCounts
from refbench.masks.rle import check_code
from refbench.records import IGNORED_CATEGORY, IGNORED_TAG, WHOLE_NUMBERS_TAG, AnnotatedObject
from refbench.runs.folder import RunFolder
from refbench.scoring.counts import Batch, Measure, Measured, ScoreTable, check_scores
from refbench.scoring.protocols.base import Evidence, Protocol
from refbench.scoring.protocols.canvases import ORIGINAL, Canvas
from refbench.scoring.protocols.targets import BY_OBJECT, OF_SEVERAL_POLYGONS, SCALED, UNION, Outlines, drawn
from refbench.storage.columns import TextColumn, numbers_of
from refbench.storage.given_predictions import GivenPredictions
from refbench.storage.manifest import of_one_build, parse_address, split_fingerprint
from refbench.storage.predictions import Claim, Claims, SampleIndex
from refbench.storage.progress import Progress, silent
from refbench.storage.samples import SplitFile, load_objects, readable

BATCH_PAIRS = 4096
# What is counted: a predictions file or folder, a run, or predictions in memory.
Answers = Path | RunFolder | GivenPredictions


class Drawing(NamedTuple):
    """How targets are rasterised, on which canvas, and whether ignored pixels are excluded from both masks."""

    target: str
    canvas: Canvas
    leaves_out_ignored: bool = True

    @staticmethod
    def of(rule: Protocol) -> Drawing:
        """The drawing that a protocol needs."""
        return Drawing(rule.target, rule.canvas, rule.leaves_out_ignored)


STORED = Drawing(UNION, ORIGINAL)


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """The counts of a source, one table for each `Drawing` of the targets. Protocols need nothing else.

    `missing_rows`, bool (N,), marks the samples without a prediction. `answers` is a digest of all predictions.
    """

    address: str
    fingerprint: str
    is_run: bool
    tables: Mapping[Drawing, ScoreTable]
    measured: Measured
    targets: _Targets
    missing_rows: NDArray[np.bool_]
    answers: str
    notes: tuple[str, ...]

    @property
    def scores(self) -> ScoreTable:
        return self.tables[STORED]

    @property
    def ignored(self) -> int:
        """The number of samples with pixels that the dataset marks as ignored."""
        return len(self.targets.ignored)

    @property
    def missing(self) -> int:
        """The number of samples without a prediction."""
        return int(self.missing_rows.sum())

    def evidence(self, rule: Protocol) -> Evidence:
        drawing = Drawing.of(rule)
        return Evidence(
            self.tables[drawing if self.ignored else drawing._replace(leaves_out_ignored=True)],
            Later(lambda: self.targets.refs),
            Later(lambda: self.targets.objects),
            self.measured,
            parse_address(self.address)[0],
            Later(lambda: self.targets.expressions),
            Later(lambda: (self.targets.one_object & (self.targets.polygon_numbers > 1)).tolist()),
            self.ignored,
        )


def count(
    source: Answers,
    address: str,
    drawings: Iterable[Drawing],
    measures: Sequence[Measure],
    progress: Progress = silent,
) -> Counted:
    """Count the masks of a run, of a predictions file, or of predictions in memory, in one pass."""
    run = source if isinstance(source, RunFolder) else None
    limit = run.info.limit if run else None
    targets, fingerprint = of_one_build(
        parse_address(address)[0], lambda: (_Targets(address, limit), split_fingerprint(address))
    )
    given = None if isinstance(source, RunFolder) else Claims(source, targets.index)
    claims = run.claims(targets.index) if run else iter(given or ())
    if not targets.ignored:
        drawings = [d._replace(leaves_out_ignored=True) for d in drawings]
    counter = _Counter(targets, [d for d in dict.fromkeys(drawings) if d != STORED], measures)
    tables = counter.count(claims, progress)
    check_scores(tables[STORED], address, targets.heights * targets.widths)
    return Counted(
        address,
        fingerprint,
        run is not None,
        tables,
        counter.measured,
        targets,
        counter.missing_rows,
        counter.answers(),
        () if given is None else given.notes(),
    )


class _Targets:
    """The targets of a split. What only some protocols need is read when it is asked for, and masks for each batch."""

    def __init__(self, address: str, limit: int | None) -> None:
        self._file = SplitFile(address)
        self.path = self._file.path
        # The annotations are only checked here: few protocols need them.
        names = "sample_id image_id height width no_target tags ann_ids".split()
        table = self._file.table(names).slice(0, limit)
        self.samples = len(table)
        self.sample_id = TextColumn(table["sample_id"])
        self.image_id = TextColumn(table["image_id"])
        self.heights = numbers_of(table["height"]).astype(np.int64)
        self.widths = numbers_of(table["width"]).astype(np.int64)
        self.no_target = numbers_of(table["no_target"])
        self._tags = table["tags"]
        self.index = SampleIndex(self.sample_id, self.heights, self.widths)
        self.ignored = self._ignored()
        self._originals: dict[tuple[str, bool], dict[int, bytes]] = {}
        self._outlines: dict[tuple[bytes, str, tuple[str, ...], bool, bool], Outlines] = {}

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._file.table([name])[name].slice(0, self.samples)

    @cached_property
    def tags(self) -> list[list[str]]:
        """The tags of each sample."""
        return list(self._tags.to_pylist())

    @cached_property
    def refs(self) -> TextColumn:
        """The ref of each sample."""
        return TextColumn(self._column("ref_id"))

    @cached_property
    def expressions(self) -> TextColumn:
        """The expression of each sample."""
        return TextColumn(self._column("expression"))

    @cached_property
    def ann_ids(self) -> list[list[str]]:
        """The ids of the target objects of each sample."""
        return list(self._column("ann_ids").to_pylist())

    @cached_property
    def objects(self) -> list[tuple[str, ...]]:
        """A key for the target of each sample: equal keys mean the same objects."""
        # A ref without annotations gets a key of its own: two refs without a target do not mean the same object.
        return [tuple(a) or ("", r) for a, r in zip(self.ann_ids, self.refs, strict=True)]

    @cached_property
    def one_object(self) -> NDArray[np.bool_]:
        """Whether a target is one object."""
        return np.array([len(a) == 1 for a in self.ann_ids], bool)

    @cached_property
    def polygon_numbers(self) -> NDArray[np.int64]:
        """The number of polygons of each target."""
        parts = [numbers_of(pc.list_value_length(part)) for part in self._file.parts("polygons")]
        return np.concatenate([*parts, np.empty(0, np.int64)])[: self.samples].astype(np.int64)

    @cached_property
    def boxes(self) -> NDArray[np.float64]:
        """The annotated box of each sample, [left, top, width, height], float64 (N, 4)."""
        with readable(self.path):
            flat = [numbers_of(chunk.flatten()) for chunk in self._column("box_xywh").chunks]
        return np.concatenate([*flat, np.empty(0)]).reshape(-1, 4)

    def codes(self, rows: Sequence[int]) -> list[bytes]:
        """The codes of the stored masks in these rows."""
        found = self._file.rows("target_counts", np.asarray(rows, np.int64))
        return [text.encode("ascii") for text in found.to_pylist()]

    def mask(self, row: int, code: bytes) -> Mask:
        return Mask(int(self.heights[row]), int(self.widths[row]), code)

    def drawn(self, drawing: Drawing) -> dict[int, bytes]:
        """The codes of the targets by row, for the rows where the target under `drawing` differs from the stored mask.

        If the canvas of `drawing` is not the original size, all rows are returned.
        """
        if drawing.canvas == ORIGINAL:
            return self._on_original(drawing.target, drawing.leaves_out_ignored)
        rows = np.arange(self.samples)
        if drawing.target == SCALED:
            return self._drawn_one_by_one(rows, drawing)
        # Every canvas shows the same drawing on the original.
        other = self._on_original(drawing.target, drawing.leaves_out_ignored)
        codes = [other.get(row, code) for row, code in enumerate(self.codes(rows.tolist()))]
        return dict(enumerate(drawing.canvas.resized_codes(codes, self.heights, self.widths)))

    def forget_drawings(self) -> None:
        """Free what only drawing needs."""
        self._outlines.clear()
        self._originals.clear()
        self._file.forget("polygons")

    def _on_original(self, target: str, leaves_out_ignored: bool) -> dict[int, bytes]:
        if (target, leaves_out_ignored) not in self._originals:
            # Few targets have several polygons, and fewer samples have pixels to ignore. Only those polygons are read.
            other = np.zeros(self.samples, bool)
            if target in OF_SEVERAL_POLYGONS:
                other |= self.polygon_numbers > 1
            elif target not in (UNION, SCALED):
                other |= self.polygon_numbers > 0
            other[list(self.ignored)] |= leaves_out_ignored
            drawing = Drawing(target, ORIGINAL, leaves_out_ignored)
            self._originals[target, leaves_out_ignored] = self._drawn_one_by_one(np.flatnonzero(other), drawing)
        return self._originals[target, leaves_out_ignored]

    def _drawn_one_by_one(self, rows: NDArray[np.int64], drawing: Drawing) -> dict[int, bytes]:
        """`drawn` for some rows, from their polygons."""
        chosen = rows.tolist()
        polygons = self._file.rows("polygons", rows).to_pylist()
        out: dict[int, bytes] = {}
        made: dict[tuple[bytes, str, tuple[str, ...], frozenset[int]], bytes] = {}
        for row, code, parts in zip(chosen, self.codes(chosen), polygons, strict=True):
            whole_numbers = self._whole_numbers(row) if drawing.target == SCALED else frozenset()
            key = code, self.image_id[row], self.objects[row], whole_numbers
            if key not in made:
                outlines = self._outlines_of(row, code, parts, drawing)
                made[key] = drawn(outlines, drawing.target, drawing.canvas, whole_numbers).counts
            if made[key] != code or drawing.canvas != ORIGINAL:
                out[row] = made[key]
        return out

    def _outlines_of(self, row: int, code: bytes, parts: list[list[float]], drawing: Drawing) -> Outlines:
        """The outlines of a target, which several drawings share."""
        leaves_out = drawing.leaves_out_ignored and row in self.ignored
        by_object = self.one_object[row] or drawing.target in BY_OBJECT
        key = code, self.image_id[row], self.objects[row], by_object, leaves_out
        if key not in self._outlines:
            mask = self.mask(row, code)
            if leaves_out:
                mask = mask.without(self.ignored[row])
            self._outlines[key] = Outlines(self._by_object(row, parts, drawing.target), mask)
        return self._outlines[key]

    def _by_object(self, row: int, polygons: list[list[float]], target: str) -> list[Any]:
        """The polygons of a row, grouped by object; one group if the row has one object or no polygons.

        If `target` does not depend on the objects, several objects are always returned as two groups. If the polygons
        cannot be assigned to objects, the only group is empty.
        """
        if self.one_object[row] or not polygons:
            return [polygons]
        if target not in BY_OBJECT:
            # Two groups mark a target of several objects; which polygon belongs to which object does not matter here.
            return [polygons, []]
        found = [self.objects_by_id.get(a) for a in self.ann_ids[row]]
        grouped = [list(o.polygons) for o in found if o is not None]
        flat = [list(p) for one in grouped for p in one]
        return grouped if flat == polygons else [[]]

    def _whole_numbers(self, row: int) -> frozenset[int]:
        """Which polygons of a row have integer coordinates in the annotation file."""
        for tag in self.tags[row]:
            if tag == WHOLE_NUMBERS_TAG:
                return frozenset(range(int(self.polygon_numbers[row])))
            if tag.startswith(f"{WHOLE_NUMBERS_TAG}-"):
                places = tag.removeprefix(f"{WHOLE_NUMBERS_TAG}-").split("-")
                return frozenset(int(p) for p in places if p.isdigit())
        return frozenset()

    def _ignored(self) -> dict[int, Mask]:
        """The pixels that the dataset marks as ignored, by row, except those that belong to the target."""
        if IGNORED_TAG not in pc.unique(pc.list_flatten(self._tags)).to_pylist():
            return {}
        rows = [k for k, tags in enumerate(self.tags) if IGNORED_TAG in tags]
        by_image: dict[str, list[Mask]] = {}
        for o in self.objects_by_id.values():
            if o.crowd and o.category == IGNORED_CATEGORY:
                by_image.setdefault(o.image_id, []).append(o.mask)
        out = {}
        for row, code in zip(rows, self.codes(rows), strict=True):
            target = self.mask(row, code)
            parts = by_image.get(self.image_id[row], ())
            out[row] = Mask.empty(*target.size).union(*parts).without(target)
        return out

    @cached_property
    def objects_by_id(self) -> dict[str, AnnotatedObject]:
        """The annotated objects of the dataset."""
        return {o.ann_id: o for o in load_objects(self.path.parent.name)}

    def boxes_of_objects(self, rows: Sequence[int]) -> list[NDArray[np.float64]]:
        """The annotated boxes of the target objects of each row, [left, top, width, height], float64 (n, 4)."""
        out = []
        for row in rows:
            ids = self.ann_ids[row]
            if len(ids) == 1:
                found = [tuple(self.boxes[row])]
            else:
                found = [o.box_xywh for a in ids if (o := self.objects_by_id.get(a)) is not None]
            out.append(np.array(found, np.float64).reshape(-1, 4))
        return out

    @cached_property
    def objects_with_masks(self) -> list[AnnotatedObject]:
        """The annotated objects of the dataset whose masks are not empty."""
        return [o for o in self.objects_by_id.values() if o.mask.area]

    @cached_property
    def _objects_on(self) -> dict[str, list[int]]:
        """The positions in `objects_with_masks` of the objects on each image."""
        by_image: dict[str, list[int]] = {}
        for k, thing in enumerate(self.objects_with_masks):
            by_image.setdefault(thing.image_id, []).append(k)
        return by_image

    def distractors(self, rows: Sequence[int]) -> list[list[int]]:
        """For each row, the positions in `objects_with_masks` of the other objects on the image of its target."""
        objects, at = self.objects_with_masks, np.array(rows, np.int64)
        images, targets = self.image_id.take(at), self._file.rows("ann_ids", at).to_pylist()
        return [
            [k for k in self._objects_on.get(image, []) if objects[k].ann_id not in ids]
            for image, ids in zip(images, targets, strict=True)
        ]


class _Counter:
    """Counts the predictions of a source in batches, for every drawing. `STORED` is always included."""

    def __init__(self, targets: _Targets, drawings: Sequence[Drawing], measures: Sequence[Measure]) -> None:
        n = len(targets.heights)
        self.targets = targets
        self.others = {drawing: targets.drawn(drawing) for drawing in (STORED, *drawings)}
        targets.forget_drawings()
        self.measures = measures
        self.needs_objects = any(m.needs_objects for m in measures)
        self.objects = [o.mask.counts for o in targets.objects_with_masks] if self.needs_objects else []
        self.needs_boxes = any(m.needs_boxes for m in measures)
        self.counts = {drawing: np.zeros((n, len(COUNTS)), np.int64) for drawing in self.others}
        self.measured: dict[str, dict[str, NDArray[Any]]] = {m.name: {} for m in measures}
        self.failed = np.ones(n, bool)
        self.missing_rows = np.zeros(len(self.failed), bool)
        self._answers = 0
        # no_target as predicted (0 or 1); 2 if there is no flag, so the mask decides; -1 if no prediction yet.
        self.flags = np.full(n, -1, np.int8)
        # The predictions of the present batch on each canvas, which several drawings want, by the list they come from.
        self._resized: dict[tuple[Canvas, int], list[bytes]] = {}

    def count(self, claims: Iterator[tuple[str, int, Claim]], progress: Progress) -> dict[Drawing, ScoreTable]:
        targets, n = self.targets, len(self.targets.heights)
        batch: list[tuple[str, int, Claim]] = []
        done = 0
        for item in claims:
            batch.append(item)
            # The digests are summed, so the order of the predictions in the file does not matter.
            said = repr(item[1:]).encode()
            self._answers += int.from_bytes(blake2b(said, digest_size=16).digest(), "little")
            if len(batch) == BATCH_PAIRS:
                self._count_batch(batch)
                done += len(batch)
                progress("scoring", done, n)
                batch.clear()
        self._count_batch(batch)
        self.missing_rows = self.flags == -1
        missing = np.flatnonzero(self.missing_rows)
        for first in range(0, len(missing), BATCH_PAIRS):
            # A missing sample is a failure with an empty mask: its target still counts in the union.
            rows = missing[first : first + BATCH_PAIRS].tolist()
            empty = [("missing", r, Claim(_empty_code(targets, r), error="missing from the predictions")) for r in rows]
            self._count_batch(empty)
        progress("scoring", n, n)
        empty_mask = PairCounts.of(self.counts[STORED]).prediction_area == 0
        predicted_no_target = np.where(self.flags == 2, empty_mask, self.flags == 1) & ~self.failed
        return {
            drawing: ScoreTable(
                sample_id=targets.sample_id,
                image_id=targets.image_id,
                failed=self.failed,
                no_target=targets.no_target,
                predicted_no_target=predicted_no_target,
                **PairCounts.of(table).by_name(),
            )
            for drawing, table in self.counts.items()
        }

    def answers(self) -> str:
        """A digest of all predictions, independent of their order."""
        return f"{self._answers % 2**128:032x}"

    def _count_batch(self, batch: list[tuple[str, int, Claim]]) -> None:
        if not batch:
            return
        targets = self.targets
        rows = [row for _, row, _ in batch]
        codes = [claim.counts for _, _, claim in batch]
        heights, widths = targets.heights[rows], targets.widths[rows]
        stored = targets.codes(rows)
        self._resized.clear()
        try:
            whole = count_codes(codes, stored, heights, widths)
            reduced = self._reduced(rows, codes)
            for drawing, other in self.others.items():
                predictions = reduced if drawing.leaves_out_ignored else codes
                if drawing.canvas != ORIGINAL:
                    meant = [other[r] for r in rows]
                    self.counts[drawing][rows] = self._on_canvas(predictions, meant, heights, widths, drawing.canvas)
                    continue
                self.counts[drawing][rows] = whole
                at = [k for k, r in enumerate(rows) if r in other or predictions[k] is not codes[k]]
                if at:
                    again = [other.get(rows[k], stored[k]) for k in at]
                    counted = count_codes([predictions[k] for k in at], again, heights[at], widths[at])
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
            self._measure(
                rows, batch, reduced, [self.others[STORED].get(r, s) for r, s in zip(rows, stored, strict=True)]
            )

    def _reduced(self, rows: Sequence[int], codes: list[bytes]) -> list[bytes]:
        """The predictions without the ignored pixels; the code of a sample that has no ignored pixels is returned
        unchanged, as the same object.
        """
        ignored = self.targets.ignored
        if not ignored:
            return codes
        return [
            self.targets.mask(row, code).without(ignored[row]).counts if row in ignored else code
            for row, code in zip(rows, codes, strict=True)
        ]

    def _on_canvas(
        self,
        predictions: Sequence[bytes],
        targets: Sequence[bytes],
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        canvas: Canvas,
    ) -> NDArray[np.int64]:
        sizes = np.array([canvas.size_of(*size) for size in zip(heights.tolist(), widths.tolist(), strict=True)])
        sides = np.ascontiguousarray(sizes.T.astype(np.int64))
        key = canvas, id(predictions)
        if key not in self._resized:
            self._resized[key] = canvas.resized_codes(predictions, heights, widths)
        return count_codes(self._resized[key], targets, sides[0], sides[1])

    def _measure(
        self, rows: list[int], batch: list[tuple[str, int, Claim]], predictions: list[bytes], targets: list[bytes]
    ) -> None:
        pairs = Batch(
            predictions,
            targets,
            self.targets.heights[rows],
            self.targets.widths[rows],
            self.targets.boxes[rows],
            [[code for code, _ in claim.instances] for _, _, claim in batch],
            self.objects,
            self.targets.distractors(rows) if self.needs_objects else (),
            [[score for _, score in claim.instances] for _, _, claim in batch],
            self.targets.boxes_of_objects(rows) if self.needs_boxes else (),
        )
        for measure in self.measures:
            columns = self.measured[measure.name]
            for name, values in measure.count(pairs).items():
                if name not in columns:
                    columns[name] = np.zeros(len(self.failed), values.dtype)
                columns[name][rows] = values


def _empty_code(targets: _Targets, row: int) -> bytes:
    return Mask.empty(int(targets.heights[row]), int(targets.widths[row])).counts


def _name_broken_code(
    batch: list[tuple[str, int, Claim]], heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> None:
    for (where, _, claim), height, width in zip(batch, heights.tolist(), widths.tolist(), strict=True):
        try:
            check_code(claim.counts, height, width)
        except MaskError as error:
            raise PredictionError(f"{where}: {error}; encode the masks with pycocotools or refbench.Mask") from None


def _check_instance(batch: list[tuple[str, int, Claim]], code: bytes, height: int, width: int) -> None:
    try:
        check_code(code, height, width)
    except MaskError as error:
        places = [where for where, _, claim in batch if any(c == code for c, _ in claim.instances)]
        raise PredictionError(f"{places[0]}: an instance: {error}") from None
