"""`refbench curate propose`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.completion import curations
from refbench.cli.output import ConsoleProgress, parse_options, print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import proposals


@click.command()
@click.argument("folder", metavar="DIR", shell_complete=curations, type=FilePath())
@click.option("--refiner", "refiners", multiple=True, metavar="NAME", help="Only this refiner; repeatable.")
@click.option("-o", "options", multiple=True, metavar="REFINER.KEY=VALUE", help="Option of a refiner.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Device for refiners that are neural networks: cpu, cuda or cuda:1.",
)
@click.option("--limit", type=click.IntRange(1), help="Process only the first N images.")
@click.option("--workers", type=click.IntRange(1), help="Number of processes.  [default: one per core, or 1 on a GPU]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def propose(
    folder: Path,
    refiners: tuple[str, ...],
    options: tuple[str, ...],
    device: str,
    limit: int | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Let refiners propose a new mask for every mask of the split.

    DIR is the folder that `refbench curate audit` wrote. If the command is interrupted, run it again: finished
    proposals are kept.

    \b
    Example:
      refbench curate propose ~/.refbench/curation/refcoco-val
      refbench curate propose DIR --refiner sam-hq -o sam-hq.weights=/models/sam-hq --device cuda
    """
    by_refiner: dict[str, dict[str, str]] = {}
    for key, value in parse_options(options).items():
        refiner, dot, name = key.partition(".")
        if not dot or not name:
            raise click.BadParameter(f"{key!r} is not REFINER.KEY", param_hint="'-o'")
        by_refiner.setdefault(refiner, {})[name] = value
    with ConsoleProgress() as progress:
        done = proposals.propose(
            folder, refiners=refiners, options=by_refiner, device=device, limit=limit, workers=workers,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "proposals": dict(done.proposals),
                "failures": dict(done.failures),
                "first_errors": dict(done.first_errors),
                "resumed": done.resumed,
            }
        )
        return
    rows = [[n, str(k), str(done.failures.get(n, 0)), done.first_errors.get(n, "")] for n, k in done.proposals.items()]
    print_table("", ["refiner", "proposals", "failed", "the first failure"], rows)
    remark(f"next: refbench curate decide {folder}")
