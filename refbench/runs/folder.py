"""The run folder: the paths of its files, and their content, validated when it is read."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refbench.errors import DatasetError, MaskError, PredictionError, RunError
from refbench.masks.mask import Mask
from refbench.records import Prediction, Question, RunInfo
from refbench.runs.timings import TIMINGS_SCHEMA, ShardTiming
from refbench.storage.files import check_is_file, read_record, read_table, write_json, write_table
from refbench.storage.manifest import read_manifest, split_fingerprint
from refbench.storage.ownership import (
    OTHER_FOLDER,
    changes,
    check_absent_or_file,
    check_same,
    refuse_links,
    remove_leftovers,
)
from refbench.storage.predictions import (
    Claim,
    PredictionColumnsError,
    SampleIndex,
    check_prediction_columns,
    predictions_from_table,
)
from refbench.storage.secrets import published_arguments, published_options

RUN_FILE = "run.json"
BATCH_ROWS = 4096
# Columns whose values may be missing; runs of earlier versions lack the last two.
MAY_BE_MISSING = ("score", "no_target", "instances", "note", "raw")
CLAIM_COLUMNS = ("sample_id", "height", "width", "counts", "no_target", "instances", "error")
# Fields in which a call must equal the run that it resumes.
IDENTITY = (
    "adapter", "adapter_options", "code_sha256", "weights_sha256", "dataset", "split", "fingerprint", "limit",
    "shards", "device", "batch_size", "batch_pixels", "deterministic", "mode", "refbench_version",
)  # fmt: skip
AGAIN = "run the same `refbench run` command again"


@dataclasses.dataclass(frozen=True, slots=True)
class ShardTally:
    """The number of failed samples in a written shard, and the notes of the adapter on its samples."""

    failures: int
    notes: Counter[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Journal:
    """The number of completed samples of a shard, and the samples that are being predicted."""

    done: int
    asking: tuple[str, ...]


class RunFolder:
    """The folder of a run.

    An existing shard file is always complete. Files are read only when they are needed, and are validated then, because
    another program may have written them. A RunError names the invalid file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        if not self.is_there:
            return f"RunFolder({str(self.path)!r}, no run)"
        return (
            f"RunFolder({str(self.path)!r}, {self.info.adapter} on {self.info.address}, {self.info.samples:,} samples)"
        )

    @property
    def is_there(self) -> bool:
        """Whether the folder contains a run."""
        return self.info_path.is_file()

    @property
    def info_path(self) -> Path:
        """The path of run.json."""
        return self.path / RUN_FILE

    @property
    def timings_path(self) -> Path:
        """The path of the file with the time that each stage of each shard took."""
        return self.path / "timings.parquet"

    def shard_path(self, number: int) -> Path:
        """The path of the predictions of a shard."""
        return self.path / "predictions" / f"part-{number:05d}.parquet"

    def journal_path(self, number: int) -> Path:
        """The path where a worker records the samples that it predicts next, so that they are known if it crashes."""
        return self.path / "working" / f"part-{number:05d}.json"

    def journal(self, number: int) -> Journal | None:
        """The journal of a shard; None if it does not exist or is currently being written."""
        try:
            return msgspec.json.decode(self.journal_path(number).read_bytes(), type=Journal)
        except (OSError, msgspec.DecodeError):
            return None

    def write_journal(self, number: int, journal: Journal) -> None:
        """Write the journal of a shard; it is not synced, because losing a journal costs little."""
        path = self.journal_path(number)
        path.parent.mkdir(exist_ok=True)
        # Never through a link that somebody has put there.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
            file.write(msgspec.json.encode(journal))

    def journals(self) -> list[Path]:
        """All existing journals."""
        return sorted((self.path / "working").glob("part-*.json"))

    @cached_property
    def info(self) -> RunInfo:
        """The content of run.json, validated.

        Raises:
            RunError: the file does not exist, or was not written by `refbench run`.
        """
        info = read_record(self.info_path, RunInfo, RunError, AGAIN)
        # Versions before 0.1 wrote options as they were given.
        info = dataclasses.replace(
            info,
            adapter_options=published_options(info.adapter_options),
            arguments=published_arguments(info.arguments),
        )
        if info.shards > info.samples:
            raise RunError(
                f"{self.info_path} states more shards ({info.shards}) than samples ({info.samples}); {AGAIN}"
            )
        return info

    @property
    def written(self) -> list[Path]:
        """The existing shards, in order."""
        return sorted((self.path / "predictions").glob("part-*.parquet"))

    @property
    def shards(self) -> list[Path]:
        """The paths of all shards of the run, in order, whether they exist or not."""
        return [self.shard_path(k) for k in range(self.info.shards)]

    @property
    def is_whole(self) -> bool:
        """Whether all shards exist."""
        return all(path.is_file() for path in self.shards)

    def claim(self, info: RunInfo) -> RunInfo:
        """Write run.json, or check that the existing file belongs to the same run, and return its content.

        Raises:
            RunError: the folder belongs to another run.
        """
        refuse_links(self.path, ("predictions", "working"))
        check_absent_or_file(self.info_path)
        if not self.is_there:
            if self.written:
                raise RunError(f"{self} contains predictions but no {RUN_FILE}; choose another folder with --out")
            self.write_info(info)
            return info
        before = self.info
        changed = changes(dataclasses.asdict(before), dataclasses.asdict(info), IDENTITY)
        if before.code_sha256 != info.code_sha256:
            changed.append("the code of the adapter has changed since")
        check_same(self.path, changed, "run", OTHER_FOLDER)
        remove_leftovers(self.path / "predictions")
        return before

    def write_info(self, info: RunInfo) -> None:
        """Write run.json."""
        write_json(self.info_path, dataclasses.asdict(info))
        self.__dict__["info"] = info

    def check_complete(self) -> None:
        """Raise RunError unless the run is complete and was made on the current build of the dataset."""
        info, now = self.info, split_fingerprint(self.info.address)
        if info.fingerprint != now:
            raise RunError(
                f"{self} was made with a different version of {info.address} (fingerprint "
                f"{info.fingerprint[:12]}..., local build: {now[:12]}...); build that version again, or run the "
                "model on the local build"
            )
        if not info.finished:
            raise RunError(f"{self} is not complete; to complete it, {AGAIN}")
        self._check_extent()
        missing = [path.name for path in self.shards if not path.is_file()]
        if missing:
            raise RunError(f"{self} lacks {', '.join(missing)}; to complete it, {AGAIN}")

    def _check_extent(self) -> None:
        """Check the numbers of run.json against the split, before anything is made for each shard or sample."""
        info = self.info
        whole = read_manifest(info.dataset).splits[info.split].expressions
        expected = whole if info.limit is None else min(info.limit, whole)
        if info.samples != expected:
            raise RunError(
                f"{self.info_path} states {info.samples} samples, but the run must have {expected} of the {whole} "
                f"samples of {info.address}; {AGAIN}"
            )
        others = sorted({path.name for path in self.written} - {path.name for path in self.shards})
        if others:
            raise RunError(
                f"{self} has {info.shards} shards, but {self.path / 'predictions'} also contains {others[0]}; remove "
                f"it and {AGAIN}"
            )

    def tally(self, number: int, shard: Sequence[Question]) -> ShardTally:
        """Failures and notes of an existing shard, which must have exactly the samples `shard`, in this order.

        Raises:
            RunError: the file is damaged, or contains other samples.
        """
        path = self.shard_path(number)
        table = self._table(path)
        expected = [(s.sample_id, s.height, s.width) for s in shard]
        if list(zip(*(table[n].to_pylist() for n in ("sample_id", "height", "width")), strict=True)) != expected:
            raise RunError(f"{path} does not contain the samples of its shard; remove it and {AGAIN}")
        try:
            codes = [code.encode("ascii") for code in table["counts"].to_pylist()]
            Mask.from_codes(codes, [s.height for s in shard], [s.width for s in shard])
        except (MaskError, AttributeError, UnicodeError) as error:
            raise RunError(f"{path} is damaged ({error}); remove it and {AGAIN}") from None
        errors = table["error"].to_pylist()
        notes = table["note"].to_pylist() if "note" in table.column_names else []
        return ShardTally(sum(1 for error in errors if error), Counter(n for n in notes if n))

    def _table(self, path: Path) -> pa.Table:
        """The content of a shard; RunError unless it has the columns that refbench writes."""
        try:
            check_is_file(path, RunError)
            table = read_table(path)
            check_prediction_columns(table.schema)
            # Text that is not UTF-8 is found here, and not where it is used.
            table.validate(full=True)
            empty = [f.name for f in table.schema if f.name not in MAY_BE_MISSING and table[f.name].null_count]
            if empty:
                raise PredictionError(f"the column {empty[0]} has missing values")
        except RunError:
            raise
        except DatasetError:
            raise RunError(f"{path} is damaged; remove it and {AGAIN}") from None
        except (PredictionError, OSError, pa.ArrowException) as error:
            raise RunError(f"{path} is damaged ({error}); remove it and {AGAIN}") from None
        return table

    def first_error(self) -> str:
        """The first sample that failed and the reason, as text."""
        for path in self.shards:
            for row in self._table(path).select(["sample_id", "error"]).to_pylist():
                if row["error"]:
                    return f"{row['sample_id']}: {row['error']}"
        return "none"

    def predictions(self, wanted: Collection[str] | None = None) -> Iterator[Prediction]:
        """The predictions, in order. If `wanted` is given, only the predictions of these samples.

        Raises:
            RunError: a shard is missing or damaged.
        """
        for path in self.shards:
            try:
                table = self._table(path)
                if wanted is not None:
                    table = table.filter([sample_id in wanted for sample_id in table["sample_id"].to_pylist()])
                yield from predictions_from_table(table)
            except (DatasetError, MaskError, pa.ArrowException, KeyError, AttributeError, TypeError) as error:
                raise RunError(f"{path} is damaged ({error}); remove it and {AGAIN}") from None

    def claims(self, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
        """One prediction per sample of the run, as `(where, row, claim)`.

        `where` is the position for messages, `row` the row in the split, and `claim` the prediction, whose codes are
        not checked yet.

        Raises:
            RunError: a shard is damaged or contains a sample twice, or a sample of the run is in no shard.
            PredictionError: a sample is not in the split, or its mask has another size.
        """
        seen = np.zeros(len(index.sample_ids), bool)
        for path in self.shards:
            try:
                check_is_file(path, RunError)
                with pq.ParquetFile(path) as file:
                    check_prediction_columns(file.schema_arrow)
                    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(CLAIM_COLUMNS)):
                        for where, row, claim in _claims(path, batch, index):
                            if seen[row]:
                                raise RunError(f"{where} occurs twice in {self}; remove {path.name} and {AGAIN}")
                            seen[row] = True
                            yield where, row, claim
            except PredictionColumnsError as error:
                raise RunError(f"{path} is damaged ({error}); remove it and {AGAIN}") from None
            except (OSError, pa.ArrowException, KeyError, AttributeError, TypeError, UnicodeError) as error:
                raise RunError(f"{path} is damaged ({error}); remove it and {AGAIN}") from None
        if not seen.all():
            first = index.sample_ids[int(np.argmin(seen))]
            raise RunError(
                f"{self} has no prediction for {int((~seen).sum())} of its samples (the first is {first}), so its "
                f"shards belong to another run; remove {self.path / 'predictions'} and {AGAIN}"
            )

    def timings(self) -> list[ShardTiming]:
        """The rows of timings.parquet, one per shard; empty if the file does not exist.

        Raises:
            RunError: the file was not written by `refbench run`.
        """
        if not self.timings_path.exists():
            return []
        try:
            return msgspec.convert(read_table(self.timings_path).to_pylist(), list[ShardTiming])
        except (DatasetError, msgspec.ValidationError) as error:
            raise RunError(f"{self.timings_path} is damaged ({error}); remove the file, which is not needed") from None

    def write_timings(self, rows: Sequence[ShardTiming]) -> None:
        """Write timings.parquet, by shard."""
        ordered = [dataclasses.asdict(row) for row in sorted(rows, key=lambda row: row.shard)]
        write_table(self.timings_path, pa.Table.from_pylist(ordered, schema=TIMINGS_SCHEMA))


