"""`refbench curate train-refiner`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from refbench.cli.output import ConsoleProgress, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.plugins.loading import load_attribute


@click.command("train-refiner")
@click.option(
    "--on", "addresses", multiple=True, required=True, metavar="DATASET/SPLIT",
    help="Split with accurate masks; repeatable.",
)  # fmt: skip
@click.option("--out", type=FilePath(), default="refiner.safetensors", show_default=True, help="The file to write.")
@click.option(
    "--hold-out", multiple=True, metavar="TEXT",
    help="Do not train on images with this text in their file name, but measure on them; repeatable.  [default: one "
    "image in five]",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Steps of eight crops each.")
@click.option("--side", type=int, default=192, show_default=True, help="Side of the crops in px.")
@click.option("--width", type=int, default=16, show_default=True, help="Channels of the network.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random choices.")
@click.option("--from", "start", type=FilePath(), help="Start from this file of an earlier training.")
@click.option("--device", default="cpu", show_default=True, help="For example cpu or cuda:0.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train_refiner(
    addresses: tuple[str, ...],
    out: Path,
    hold_out: tuple[str, ...],
    steps: int,
    side: int,
    width: int,
    seed: int,
    start: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Train a small network that redraws coarse masks, on accurate masks of your own.

    Coarse outlines are drawn around the accurate masks, with the faults of annotators in a hurry. The network learns to
    recover the accurate mask from the image and the coarse mask. It is measured on images that were held out. Needs
    torch. Use the file as `weights` of the refiner `trained` in a recipe.

    \b
    Example:
      refbench curate train-refiner --on scenes/train --steps 500 --out refiner.safetensors
      refbench weights add my-refiner refiner.safetensors
    """
    train = load_attribute("refbench.curation.refiner_training:train_refiner")
    with ConsoleProgress() as progress:
        done = train(
            addresses, out, hold_out=hold_out, steps=steps, side=side, width=width, seed=seed, start=start,
            device=device, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json({**dataclasses.asdict(done), "file": str(done.file)})
        return
    rows = [["masks trained on", str(done.masks)], ["loss", f"{done.loss:.3f}"]]
    rows += [["masks held out", str(done.held_out)]]
    if done.held_out:
        rows += [["boundary IoU of the coarse outlines", f"{done.before:.3f}"]]
        rows += [["boundary IoU of the answers", f"{done.after:.3f}"], ["better", f"{done.better:.0%}"]]
    print_table("", ["", "value"], rows)
    remark(f"{out} is written; use it as `weights` of the refiner `trained`")
