"""`refbench check-adapter`."""

from __future__ import annotations

import dataclasses

import click

from refbench.adapters import contract
from refbench.cli.completion import plugins
from refbench.cli.output import ConsoleProgress, parse_options, print_json, print_table, remark
from refbench.plugins.loading import load_adapter
from refbench.runs.shard import close_adapter


@click.command(name="check-adapter")
@click.argument("adapter", shell_complete=plugins("adapters"))
@click.option("--device", default="cpu", show_default=True, help="Where the model computes.")
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="Set an option of the adapter; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check_adapter(ctx: click.Context, adapter: str, device: str, options: tuple[str, ...], as_json: bool) -> None:
    """Test whether an adapter works with refbench.

    Checks the shape, type and order of the masks, and whether they are deterministic and independent of the batch. Also
    tries unusual images and expressions. The exit code is 1 if a test fails.

    \b
    Example:
      refbench check-adapter tiny
      refbench check-adapter my_model.py:MySegmenter --device cuda:0
    """
    segmenter = load_adapter(adapter, parse_options(options), device=device)
    with ConsoleProgress() as progress:
        checks = contract.check_adapter(segmenter, progress)
    close_adapter(segmenter, remark)
    failed = [c for c in checks if c.verdict == contract.FAILED]
    if as_json:
        print_json({"adapter": adapter, "passed": not failed, "checks": [dataclasses.asdict(c) for c in checks]})
    else:
        print_table(adapter, ["check", "verdict", "detail"], [[c.name, c.verdict, c.detail] for c in checks])
    ctx.exit(1 if failed else 0)