def _claims(path: Path, batch: pa.RecordBatch, index: SampleIndex) -> Iterator[tuple[str, int, Claim]]:
    columns = (batch.column(name).to_pylist() for name in CLAIM_COLUMNS)
    for sample_id, height, width, counts, no_target, instances, error in zip(*columns, strict=True):
        where = f"{path} sample {sample_id}"
        row = index.row(where, sample_id)
        index.check_size(where, row, height, width)
        several = tuple((i["counts"].encode("ascii"), _finite(where, i["score"])) for i in instances or ())
        if error is None:
            raise TypeError(f"the sample {sample_id} has no value in the column error")
        yield where, row, Claim(counts.encode("ascii"), None, no_target, several, error)


def _finite(where: str, score: float) -> float:
    if not math.isfinite(score):
        raise RunError(f"{where}: the score of an instance must be a finite number, got {score}")
    return score


def read_run(folder: Path | str) -> RunFolder:
    """The run in a folder, complete or not: `info` is its origin, `predictions()` are its predictions.

    Raises:
        RunError: the folder does not contain a run, or run.json is damaged.

    Example:
        >>> from refbench import read_run, run
        >>> found = read_run(run("everything", "snapshots/test").folder)
        >>> found.info.adapter, found.info.samples, len(list(found.predictions()))
        ('everything', 87, 87)
    """
    run = RunFolder(Path(folder))
    if not run.is_there:
        raise RunError(f"{folder} contains no run; `refbench run` writes one, and prints its folder")
    _ = run.info
    return run
