"""`refbench curate reviewers`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from refbench.cli.completion import curations
from refbench.cli.output import print_json, print_table
from refbench.cli.paths import FilePath
from refbench.curation.folder import open_curation
from refbench.curation.review.answers import REVIEW_FILE, Reviews
from refbench.curation.review.pace import agreements, pace_of


@click.command()
@click.argument("folder", metavar="DIR", shell_complete=curations, type=FilePath())
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def reviewers(folder: Path, as_json: bool) -> None:
    """Show how long reviewers take for an item, and how far they agree.

    Each item counts once per reviewer, with the last answer. Two masks that are nearly equal are one opinion. Kappa is
    Cohen's kappa over keep, change and drop: 0 is agreement by chance, 1 is full agreement.

    \b
    Example:
      refbench curate reviewers ~/.refbench/curation/refcoco-val
    """
    open_curation(folder)
    path = folder / REVIEW_FILE
    reviews = Reviews(path, new=False) if path.is_file() else None
    pace = pace_of(reviews.all_answers()) if reviews else []
    pairs = agreements(reviews.standing()) if reviews else []
    if as_json:
        print_json({"reviewers": [asdict(p) for p in pace], "agreements": [asdict(a) for a in pairs]})
        return
    actions = sorted({action for p in pace for action in p.actions})
    rows = []
    for p in pace:
        counts = [str(p.actions.get(a, 0)) for a in actions]
        rows.append([p.reviewer, str(p.items), *counts, _figure(p.median_seconds, ".1f")])
    print_table("reviewers", ["reviewer", "items", *actions, "median seconds"], rows)
    if pairs:
        rows = [[a.first, a.second, str(a.items), f"{a.agreed:.0%}", _figure(a.kappa, ".2f")] for a in pairs]
        print_table("agreement", ["first", "second", "items in common", "agreed", "kappa"], rows)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
