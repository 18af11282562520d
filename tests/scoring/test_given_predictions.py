"""Predictions in memory give the scores of the same predictions in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from refbench import Mask, Sample, compare, load_samples, score, to_latex, write_predictions
from refbench.errors import PredictionError
from refbench.records import Instance, Prediction
from refbench.reports.diagnosis import diagnose

SPLIT = "snapshots/test"


def masks_of(samples: list[Sample]) -> dict[str, np.ndarray]:
    """Targets without their left half; every third is empty."""
    out = {}
    for k, sample in enumerate(samples):
        pixels = sample.target.to_array()
        pixels[:, : pixels.shape[1] // 2] = False
        out[sample.sample_id] = pixels if k % 3 else np.zeros_like(pixels)
    return out


@pytest.fixture
def given(embedded: Path) -> dict[str, np.ndarray]:
    return masks_of(load_samples(SPLIT))


FORMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mapping": lambda m: m,
    "pairs": lambda m: list(m.items()),
    "generator": lambda m: ((i, x) for i, x in reversed(m.items())),
    "triples": lambda m: [(i, x, 0.5) for i, x in m.items()],
    "in order": lambda m: list(m.values()),
    "0 and 1": lambda m: {i: x.astype(np.uint8) for i, x in m.items()},
    "masks": lambda m: {i: Mask.from_array(x) for i, x in m.items()},
    "codes": lambda m: [Mask.from_array(x).to_rle() for x in m.values()],
    "predictions": lambda m: [Prediction(i, Mask.from_array(x)) for i, x in m.items()],
    "frame": lambda m: pd.DataFrame({"sample_id": list(m), "mask": list(m.values())}),
    "frame with gaps": lambda m: pd.DataFrame(
        {"sample_id": list(m), "mask": list(m.values()), "score": pd.array([None] * len(m), "Float64")}
    ),
    "frame with scores": lambda m: pd.DataFrame({"sample_id": list(m), "mask": list(m.values()), "score": 1}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_scores_of_the_file(form: str, given: dict[str, np.ndarray], tmp_path: Path) -> None:
    file = write_predictions(tmp_path / "p.jsonl", [(i, m, None) for i, m in given.items()])
    expected = score(file, SPLIT)
    found = score(FORMS[form](given), SPLIT)
    assert found.summaries == expected.summaries
    assert found.scores.sums() == expected.scores.sums()
    assert found.folder is None


def test_tensors_count_like_arrays(given: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    tensors = {i: torch.from_numpy(m) for i, m in given.items()}
    assert score(tensors, SPLIT).summaries == score(given, SPLIT).summaries


def test_what_is_missing_fails(given: dict[str, np.ndarray]) -> None:
    left = dict(list(given.items())[:-5])
    found = score(left, SPLIT)
    assert found.missing == 5
    assert int(found.scores.failed.sum()) == 5


def test_instances_and_flags_of_predictions_count(given: dict[str, np.ndarray]) -> None:
    rows = []
    for sample_id, pixels in given.items():
        mask = Mask.from_array(pixels)
        rows.append(Prediction(sample_id, mask, 0.7, True, (Instance(mask, 0.7),)))
    assert bool(score(rows, SPLIT).scores.predicted_no_target.all())


def test_scores_are_written_where_asked(given: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = score(given, SPLIT, out=tmp_path / "scored")
    assert found.folder == tmp_path / "scored"
    assert score(given, SPLIT, out=tmp_path / "scored").summaries == found.summaries


def test_errors_are_diagnosed(given: dict[str, np.ndarray], tmp_path: Path) -> None:
    file = write_predictions(tmp_path / "p.jsonl", [(i, m, None) for i, m in given.items()])
    assert diagnose(given, SPLIT).losses == diagnose(file, SPLIT, write=False).losses


def test_two_sets_of_masks_are_compared(given: dict[str, np.ndarray]) -> None:
    whole = {s.sample_id: s.target for s in load_samples(SPLIT)}
    found = compare(given, whole, dataset=SPLIT)
    assert found.metrics[0].second == 100
    assert "first and second on snapshots/test" in repr(found)
    assert r"\textbf{100.0}" in to_latex(found)
    assert "cIoU" in to_latex(score(given, SPLIT))


def test_masks_are_written_as_they_are_scored(given: dict[str, np.ndarray], tmp_path: Path) -> None:
    files = [write_predictions(tmp_path / f"{k}.jsonl", rows) for k, rows in enumerate((given, given.items()))]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert score(files[0], SPLIT).summaries == score(given, SPLIT, protocols="refbench").summaries


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: 5, "must be a path, a mapping, an iterable, an array or a DataFrame, got int"),
        (lambda m: {"snapshots/test/none/0": np.zeros((2, 2), bool)}, "'snapshots/test/none/0' is not in this split"),
        (lambda m: {next(iter(m)): np.zeros((2, 2), bool)}, "the mask has 2 x 2 pixels, but the image of"),
        (lambda m: {next(iter(m)): np.full((2, 2), 0.5)}, "apply a threshold first"),
        (lambda m: {next(iter(m)): "text"}, "prediction 0"),
        (lambda m: {next(iter(m)): None}, "prediction 0"),
        (lambda m: list(m.values())[:-1], "86 masks without sample ids for 87 samples"),
        (lambda m: [*m.values(), *m.values()], "there are more masks than the 87 samples of the split"),
        (lambda m: [*m.items(), (next(iter(m)), np.ones_like(next(iter(m.values()))))], "already has a different"),
        (lambda m: pd.DataFrame({"id": list(m)}), "the DataFrame has no column 'sample_id'"),
        (lambda m: [(i, x, float("inf")) for i, x in m.items()], "score must be a finite number"),
    ],
)
def test_what_cannot_be_scored_is_named(
    change: Callable[[dict[str, np.ndarray]], Any], expected: str, given: dict[str, np.ndarray]
) -> None:
    with pytest.raises(PredictionError) as caught:
        score(change(given), SPLIT)
    assert expected in str(caught.value)


def test_the_split_must_be_given(given: dict[str, np.ndarray]) -> None:
    with pytest.raises(PredictionError, match="the split of the predictions is not given"):
        score(given)
