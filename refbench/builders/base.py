"""What every dataset builder shares: its inputs, its product, and how the product reaches the disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from refbench.errors import DatasetError
from refbench.progress import Progress
from refbench.records import AnnotatedObject, Sample
from refbench.storage import dataset_folder, file_sha256, objects_table, samples_table, write_json, write_table
from refbench.version import __version__


@dataclass(frozen=True, slots=True)
class Sources:
    """What the user points a builder at: a folder of the original layout, or the file itself."""

    annotations: Path | None = None
    images: Path | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A file that went into a dataset."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Built:
    """A dataset before it is written: samples by split, every annotated object, and where they came from.

    `version` goes up when the same sources would give other samples. `notes` tell what the builder found odd
    but could work with; nothing is dropped without one.
    """

    builder: str
    version: int
    splits: dict[str, list[Sample]]
    objects: list[AnnotatedObject]
    sources: list[Source]
    licence: str
    notes: list[str] = field(default_factory=list)


LEFTOVER_SECONDS = 24 * 3600.0


class Builder(Protocol):
    """Makes a dataset. Files it creates (rendered images) go to `folder`, which becomes the dataset's."""

    def __call__(self, dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built: ...


def build_dataset(dataset: str, builder: Builder, sources: Sources, progress: Progress) -> dict[str, Any]:
    """Build, write and publish a dataset under `$REFBENCH_HOME/datasets`; returns its manifest.

    Raises:
        DatasetError: the sources are missing or broken; nothing of an older build is touched then.
    """
    with staging_folder(dataset) as staging:
        return write_dataset(dataset, builder(dataset, sources, staging, progress), staging)


def source_of(path: Path) -> Source:
    return Source(path.name, file_sha256(path), path.stat().st_size)


def samples_fingerprint(samples: Sequence[Sample]) -> str:
    """sha256 over what is asked and what is right, in order; where the images lie does not count."""
    digest = hashlib.sha256()
    for s in samples:
        row = [
            s.sample_id,
            s.image_id,
            s.height,
            s.width,
            s.expression,
            s.raw_expression,
            s.ref_id,
            s.sent_id,
            list(s.ann_ids),
            s.category,
            s.target.counts.decode("ascii"),
            s.no_target,
            [list(p) for p in s.polygons],
            list(s.box_xywh),
            list(s.tags),
        ]
        _update(digest, row)
    return digest.hexdigest()


def objects_fingerprint(objects: Sequence[AnnotatedObject]) -> str:
    digest = hashlib.sha256()
    for o in objects:
        row = [
            o.ann_id,
            o.image_id,
            o.category,
            o.crowd,
            list(o.mask.size),
            o.mask.counts.decode("ascii"),
            [list(p) for p in o.polygons],
            list(o.box_xywh),
        ]
        _update(digest, row)
    return digest.hexdigest()


def _update(digest: Any, row: list[Any]) -> None:
    # repr of a float is exact and the same on every platform, so this text is canonical.
    digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode("ascii"))
    digest.update(b"\n")


@contextmanager
def staging_folder(dataset: str) -> Iterator[Path]:
    """A new folder beside the dataset's own; gone at the end unless it was published."""
    parent = dataset_folder(dataset).parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f".{dataset}.*"):
            # A build that was killed; a younger one may still be at work.
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{dataset}.", dir=parent))
    except OSError as error:
        raise DatasetError(
            f"cannot write to {parent}: {error.strerror}; set REFBENCH_HOME to a folder of yours"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_dataset(dataset: str, built: Built, staging: Path) -> dict[str, Any]:
    """Write the tables and the manifest to `staging` and swap it in for the dataset's folder.

    Returns the manifest. A reader sees the old dataset or the new one, never a mixture.
    """
    _check_unique(dataset, built)
    splits: dict[str, dict[str, Any]] = {}
    for split, samples in built.splits.items():
        write_table(staging / f"{split}.parquet", samples_table(samples))
        splits[split] = {
            "images": len({s.image_id for s in samples}),
            "refs": len({s.ref_id for s in samples}),
            "expressions": len(samples),
            "fingerprint": samples_fingerprint(samples),
        }
    write_table(staging / "objects.parquet", objects_table(built.objects))
    parts = [f"{split}:{s['fingerprint']}" for split, s in sorted(splits.items())]
    parts.append(f"objects:{objects_fingerprint(built.objects)}")
    manifest = {
        "dataset": dataset,
        "builder": {"name": built.builder, "version": built.version},
        "refbench_version": __version__,
        "licence": built.licence,
        "sources": [{"name": s.name, "sha256": s.sha256, "bytes": s.bytes} for s in built.sources],
        "splits": splits,
        "objects": len(built.objects),
        "notes": built.notes,
        "fingerprint": hashlib.sha256("\n".join(parts).encode("ascii")).hexdigest(),
    }
    write_json(staging / "manifest.json", manifest)
    _publish(staging, dataset_folder(dataset))
    return manifest


def _check_unique(dataset: str, built: Built) -> None:
    for split, samples in built.splits.items():
        seen: set[str] = set()
        for s in samples:
            if s.sample_id in seen:
                raise DatasetError(
                    f"{dataset}/{split}: the sample id {s.sample_id} occurs twice, so a sent_id is given twice "
                    "in one ref; the annotation file is damaged"
                )
            seen.add(s.sample_id)


def _publish(staging: Path, folder: Path) -> None:
    staging.chmod(0o755)
    old = staging.with_name(staging.name + ".old")
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
