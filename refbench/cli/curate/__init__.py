"""`refbench curate`: a group of commands, with one module per command."""

from __future__ import annotations

import click

from refbench.cli.lazy import LazyGroup

VERBS: dict[str, tuple[str, str]] = {
    "audit": ("refbench.cli.curate.audit:audit", "Find errors in masks, expressions and images."),
    "propose": ("refbench.cli.curate.propose:propose", "Let refiners propose a new mask for every mask of the split."),
    "decide": ("refbench.cli.curate.decide:decide", "Decide with the recipe what to keep, change, drop or review."),
    "review": ("refbench.cli.curate.review:review", "Open a local page on which people review doubtful items."),
    "reviewers": (
        "refbench.cli.curate.reviewers:reviewers",
        "Show how long reviewers take for an item, and how far they agree.",
    ),
    "edit": ("refbench.cli.curate.edit:edit", "Merge, split, add or replace masks, or mark them as crowds."),
    "replacements": (
        "refbench.cli.curate.replacements:replacements",
        "Propose edits that replace masks by those of another annotation set.",
    ),
    "apply": ("refbench.cli.curate.apply:apply", "Make the cleaned version of a dataset from its source and a ledger."),
    "diff": ("refbench.cli.curate.diff:diff", "Compare two versions of a split, mask by mask, and how they rank runs."),
    "why": ("refbench.cli.curate.why:why", "Show the history of one mask or expression."),
    "export": ("refbench.cli.curate.export:export", "Export a curated split in the format of moondream/refcoco-m."),
    "from-published": (
        "refbench.cli.curate.from_published:from_published",
        "Write the ledger that turns a split into its published cleaned version.",
    ),
    "compare-recipes": (
        "refbench.cli.curate.compare_recipes:compare_recipes",
        "Compare two ledgers of one split and show where they differ.",
    ),
    "calibrate": (
        "refbench.cli.curate.calibrate:calibrate",
        "Calibrate a recipe and measure it on masks for which the truth is known.",
    ),
    "train-refiner": (
        "refbench.cli.curate.train_refiner:train_refiner",
        "Train a small network that redraws coarse masks, on accurate masks of your own.",
    ),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def curate() -> None:
    """Make a cleaned version of a split, and record every decision.

    \b
    Example:
      refbench curate audit refcoco/val
      refbench curate propose ~/.refbench/curation/refcoco-val
      refbench curate decide ~/.refbench/curation/refcoco-val
      refbench curate review ~/.refbench/curation/refcoco-val
      refbench curate apply refcoco/val ~/.refbench/curation/refcoco-val/ledger.parquet --as refcoco-cleaned
      refbench curate export refcoco-cleaned/val --out cleaned
    """
