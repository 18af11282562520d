"""`refbench list`."""

from __future__ import annotations

import inspect
from typing import Any

import click

from refbench.cli.output import print_json, print_table, remark
from refbench.curation.check_quality import as_row, measured_checks
from refbench.datasets.verification import NOT_BUILT, state_of
from refbench.errors import DatasetError, RefbenchError
from refbench.plugins.loading import available, load, summary_of
from refbench.plugins.options import options_of
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.protocols.systems import SYSTEMS
from refbench.storage.files import project_data
from refbench.storage.manifest import read_manifest

KINDS = ("datasets", "adapters", "protocols", "checks", "refiners")
WITH_OPTIONS = ("adapters", "checks", "refiners")


@click.command(name="list")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(kind: str, name: str | None, as_json: bool) -> None:
    """List datasets, adapters, protocols, checks or refiners.

    With the NAME of an adapter, check or refiner, shows its description and its options (`-o`) with their defaults and
    choices.

    The table of checks shows how often their findings are right, on photographs and on rendered scenes whose true masks
    are known. Compare a value with that of a guess, which stands above the table.

    With --json, the output for each protocol contains its ten choices and their sources, its metrics, and its caveats.

    The status of a dataset is `absent`, `partial` (some published splits have not been built) or `whole`. It is
    `differs` if the build differs from published counts (`refbench verify` shows where), `unverified` if there are no
    published counts, and `damaged` if its files cannot be read.

    \b
    Example:
      refbench list datasets
      refbench list adapters --json
      refbench list adapters grounded-sam
    """
    if name is not None:
        _print_options(kind, name, as_json)
        return
    if kind == "datasets":
        datasets = [_dataset(name) for name in available("builders")]
        if as_json:
            print_json({"datasets": datasets})
            return
        rows = [[d["name"], d["state"], ", ".join(d["splits"]), d["summary"]] for d in datasets]
        print_table("", ["dataset", "state", "splits here", "what it is"], rows)
        return
    if kind == "checks":
        _print_checks(as_json)
        return
    found = [{"name": n, "place": p, "summary": _summary(kind, n, p)} for n, p in available(kind).items()]
    if as_json:
        print_json({kind: [f | _rule(f["name"]) for f in found] if kind == "protocols" else found})
    elif kind == "protocols":
        rows = [[f["name"], ", ".join(SYSTEMS.get(f["name"], ())), f["summary"]] for f in found]
        print_table("", ["protocol", "used by", "what it is"], rows)
    else:
        print_table("", [kind[:-1], "what it is"], [[f["name"], f["summary"]] for f in found])


def _print_checks(as_json: bool) -> None:
    """The checks with the results of `curation.check_quality`."""
    measured = measured_checks()
    sources = list(dict.fromkeys(q.source for q in measured))
    by_check = {(q.check, q.source): q for q in measured}
    checks = [(name, _summary("checks", name, place)) for name, place in available("checks").items()]
    if as_json:
        rows = [
            {
                "name": name, "place": available("checks")[name], "summary": summary,
                "measured": [as_row(q) for q in measured if q.check == name],
            }
            for name, summary in checks
        ]  # fmt: skip
        print_json({"checks": rows})
        return
    # Only a share that can be compared with that of all masks says whether a check is better than chance.
    rates = [f"{next(q.base_rate for q in measured if q.source == s):.0%} on {s}" for s in sources]
    remark(f"right: how many of the masks with a finding are faulty. A guess is right for {', '.join(rates)}")
    lines = []
    for name, summary in checks:
        cells = [by_check.get((name, source)) for source in sources]
        lines.append([name, *(f"{q.precision:.0%} of {q.found}" if q and q.found else "-" for q in cells), summary])
    print_table("", ["check", *(f"right, {s}" for s in sources), "what it is"], lines)


def _print_options(kind: str, name: str, as_json: bool) -> None:
    if kind not in WITH_OPTIONS:
        raise click.UsageError(f"`refbench list {kind}` takes no NAME; only these take one: {', '.join(WITH_OPTIONS)}")
    part = load(kind, name)
    about, options = inspect.getdoc(part) or "", options_of(part)
    if as_json:
        print_json({"name": name, "about": about, "options": options})
        return
    click.echo(f"{about}\n")
    rows = [
        [o["name"], "must be given" if o["default"] is None else o["default"] or "-", " | ".join(o["choices"])]
        for o in options
    ]
    print_table("", ["-o", "default", "one of"], rows)


def _summary(kind: str, name: str, place: str) -> str:
    if kind != "protocols" or "(" in name:
        return summary_of(place)
    # A protocol says itself what it is, unless it is one of a family: `trimap(k)`.
    try:
        return str(load(kind, name).summary)
    except RefbenchError:
        # A plugin of another package cannot be loaded. The others must still be listed.
        return summary_of(place)


def _rule(name: str) -> dict[str, Any]:
    """Sources and choices of a protocol; protocols that score detections with a library have no choices."""
    try:
        rule = load("protocols", name)
    except RefbenchError as error:
        return {"error": str(error)}
    if not isinstance(rule, Protocol):
        return {"source": rule.source, "systems": list(SYSTEMS.get(name, ())), "caveats": list(rule.caveats)}
    choices = {
        choice: {"is": getattr(rule.choices, choice), "source": rule.source_of(choice)}
        for choice in rule.choices.__slots__
    }
    return {
        "source": rule.source,
        "systems": list(SYSTEMS.get(name, ())),
        "same_as": rule.same_as,
        "headline": rule.headline,
        "metrics": list(rule.metrics),
        "choices": choices,
        "caveats": list(rule.caveats),
    }


def _dataset(name: str) -> dict[str, Any]:
    card = project_data("datasets") / name / "card.md"
    # The second paragraph of a card, after its title, says what the dataset is.
    paragraphs = card.read_text(encoding="utf-8").split("\n\n") if card.is_file() else []
    summary = " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""
    try:
        state = state_of(name)
        built = state != NOT_BUILT
        splits = {s: v.expressions for s, v in read_manifest(name).splits.items()} if built else {}
    except DatasetError:
        # One damaged folder must not hide the others.
        state, built, splits = "damaged", True, {}
    return {"name": name, "built": built, "state": state, "splits": splits, "summary": summary}
