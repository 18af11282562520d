"""Findings: the results of all checks on all images of a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbench.curation.checks.base import LEAKS, SEVERITIES, ImageCheck, ImageView, SplitCheck
from refbench.curation.folder import SUMMARY_FILE, check_names, claim, default_folder, load_items
from refbench.curation.items import ImageItems
from refbench.curation.recipe import CONFIRMED, CONTRADICTED, Recipe
from refbench.curation.tables import audited_checks, read_findings, write_findings
from refbench.datasets.overlaps import overlap
from refbench.errors import DatasetError, RefbenchError, RunError
from refbench.plugins.loading import available, load
from refbench.plugins.options import construct
from refbench.records import Finding
from refbench.storage.escaping import markdown
from refbench.storage.files import atomic_file
from refbench.storage.locks import exclusive
from refbench.storage.process_pool import map_in_processes
from refbench.storage.progress import Progress, silent

# Checks that need a setting by the user. They run only if the recipe configures them or the user names them.
OPTIONAL = ("expression-toxic", CONFIRMED, CONTRADICTED)
IMAGES_A_JOB = 20
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Audited:
    """The result of an audit. `checks` are the checks that were run, and `left_out` are the checks that were skipped
    because there were no images.
    """

    folder: Path
    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    left_out: tuple[str, ...]
    images: int
    masks: int
    expressions: int


def audit(
    address: str,
    recipe: Recipe,
    *,
    out: Path | None = None,
    checks: Sequence[str] = (),
    with_images: bool = True,
    against: Sequence[str] = (),
    workers: int | None = None,
    progress: Progress = silent,
) -> Audited:
    """Run the checks on a split; writes findings.parquet and audit.md to the curation folder.

    Args:
        checks: names of checks; if empty, all checks.
        with_images: if False, checks that need images are skipped.
        against: splits or image lists that a model may have been trained on; each shared image is reported as a
            finding.
        workers: number of processes; if None, one per core.

    Raises:
        DatasetError: the split is not built, or a check does not exist.
        RunError: the folder belongs to another split, build or recipe, or another process is writing to it.
    """
    folder = out or default_folder(address)
    with exclusive(folder):
        return _audit(address, recipe, folder, checks, with_images, against, workers, progress)


def _audit(
    address: str,
    recipe: Recipe,
    folder: Path,
    checks: Sequence[str],
    with_images: bool,
    against: Sequence[str],
    workers: int | None,
    progress: Progress,
) -> Audited:
    images = load_items(address)
    check_names(recipe)
    chosen = _make_checks(recipe, checks)
    has_pictures = with_images and all(i.image_path for i in images)
    used = {n: c for n, c in chosen.items() if has_pictures or not c.needs_images}
    claim(folder, address, recipe)
    findings = _of_images(images, used, recipe, has_pictures, workers, progress)
    for check in used.values():
        if isinstance(check, SplitCheck):
            findings += check.find_in_split(images)
    findings += [f for other in against for f in _leaks(address, other, images)]
    left_out = tuple(n for n in chosen if n not in used)
    names = (*used, *([LEAKS] if against else []))
    # What another call has found by other checks stays.
    earlier, looked = _earlier(folder)
    kept = [f for f in earlier if f.check not in names]
    write_findings(folder, [*findings, *kept], sorted({*looked, *names}))
    masks, expressions = sum(len(i.masks) for i in images), sum(len(i.samples) for i in images)
    result = Audited(folder, tuple(findings), names, left_out, len(images), masks, expressions)
    with atomic_file(folder / SUMMARY_FILE) as temporary:
        temporary.write_text(_summary(address, result), encoding="utf-8")
    return result


def _of_images(
    images: Sequence[ImageItems],
    checks: Mapping[str, Any],
    recipe: Recipe,
    has_pictures: bool,
    workers: int | None,
    progress: Progress,
) -> list[Finding]:
    """Findings of the checks that look at one image at a time."""
    names = [n for n, c in checks.items() if isinstance(c, ImageCheck)]
    parts = [images[k : k + IMAGES_A_JOB] for k in range(0, len(images), IMAGES_A_JOB)]
    jobs = [(part, names, recipe.checks, has_pictures) for part in parts]
    findings: list[Finding] = []
    done = 0
    for job, found in zip(jobs, map_in_processes(_audit_images, jobs, workers), strict=True):
        findings += found
        done += len(job[0])
        progress("audit", done, len(images))
    return findings


def _earlier(folder: Path) -> tuple[list[Finding], tuple[str, ...]]:
    """Findings of earlier calls and the checks that were run; empty if the file cannot be read."""
    try:
        return read_findings(folder), audited_checks(folder)
    except (RunError, DatasetError):
        return [], ()


def _make_checks(recipe: Recipe, wanted: Sequence[str]) -> dict[str, Any]:
    names = list(available("checks"))
    for name in (*wanted, *recipe.checks):
        if name not in names:
            load("checks", name)  # says which there are
    out = {}
    for name in names:
        # A check that needs a network is imported only if it was asked for.
        asked = name in wanted if wanted else (name not in OPTIONAL or name in recipe.checks)
        by_models = name in (CONFIRMED, CONTRADICTED) and bool(recipe.validators)
        if asked or by_models:
            runs = {"runs": tuple(v.run for v in recipe.validators)} if by_models else {}
            out[name] = construct(name, load("checks", name), {**runs, **recipe.checks.get(name, {})})
    return out


def _audit_images(
    job: tuple[Sequence[ImageItems], Sequence[str], Mapping[str, Mapping[str, Any]], bool],
) -> list[Finding]:
    images, names, options, with_pictures = job
    checks = [construct(n, load("checks", n), options.get(n, {})) for n in names]
    out = []
    for items in images:
        view = ImageView(items, with_pictures)
        for check in checks:
            try:
                out += check.find(view)
            except RefbenchError:
                raise
            except Exception as error:
                raise RunError(
                    f"the check {check.code} failed on the image {items.image_id}: {type(error).__name__}: {error}"
                ) from error
    return out


def _leaks(address: str, other: str, images: Sequence[ImageItems]) -> Iterator[Finding]:
    shared = set(overlap(address, other).image_ids)
    for image in images:
        if image.image_id in shared:
            yield Finding(LEAKS, "warning", "image", image.image_id, image.image_id, f"{other} has this image too")


def _summary(address: str, result: Audited) -> str:
    lines = [
        f"# Audit of {address}",
        "",
        f"{result.images} images, {result.masks} masks, {result.expressions} expressions: "
        f"{len(result.findings)} findings.",
        "",
        "| check | severity | findings | share of its items | for example |",
        "|---|---|---|---|---|",
    ]
    totals = {"mask": result.masks, "expression": result.expressions, "image": result.images}
    for name in result.checks:
        found = [f for f in result.findings if f.check == name]
        if found:
            share = len({f.item_id for f in found}) / max(1, totals[found[0].subject])
            examples = "<br>".join(markdown(f"{f.item_id}: {f.message}") for f in found[:_SHOWN])
            lines.append(f"| {name} | {found[0].severity} | {len(found)} | {share:.1%} | {examples} |")
        else:
            lines.append(f"| {name} | | 0 | | |")
    if result.left_out:
        lines += ["", f"Left out, since they need the images: {', '.join(result.left_out)}."]
    return "\n".join(lines) + "\n"


def worst_severity(findings: Sequence[Finding]) -> str:
    """The highest severity among the findings; "" if there are none."""
    return max((f.severity for f in findings), key=SEVERITIES.index, default="")
