"""`refbench curate calibrate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from refbench.cli.output import ConsoleProgress, print_json, remark
from refbench.curation import calibration
from refbench.storage.files import home


@click.command()
@click.option(
    "--recipe", type=click.Path(path_type=Path), required=True, help="Recipe file; the fit is written into it."
)
@click.option("--tune", default="train", show_default=True, help="Split of scenes-hurried to fit on.")
@click.option("--test", default="test", show_default=True, help="Split of scenes-hurried to measure on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(recipe: Path, tune: str, test: str, as_json: bool) -> None:
    """Fit a recipe and measure it on scenes whose true masks are known.

    Writes the section [calibration] of the recipe, and measured.md beside it. Build scenes and scenes-hurried
    first.

    \b
    Example:
      refbench build scenes && refbench build scenes-hurried
      refbench curate calibrate --recipe datasets/refcoco-m/recipe.toml
    """
    with ConsoleProgress() as progress:
        _, measured = calibration.calibrate(
            recipe, tune=tune, test=test, work=home() / "curation" / "calibration", progress=progress
        )
    if as_json:
        print_json(dataclasses.asdict(measured))
    else:
        click.echo((recipe.parent / calibration.MEASURED_FILE).read_text(encoding="utf-8"))
        remark(f"{recipe} and {recipe.parent / calibration.MEASURED_FILE} are written")
