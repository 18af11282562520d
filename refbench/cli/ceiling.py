"""`refbench ceiling`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from refbench.cli.output import print_json, print_table, remark
from refbench.curation.known_sources import masks_of_truth
from refbench.reports import ceilings
from refbench.reports.leaderboard import SHORT_NAMES, format_interval


@click.command()
@click.argument("judge", metavar="A")
@click.argument("perfect", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ceiling(judge: str, perfect: str, as_json: bool) -> None:
    """Show the score that the masks of B reach when the masks of A judge them.

    A is a split, for example refcoco/val. B is a cleaned version of it, or a JSON file with the true masks in the
    format of `refbench curate calibrate`. If the masks of B are perfect, this is the highest score on A that a model
    can reach without imitating the errors of A.

    \b
    Example:
      refbench ceiling refcoco/val refcoco-m/val
      refbench ceiling scenes-hurried/val scenes/val --json
      refbench ceiling mine/val truth.json
    """
    masks = (
        masks_of_truth(judge, Path(perfect)) if perfect.endswith(".json") else ceilings.masks_of_version(judge, perfect)
    )
    found = ceilings.ceiling(judge, masks)
    if as_json:
        print_json(
            {
                "dataset": judge,
                "perfect": perfect,
                "samples": found.samples,
                "left_out": found.left_out,
                "metrics": {name: dataclasses.asdict(e) for name, e in found.metrics.items()},
                "slices": [
                    {
                        "dimension": s.dimension,
                        "label": s.label,
                        "samples": s.samples,
                        "metrics": {name: dataclasses.asdict(e) for name, e in s.metrics.items()},
                    }
                    for s in found.slices
                ],
            }
        )
        return
    title = f"{perfect} judged by {judge}: {found.samples} samples"
    rows = [[SHORT_NAMES.get(name, name), format_interval(e)] for name, e in found.metrics.items()]
    print_table(title, ["metric", "% [95 % interval]"], rows)
    shown = ("cumulative_iou", "mean_iou", "mean_boundary_iou")
    lines = [
        [s.dimension, s.label, str(s.samples), *(format_interval(s.metrics[m]) for m in shown)] for s in found.slices
    ]
    print_table("slices", ["slice", "label", "samples", *(SHORT_NAMES[m] for m in shown)], lines)
    if found.left_out:
        remark(f"{found.left_out} samples of {judge} are left out, because {perfect} does not have them")
