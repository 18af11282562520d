"""Output for people: comparisons, diagnoses, leaderboard tables and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.reports.comparison import compare
    from refbench.reports.diagnosis import diagnose
    from refbench.reports.gating import gate
    from refbench.reports.leaderboard import build_tables, read_rows
    from refbench.reports.pages import write_report
    from refbench.reports.published import read_published

__all__ = [
    "build_tables",
    "compare",
    "diagnose",
    "gate",
    "read_published",
    "read_rows",
    "write_report",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "build_tables": "refbench.reports.leaderboard:build_tables",
        "compare": "refbench.reports.comparison:compare",
        "diagnose": "refbench.reports.diagnosis:diagnose",
        "gate": "refbench.reports.gating:gate",
        "read_published": "refbench.reports.published:read_published",
        "read_rows": "refbench.reports.leaderboard:read_rows",
        "write_report": "refbench.reports.pages:write_report",
    },
)
