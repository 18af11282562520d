"""Weights of networks, stored in `$REFBENCH_HOME/weights`. Each entry has a name, and its file is named by its
sha256.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

from refbench.errors import DatasetError
from refbench.storage.files import atomic_file, file_sha256, home, read_record, write_json

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SUFFIX = r"(\.[A-Za-z0-9]{1,16})?"
CURE = "add the weights again with `refbench weights add`"


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights. `note` states its source and licence, if they were given."""

    name: str
    sha256: str
    bytes: int
    suffix: str
    note: str = ""

    @property
    def path(self) -> Path:
        """The path of the file."""
        return weights_folder() / "files" / f"{self.sha256}{self.suffix}"


def weights_folder() -> Path:
    """`$REFBENCH_HOME/weights`."""
    return home() / "weights"


def add_weights(name: str, file: Path, note: str = "") -> Weights:
    """Copy a file of weights to `$REFBENCH_HOME/weights`; if the name already exists, it is replaced.

    Args:
        name: 1 to 64 lower-case letters, digits, dots, dashes and underscores, beginning with a letter or a digit.
        file: for example an ONNX file.
        note: source and licence, for readers.

    Raises:
        DatasetError: the name is invalid, or the file cannot be read.
    """
    _check_name(name)
    try:
        suffix = file.suffix if re.fullmatch(SUFFIX, file.suffix) else ""
        found = Weights(name, file_sha256(file), file.stat().st_size, suffix, note)
    except OSError as error:
        raise DatasetError(f"the weights {file} cannot be read: {error}") from None
    if not found.path.is_file() or file_sha256(found.path) != found.sha256:
        with atomic_file(found.path) as temporary:
            shutil.copyfile(file, temporary)
    write_json(weights_folder() / f"{name}.json", dataclasses.asdict(found))
    return found


def list_weights() -> list[Weights]:
    """All added weights, by name.

    Raises:
        DatasetError: an entry was not written by refbench.
    """
    return [_read(path) for path in sorted(weights_folder().glob("*.json"))]


def find_weights(name: str) -> Weights:
    """The weights with this name, after checking their file against its sha256.

    Raises:
        DatasetError: there are no weights with this name, or the file is not the one that was added.
    """
    _check_name(name)
    entry = weights_folder() / f"{name}.json"
    if not entry.is_file():
        known = ", ".join(w.name for w in list_weights()) or "none"
        raise DatasetError(
            f"unknown weights {name!r} (known: {known}); add them with `refbench weights add {name} FILE`"
        )
    found = _read(entry)
    if not found.path.is_file() or file_sha256(found.path) != found.sha256:
        raise DatasetError(f"{found.path} is missing, or it is not the file that was added as {name}; {CURE}")
    return found


def weights_file(given: str) -> tuple[Path, str]:
    """The file and the sha256 of weights, given by name or, if the name does not exist, by path.

    Raises:
        DatasetError: there are no such weights and no such file, or the file is not the one that was added under this
            name.
    """
    known = NAME.fullmatch(given) and (weights_folder() / f"{given}.json").is_file()
    if not known and Path(given).is_file():
        return Path(given), file_sha256(Path(given))
    found = find_weights(given)
    return found.path, found.sha256


def short_name(weights_sha256: str) -> str:
    """The weights of a refiner for display: the beginning of a sha256, an unmodified hub id, or "none"."""
    return f"{weights_sha256[:12]}" if re.fullmatch("[0-9a-f]{64}", weights_sha256) else weights_sha256 or "none"


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise DatasetError(
            f"{name!r} is neither a file nor a valid name for weights; a name has up to 64 lower-case letters, "
            "digits, dots, dashes and underscores, and begins with a letter or a digit"
        )


def _read(entry: Path) -> Weights:
    found = read_record(entry, Weights, DatasetError, CURE)
    if (
        found.name != entry.stem
        or not re.fullmatch("[0-9a-f]{64}", found.sha256)
        or not re.fullmatch(SUFFIX, found.suffix)
    ):
        raise DatasetError(f"{entry} was not written by refbench; {CURE}")
    return found
