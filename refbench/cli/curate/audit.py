"""`refbench curate audit`."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from refbench.cli.completion import splits
from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import check_quality, findings
from refbench.curation.check_quality import CheckQuality, measure_checks
from refbench.curation.checks.base import SEVERITIES
from refbench.curation.recipe import Recipe, read_recipe
from refbench.storage.files import project_data

NEVER = "never"


def default_recipe() -> Path:
    return project_data("datasets") / "refcoco-m" / "recipe.toml"


def recipe_of(path: Path | None) -> Recipe:
    """The recipe in the file `path`, or the default recipe if `path` is None."""
    return read_recipe(path or default_recipe())


@click.command()
@click.argument("address", metavar="DATASET/SPLIT", shell_complete=splits)
@click.option("--recipe", type=FilePath(), help="Recipe file.  [default: the recipe of refcoco-m]")
@click.option("--out", type=FilePath(), help="Output folder.  [default: below $REFBENCH_HOME/curation]")
@click.option("--check", "checks", multiple=True, metavar="NAME", help="Only this check; repeatable.")
@click.option("--no-images", is_flag=True, help="Skip the checks that need images.")
@click.option(
    "--against", multiple=True, metavar="SPLIT|LIST", help="Also report images that occur in this split or image list."
)
@click.option(
    "--fail-on", type=click.Choice((*SEVERITIES, NEVER)), default="error", show_default=True,
    help="Exit with code 1 if there is a finding of this severity or higher.",
)  # fmt: skip
@click.option(
    "--truth", type=FilePath(exists=True, dir_okay=False),
    help="JSON file with the true masks, in the format of `refbench curate calibrate`: also measure how often each "
    "check is right.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(1), help="Number of processes.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(
    address: str,
    recipe: Path | None,
    out: Path | None,
    checks: tuple[str, ...],
    no_images: bool,
    against: tuple[str, ...],
    fail_on: str,
    truth: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Find errors in masks, expressions and images.

    Runs the checks and writes findings.parquet, with one row per finding, and audit.md to the curation folder.
    `refbench list checks` describes the checks, and shows how often they are right on photographs and rendered scenes.

    With --truth, measures the checks on masks whose true masks are known. A mask is faulty if it is on another object,
    or if its boundary IoU with the true mask is below 0.7.

    \b
    Example:
      refbench curate audit refcoco/val
      refbench curate audit refcoco/val --no-images --fail-on warning --json
      refbench curate audit refcoco/val --against refcocog-umd/train
      refbench curate audit mine/val --truth truth.json
    """
    with ConsoleProgress() as progress:
        found = findings.audit(
            address, recipe_of(recipe), out=out, checks=checks, with_images=not no_images, against=against,
            workers=workers, progress=progress,
        )  # fmt: skip
    measured = (
        [] if truth is None else measure_checks(address, found, truth, f"{address} ({truth.resolve().parent.name})")
    )
    _show(address, found, measured, as_json)
    worst = findings.worst_severity(found.findings)
    if fail_on != NEVER and worst and SEVERITIES.index(worst) >= SEVERITIES.index(fail_on):
        sys.exit(1)


def _show(address: str, found: findings.Audited, measured: Sequence[CheckQuality], as_json: bool) -> None:
    counts = Counter(f.check for f in found.findings)
    severities = {f.check: f.severity for f in found.findings}
    if as_json:
        print_json(
            {
                "source": address,
                "folder": str(found.folder),
                "images": found.images,
                "masks": found.masks,
                "expressions": found.expressions,
                "checks": {name: counts[name] for name in found.checks},
                "left_out": list(found.left_out),
                "findings": [dataclasses.asdict(f) for f in found.findings],
                **({"measured": [check_quality.as_row(q) for q in measured]} if measured else {}),
            }
        )
    else:
        rows = [[name, severities.get(name, ""), str(counts[name])] for name in found.checks]
        print_table(
            f"{address}: {found.masks} masks, {found.expressions} expressions", ["check", "severity", "findings"], rows
        )
        if measured:
            title = f"{measured[0].faulty} of {measured[0].masks} masks ({measured[0].base_rate:.0%}) are faulty"
            print_table(title, ["check", "found", "precision", "recall"], check_quality.table(measured))
        if found.left_out:
            remark(f"left out, since they need the images: {', '.join(found.left_out)}")
        remark(f"findings.parquet and audit.md are in {found.folder}; next: refbench curate propose {found.folder}")
