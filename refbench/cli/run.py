"""`refbench run`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from refbench.cli.completion import plugins, splits
from refbench.cli.output import (
    ConsoleProgress,
    parse_options,
    print_json,
    remark,
    remark_table,
    stdout_to_stderr,
)
from refbench.cli.paths import FilePath
from refbench.errors import TooManyFailures
from refbench.runs import runner


class BatchSize(click.ParamType[int | None]):
    name = "N|auto"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto":
            return None
        try:
            number = int(str(value))
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a positive number nor 'auto'", param, ctx)
        return number


@click.command()
@click.argument("adapter", shell_complete=plugins("adapters"))
@click.argument("split", metavar="DATASET/SPLIT", shell_complete=splits)
@click.option("--device", default="cpu", show_default=True, help="Device for the model, for example cuda:0.")
@click.option(
    "--batch-size",
    type=BatchSize(),
    default="auto",
    show_default=True,
    help="Number of expressions per call of the model.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Run only the first N samples.")
@click.option("--out", type=FilePath(), help="Run folder.")
@click.option(
    "--max-failures",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Maximum number of failed samples; if more samples fail, the exit code is 4.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run in local processes or on a Ray cluster.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Number of processes or Ray actors."
)
@click.option("--ray-address", metavar="ADDRESS", help="Address of a Ray cluster.  [default: $RAY_ADDRESS]")
@click.option("--deterministic", is_flag=True, help="Use deterministic algorithms, and one thread per worker on a CPU.")
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="Set an option of the adapter; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(
    adapter: str,
    split: str,
    device: str,
    batch_size: int | None,
    limit: int | None,
    out: Path | None,
    max_failures: int,
    engine: str,
    workers: int,
    ray_address: str | None,
    deterministic: bool,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run an adapter on a split. The same command resumes the run.

    ADAPTER is a name (`refbench list adapters`) or path/to/file.py:Class. If a sample fails, the failure is counted and
    the run continues. If more samples fail than --max-failures allows, the exit code is 4.

    With several workers, each one loads the model, and `--device cuda` assigns the GPUs to them in turn. The result
    does not depend on the number of workers. A worker that crashes is started again. `--engine ray` uses a running Ray
    cluster, or starts Ray on this machine. The datasets and the run folder must have the same paths on all nodes.

    \b
    Example:
      refbench run tiny scenes/test
      refbench run noisy-oracle refcoco/val -o dilate=3 -o swap=0.1
      refbench run my_model.py:MySegmenter refcoco/testA --device cuda:0 --batch-size 16
      refbench run clipseg refcoco/val -o model=CIDAS/clipseg-rd64-refined --device cuda --workers 4
      refbench run clipseg refcoco/val -o model=FOLDER --device cuda --engine ray --workers 16
    """
    if ray_address and engine != "ray":
        raise click.UsageError("--ray-address needs --engine ray")
    try:
        with stdout_to_stderr(), ConsoleProgress() as progress:
            result = runner.run(
                adapter,
                split,
                options=parse_options(options),
                device=device,
                batch_size=batch_size,
                limit=limit,
                out=out,
                max_failures=max_failures,
                engine=engine,
                workers=workers,
                ray_address=ray_address,
                deterministic=deterministic,
                arguments=sys.argv[1:],
                progress=progress,
                log=remark,
            )
    except TooManyFailures as error:
        if as_json and isinstance(error.result, runner.RunResult):
            _print_result(error.result)
        raise
    if as_json:
        _print_result(result)
    else:
        _show(result)


def _show(result: runner.RunResult) -> None:
    resumed = f", {result.resumed} of them done before" if result.resumed else ""
    remark(f"{result.samples} samples{resumed}, {result.failures} failed, {result.seconds:.1f} s")
    for note, count in sorted(result.notes.items()):
        remark(f"  {count} answers: {note}")
    for what, amount in result.usage.items():
        remark(f"  {what}: {amount:,.4g}")
    if result.stages:
        remark("")
        remark_table(["stage", "ms a sample", "share"], result.stages)
        remark(result.bottleneck)
    click.echo(str(result.folder))


def _print_result(result: runner.RunResult) -> None:
    print_json({k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(result).items()})
