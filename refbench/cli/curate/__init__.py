"""`refbench curate`: a group of commands, each in a file of its own."""

from __future__ import annotations

import click

from refbench.cli.lazy import LazyGroup

VERBS: dict[str, tuple[str, str]] = {
    "audit": ("refbench.cli.curate.audit:audit", "Find what is wrong with masks, expressions and images."),
    "propose": ("refbench.cli.curate.propose:propose", "Let refiners redraw every mask; the same command resumes."),
    "decide": ("refbench.cli.curate.decide:decide", "Keep, change, drop or review, by the recipe; write the ledger."),
    "review": ("refbench.cli.curate.review:review", "Open a local page on which people decide what is in doubt."),
    "apply": ("refbench.cli.curate.apply:apply", "Build the next version of a dataset from its source and a ledger."),
    "diff": ("refbench.cli.curate.diff:diff", "Compare two versions of a split, mask by mask, and how they rank runs."),
    "why": ("refbench.cli.curate.why:why", "Tell the story of one mask or expression."),
    "export": ("refbench.cli.curate.export:export", "Write a curated split in the format of moondream/refcoco-m."),
    "from-published": (
        "refbench.cli.curate.from_published:from_published",
        "Write the ledger that leads from a split to its published cleaned version.",
    ),
    "compare-recipes": (
        "refbench.cli.curate.compare_recipes:compare_recipes",
        "Compare two ledgers of one split: where two recipes decide differently.",
    ),
    "calibrate": (
        "refbench.cli.curate.calibrate:calibrate",
        "Fit a recipe and measure it on masks whose truth is known.",
    ),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def curate() -> None:
    """Turn a coarse split into a cleaned one, with a ledger.

    \b
    Example:
      refbench curate audit refcoco/val
      refbench curate propose ~/.refbench/curation/refcoco-val
      refbench curate decide ~/.refbench/curation/refcoco-val
      refbench curate review ~/.refbench/curation/refcoco-val
      refbench curate apply refcoco/val ~/.refbench/curation/refcoco-val/ledger.parquet --as refcoco-cleaned
      refbench curate export refcoco-cleaned/val --out cleaned
    """
