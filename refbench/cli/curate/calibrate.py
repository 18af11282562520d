"""`refbench curate calibrate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from refbench.cli.output import ConsoleProgress, print_json, remark
from refbench.cli.paths import FilePath
from refbench.curation import calibration, known_sources
from refbench.storage.files import home


@click.command()
@click.option("--recipe", type=FilePath(), required=True, help="Recipe file; the result is written into it.")
@click.option(
    "--tune", default="train", show_default=True, help="Split of `scenes-hurried` on which the calibration is fitted."
)
@click.option(
    "--test", default="test", show_default=True, help="Split of `scenes-hurried` on which the calibration is measured."
)
@click.option(
    "--known",
    multiple=True,
    metavar="DATASET/SPLIT=TRUTH.json",
    help="Split of coarse masks and file with their true masks, used to calibrate a recipe with a trusted "
    "refiner; repeatable.",
)
@click.option("--device", default="cpu", show_default=True, help="With --known: device for the trusted refiner.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(recipe: Path, tune: str, test: str, known: tuple[str, ...], device: str, as_json: bool) -> None:
    """Calibrate a recipe and measure it on masks whose true masks are known.

    Without --known, calibrates the witnesses on rendered scenes. Writes the section [calibration] of the recipe, and
    the page measured.md next to it. Build the datasets `scenes` and `scenes-hurried` first.

    With --known, uses your own masks to calibrate a recipe that has a trusted refiner. Writes the sections [trusted]
    and, with enough masks, [calibration] of the recipe, and the page known.md. Each source is measured twice: with
    calibrations from the other sources only, and with calibrations that also use its other images. TRUTH.json maps
    annotation ids to the true masks: {"size": [height, width], "counts": compressed COCO run-length code, "wrong":
    true if the coarse mask is on another object}.

    \b
    Example:
      refbench build scenes && refbench build scenes-hurried
      refbench curate calibrate --recipe datasets/refcoco-m/without-weights/recipe.toml
      refbench curate calibrate --recipe recipe.toml --known mine/val=truth.json
    """
    work = home() / "curation" / "calibration"
    if known:
        _on_known(recipe, known, work, device, as_json)
        return
    with ConsoleProgress() as progress:
        _, measured = calibration.calibrate(recipe, tune=tune, test=test, work=work, progress=progress)
    if as_json:
        print_json(dataclasses.asdict(measured))
    else:
        click.echo((recipe.parent / calibration.MEASURED_FILE).read_text(encoding="utf-8"))
        remark(f"{recipe} and {recipe.parent / calibration.MEASURED_FILE} are written")


def _on_known(recipe: Path, known: tuple[str, ...], work: Path, device: str, as_json: bool) -> None:
    pairs = [text.partition("=") for text in known]
    for address, sign, path in pairs:
        if not sign or "/" not in address or not Path(path).is_file():
            raise click.BadParameter(
                f"{address}{sign}{path}: write DATASET/SPLIT=TRUTH.json, where TRUTH.json is an existing file"
            )
    sources = [(address, Path(path)) for address, _, path in pairs]
    with ConsoleProgress() as progress:
        found = known_sources.calibrate_trusted(recipe, sources, work=work, device=device, progress=progress)
    if as_json:
        print_json({"sources": [{**dataclasses.asdict(a), "share": a.share} for a in found]})
    else:
        click.echo((recipe.parent / known_sources.KNOWN_FILE).read_text(encoding="utf-8"))
        remark(f"{recipe} and {recipe.parent / known_sources.KNOWN_FILE} are written")
