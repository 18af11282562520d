"""Curation: findings about a split, proposals for its masks, decisions, and the ledger that records them.

Example:
    >>> from refbench import curate
    >>> "audit" in dir(curate), "propose" in dir(curate), "decide" in dir(curate)
    (True, True, True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.curation.annotation_sets import replacements
    from refbench.curation.decisions import decide
    from refbench.curation.differences import diff
    from refbench.curation.edits import read_edits, write_edits
    from refbench.curation.findings import audit
    from refbench.curation.history import why
    from refbench.curation.ledger import read_ledger
    from refbench.curation.ledger_differences import compare_ledgers
    from refbench.curation.proposals import propose
    from refbench.curation.publication import export_curated
    from refbench.curation.published import from_published
    from refbench.curation.recipe import read_recipe
    from refbench.curation.refiner_training import train_refiner
    from refbench.curation.revision import apply

__all__ = [
    "apply",
    "audit",
    "compare_ledgers",
    "decide",
    "diff",
    "export_curated",
    "from_published",
    "propose",
    "read_edits",
    "read_ledger",
    "read_recipe",
    "replacements",
    "train_refiner",
    "why",
    "write_edits",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "compare_ledgers": "refbench.curation.ledger_differences:compare_ledgers",
        "from_published": "refbench.curation.published:from_published",
        "read_edits": "refbench.curation.edits:read_edits",
        "replacements": "refbench.curation.annotation_sets:replacements",
        "train_refiner": "refbench.curation.refiner_training:train_refiner",
        "write_edits": "refbench.curation.edits:write_edits",
        "apply": "refbench.curation.revision:apply",
        "audit": "refbench.curation.findings:audit",
        "decide": "refbench.curation.decisions:decide",
        "diff": "refbench.curation.differences:diff",
        "export_curated": "refbench.curation.publication:export_curated",
        "propose": "refbench.curation.proposals:propose",
        "read_ledger": "refbench.curation.ledger:read_ledger",
        "read_recipe": "refbench.curation.recipe:read_recipe",
        "why": "refbench.curation.history:why",
    },
)
