"""`refbench verify`."""

from __future__ import annotations

import click

from refbench.cli.completion import built_datasets
from refbench.cli.output import print_json, print_table, remark
from refbench.datasets.verification import DIFFERS, OK
from refbench.datasets.verification import verify as verify_dataset
from refbench.plugins.loading import available
from refbench.storage.manifest import dataset_folder


@click.command()
@click.argument("dataset", shell_complete=built_datasets)
@click.option("--complete", is_flag=True, help="Also fail if a published split has not been built.")
@click.option("--json", "as_json", is_flag=True, help="Print every comparison as JSON.")
@click.pass_context
def verify(context: click.Context, dataset: str, complete: bool, as_json: bool) -> None:
    """Compare a built dataset with published counts.

    Reads every table. If a file is damaged, or if a count or fingerprint differs from datasets/DATASET/expected.toml,
    the command prints it and exits with code 1.

    \b
    Example:
      refbench verify refcoco
      refbench verify refcoco --complete --json
    """
    if dataset not in available("builders") and not (dataset_folder(dataset) / "manifest.json").is_file():
        raise click.BadParameter(f"unknown dataset {dataset!r}; `refbench list datasets` shows all names")
    found = verify_dataset(dataset)
    holds = found.holds and not (complete and found.state != "whole")
    if as_json:
        print_json({**found.to_json(), "holds": holds})
    else:
        shown = [c for c in found.checks if c.status != OK]
        rows = [[c.split or "-", c.what, _short(c.expected), _short(c.found), c.status] for c in shown]
        if rows:
            print_table(dataset, ["split", "what", "expected", "found", "status"], rows)
        # One line each below the table: in a column of it they would leave no room for the figures.
        said: dict[str, dict[str, None]] = {}
        for c in shown:
            if c.remark:
                said.setdefault(c.remark, {})[c.what] = None
        for text, things in said.items():
            remark(f"{', '.join(things)}: {text}")
        good, bad = sum(c.status == OK for c in found.checks), sum(c.status == DIFFERS for c in found.checks)
        state = "differs" if bad else f"is {found.state}"
        remark(f"{dataset} {state}: {good} comparisons hold, {bad} differ")
    context.exit(0 if holds else 1)


def _short(text: str) -> str:
    return f"{text[:12]}..." if len(text) == 64 else text
