"""Scores: parity with the rule restated on pixels, every format of predictions, and predictions that are wrong."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters.exact_adapters import Misbehaving, Threshold
from PIL import Image
from pixel_reference import pixel_counts

from refbench import Mask, Sample, load_samples, run, score
from refbench.errors import PredictionError, RunError
from refbench.records import Instance, Prediction
from refbench.reports.leaderboard import read_rows
from refbench.scoring.counts import ScoreTable, read_scores
from refbench.scoring.protocols.base import Evidence, summarise
from refbench.scoring.protocols.exact import REFBENCH
from refbench.storage.predictions import json_line

COUNTS = (
    "intersection",
    "union",
    "prediction_area",
    "target_area",
    "boundary_intersection",
    "boundary_union",
)


def answers(samples: list[Sample], seed: int = 0) -> dict[str, Mask]:
    """Plausible predictions: the target moved a little, sometimes nothing, sometimes everything."""
    random = np.random.default_rng(seed)
    out = {}
    for s in samples:
        pixels = np.roll(s.target.to_array(), random.integers(-3, 4, 2), axis=(0, 1))
        if random.random() < 0.1:
            pixels[:] = random.random() < 0.5
        out[s.sample_id] = Mask.from_array(pixels)
    return out


def write_jsonl(path: Path, masks: dict[str, Mask]) -> Path:
    path.write_text("".join(json_line(Prediction(i, m)) + "\n" for i, m in masks.items()))
    return path


def naive_metrics(samples: list[Sample], masks: dict[str, Mask], failed: set[str]) -> dict[str, float]:
    """The default protocol, one sample after the other, on pixels."""
    ious, boundary_ious, inter, union, b_inter, b_union = [], [], 0, 0, 0, 0
    for s in samples:
        prediction = np.zeros((s.height, s.width), bool)
        if s.sample_id not in failed:
            prediction = masks[s.sample_id].to_array()
        c = pixel_counts(prediction, s.target.to_array())
        empty = 0.0 if s.sample_id in failed else 1.0
        ious.append(c["intersection"] / c["union"] if c["union"] else empty)
        boundary_ious.append(c["boundary_intersection"] / c["boundary_union"] if c["boundary_union"] else empty)
        inter, union = inter + c["intersection"], union + c["union"]
        b_inter, b_union = b_inter + c["boundary_intersection"], b_union + c["boundary_union"]
    metrics = {
        "cumulative_iou": inter / union,
        "mean_iou": np.mean(ious),
        "mean_boundary_iou": np.mean(boundary_ious),
        "cumulative_boundary_iou": b_inter / b_union,
    }
    for t in (0.5, 0.6, 0.7, 0.8, 0.9):
        metrics[f"precision_at_{t}"] = np.mean([i >= t for i in ious])
    return {k: 100 * float(v) for k, v in metrics.items()}


def test_parity_with_the_rule_on_pixels(embedded: Path, tmp_path: Path) -> None:
    samples = load_samples("snapshots/test")
    masks = answers(samples)
    failed = {s.sample_id for s in samples[3:9]} | {next(s.sample_id for s in samples if s.no_target)}
    given = {i: m for i, m in masks.items() if i not in failed}
    scored = score(write_jsonl(tmp_path / "p.jsonl", given), "snapshots/test", out=tmp_path / "scored")
    summary = scored.summaries["refbench"]
    expected = naive_metrics(samples, masks, failed)
    assert {k: v.value for k, v in summary.metrics.items()} == pytest.approx(expected, abs=1e-10)
    assert (summary.samples, summary.failures) == (len(samples), len(failed))
    assert all(v.low <= v.value <= v.high for v in summary.metrics.values())


def test_scores_are_integers_in_sample_order(embedded: Path, tmp_path: Path) -> None:
    samples = load_samples("scenes/val")
    masks = answers(samples)
    shuffled = dict(sorted(masks.items(), key=lambda item: hash(item[0])))
    folder = score(write_jsonl(tmp_path / "p.jsonl", shuffled), "scenes/val", out=tmp_path / "a").folder
    assert folder is not None
    table = read_scores(folder / "scores.parquet")
    assert list(table.sample_id) == [s.sample_id for s in samples]
    assert all(getattr(table, name).dtype == np.int64 for name in COUNTS)
    for k in range(0, len(samples), 37):
        expected = pixel_counts(masks[samples[k].sample_id].to_array(), samples[k].target.to_array())
        assert {name: int(getattr(table, name)[k]) for name in COUNTS} == expected
    again = score(write_jsonl(tmp_path / "q.jsonl", masks), "scenes/val", out=tmp_path / "b").folder
    assert (folder / "scores.parquet").read_bytes() == (again / "scores.parquet").read_bytes()
    assert (folder / "summary.json").read_bytes() == (again / "summary.json").read_bytes()


def test_every_format_gives_the_same_scores(embedded: Path, tmp_path: Path) -> None:
    masks = answers(load_samples("snapshots/test"))
    write_jsonl(tmp_path / "p.jsonl", masks)
    results = [
        {"sample_id": i, "segmentation": {"size": list(m.size), "counts": m.counts.decode()}, "score": 0.5}
        for i, m in masks.items()
    ]
    (tmp_path / "p.json").write_text(json.dumps(results))
    np.savez_compressed(tmp_path / "p.npz", **{i.replace("/", "__"): m.to_array() for i, m in masks.items()})
    np.savez(tmp_path / "f.npz", **{i: np.asfortranarray(m.to_array()) for i, m in masks.items()})
    for k, (i, m) in enumerate(masks.items()):
        flat = tmp_path / "flat" / f"{i.replace('/', '__')}.png"
        nested = tmp_path / "nested" / f"{i}.png"
        for path in (flat, nested):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(m.to_array().astype(np.uint8) * (255 if k % 2 else 1)).save(path)
    sources = ["p.jsonl", "p.json", "p.npz", "f.npz", "flat", "nested"]
    scored = [score(tmp_path / s, "snapshots/test").scores for s in sources]
    for other in scored[1:]:
        for name in (*COUNTS, "failed"):
            assert np.array_equal(getattr(scored[0], name), getattr(other, name)), name


def test_replaying_a_file_equals_scoring_it(embedded: Path, tmp_path: Path) -> None:
    masks = answers(load_samples("scenes/val"))
    del masks[next(iter(masks))]
    path = write_jsonl(tmp_path / "p.jsonl", masks)
    direct = score(path, "scenes/val")
    folder = run("predictions", "scenes/val", options={"file": str(path)}, out=tmp_path / "run", max_failures=1).folder
    replayed = score(folder)
    assert direct.summaries == replayed.summaries
    assert replayed.summaries["refbench"].failures == 1


def test_fields_of_the_answer_reach_the_row(embedded: Path, tmp_path: Path) -> None:
    sample = next(s for s in load_samples("scenes/val") if not s.no_target)
    mask = sample.target
    line = json_line(Prediction(sample.sample_id, mask, 0.25, True, (Instance(mask, 0.5),)))
    assert json.loads(line)["instances"] == [{"counts": mask.counts.decode(), "score": 0.5}]
    (tmp_path / "p.jsonl").write_text(line + "\n\n")
    table = score(tmp_path / "p.jsonl", "scenes/val").scores
    row = list(table.sample_id.to_pylist()).index(sample.sample_id)
    assert table.predicted_no_target[row]
    assert not table.failed[row]
    assert table.failed.sum() == 499


def line_for(sample: Sample, **changes: Any) -> str:
    content = {
        "sample_id": sample.sample_id,
        "size": [sample.height, sample.width],
        "counts": sample.target.counts.decode(),
        **changes,
    }
    return json.dumps({k: v for k, v in content.items() if v != "DROP"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_id": "scenes/val/none/0"}, r"p.jsonl line 2: the sample 'scenes/val/none/0' is not in this split"),
        ({"sample_id": 5}, "the sample 5 is not in this split"),
        ({"sample_id": ["x"]}, "is not in this split"),
        ({"size": [1, 2]}, r": the mask has 1 x 2 pixels, but the image of .* has .* x .* \(height x width\); resize"),
        ({"size": "DROP"}, r"size must be \[height, width\]"),
        ({"size": [1.5, {}]}, "the mask has"),
        ({"counts": "zz"}, "line 2:.*invalid run-length code"),
        ({"counts": "DROP"}, "line 2: counts must be"),
        ({"counts": None}, "line 2: counts must be"),
        ({"counts": "é"}, "line 2: counts is not ASCII"),
        ({"counts": [1, 2]}, "line 2:.*of the counts is 3, but height times width"),
        ({"score": float("nan")}, ": score must be a finite number, got nan"),
        ({"score": float("inf")}, "line 2: score must be a finite number"),
        ({"score": "0.9"}, r": score must be a finite number, got '0\.9'"),
        ({"score": 10**400}, "line 2: score must be a finite number"),
        ({"score": True}, "line 2: score must be a finite number"),
        ({"no_target": "yes"}, "line 2: no_target must be true or false"),
        ({"instances": 5}, "line 2: instances must be a list"),
        ({"instances": [{"counts": "zz", "score": 1}]}, "line 2: an instance:.*invalid run-length code"),
        ({"instances": [{"counts": "zz"}]}, "line 2: score must be"),
    ],
)
def test_wrong_lines_are_named(embedded: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    first, second = load_samples("scenes/val")[:2]
    (tmp_path / "p.jsonl").write_text(line_for(first) + "\n" + line_for(second, **changes) + "\n")
    with pytest.raises(PredictionError, match=message):
        score(tmp_path / "p.jsonl", "scenes/val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json\n", r"is not valid JSON \(.*\); expected one object per"),
        ('{"sample_id": \n', "is not valid JSON"),
        ("5\n", "line 1: expected an object with sample_id"),
        ("[5]\n", "entry 0: expected an object with sample_id"),
        ("[" * 100_000, "is nested too deeply to be an annotation file"),
        ('{"sample_id": "x", "size": ' + "[" * 50_000 + "\n", "is not valid JSON"),
        ("[1,\n", "is not valid JSON"),
        ("\x1f\x8b\x08", "is compressed with gzip;"),
        ("\x00\xff", "is not valid JSON"),
    ],
)
def test_files_that_are_no_predictions(embedded: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(text, encoding="latin1")
    with pytest.raises(PredictionError, match=message):
        score(tmp_path / "p.jsonl", "scenes/val")


def test_scores_that_hash_alike_are_different(embedded: Path, tmp_path: Path) -> None:
    sample = load_samples("scenes/val")[0]
    (tmp_path / "p.jsonl").write_text("\n".join(line_for(sample, score=score) for score in (-1.0, -2.0)))
    with pytest.raises(PredictionError, match="already has a different prediction"):
        score(tmp_path / "p.jsonl", "scenes/val")


def test_the_order_of_the_lines_does_not_matter(embedded: Path, tmp_path: Path) -> None:
    lines = [line_for(s) for s in load_samples("scenes/val")]
    found = []
    for order in (range(len(lines)), np.random.default_rng(0).permutation(len(lines))):
        (tmp_path / "p.jsonl").write_text("\n".join(lines[k] for k in order))
        scored = score(tmp_path / "p.jsonl", "scenes/val")
        found.append((scored.scores.sums(), scored.summaries["refbench"].metrics))
    assert found[0] == found[1]


def test_given_twice_is_an_error_and_missing_a_failure(embedded: Path, tmp_path: Path) -> None:
    sample = load_samples("scenes/val")[0]
    other = line_for(sample, counts=Mask.empty(sample.height, sample.width).counts.decode())
    (tmp_path / "p.jsonl").write_text(line_for(sample) + "\n" + other)
    with pytest.raises(
        PredictionError, match=r": the sample .* already has a different prediction \(entry 1\); keep only one of"
    ):
        score(tmp_path / "p.jsonl", "scenes/val")
    (tmp_path / "p.jsonl").write_text(line_for(sample))
    assert score(tmp_path / "p.jsonl", "scenes/val").summaries["refbench"].failures == 499
    (tmp_path / "p.jsonl").write_text("")
    scored = score(tmp_path / "p.jsonl", "scenes/val")
    assert scored.summaries["refbench"].metrics["mean_iou"].value == 0
    assert scored.scores.union.sum() == scored.scores.target_area.sum() > 0


def test_what_padded_runs_write_twice_counts_once(embedded: Path, tmp_path: Path) -> None:
    samples = load_samples("scenes/val")
    masks = {s.sample_id: s.target for s in samples}
    plain = score(write_jsonl(tmp_path / "p.jsonl", masks), "scenes/val")
    lines = (tmp_path / "p.jsonl").read_text()
    (tmp_path / "twice.jsonl").write_text(lines + "".join(lines.splitlines(keepends=True)[:3]))
    twice = score(tmp_path / "twice.jsonl", "scenes/val")
    assert twice.summaries == plain.summaries
    assert twice.notes == ("entries that repeat an earlier one, and were left out: 3",)
    assert plain.notes == ()
    rows = [
        {"sample_id": s.sample_id, "segmentation": {"size": list(s.target.size), "counts": s.target.counts.decode()}}
        for s in samples
    ]
    (tmp_path / "twice.json").write_text(json.dumps([*rows, rows[0]]))
    coco = score(tmp_path / "twice.json", "scenes/val", protocols=["refbench"])
    assert coco.summaries == plain.summaries
    assert coco.notes == ("entries that repeat an earlier one, and were left out: 1",)


def test_the_content_tells_the_format(embedded: Path, tmp_path: Path) -> None:
    samples = load_samples("scenes/val")
    masks = {s.sample_id: s.target for s in samples}
    plain = score(write_jsonl(tmp_path / "p.jsonl", masks), "scenes/val")
    shutil.copy(tmp_path / "p.jsonl", tmp_path / "lines.json")
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "p.jsonl").read_bytes())
    rows = [
        {"image_id": s.sample_id, "segmentation": {"size": list(s.target.size), "counts": s.target.counts.decode()}}
        for s in samples
    ]
    (tmp_path / "list.jsonl").write_text(json.dumps(rows, indent=1))
    for name in ("lines.json", "marked.txt", "list.jsonl"):
        assert score(tmp_path / name, "scenes/val").summaries == plain.summaries, name


@pytest.mark.parametrize(
    ("palette", "positions", "said"),
    [
        # Black lies anywhere in a palette, and the object has any other colour.
        ([0, 0, 0, 255, 255, 255], (0, 1), ""),
        ([255, 255, 255, 0, 0, 0], (1, 0), ""),
        ([9, 9, 9, 128, 0, 0, 0, 0, 0], (2, 1), ""),
        ([255, 255, 255, 128, 0, 0], (0, 1), r"but a mask contains only 0 \(black\) and one other value"),
        ([0, 0, 0, 0, 0, 0], (0, 1), "two values have the same colour in the palette of the image"),
    ],
)
def test_palette_pictures_count_by_their_colours(
    embedded: Path, tmp_path: Path, palette: list[int], positions: tuple[int, int], said: str
) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    samples = [s for s in load_samples("scenes/val") if not s.no_target][:5]
    ground, thing = positions
    for s in samples:
        picture = Image.fromarray(np.where(s.target.to_array(), thing, ground).astype(np.uint8), mode="P")
        picture.putpalette(palette)
        picture.save(folder / f"{s.sample_id.replace('/', '__')}.png")
    if said:
        with pytest.raises(PredictionError, match=said):
            score(folder, "scenes/val")
        return
    scores = score(folder, "scenes/val").scores
    assert (scores.intersection == scores.union)[~scores.failed].all()
    assert (~scores.failed).sum() == 5


def test_other_formats_gone_wrong(embedded: Path, tmp_path: Path) -> None:
    sample = load_samples("scenes/val")[0]
    name = sample.sample_id.replace("/", "__")
    size = (sample.height, sample.width)
    with pytest.raises(PredictionError, match="does not exist"):
        score(tmp_path / "none.jsonl", "scenes/val")
    with pytest.raises(PredictionError, match="does not exist"):
        score(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(PredictionError, match="pass their split with --dataset DATASET/SPLIT"):
        score(tmp_path / "empty.jsonl")
    cases: list[tuple[str, Any, str]] = [
        ("a.npz", {name: np.zeros(size)}, r"shape \(H, W\), got float64"),
        ("b.npz", {name: np.zeros((3, 3), bool)}, ": the mask has 3 x 3 pixels, but the image"),
        ("c.npz", {"unknown": np.zeros(size, bool)}, "is not in this split"),
    ]
    for file, arrays, message in cases:
        np.savez(tmp_path / file, **arrays)
        with pytest.raises(PredictionError, match=message):
            score(tmp_path / file, "scenes/val")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr(f"{name}.npy", pickle.dumps(1))
    (tmp_path / "e.npz").write_bytes(b"PK")
    (tmp_path / "f.json").write_text("{}")
    (tmp_path / "g.json").write_text(json.dumps([{"image_id": 3}]))
    (tmp_path / "h").mkdir()
    for file in ("d.npz", "e.npz", "f.json", "g.json", "h"):
        with pytest.raises(PredictionError, match=file):
            score(tmp_path / file, "scenes/val")
    picture = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    for folder, content, message in (
        ("grey", picture, "apply a threshold before saving"),
        ("rgb", np.zeros((*size, 3), np.uint8), "one channel"),
        ("small", np.zeros((4, 4), np.uint8), "the mask has 4 x 4"),
    ):
        (tmp_path / folder).mkdir()
        Image.fromarray(content).save(tmp_path / folder / f"{name}.png")
        with pytest.raises(PredictionError, match=message):
            score(tmp_path / folder, "scenes/val")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / f"{name}.png").write_text("no picture")
    with pytest.raises(PredictionError, match="not an image"):
        score(tmp_path / "text", "scenes/val")


@pytest.mark.slow
def test_mutated_archives_never_escape(embedded: Path, tmp_path: Path) -> None:
    sample = load_samples("scenes/val")[0]
    np.savez_compressed(tmp_path / "good.npz", **{sample.sample_id: sample.target.to_array()})
    good = (tmp_path / "good.npz").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(good)
        for place in random.integers(0, len(content), 3):
            content[place] = random.integers(256)
        (tmp_path / "p.npz").write_bytes(content)
        with contextlib.suppress(PredictionError):
            score(tmp_path / "p.npz", "scenes/val")


def table(**columns: list[Any]) -> ScoreTable:
    n = len(columns["intersection"])
    zeros = np.zeros(n, np.int64)
    base: dict[str, Any] = dict.fromkeys(COUNTS, zeros)
    base |= {k: np.asarray(v, np.int64) for k, v in columns.items() if k in COUNTS}
    flags = {k: np.asarray(columns.get(k, [False] * n), bool) for k in ("failed", "no_target", "predicted_no_target")}
    return ScoreTable([str(k) for k in range(n)], [str(k) for k in range(n)], **flags, **base)


def test_corner_cases_of_the_default_protocol() -> None:
    # Exactly 0.6; both empty; both empty but failed; nothing found.
    scores = table(intersection=[3, 0, 0, 0], union=[5, 0, 0, 7], failed=[False, False, True, False])
    metrics = {k: v.value for k, v in summarise(REFBENCH, Evidence(scores)).metrics.items()}
    assert metrics["precision_at_0.6"] == 50.0
    assert metrics["precision_at_0.7"] == 25.0
    assert metrics["mean_iou"] == pytest.approx(100 * (0.6 + 1 + 0 + 0) / 4)
    assert metrics["cumulative_iou"] == pytest.approx(100 * 3 / 12)
    empty = {k: v.value for k, v in summarise(REFBENCH, Evidence(table(intersection=[0], union=[0]))).metrics.items()}
    assert set(empty.values()) == {100.0}
    crashed = summarise(REFBENCH, Evidence(table(intersection=[0], union=[0], failed=[True])))
    assert {v.value for v in crashed.metrics.values()} == {0.0}


def test_a_crash_is_worth_no_point(embedded: Path, tmp_path: Path) -> None:
    honest = score(run(Threshold(), "scenes/val", out=tmp_path / "a").folder).summaries["refbench"]
    failing = run(Misbehaving("raise", "cross"), "scenes/val", out=tmp_path / "b", max_failures=500).folder
    crashed = score(failing).summaries["refbench"]
    assert crashed.failures > 0
    assert crashed.metrics["mean_iou"].value <= honest.metrics["mean_iou"].value


def test_scoring_a_run_against_another_split_is_refused(embedded: Path, tmp_path: Path) -> None:
    folder = run("nothing", "scenes/val", out=tmp_path / "run").folder
    with pytest.raises(RunError, match="is a run on scenes/val, not on scenes/test"):
        score(folder, "scenes/test")


@pytest.mark.slow
def test_golden_figures_of_the_floors_and_the_ruler(embedded: Path, tmp_path: Path) -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden" / "figures.json").read_text())
    found: dict[str, dict[str, float]] = {}
    for key in golden:
        adapter, _, words = key.partition(" ")
        options = dict(w.split("=") for w in words.split())
        folder = run(adapter, "scenes/val", options=options, out=tmp_path / key.replace(" ", ",")).folder
        score(folder)
        (row,) = read_rows([folder])
        found[key] = {name: round(e.value, 6) for name, e in row.metrics.items()}
    assert found == golden
