"""`refbench verify`: checks whether a built dataset is undamaged and whether it matches the published one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refbench.datasets.builders.base import (
    dataset_fingerprint,
    objects_fingerprint,
    questions_fingerprint,
    samples_fingerprint,
)
from refbench.datasets.catalogue import COUNTS, DIGESTS, Expected, expected, known_sha256
from refbench.errors import DatasetError
from refbench.records import Sample
from refbench.storage.manifest import MANIFEST_FILE, Manifest, dataset_folder, read_manifest
from refbench.storage.samples import load_samples, objects_of_file

OK, DIFFERS, ABSENT, NOTED = "ok", "differs", "absent", "noted"
WHOLE, PARTIAL, NOT_BUILT, UNVERIFIED = "whole", "partial", "absent", "unverified"
# Checks against published results: one of them at least makes a dataset whole or partial.
PUBLISHED = {*COUNTS, *DIGESTS, "categories", "objects"}


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. `status` is ok, differs, absent (a split that has not been built) or noted (not an error)."""

    split: str
    what: str
    expected: str
    found: str
    status: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`.

    `state` is whole, partial (published splits have not been built), differs, or unverified (there are no
    published counts for the splits that were built).
    """

    dataset: str
    state: str
    checks: list[Check]

    @property
    def holds(self) -> bool:
        return self.state != DIFFERS

    def to_json(self) -> dict[str, Any]:
        checks = [asdict(c) for c in self.checks]
        return {"dataset": self.dataset, "state": self.state, "holds": self.holds, "checks": checks}


def verify(dataset: str) -> Verification:
    """Read the built dataset and compare it with its manifest and with published counts.

    Raises:
        DatasetError: the dataset is not built, or a file cannot be read at all.

    Example:
        >>> from refbench import verify
        >>> verify("snapshots").holds
        True
    """
    manifest = read_manifest(dataset)
    wanted = expected(dataset)
    checks: list[Check] = []
    found: dict[str, str] = {}
    for split, stated in manifest.splits.items():
        try:
            samples = load_samples(f"{dataset}/{split}")
        except DatasetError as error:
            checks.append(Check(split, "file", "a table", "unreadable", DIFFERS, str(error)))
            found[split] = ""
            continue
        checks.append(_photographs(split, samples))
        figures = _figures(samples)
        found[split] = figures["fingerprint"]
        same = figures["fingerprint"] == stated.fingerprint
        remark = "" if same else "the Parquet file is not the one that was built: build the dataset again"
        checks.append(_check(split, "file", stated.fingerprint, figures["fingerprint"], remark))
        checks += _compare(split, wanted, figures, dataset)
        silent = str(stated.refs_without_sentences)
        if silent != "0":
            remark = "left out, since they have no expression; the counts above do not include them"
            checks.append(Check(split, "refs without sentences", "", silent, NOTED, remark))
    try:
        objects = objects_of_file(dataset_folder(dataset) / "objects.parquet")
    except DatasetError as error:
        checks.append(Check("", "objects.parquet", "a table", "unreadable", DIFFERS, str(error)))
        objects = []
    whole = dataset_fingerprint(found, objects_fingerprint(objects))
    checks.append(_check("", "dataset", manifest.fingerprint, whole, "" if whole == manifest.fingerprint else
                         "objects.parquet or a split is not the one that was built"))  # fmt: skip
    checks += _objects(wanted, found, len(objects))
    checks += [Check(s, "split", "built", "not built here", ABSENT) for s in wanted.splits if s not in found]
    checks += _sources(dataset, manifest)
    return Verification(dataset, _state(checks), checks)


def state_of(dataset: str) -> str:
    """The state of a dataset: whole, partial, differs or absent. Only the counts in the manifest are used; no table is
    opened.
    """
    if not (dataset_folder(dataset) / MANIFEST_FILE).is_file():
        return NOT_BUILT
    manifest, wanted = read_manifest(dataset), expected(dataset)
    checks: list[Check] = []
    for split, stated in manifest.splits.items():
        figures = {k: str(v) for k, v in dataclasses.asdict(stated).items()}
        checks += _compare(split, wanted, figures, dataset)
    checks += [Check(s, "split", "", "", ABSENT) for s in wanted.splits if s not in manifest.splits]
    checks += _objects(wanted, manifest.splits, manifest.objects)
    return _state(checks)


def _objects(wanted: Expected, built: Iterable[str], found: int) -> Iterator[Check]:
    # The published number is for the whole dataset; a part has fewer objects.
    if wanted.objects is not None and set(wanted.splits) <= set(built):
        yield _check("", "objects", str(wanted.objects), str(found))


def _state(checks: list[Check]) -> str:
    statuses = {c.status for c in checks}
    if DIFFERS in statuses:
        return DIFFERS
    if not any(c.status == OK and c.what in PUBLISHED for c in checks):
        return UNVERIFIED
    return PARTIAL if ABSENT in statuses else WHOLE


def _photographs(split: str, samples: list[Sample]) -> Check:
    """Whether the images of the build still exist. For images in a zip file, only the existence of the zip file is
    checked.
    """
    paths = {Path(s.image_path) for s in samples if s.image_path}
    missing = sum(not p.is_file() and not any(q.is_file() for q in p.parents) for p in paths)
    remark = "put them back, or build again with --images" if missing else "" if paths else "built without images"
    return _check(split, "photographs", str(len(paths)), str(len(paths) - missing), remark)


def _figures(samples: list[Sample]) -> dict[str, str]:
    return {
        "images": str(len({s.image_id for s in samples})),
        "refs": str(len({s.ref_id for s in samples})),
        "expressions": str(len(samples)),
        "no_target": str(sum(s.no_target for s in samples)),
        "fingerprint": samples_fingerprint(samples),
        "questions": questions_fingerprint(samples),
        "categories": ", ".join(sorted({s.category for s in samples})),
    }


def _compare(split: str, wanted: Expected, figures: dict[str, str], dataset: str) -> Iterator[Check]:
    if split not in wanted.splits:
        if wanted.splits:
            yield Check(split, "split", "", "built", NOTED, "nothing is published about this split")
        return
    row = wanted.splits[split]
    if row.categories and "categories" in figures:
        yield _check(split, "categories", ", ".join(sorted(row.categories)), figures["categories"], row.source)
    for name, value in {**row.counts, **row.digests}.items():
        if name not in figures:
            continue
        remark = row.source if name not in DIGESTS else ""
        if name == "questions" and figures[name] != value:
            remark = _whose(figures[name]) or "other expressions, or the same expressions for other objects"
        yield _check(split, name, str(value), figures[name], remark)


def _whose(questions: str) -> str:
    for dataset in KNOWN_QUESTIONS:
        for split, row in expected(dataset).splits.items():
            if row.digests.get("questions") == questions:
                return f"these are the expressions of {dataset}/{split}"
    return ""


# Those whose files are easily taken for one another.
KNOWN_QUESTIONS = ("refcoco", "refcoco+", "refcocog-umd", "refcocog-google", "refcoco-m")


def _sources(dataset: str, manifest: Manifest) -> Iterator[Check]:
    known = known_sha256(dataset)
    for source in manifest.sources:
        wanted = known.get(source.name)
        if wanted is None:
            continue
        same = wanted == source.sha256
        remark = "" if same else "the sha256 differs from the one on record: a rewritten copy, or another file"
        yield Check("", source.name, wanted, source.sha256, OK if same else NOTED, remark)


def _check(split: str, what: str, wanted: str, found: str, remark: str = "") -> Check:
    return Check(split, what, wanted, found, OK if wanted == found else DIFFERS, remark)
