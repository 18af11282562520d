"""What the Tab key completes, besides commands and options: splits, datasets, plug-ins and runs."""

from __future__ import annotations

import json
from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

from refbench.errors import RefbenchError
from refbench.plugins.loading import available
from refbench.storage.files import home

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def splits(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The built splits, for example scenes/val."""
    names = [f"{dataset}/{split}" for dataset, parts in _built().items() for split in parts]
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def built_datasets(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The built datasets."""
    return [CompletionItem(name) for name in sorted(_built()) if name.startswith(incomplete)]


def plugins(kind: str) -> Complete:
    """The names of the plug-ins of a kind, for example "adapters"."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            names = sorted(available(kind))
        except RefbenchError:
            names = []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    return complete


def runs(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The run folders below $REFBENCH_HOME/runs, and files."""
    folders = sorted(str(path.parent) for path in (home() / "runs").glob("*/*/run.json"))
    return [*(CompletionItem(f) for f in folders if f.startswith(incomplete)), CompletionItem(incomplete, type="file")]


def curations(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The curation folders below $REFBENCH_HOME/curation, and other folders."""
    folders = sorted(str(path.parent) for path in (home() / "curation").glob("*/curation.json"))
    return [*(CompletionItem(f) for f in folders if f.startswith(incomplete)), CompletionItem(incomplete, type="dir")]


def _built() -> dict[str, list[str]]:
    """The splits of each built dataset; a manifest that cannot be read has none."""
    out = {}
    for path in (home() / "datasets").glob("*/manifest.json"):
        try:
            out[path.parent.name] = list(json.loads(path.read_text(encoding="utf-8"))["splits"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return out
