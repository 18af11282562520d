"""`refbench env`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from refbench.adapters import environments
from refbench.cli.output import print_json, print_table, remark
from refbench.cli.paths import FilePath


@click.group()
def env() -> None:
    """Build, list or remove environments for workers.

    A worker runs a model in its own process, with its own interpreter and libraries. The workers of refbench have lock
    files. Packages are installed once to $REFBENCH_HOME/envs. A run never changes them.

    \b
    Example:
      refbench env list
      refbench env build lavt --python python3.11
      refbench env build mine --lock requirements.lock
    """


@env.command()
@click.argument("name")
@click.option(
    "--python",
    default="",
    help="Python interpreter to use.  [default: one on the PATH with the required version]",
)
@click.option("--lock", type=FilePath(), help="Requirements file with exact versions, for your own worker.")
@click.option("--json", "as_json", is_flag=True, help="Print the environment as JSON.")
def build(name: str, python: str, lock: Path | None, as_json: bool) -> None:
    """Build the environment NAME. It is built again only if its requirements or --python have changed.

    \b
    Example:
      refbench env build lavt --python python3.11
    """
    made = environments.build_environment(name, python, lock, remark)
    if as_json:
        print_json(dataclasses.asdict(made))
    else:
        click.echo(made.python)


@env.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the environments that have been built, and those that can be built.

    \b
    Example:
      refbench env list
    """
    built = {e.name: e for e in environments.built_environments()}
    recipes = environments.recipes()
    if as_json:
        print_json({"built": [dataclasses.asdict(e) for e in built.values()], "workers": recipes})
        return
    rows = []
    for name in sorted({*built, *recipes}):
        about = str(recipes.get(name, {}).get("summary", "your own"))
        rows.append([name, f"Python {built[name].version}" if name in built else "not built", about])
    print_table("", ["environment", "state", "for"], rows)


@env.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def remove(ctx: click.Context, name: str, as_json: bool) -> None:
    """Remove the environment NAME. The exit code is 1 if it does not exist.

    \b
    Example:
      refbench env remove lavt
    """
    there = environments.remove_environment(name)
    if as_json:
        print_json({"name": name, "removed": there})
    else:
        remark(f"{name} is removed" if there else f"the environment {name!r} does not exist")
    ctx.exit(0 if there else 1)
