"""Scores: from masks to integer counts, and from counts to metrics with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.scoring.counts import read_scores
    from refbench.scoring.results import Result, read_result
    from refbench.scoring.scorer import Scored, explain, score

__all__ = [
    "Result",
    "Scored",
    "explain",
    "read_result",
    "read_scores",
    "score",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Result": "refbench.scoring.results:Result",
        "Scored": "refbench.scoring.scorer:Scored",
        "explain": "refbench.scoring.scorer:explain",
        "read_result": "refbench.scoring.results:read_result",
        "read_scores": "refbench.scoring.counts:read_scores",
        "score": "refbench.scoring.scorer:score",
    },
)
