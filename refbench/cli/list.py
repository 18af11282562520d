"""`refbench list`."""

from __future__ import annotations

from typing import Any

import click

from refbench.cli.output import print_json, print_table
from refbench.plugins import available, summary_of
from refbench.storage import dataset_folder, project_data, read_manifest

KINDS = ("datasets", "adapters", "protocols")


@click.command(name="list")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(kind: str, as_json: bool) -> None:
    """List datasets, adapters or protocols.

    \b
    Example:
      refbench list datasets
      refbench list adapters --json
    """
    if kind == "datasets":
        datasets = [_dataset(name) for name in available("builders")]
        if as_json:
            print_json({"datasets": datasets})
            return
        rows = [[d["name"], ", ".join(d["splits"]) if d["built"] else "not built", d["summary"]] for d in datasets]
        print_table("", ["dataset", "splits here", "what it is"], rows)
        return
    found = [{"name": n, "place": p, "summary": summary_of(p)} for n, p in available(kind).items()]
    if as_json:
        print_json({kind: found})
    else:
        print_table("", [kind[:-1], "what it is"], [[f["name"], f["summary"]] for f in found])


def _dataset(name: str) -> dict[str, Any]:
    card = project_data("datasets") / name / "card.md"
    # The second paragraph of a card, after its title, says what the dataset is.
    paragraphs = card.read_text(encoding="utf-8").split("\n\n") if card.is_file() else []
    summary = " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""
    built = (dataset_folder(name) / "manifest.json").is_file()
    splits = {s: v["expressions"] for s, v in read_manifest(name)["splits"].items()} if built else {}
    return {"name": name, "built": built, "splits": splits, "summary": summary}
