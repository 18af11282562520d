"""`refbench curate`: a verb of its own verbs, each in a file of its own."""

from __future__ import annotations

import click

from refbench.cli.lazy import LazyGroup

VERBS: dict[str, tuple[str, str]] = {
    "audit": ("refbench.cli.curate.audit:audit", "Find what is wrong with masks, expressions and images."),
    "propose": ("refbench.cli.curate.propose:propose", "Let refiners draw every mask anew; resumes."),
    "decide": ("refbench.cli.curate.decide:decide", "Keep, change, drop or review, by the recipe; writes the ledger."),
    "review": ("refbench.cli.curate.review:review", "A local page on which people decide what is in doubt."),
    "apply": ("refbench.cli.curate.apply:apply", "Source and ledger become the next version of the dataset."),
    "diff": ("refbench.cli.curate.diff:diff", "Two versions, mask by mask, and what they do to a ranking."),
    "why": ("refbench.cli.curate.why:why", "The story of one mask or expression."),
    "export": ("refbench.cli.curate.export:export", "A curated split in the features of moondream/refcoco-m."),
    "calibrate": ("refbench.cli.curate.calibrate:calibrate", "What a recipe is worth where the truth is known."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def curate() -> None:
    """From a coarse split to a boundary-accurate one, traceably.

    \b
    Example:
      refbench curate audit refcoco/val
      refbench curate propose ~/.refbench/curation/refcoco-val
      refbench curate decide ~/.refbench/curation/refcoco-val
      refbench curate review ~/.refbench/curation/refcoco-val
      refbench curate apply refcoco/val ~/.refbench/curation/refcoco-val/ledger.parquet --as refcoco-cleaned
      refbench curate export refcoco-cleaned/val --out cleaned
    """
