"""The gate: checks whether a run is worse than a baseline, with output for people and for CI.

For scored folders it needs only scores.parquet: no dataset, no masks, no model.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refbench.errors import RunError
from refbench.reports.comparison import Difference, aligned, check_same_dataset, differences, sample_differences
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.results import Result
from refbench.scoring.sources import result_of
from refbench.scoring.statistics.power import SIGNIFICANCE
from refbench.storage.escaping import markdown, xml_text
from refbench.storage.progress import Progress, silent

FEWEST_IMAGES = 6
DEFAULT_MARGINS = {"cumulative_iou": 0.5, "mean_iou": 0.5, "mean_boundary_iou": 0.5}

PASSED, FAILED = "passed", "failed"


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One check of the gate; `detail` describes its result in a sentence."""

    name: str
    verdict: str
    detail: str
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    run: Result
    baseline: Result
    samples: int
    checks: list[GateCheck]

    @property
    def holds(self) -> bool:
        return all(check.verdict == PASSED for check in self.checks)


def gate(
    run: Path,
    baseline: Path,
    margins: Mapping[str, float],
    *,
    dataset: str | None = None,
    progress: Progress = silent,
) -> GateResult:
    """Check that a run has no missing samples, no new failures, and no metric that is worse by more than its margin.

    A metric fails if it is worse by more than its margin, in percentage points, and if the difference is significant at
    5 % in a permutation test. With fewer than 6 images, the test cannot be significant, so only the margin counts.

    Args:
        run, baseline: scored folders, scores.parquet files, run folders, or predictions.
        dataset: the split of the predictions; not needed for folders that state it.
        margins: the margin of each metric, by the name of the metric in the protocol `refbench`.

    Raises:
        RunError: a file is damaged, or the two are not on the same dataset and split.
        PredictionError: predictions do not match the split, or their split is not given.
    """
    before, now = result_of(baseline, dataset, progress), result_of(run, dataset, progress)
    for place, result in ((baseline, before), (run, now)):
        if result.scores is None or not len(result.scores):
            raise RunError(f"{place} contains no scored samples; run `refbench score` again")
    check_same_dataset(before, now)
    unknown = [name for name in margins if name not in REFBENCH.metrics]
    if unknown:
        raise RunError(f"unknown metric {unknown[0]!r}; choose from {', '.join(REFBENCH.metrics)}")
    missing, extra = sample_differences(before, now)
    checks = [_check_samples(before, missing, extra)]
    if missing or extra:
        return GateResult(now, before, 0 if now.scores is None else len(now.scores), checks)
    now = aligned(before, now)
    if before.scores is None or now.scores is None:
        raise RunError(f"{run} holds no samples")
    checks.append(_check_failures(before.scores, now.scores))
    if margins:
        found = differences(before.scores, now.scores, list(margins))
        images = len(set(before.scores.image_id))
        checks += [_check_metric(d, margins[d.metric], images) for d in found]
    return GateResult(now, before, len(now.scores), checks)


def _check_samples(before: Result, missing: list[str], extra: list[str]) -> GateCheck:
    if not missing and not extra:
        return GateCheck("samples", PASSED, f"all {before.samples} samples of the baseline are there, and no others")
    told = [f"{len(missing)} are missing (the first: {missing[0]})"] if missing else []
    told += [f"{len(extra)} are not in the baseline (the first: {extra[0]})"] if extra else []
    return GateCheck("samples", FAILED, f"{'; '.join(told)}: run and score the whole split again")


def _check_failures(before: ScoreTable, now: ScoreTable) -> GateCheck:
    new = np.flatnonzero(now.failed & ~before.failed)
    counts = f"{int(now.failed.sum())} failed samples, {int(before.failed.sum())} in the baseline"
    if not len(new):
        return GateCheck("failures", PASSED, counts)
    return GateCheck("failures", FAILED, f"{counts}; {len(new)} new ones, the first: {now.sample_id[int(new[0])]}")


def _check_metric(found: Difference, margin: float, images: int) -> GateCheck:
    beyond = found.difference < -margin
    # With very few images, even the smallest possible p-value of the permutation test is not below SIGNIFICANCE.
    can_tell = images >= FEWEST_IMAGES
    by_chance = can_tell and found.p_value > SIGNIFICANCE
    figures = (
        f"{found.second:.2f} against {found.first:.2f}, {found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}], "
        f"p = {found.p_value:.4f}, margin {margin:g}"
    )
    if beyond and not by_chance:
        told = "and significantly" if can_tell else f"on {images} images, too few for a test"
        return GateCheck(found.metric, FAILED, f"worse by more than its margin, {told}: {figures}", found)
    if beyond:
        return GateCheck(found.metric, PASSED, f"worse by more than its margin, not significantly: {figures}", found)
    told = "not worse" if found.difference >= 0 else "worse, within its margin"
    return GateCheck(found.metric, PASSED, f"{told}: {figures}", found)


def to_json(result: GateResult) -> dict[str, Any]:
    """The content of `refbench gate --json`."""
    return {
        "holds": result.holds,
        "dataset": result.baseline.address,
        "samples": result.samples,
        "checks": [
            {"name": c.name, "verdict": c.verdict, "detail": c.detail}
            | ({} if c.difference is None else {"figures": asdict(c.difference)})
            for c in result.checks
        ],
    }


def to_junit(result: GateResult) -> str:
    """JUnit XML with one test case per check, for CI servers."""
    failures = sum(c.verdict == FAILED for c in result.checks)
    counts = {"tests": str(len(result.checks)), "failures": str(failures), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", counts)
    name = xml_text(f"refbench gate {result.baseline.address}")
    suite = ElementTree.SubElement(suites, "testsuite", {"name": name, **counts})
    for check in result.checks:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "refbench.gate", "name": xml_text(check.name)})
        if check.verdict == FAILED:
            ElementTree.SubElement(case, "failure", {"message": xml_text(check.detail)}).text = xml_text(check.detail)
        else:
            ElementTree.SubElement(case, "system-out").text = xml_text(check.detail)
    ElementTree.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n'


def to_markdown(result: GateResult) -> str:
    """A summary for a pull request, in the Markdown of GitHub."""
    verdict = "passes" if result.holds else "fails"
    lines = [f"### {'✅' if result.holds else '❌'} The gate {verdict}: {markdown(result.baseline.address)}", ""]
    lines += ["| check | baseline | run | difference | 95 % interval | p | |", "|---|--:|--:|--:|:-:|--:|---|"]
    for check in result.checks:
        mark, d = "✅" if check.verdict == PASSED else "❌", check.difference
        if d is None:
            lines.append(f"| {markdown(check.name)} | | | | | | {mark} {markdown(check.detail)} |")
            continue
        told = check.detail.partition(":")[0]
        lines.append(
            f"| {markdown(check.name)} | {d.first:.2f} | {d.second:.2f} | {d.difference:+.2f} | "
            f"{d.low:+.2f} to {d.high:+.2f} | {d.p_value:.4f} | {mark} {markdown(told)} |"
        )
    lines += ["", f"{result.samples} samples; percent; intervals and tests by image."]
    return "\n".join(lines) + "\n"
