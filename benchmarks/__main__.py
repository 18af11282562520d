"""`python -m benchmarks [SUITE ...]`: measure, print, and keep the figures as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks import build, cluster, curation, kernels, metric, models, run, scale, score, start, statistics
from refbench.masks.threads import available_cores
from refbench.storage.provenance import git_state, package_versions

SUITES: dict[str, Callable[[], dict[str, Any]]] = {
    "kernels": kernels.measure,
    "start": start.measure,
    "score": score.measure,
    "scale": scale.measure,
    "metric": metric.measure,
    "statistics": statistics.measure,
    "build": build.measure,
    "run": run.measure,
    "curation": curation.measure,
    "models": models.measure,
    "cluster": cluster.measure,
}


def processor() -> str:
    """The processor's name as Linux tells it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@click.command()
@click.argument("suites", nargs=-1, type=click.Choice(list(SUITES)))
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures there as JSON.")
def main(suites: tuple[str, ...], out: Path | None) -> None:
    """Measure the given suites, or all of them."""
    figures: dict[str, Any] = {
        "hardware": f"{processor()}, {available_cores()} cores, no GPU used",
        "load_at_start": os.getloadavg()[0],
        "packages": package_versions(),
        "git": git_state(Path(__file__).parent.parent),
    }
    for name in suites or tuple(SUITES):
        click.echo(f"{name} ...", err=True)
        figures[name] = SUITES[name]()
        for key, value in figures[name].items():
            click.echo(f"  {key:<58} {value:.4g}" if isinstance(value, float) else f"  {key:<58} {value}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
