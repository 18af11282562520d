"""Curation: findings about a split, proposals for its masks, decisions, and the ledger that records them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.plugins.loading import lazy_face

if TYPE_CHECKING:
    from refbench.curation.decisions import decide
    from refbench.curation.differences import diff
    from refbench.curation.findings import audit
    from refbench.curation.history import why
    from refbench.curation.ledger import read_ledger
    from refbench.curation.proposals import propose
    from refbench.curation.publication import export_curated
    from refbench.curation.recipe import read_recipe
    from refbench.curation.revision import apply

__all__ = [
    "apply",
    "audit",
    "decide",
    "diff",
    "export_curated",
    "propose",
    "read_ledger",
    "read_recipe",
    "why",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
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
