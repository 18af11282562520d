"""Ranks over resamples, computed one resample at a time; what sources say about years and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refbench import run, score
from refbench.reports.ranks import Rank, rank_runs
from refbench.reports.site.build import contradictions
from refbench.reports.site.tables import groups_of, size_of, year_of
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Evidence, sums_of
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.statistics.bootstrap import replicates_of


@pytest.fixture
def tables(embedded: Path, tmp_path: Path) -> list[ScoreTable]:
    options = ({"dilate": "2"}, {"dilate": "3"}, {"shift": "3"}, {"dilate": "2"})
    return [
        score(run("noisy-oracle", "snapshots/test", options=o, out=tmp_path / str(k)).folder).scores
        for k, o in enumerate(options)
    ]


def test_ranks_are_those_of_each_resample(tables: list[ScoreTable]) -> None:
    found = rank_runs(tables, "mean_iou")
    drawn = np.array([replicates_of(sums_of(REFBENCH, Evidence(t), ["mean_iou"]))[0] for t in tables])
    for k, rank in enumerate(found):
        each = sorted(1 + sum(drawn[j, r] > drawn[k, r] for j in range(len(tables))) for r in range(drawn.shape[1]))
        cut = int(0.025 * len(each))
        assert rank.best in (each[cut - 1], each[cut])
        assert rank.worst in (each[-cut - 1], each[-cut])
        assert rank.best <= rank.rank <= rank.worst
        assert rank.at_least == np.mean([e <= rank.rank for e in each])
    # Equal runs share their rank.
    assert found[0] == found[3]


def test_groups_end_where_intervals_of_ranks_do_not_overlap() -> None:
    def rank(best: int, worst: int) -> Rank:
        return Rank(best, best, worst, 1.0)

    chain = {"a": rank(1, 2), "b": rank(2, 3), "c": rank(3, 3), "d": rank(4, 5), "e": rank(5, 5), "f": rank(6, 6)}
    assert groups_of(chain) == {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2, "f": 3}
    assert groups_of({}) == {}


def test_ranks_need_the_same_samples(tables: list[ScoreTable]) -> None:
    assert rank_runs([], "mean_iou") == []
    with pytest.raises(ValueError, match="different samples"):
        rank_runs([tables[0], tables[1].take(np.arange(5))], "mean_iou")


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("LAVT (CVPR 2022); repo yz93/LAVT-RIS", 2022), ("CARIS (ACM MM 2023), a card", 2023),
        ("MLLMSeg, arXiv 2508.04107; repo x", 2025), ("https://arxiv.org/abs/2111.15174", None),
        ("a page of 2024", None), ("arXiv 9999.12345", None), ("MRES, arXiv 2312.08007 (CVPR 2024)", 2024),
    ],
)  # fmt: skip
def test_years_of_sources(text: str, year: int | None) -> None:
    assert year_of(text) == year


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("InternVL2.5 (8B), no SAM", 8.0),
        ("3B", 3.0),
        ("1.5 B", 1.5),
        ("ResNet-101", None),
        ("ViT-B", None),
        ("B4", None),
    ],
)
def test_sizes_of_variants(text: str, size: float | None) -> None:
    assert size_of(text) == size


def test_sources_that_contradict_each_other() -> None:
    def row(value: float, variant: str = "v") -> dict[str, object]:
        return {"address": "a/val", "protocol": "cris", "variant": variant, "metrics": {"IoU": [value, None, None]}}

    assert contradictions([row(1.5), row(1.5), row(2.5, "w")]) == []
    assert contradictions([row(1.5), row(2.5)]) == ["a/val, v, IoU (cris): 1.5, 2.5"]
