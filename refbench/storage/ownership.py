"""Folders that belong to one run, one curation or one refiner: later calls must have the same owner."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from refbench.errors import RunError
from refbench.storage.files import check_is_file, read_json, write_json

OTHER_FOLDER = "choose another folder with --out, or remove it"


def claim_folder(file: Path, content: Mapping[str, Any], names: Collection[str], owner: str, cure: str) -> None:
    """Write the `file` of a folder if it does not exist; otherwise check that the existing file has the same values for
    the keys `names`.

    Temporary files of interrupted calls are removed, so no other call may be writing to the folder.

    Args:
        file: the JSON file that states what its folder belongs to.
        content: the content of `file`.
        names: the keys whose values in `content` must match those of the existing file.
        owner: what the folder belongs to, for example "curation"; used in the error message.
        cure: what to do if the folder has another owner; used in the error message.

    Raises:
        RunError: the folder belongs to another owner.
    """
    check_absent_or_file(file)
    if not file.exists():
        write_json(file, content)
        return
    before = read_json(file, RunError)
    if not isinstance(before, dict):
        raise RunError(f"{file} was not written by refbench; {cure}")
    check_same(file.parent, changes(before, content, names), owner, cure)
    remove_leftovers(file.parent)


def refuse_links(folder: Path, names: Collection[str]) -> None:
    """Raise RunError if one of these subfolders is a link: files would be written outside of the folder."""
    for name in names:
        if (folder / name).is_symlink():
            raise RunError(f"{folder / name} is a link, so files would be written elsewhere; replace it by a folder")


def check_absent_or_file(path: Path) -> None:
    """Raise RunError if something else than a regular file is at a path that is going to be written."""
    with suppress(FileNotFoundError):
        check_is_file(path, RunError)


def changes(before: Mapping[str, Any], now: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """The differences between the values of `names`, each in the form "device 'cpu' there, 'cuda' now"."""
    return [
        f"{name} {_short(before.get(name))} there, {_short(now[name])} now"
        for name in names
        if before.get(name) != now[name]
    ]


def check_same(folder: Path, changed: Sequence[str], owner: str, cure: str) -> None:
    """Raise RunError if anything has changed."""
    if changed:
        raise RunError(f"{folder} belongs to another {owner} ({'; '.join(changed)}); {cure}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of interrupted calls."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _short(value: Any) -> str:
    """Format a value for a message; shorten hashes."""
    return f"{value[:8]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else repr(value)
