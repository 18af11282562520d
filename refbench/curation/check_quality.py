"""How often the findings of each check are right, measured on masks whose true masks are known.

The package contains the results for two known sources (`measured.csv`). `refbench curate audit --truth` measures the
checks on your own masks.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from refbench.curation.agreement import boundary_iou
from refbench.curation.findings import Audited
from refbench.curation.folder import load_items
from refbench.curation.known_sources import truth_of

# A mask below this boundary IoU with its true mask is faulty.
FAULTY_BELOW = 0.7
COLUMNS = ("source", "check", "masks", "faulty", "found", "right")


@dataclass(frozen=True, slots=True)
class CheckQuality:
    """The findings of a check on the masks of a known source.

    Of `masks` masks, `faulty` are on another object or have a boundary IoU below 0.7 with their true mask. The check
    has findings on `found` of the masks or on their expressions, and `right` of these masks are faulty.
    """

    source: str
    check: str
    masks: int
    faulty: int
    found: int
    right: int

    @property
    def precision(self) -> float | None:
        """Share of the found masks that are faulty; None if the check found nothing."""
        return self.right / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """Share of the faulty masks that the check found; None if no mask is faulty."""
        return self.right / self.faulty if self.faulty else None

    @property
    def base_rate(self) -> float:
        """Share of all masks that are faulty, which is the precision of a check that guesses."""
        return self.faulty / self.masks


def measure_checks(address: str, audited: Audited, truth: Path, source: str) -> list[CheckQuality]:
    """Measure every check of an audit that has findings on masks or expressions.

    Args:
        truth: JSON file with the true masks; see `curation.known_sources`.
        source: name of the source in the result.

    Raises:
        DatasetError: the file cannot be read, or contains none of the masks.
    """
    images = load_items(address)
    known = truth_of(truth, images)
    targets = [t for image in images for t in image.masks if t.mask_id in known]
    likeness = boundary_iou([t.mask for t in targets], [known[t.mask_id][0] for t in targets]).tolist()
    faulty = {
        t.mask_id for t, value in zip(targets, likeness, strict=True) if value < FAULTY_BELOW or known[t.mask_id][1]
    }
    mask_of = {t.mask_id: t.mask_id for t in targets} | {s.sample_id: t.mask_id for t in targets for s in t.samples}
    out = []
    for check in audited.checks:
        found = {mask_of[f.item_id] for f in audited.findings if f.check == check and f.item_id in mask_of}
        out.append(CheckQuality(source, check, len(targets), len(faulty), len(found), len(found & faulty)))
    return out


@cache
def measured_checks() -> tuple[CheckQuality, ...]:
    """The results that come with the package."""
    text = files("refbench.curation.checks").joinpath("measured.csv").read_text(encoding="utf-8")
    return tuple(
        CheckQuality(row["source"], row["check"], *(int(row[name]) for name in COLUMNS[2:]))
        for row in csv.DictReader(text.splitlines())
    )


def as_row(quality: CheckQuality) -> dict[str, str | int | float | None]:
    """A result as a row of JSON, with precision and recall between 0 and 1."""
    counts = {name: getattr(quality, name) for name in COLUMNS}
    return {**counts, "precision": quality.precision, "recall": quality.recall, "base_rate": quality.base_rate}


def table(measured: Sequence[CheckQuality]) -> list[list[str]]:
    """One row for each check that found something."""
    return [
        [q.check, f"{q.found} of {q.masks}", f"{q.precision:.0%}", "-" if q.recall is None else f"{q.recall:.0%}"]
        for q in measured
        if q.precision is not None
    ]
