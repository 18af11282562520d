"""From one number to another: every step is a number of its own, and the differences add up exactly."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from published_cases import Case, as_sample, corners, random_cases, with_names

from refbench.datasets.builders.base import Built, Sources, build_dataset
from refbench.errors import PredictionError
from refbench.masks.mask import Mask
from refbench.plugins.loading import available, load
from refbench.records import Prediction
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.scorer import explain, score
from refbench.storage.predictions import json_line
from refbench.storage.progress import silent


@pytest.fixture
def predictions(home: Path, tmp_path: Path) -> Path:
    cases: list[Case] = with_names(corners() + random_cases(120, 6))
    samples = [as_sample(case, k) for k, case in enumerate(cases)]
    build_dataset("cases", lambda *_: Built("cases", 1, {"val": samples}, [], [], ""), Sources(), silent)
    lines = [
        json_line(Prediction(s.sample_id, Mask.from_array(c.prediction), no_target=c.flag))
        for s, c in zip(samples, cases, strict=True)
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(lines))
    return path


RULES = (
    "refbench lavt-480 cris vlt lisa glamm-3 psalm xdecoder mllmseg-res gres gsva-gres samtok-bench davis-jf "
    "polyformer-512 seqtr x-sam deris-gres grec".split()
)


@pytest.mark.slow
def test_every_way_adds_up(predictions: Path) -> None:
    scored = score(predictions, "cases/val", protocols=RULES).summaries
    for first, second in itertools.permutations(RULES, 2):
        _, walk = explain(predictions, "cases/val", first, second)
        rules = load("protocols", first), load("protocols", second)
        ends = [scored[rule.name].metrics[rule.headline].value for rule in rules]
        assert [float(walk.start), float(walk.end)] == pytest.approx(ends, abs=1e-6)
        assert walk.start + sum((s.difference for s in walk.steps), Decimal(0)) == walk.end
        before = walk.start
        for step in walk.steps:
            assert step.value == before + step.difference
            before = step.value
        for step in walk.steps:
            if step.choice not in ("aggregation", "precision"):
                assert step.before != step.after


def test_a_protocol_is_no_way_from_itself(predictions: Path) -> None:
    _, walk = explain(predictions, "cases/val", "lisa", "lisa")
    assert walk.steps == ()
    assert walk.start == walk.end
    assert walk.not_replayed == ()


def test_other_metrics_than_the_headline(predictions: Path) -> None:
    _, walk = explain(predictions, "cases/val", "lavt-480:precision@0.6", "cris:Pr@60")
    assert walk.steps[-1].choice == "precision"
    assert walk.steps[-1].before == "share of sentences with IoU >= 0.6"
    assert walk.steps[-1].after == "share of sentences with IoU > 0.600000024"
    with pytest.raises(PredictionError, match="cris has no metric 'mIoU'; its metrics are"):
        explain(predictions, "cases/val", "cris:mIoU", "lisa")


@pytest.mark.slow
def test_on_the_command_line(predictions: Path, refbench: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    call = ("score", predictions, "--dataset", "cases/val", "--explain", "lavt-480", "mllmseg-res:giou")
    found = json.loads(refbench(*call, "--json").stdout)["explain"]
    total = sum(Decimal(str(s["difference"])) for s in found["steps"])
    assert Decimal(str(found["from"]["value"])) + total == Decimal(str(found["to"]["value"]))
    assert [s["choice"] for s in found["steps"]] == ["target", "canvas", "sample_iou", "both_empty", "aggregation"]
    assert {n["choice"] for n in found["not_replayed"]} == {"text", "binarisation", "resampling"}
    table = [line.split("\t") for line in refbench(*call).stdout.splitlines()[2:]]
    shown = [Decimal(row[3]) for row in table[:-1]]
    assert shown[0] + sum(Decimal(row[4]) for row in table[1:-1]) == shown[-1] == Decimal(table[-1][3])
    assert refbench(*call, "--protocol", "lisa").returncode == 2


@pytest.mark.slow
def test_protocols_are_listed_with_their_choices(refbench: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    found = {p["name"]: p for p in json.loads(refbench("list", "protocols", "--json").stdout)["protocols"]}
    lavt = found["lavt-480"]
    assert len(lavt["choices"]) == 10
    assert lavt["choices"]["target"]["is"] == "hole"
    assert "LAVT-RIS" in lavt["choices"]["precision"]["source"]
    assert found["glamm-3"]["choices"]["units"]["source"].startswith("mbzuai-oryx/groundingLMM dataset/")
    assert found["sginw"]["source"]


def test_every_protocol_is_data_with_sources() -> None:
    for name in available("protocols"):
        rule = load("protocols", name)
        assert rule.source
        if isinstance(rule, Protocol):
            assert rule.headline in rule.metrics
            for choice in rule.choices.__slots__:
                assert getattr(rule.choices, choice), (name, choice)
                assert rule.source_of(choice)
            assert set(rule.sources) <= set(rule.choices.__slots__)
