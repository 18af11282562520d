"""What the site shows of a run: the figures of every sample, its slices, and its masks in parts."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.errors import RefbenchError
from refbench.masks.kernels import area_of_code
from refbench.records import Question
from refbench.reports.diagnosis import Diagnosis, diagnose, facts_of_samples
from refbench.reports.names import system_name
from refbench.reports.published import rules_on
from refbench.reports.recomputation import Status, Verdict
from refbench.reports.slices import slices_of
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.exact import sample_boundary_iou, sample_iou
from refbench.scoring.results import Result
from refbench.scoring.scorer import applicable_protocols
from refbench.scoring.sources import has_predictions, name_of, predictions_of, result_of
from refbench.storage.columns import numbers_of
from refbench.storage.manifest import of_one_build, parse_address, split_fingerprint
from refbench.storage.samples import SplitFile, load_questions
from refbench.storage.secrets import published

# Masks are loaded in parts of so many samples, when they are looked at.
PART_SAMPLES = 256
# Fractions are stored as integers of this unit.
UNIT = 10_000


@dataclass(frozen=True, slots=True)
class SiteRun:
    """A run or a predictions file with the figures of its samples.

    `slug` is its name in addresses. `verdicts` are by protocol; empty for a predictions file that is not a run.
    `diagnosis` is None if the dataset of the run is not here in the same version, so that no sample can be shown.
    """

    slug: str
    name: str
    source: Path
    result: Result
    verdicts: dict[str, Verdict]
    diagnosis: Diagnosis | None
    reason: str = ""

    @property
    def address(self) -> str:
        return self.result.address

    @property
    def is_limited(self) -> bool:
        """Whether it is a run on the first samples only, which cannot be compared with others."""
        return self.result.run is not None and self.result.run.limit is not None

    @property
    def scores(self) -> ScoreTable | None:
        """The counts of its samples, computed from its predictions or read from its folder."""
        return self.result.scores if self.diagnosis is None else self.diagnosis.scores

    @property
    def status(self) -> str:
        """The status of its figures: that of the first protocol that is not verified, otherwise verified."""
        found = [v.status for v in self.verdicts.values() if v.status is not Status.VERIFIED]
        return str(found[0]) if found else str(Status.VERIFIED)


def read_run(source: Path, slug: str, verdicts: dict[str, Verdict], dataset: str | None = None) -> SiteRun:
    """A run or predictions with all that its page needs.

    Raises:
        RefbenchError: it cannot be read, or does not match its split.
    """
    if dataset is None:
        result = result_of(source)
    else:
        # Beside the published results of its split, each under its own protocol.
        result = result_of(source, dataset, rules=applicable_protocols(rules_on(dataset), dataset)[0])
    name = system_name(result.run) if result.run else name_of(source)
    refused = next((published(v.reason) for v in verdicts.values() if v.status is Status.REFUSED), "")
    if refused:
        return SiteRun(slug, name, source, result, verdicts, None, refused)
    if not has_predictions(source):
        return SiteRun(slug, name, source, result, verdicts, None, "the folder contains no predictions")
    try:
        if split_fingerprint(result.address) != result.fingerprint:
            reason = f"it was made with another version of {result.address} than the local build"
            return SiteRun(slug, name, source, result, verdicts, None, reason)
        diagnosis = diagnose(source, dataset, write=False)
    except RefbenchError as error:
        return SiteRun(slug, name, source, result, verdicts, None, published(str(error)))
    return SiteRun(slug, name, source, result, verdicts, diagnosis)


def sample_columns(run: SiteRun, samples: Sequence[Question]) -> dict[str, Any]:
    """The figures of the samples in the order of the split; null for samples that the run does not have.

    `iou` and `boundary` are in units of 1 / UNIT. `kind` is the index of the kind of error, -1 if nothing is wrong.
    """
    if run.diagnosis is None:
        return {}
    scores, errors = run.diagnosis.scores, run.diagnosis.errors
    row_of = {name: k for k, name in enumerate(scores.sample_ids())}
    rows = [row_of.get(sample.sample_id) for sample in samples]
    iou = np.rint(UNIT * sample_iou(scores)).astype(int).tolist()
    boundary = np.rint(UNIT * sample_boundary_iou(scores)).astype(int).tolist()
    kinds, failed = errors.kind.tolist(), scores.failed.tolist()
    return {
        "iou": [None if r is None else iou[r] for r in rows],
        "boundary": [None if r is None else boundary[r] for r in rows],
        "kind": [None if r is None else kinds[r] for r in rows],
        "failed": [k for k, r in enumerate(rows) if r is not None and failed[r]],
    }


def prediction_parts(run: SiteRun, samples: Sequence[Question]) -> tuple[list[list[str | None]], dict[int, str]]:
    """The run-length codes of the predictions in parts of PART_SAMPLES samples, and the errors of failed samples.

    A code is null if there is no prediction.
    """
    place = {sample.sample_id: k for k, sample in enumerate(samples)}
    codes: list[str | None] = [None] * len(samples)
    errors: dict[int, str] = {}
    for prediction in predictions_of(run.source, run.address):
        k = place[prediction.sample_id]
        if prediction.error:
            errors[k] = prediction.error[:500]
        else:
            codes[k] = prediction.mask.counts.decode("ascii")
    return [codes[k : k + PART_SAMPLES] for k in range(0, len(codes), PART_SAMPLES)], errors


@dataclass(frozen=True, slots=True)
class SiteSplit:
    """A split that is shown: its samples, in the order of the dataset, and the images with their names on the site."""

    slug: str
    address: str
    fingerprint: str
    file: SplitFile
    samples: list[Question]
    images: list[str]

    def targets(self) -> Iterator[list[str]]:
        """The run-length codes of the targets in parts of PART_SAMPLES samples."""
        for first in range(0, len(self.samples), PART_SAMPLES):
            rows = np.arange(first, min(first + PART_SAMPLES, len(self.samples)))
            yield self.file.rows("target_counts", rows).to_pylist()


def read_split(address: str, slug: str) -> SiteSplit:
    def read() -> tuple[SplitFile, list[Question], str]:
        return SplitFile(address), *load_questions(address)

    file, samples, fingerprint = of_one_build(parse_address(address)[0], read)
    return SiteSplit(slug, address, fingerprint, file, samples, list(dict.fromkeys(s.image_id for s in samples)))


def split_columns(split: SiteSplit) -> dict[str, Any]:
    """The properties of the samples of a split, and its slices as bit sets (base64, first sample in the lowest bit)."""
    samples = split.samples
    about = split.file.table(["category", "no_target"])
    number = {image_id: k for k, image_id in enumerate(split.images)}
    columns: dict[str, Any] = {
        "address": split.address,
        "ids": [s.sample_id.removeprefix(f"{split.address}/") for s in samples],
        "images": split.images,
        "image": [number[s.image_id] for s in samples],
        "size": [[s.height, s.width] for s in samples],
        "expression": [s.expression for s in samples],
        "category": about["category"].to_pylist(),
        "noTarget": np.flatnonzero(numbers_of(about["no_target"])).tolist(),
        "part": PART_SAMPLES,
        "unit": UNIT,
    }
    # Of all samples, whatever part of them a run has.
    codes = itertools.chain.from_iterable(split.targets())
    areas = [area_of_code(c.encode("ascii"), s.height * s.width) for s, c in zip(samples, codes, strict=True)]
    found = slices_of(facts_of_samples(split.address, [s.sample_id for s in samples], np.array(areas, np.int64)))
    slices = [{"dimension": p.dimension, "label": p.label, "bits": _bits(p.rows)} for p in found]
    return {**columns, "slices": slices}


def target_parts(split: SiteSplit) -> Iterator[dict[str, Any]]:
    """The run-length codes of the targets in parts: the different `codes`, and which of them each sample has (`of`)."""
    for targets in split.targets():
        codes: dict[str, int] = {}
        chosen = [codes.setdefault(code, len(codes)) for code in targets]
        yield {"codes": list(codes), "of": chosen}


def _bits(inside: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(inside, bitorder="little").tobytes()).decode("ascii")
