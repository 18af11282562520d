"""`refbench verify`: is a built dataset undamaged, and is it the published one?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from refbench.builders.base import dataset_fingerprint, objects_fingerprint, questions_fingerprint, samples_fingerprint
from refbench.catalogue import DIGESTS, Expected, expected, known_sha256
from refbench.records import Sample
from refbench.storage import dataset_folder, load_samples, objects_of_file, read_manifest

OK, DIFFERS, ABSENT, NOTED = "ok", "differs", "absent", "noted"
WHOLE, PARTIAL, NOT_BUILT = "whole", "partial", "absent"


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. `status` is ok, differs, absent (a split that is not built here) or noted (told, no fault)."""

    split: str
    what: str
    expected: str
    found: str
    status: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """`state` is whole, partial (published splits are absent) or differs."""

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
    """Read everything that is built, compare it with its manifest and with what is published.

    Raises:
        DatasetError: the dataset is not built, or a file cannot be read at all.
    """
    manifest = read_manifest(dataset)
    wanted = expected(dataset)
    checks: list[Check] = []
    found: dict[str, str] = {}
    for split, stated in manifest["splits"].items():
        samples = load_samples(f"{dataset}/{split}")
        figures = _figures(samples)
        found[split] = figures["fingerprint"]
        same = figures["fingerprint"] == stated["fingerprint"]
        remark = "" if same else "the Parquet file is not the one that was built: build the dataset again"
        checks.append(_check(split, "file", stated["fingerprint"], figures["fingerprint"], remark))
        checks += _compare(split, wanted, figures, dataset)
    objects = objects_of_file(dataset_folder(dataset) / "objects.parquet")
    whole = dataset_fingerprint(found, objects_fingerprint(objects))
    checks.append(_check("", "dataset", manifest["fingerprint"], whole, "" if whole == manifest["fingerprint"] else
                         "objects.parquet or a split is not the one that was built"))  # fmt: skip
    # Published for the whole of it: a part has fewer.
    if wanted.objects is not None and set(wanted.splits) <= set(found):
        checks.append(_check("", "objects", str(wanted.objects), str(len(objects))))
    checks += [Check(s, "split", "built", "not built here", ABSENT) for s in wanted.splits if s not in found]
    checks += _sources(dataset, manifest)
    return Verification(dataset, _state(checks), checks)


def state_of(dataset: str) -> str:
    """whole, partial, differs or absent, from the manifest's counts alone: no table is opened."""
    if not (dataset_folder(dataset) / "manifest.json").is_file():
        return NOT_BUILT
    manifest, wanted = read_manifest(dataset), expected(dataset)
    checks: list[Check] = []
    for split, stated in manifest["splits"].items():
        figures = {k: str(v) for k, v in stated.items()}
        checks += _compare(split, wanted, figures, dataset)
    checks += [Check(s, "split", "", "", ABSENT) for s in wanted.splits if s not in manifest["splits"]]
    return _state(checks)


def _state(checks: list[Check]) -> str:
    statuses = {c.status for c in checks}
    return DIFFERS if DIFFERS in statuses else PARTIAL if ABSENT in statuses else WHOLE


def _figures(samples: list[Sample]) -> dict[str, str]:
    return {
        "images": str(len({s.image_id for s in samples})),
        "refs": str(len({s.ref_id for s in samples})),
        "expressions": str(len(samples)),
        "no_target": str(sum(s.no_target for s in samples)),
        "fingerprint": samples_fingerprint(samples),
        "questions": questions_fingerprint(samples),
    }


def _compare(split: str, wanted: Expected, figures: dict[str, str], dataset: str) -> Iterator[Check]:
    if split not in wanted.splits:
        if wanted.splits:
            yield Check(split, "split", "", "built", NOTED, "nothing is published about this split")
        return
    row = wanted.splits[split]
    for name, value in {**row.counts, **row.digests}.items():
        if name not in figures:
            continue
        remark = row.source if name not in DIGESTS else ""
        if name == "questions" and figures[name] != value:
            remark = _whose(figures[name]) or "other expressions, or the same of other objects"
        yield _check(split, name, str(value), figures[name], remark)


def _whose(questions: str) -> str:
    for dataset in KNOWN_QUESTIONS:
        for split, row in expected(dataset).splits.items():
            if row.digests.get("questions") == questions:
                return f"these are the expressions of {dataset}/{split}"
    return ""


# Those whose files are easily taken for one another.
KNOWN_QUESTIONS = ("refcoco", "refcoco+", "refcocog-umd", "refcocog-google", "refcoco-m")


def _sources(dataset: str, manifest: dict[str, Any]) -> Iterator[Check]:
    known = known_sha256(dataset)
    for source in manifest.get("sources", []):
        wanted = known.get(source["name"])
        if wanted is None:
            continue
        same = wanted == source["sha256"]
        remark = "" if same else "not the file whose sha256 is on record: a copy that was written anew, or another one"
        yield Check("", source["name"], wanted, source["sha256"], OK if same else NOTED, remark)


def _check(split: str, what: str, wanted: str, found: str, remark: str = "") -> Check:
    return Check(split, what, wanted, found, OK if wanted == found else DIFFERS, remark)
