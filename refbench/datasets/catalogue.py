"""Known facts about each dataset: `sources.toml` (where its files are) and `expected.toml` (published counts)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbench.errors import DatasetError
from refbench.storage.files import project_data

COUNTS = ("images", "refs", "expressions", "no_target")
DIGESTS = ("fingerprint", "questions")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file; `path` is its path in the repository. `sha256` is "" if it has not been published; `bytes` may be
    rounded.
    """

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of a dataset repository on the hub at one commit."""

    repo: str
    revision: str
    licence: str
    files: tuple[HubFile, ...]

    def describe(self) -> str:
        size = sum(f.bytes for f in self.files) / 1e6
        pinned = f"commit {self.revision[:12]}" if is_commit(self.revision) else f"revision {self.revision}, not pinned"
        return f"{len(self.files)} files, {size:,.0f} MB, from {self.repo} ({pinned}); licence: {self.licence}"


@dataclass(frozen=True, slots=True)
class ExpectedSplit:
    """Published counts of a split. `counts` contains some of COUNTS, `digests` some of DIGESTS."""

    counts: Mapping[str, int]
    digests: Mapping[str, str]
    source: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """Published counts of a dataset; `objects` is None if no source states it."""

    splits: Mapping[str, ExpectedSplit]
    objects: int | None


def is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)


def hub_source(dataset: str, what: str = "hub", path: Path | None = None) -> HubSource:
    """Read the section `hub` (the dataset) or `images` (only the images) from the `sources.toml` of the dataset, or
    from the file `path` if it is given.

    Raises:
        DatasetError: no copy on the hub is listed for the dataset, or the file is invalid.
    """
    path = path or project_data("datasets") / dataset / "sources.toml"
    section = read_toml(path).get(what) if path.is_file() else None
    if section is None:
        raise DatasetError(
            f"refbench has no download location for {'the images of ' if what == 'images' else ''}{dataset} "
            f"({path} has no entry [{what}]); pass local files with --annotations and --images"
        )
    try:
        files = tuple(HubFile(str(f["path"]), str(f.get("sha256", "")), int(f["bytes"])) for f in section["files"])
        source = HubSource(str(section["repo"]), str(section["revision"]), str(section["licence"]), files)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} [{what}]: {error} is missing or invalid; for an example, see datasets/refcoco-m/sources.toml"
        ) from None
    for file in source.files:
        if file.sha256 and not (len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef")):
            raise DatasetError(f"{path}: {file.sha256!r} is not a valid sha256")
    return source


def known_sha256(dataset: str) -> dict[str, str]:
    """Map of file names to published sha256 values, for the original files of the dataset whose sha256 has been
    published.
    """
    path = project_data("datasets") / dataset / "sources.toml"
    rows = read_toml(path).get("files", []) if path.is_file() else []
    return {str(row["name"]): str(row["sha256"]) for row in rows if "sha256" in row}


def home_page(dataset: str) -> str:
    """The home page of the dataset; "" for datasets that are included in refbench, and for your own datasets."""
    path = project_data("datasets") / dataset / "sources.toml"
    return str(read_toml(path).get("url", "")) if path.is_file() else ""


def expected(dataset: str) -> Expected:
    """The content of `expected.toml`; empty if the dataset has no such file."""
    path = project_data("datasets") / dataset / "expected.toml"
    content = read_toml(path) if path.is_file() else {}
    splits = {}
    for name, row in content.get("splits", {}).items():
        unknown = set(row) - {*COUNTS, *DIGESTS, "source", "categories"}
        if unknown:
            raise DatasetError(f"{path}, split {name}: unknown key {', '.join(sorted(unknown))}")
        counts = {k: int(row[k]) for k in COUNTS if k in row}
        digests = {k: str(row[k]) for k in DIGESTS if k in row}
        categories = tuple(map(str, row.get("categories", ())))
        splits[name] = ExpectedSplit(counts, digests, str(row.get("source", "")), categories)
    return Expected(splits, content.get("objects"))


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid TOML: {error}") from None
