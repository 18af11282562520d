"""Functions that write files atomically, and functions that read files."""

from __future__ import annotations

import codecs
import ctypes
import gc
import hashlib
import json
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from refbench.errors import DatasetError, RefbenchError, RunError

Row = TypeVar("Row")
BATCH_ROWS = 20_000
# Of <fcntl.h> and <linux/fs.h>.
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# It can only be read by setting it, which other threads would notice; therefore once, before there are threads.
UMASK = os.umask(0)
os.umask(UMASK)
KINDS_OF_PATHS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def home() -> Path:
    """`$REFBENCH_HOME`, by default `~/.refbench`."""
    return Path(os.environ.get("REFBENCH_HOME") or Path.home() / ".refbench").expanduser()


def project_data(name: str) -> Path:
    """The folder `datasets` or `leaderboards`: packaged with refbench, or next to it in a checkout."""
    packaged = Path(__file__).parents[1] / "data" / name
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / name


def check_is_file(path: Path, wanted: type[RefbenchError] = DatasetError) -> None:
    """Check that a path is not a folder, a pipe, a device or a socket. Opening a pipe waits for its writer, possibly
    for ever, and a device may have no end.

    Raises:
        RefbenchError: (of type `wanted`) the path exists, but is not a regular file or a link to one.
        FileNotFoundError: the path does not exist.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = KINDS_OF_PATHS.get(stat.S_IFMT(mode), "something else")
        raise wanted(f"{path} is {kind}, but a regular file is expected; save the content as a file and pass its path")


def replace_folder(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`, and delete what was there.

    On Linux, both change places in one step, so there is no moment without a folder. Elsewhere, and on file systems
    that cannot do it, the old folder is moved away first.
    """
    new.chmod(0o777 & ~UMASK)
    if not folder.exists():
        new.rename(folder)
        return
    if not _exchanged(new, folder):
        old = new.with_name(f"{new.name}.old")
        folder.rename(old)
        new.rename(folder)
        new = old
    shutil.rmtree(new, ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    """Let two paths change places by renameat2; False if this is not possible here."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. Afterwards, the temporary file is synced and replaces `path`; on an error,
    it is discarded.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; free some space, or choose another folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~UMASK)
        temporary.replace(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {path}: {error.strerror or error}. Results that were already complete are intact; "
        "check the free space and the permissions, then run the same command again"
    )


def write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, wanted: type[RefbenchError] = DatasetError, form: Any = Any) -> Any:
    """Parse a JSON file; errors name the file and the position in it.

    `form` is a type of msgspec with which the values take less memory. A file of another form is parsed without it.
    """
    try:
        check_is_file(path, wanted)
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            raise wanted(f"{path} is compressed with gzip; decompress it first: gunzip -c FILE > FILE.json")
        # Editors on Windows begin a file with a byte order mark, which is no part of it.
        content = content.removeprefix(codecs.BOM_UTF8)
        try:
            # msgspec takes half of the time and memory, but refuses more. What it refuses is read again by json, which
            # also words the error.
            return msgspec.json.decode(content, type=form)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise wanted(f"{path} does not exist") from None
    except OSError as error:
        raise wanted(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise wanted(f"{path} is not UTF-8 text, so it is not a JSON file") from None
    except json.JSONDecodeError as error:
        raise wanted(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}; if the file "
            "is truncated, copy it again"
        ) from None
    except ValueError as error:
        raise wanted(f"{path} contains a number that cannot be read ({error})") from None
    except RecursionError:
        raise wanted(f"{path} is nested too deeply to be an annotation file") from None


def read_record(path: Path, kind: type[Row], wanted: type[RefbenchError], cure: str) -> Row:
    """Read a JSON file as the dataclass `kind`; checks presence, type and range of its fields and ignores others.

    Raises:
        RefbenchError: (of type `wanted`) the file is missing, is not JSON or does not have this form; the message names
            the field and states how to fix it.
    """
    return checked_record(read_json(path, wanted), path, kind, wanted, cure)


def checked_record(content: Any, path: Path, kind: type[Row], wanted: type[RefbenchError], cure: str) -> Row:
    """Parsed JSON as the dataclass `kind`; see `read_record`."""
    problem = _unstorable(content)
    if problem:
        raise wanted(f"{path} contains {problem}, which refbench never writes; {cure}")
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise wanted(f"{path} is not in the format that refbench writes: {error}; {cure}") from None


def _unstorable(content: Any) -> str:
    """The first text or number in parsed JSON that has no place in a file; "" if there is none.

    Python's parser accepts lone surrogates, which no file can store, and NaN, which is not JSON.
    """
    if isinstance(content, str):
        is_text = content.isascii() or not any("\ud800" <= c <= "\udfff" for c in content)
        return "" if is_text and "\0" not in content else f"the text {content[:40]!r}"
    if isinstance(content, float):
        return "" if math.isfinite(content) else f"the number {content}"
    if isinstance(content, list):
        return next(filter(None, map(_unstorable, content)), "")
    if isinstance(content, dict):
        return next(filter(None, map(_unstorable, [*content, *content.values()])), "")
    return ""


def write_table(path: Path, table: pa.Table) -> None:
    """Write one Parquet file atomically; its bytes depend only on the table and the version of pyarrow."""
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


@contextmanager
def rows_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Writes a Parquet file atomically: yields a function that adds a row group. Only one of them is in memory."""
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def write(table: pa.Table) -> None:
            try:
                writer.write_table(table)
            except OSError as error:
                raise _not_written(path, error) from error

        yield write


def read_table(path: Path, columns: Sequence[str] | None = None, *, whole: bool = False) -> pa.Table:
    """Read a Parquet file.

    Args:
        columns: only these columns.
        whole: also check the values, for example that every text is valid UTF-8, which Parquet does not do.

    Raises:
        DatasetError: the file does not exist, cannot be read, or is damaged.
    """
    try:
        check_is_file(path)
        table = pq.ParquetFile(path).read(columns=list(columns) if columns else None)
        if whole:
            table.validate(full=True)
        return table
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> DatasetError:
    """The error for a Parquet file that cannot be read."""
    return DatasetError(f"{path} is not a readable Parquet file ({error}); build the dataset or run the model again")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection while many objects without cycles are created, because it would scan them
    repeatedly.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def path_sha256(path: Path, pattern: str = "*") -> str:
    """The sha256 of a file, or of the names and contents of all files in a folder that match `pattern`.

    Names that begin with a dot are ignored, because downloads and version control keep their metadata there.
    """
    if path.is_file():
        return file_sha256(path)
    files = sorted(p for p in path.rglob(pattern) if p.is_file() and "/." not in f"/{p.relative_to(path).as_posix()}")
    lines = [f"{p.relative_to(path).as_posix()} {file_sha256(p)}" for p in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    check_is_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
