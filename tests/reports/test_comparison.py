"""Two runs: their differences, what changed, and the gate as CI would call it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scoring.test_scorer import naive_metrics

from refbench import load_samples, run, score
from refbench.adapters.baselines import NoisyOracle
from refbench.errors import PredictionError, RunError
from refbench.reports.comparison import compare, differences, most_changed
from refbench.reports.pages import write_comparison, write_report
from refbench.scoring.counts import ScoreTable, read_scores, write_scores
from refbench.scoring.protocols.exact import REFBENCH

Call = Callable[..., "subprocess.CompletedProcess[str]"]


def scored(folder: Path, split: str = "snapshots/test", **options: str) -> Path:
    run("noisy-oracle", split, options=options, out=folder)
    score(folder)
    return folder


def rewritten(folder: Path, to: Path, change: Callable[[ScoreTable], ScoreTable]) -> Path:
    """A scored folder of which only scores.parquet is left, changed."""
    to.mkdir()
    write_scores(to / "scores.parquet", change(read_scores(folder / "scores.parquet")))
    return to


def worse_by(pixels: int) -> Callable[[ScoreTable], ScoreTable]:
    """Predictions that lack so many pixels of the inside of each target that has them."""

    def change(s: ScoreTable) -> ScoreTable:
        # The bands stay as they are; a mask's inside has room for it.
        room = np.minimum(s.intersection - s.boundary_intersection, pixels)
        return dataclasses.replace(
            s, intersection=s.intersection - room, prediction_area=s.prediction_area - room, union=s.union
        )

    return change


def test_differences_are_those_of_the_metrics(embedded: Path, tmp_path: Path) -> None:
    a, b = scored(tmp_path / "a", dilate="1"), scored(tmp_path / "b", dilate="2", swap="0.2")
    found = compare(a, b)
    samples = load_samples("snapshots/test")
    naive = [
        naive_metrics(
            samples, {s.sample_id: m for s, m in zip(samples, o.segment_samples(samples, []), strict=True)}, set()
        )
        for o in (NoisyOracle(dilate=1), NoisyOracle(dilate=2, swap=0.2))
    ]
    for d in found.metrics:
        assert [d.first, d.second] == pytest.approx([n[d.metric] for n in naive])
        assert d.difference == pytest.approx(d.second - d.first)
        assert d.low <= d.difference <= d.high
    back = compare(b, a)
    for d, e in zip(found.metrics, back.metrics, strict=True):
        assert (d.difference, d.low, d.high) == pytest.approx((-e.difference, -e.high, -e.low))
        assert d.p_value == e.p_value
    changes = [abs(c.difference) for c in found.changed]
    assert len(changes) == 25
    assert changes == sorted(changes, reverse=True)


def test_rows_in_another_order_are_the_same_run(embedded: Path, tmp_path: Path) -> None:
    a, b = scored(tmp_path / "a", dilate="1"), scored(tmp_path / "b", dilate="2", swap="0.2")
    shuffled = rewritten(b, tmp_path / "c", lambda s: s.take(np.random.default_rng(0).permutation(len(s))))
    one, other = compare(a, b), compare(a, shuffled)
    assert one.metrics == other.metrics
    assert one.changed == other.changed


def test_the_page_shows_both_masks(embedded: Path, tmp_path: Path) -> None:
    a, b = scored(tmp_path / "a"), scored(tmp_path / "b", dilate="3")
    page = write_comparison(compare(a, b), [], tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 50
    assert "noisy-oracle (B) against noisy-oracle (A)" in page


@pytest.mark.slow
def test_compare_on_the_command_line(embedded: Path, tmp_path: Path, refbench: Call) -> None:
    a, b = scored(tmp_path / "a", "scenes/val"), scored(tmp_path / "b", "scenes/val", dilate="1", part="0.1")
    shown = refbench("compare", a, b, "--json", "--page", tmp_path / "page.html")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["metrics"]["mean_iou"]["difference"] < 0
    assert found["metrics"]["mean_iou"]["p_value"] < 0.001
    assert {s["dimension"] for s in found["slices"]} >= {"words", "target size", "category", "look-alikes"}
    assert len(found["changed"]) == 25
    assert all(s["p_adjusted"] >= s["mean_iou"]["p_value"] for s in found["slices"])
    table = refbench("compare", a, b).stdout
    assert "samples that changed most" in table
    assert (tmp_path / "page.html").stat().st_size > 100_000


def test_runs_that_cannot_be_compared(embedded: Path, tmp_path: Path) -> None:
    a, other = scored(tmp_path / "a"), scored(tmp_path / "b", "scenes/val")
    with pytest.raises(RunError, match=r"is a run on snapshots/test, but .* is a run on scenes/val, so they cannot be"):
        compare(a, other)
    fewer = rewritten(a, tmp_path / "c", lambda s: s.take(np.arange(len(s) - 3)))
    with pytest.raises(RunError, match=r"lacks 3 samples of .* and has 0 additional samples, for example"):
        compare(a, fewer)
    redrawn = rewritten(
        a,
        tmp_path / "d",
        lambda s: dataclasses.replace(s, target_area=s.target_area + ~s.no_target, union=s.union + ~s.no_target),
    )
    with pytest.raises(RunError, match="so the two runs were scored on different versions of the dataset"):
        compare(a, redrawn)
    with pytest.raises(PredictionError, match="is not a run folder; to read it as predictions, pass their split"):
        compare(a, tmp_path)


def test_small_tables_have_figures_too(embedded: Path, tmp_path: Path) -> None:
    table = read_scores(scored(tmp_path / "a", dilate="1") / "scores.parquet").take(np.arange(1))
    (found,) = differences(table, table, ["mean_iou"])
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert most_changed(table, table) == []


# The gate, as CI would call it: a process, its exit code, and what people read.


@pytest.fixture
def baseline(embedded: Path, tmp_path: Path) -> Path:
    return scored(tmp_path / "baseline", "scenes/val", dilate="2")


@pytest.mark.slow
def test_better_equal_and_slightly_worse_pass(baseline: Path, tmp_path: Path, refbench: Call) -> None:
    better = scored(tmp_path / "better", "scenes/val", dilate="1")
    slightly = rewritten(baseline, tmp_path / "slightly", worse_by(1))
    for place in (better, baseline, slightly):
        done = refbench("gate", place, "--baseline", baseline, "--json")
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["holds"]
    verdicts = {c["name"]: c["detail"] for c in json.loads(done.stdout)["checks"]}
    assert verdicts["mean_iou"].startswith("worse, within its margin")


@pytest.mark.slow
def test_clearly_worse_fails_and_says_how(baseline: Path, tmp_path: Path, refbench: Call) -> None:
    worse = scored(tmp_path / "worse", "scenes/val", dilate="4")
    files = tmp_path / "gate.xml", tmp_path / "gate.md"
    done = refbench("gate", worse, "--baseline", baseline, "--junit", files[0], "--markdown", files[1])
    assert done.returncode == 1
    assert "worse by more than its margin, and significantly" in done.stdout
    suite = ElementTree.parse(files[0]).getroot().find("testsuite")
    assert suite is not None
    assert [suite.get(k) for k in ("tests", "failures")] == ["5", "3"]
    assert {c.get("name") for c in suite.findall("testcase") if c.find("failure") is not None} == {
        "cumulative_iou", "mean_iou", "mean_boundary_iou",
    }  # fmt: skip
    text = files[1].read_text()
    assert text.startswith("### ❌ The gate fails: scenes/val")
    assert text.count("| ❌ worse by more than its margin, and significantly |") == 3


@pytest.mark.slow
def test_a_wide_margin_or_chance_lets_it_pass(baseline: Path, tmp_path: Path, refbench: Call) -> None:
    worse = scored(tmp_path / "worse", "scenes/val", dilate="4")
    wide = refbench("gate", worse, "--baseline", baseline, "--metric", "mean_iou", "--margin", "90")
    assert wide.returncode == 0
    # One sample of one image, lost whole: more than the margin, but a coin decides which run has it.
    unlucky = rewritten(baseline, tmp_path / "unlucky", one_sample_lost)
    done = refbench("gate", unlucky, "--baseline", baseline, "--metric", "mean_iou", "--margin", "0", "--json")
    assert done.returncode == 0
    assert "not significantly" in json.loads(done.stdout)["checks"][-1]["detail"]


def one_sample_lost(s: ScoreTable) -> ScoreTable:
    columns = {f.name: getattr(s, f.name) for f in dataclasses.fields(s)}
    row = int(np.argmax(s.intersection))
    for name in ("intersection", "prediction_area", "boundary_intersection"):
        columns[name] = columns[name].copy()
        columns[name][row] = 0
    columns["union"] = columns["union"].copy()
    columns["union"][row] = s.target_area[row]
    columns["boundary_union"] = np.minimum(s.boundary_union, columns["union"])
    return ScoreTable(**columns)


@pytest.mark.slow
def test_missing_samples_and_new_failures_fail(baseline: Path, tmp_path: Path, refbench: Call) -> None:
    fewer = rewritten(baseline, tmp_path / "fewer", lambda s: s.take(np.arange(7, len(s))))
    done = refbench("gate", fewer, "--baseline", baseline)
    assert done.returncode == 1
    assert "7 are missing (the first: scenes/val/" in done.stdout
    # More than the baseline has is not a comparison either.
    assert refbench("gate", baseline, "--baseline", fewer).returncode == 1

    def crashed(s: ScoreTable) -> ScoreTable:
        lost = one_sample_lost(s)
        failed = s.failed.copy()
        failed[int(np.argmax(s.intersection))] = True
        return dataclasses.replace(lost, failed=failed)

    broken = rewritten(baseline, tmp_path / "broken", crashed)
    done = refbench("gate", broken, "--baseline", baseline, "--metric", "mean_iou", "--margin", "50")
    assert done.returncode == 1
    assert "1 new ones, the first: scenes/val/" in done.stdout


@pytest.mark.slow
def test_other_datasets_and_damaged_files_are_bad_input(baseline: Path, tmp_path: Path, refbench: Call) -> None:
    other = scored(tmp_path / "other")
    done = refbench("gate", other, "--baseline", baseline)
    assert (done.returncode, "cannot be compared" in done.stderr) == (3, True)
    # Another version of the same split, told by the fingerprint.
    version = shutil.copytree(baseline, tmp_path / "version")
    summary = json.loads((version / "summary.json").read_text())
    for name in ("summary.json", "run.json"):
        content = json.loads((version / name).read_text())
        (version / name).write_text(json.dumps({**content, "fingerprint": "0" * 64}))
    done = refbench("gate", version, "--baseline", baseline)
    assert (done.returncode, "different versions of scenes/val" in done.stderr) == (3, True)
    damaged = shutil.copytree(baseline, tmp_path / "damaged")
    (damaged / "scores.parquet").write_bytes((baseline / "scores.parquet").read_bytes()[:-100])
    done = refbench("gate", damaged, "--baseline", baseline)
    assert (done.returncode, "not a readable Parquet file" in done.stderr) == (3, True)
    edited = shutil.copytree(baseline, tmp_path / "edited")
    summary["protocols"]["refbench"]["metrics"]["mean_iou"]["value"] += 1
    (edited / "summary.json").write_text(json.dumps(summary))
    done = refbench("gate", edited, "--baseline", baseline)
    assert (done.returncode, "contradicts itself" in done.stderr) == (3, True)
    assert "Traceback" not in done.stderr
    assert refbench("gate", tmp_path / "nowhere", "--baseline", baseline).returncode == 3
    assert refbench("gate", baseline, "--baseline", baseline, "--metric", "giou").returncode == 2
    margins = ("--margin", "1", "--margin", "2")
    assert refbench("gate", baseline, "--baseline", baseline, "--metric", "mean_iou", *margins).returncode == 2


@pytest.mark.slow
def test_scores_alone_are_enough(baseline: Path, tmp_path: Path, refbench: Call) -> None:
    lone = shutil.copy(baseline / "scores.parquet", tmp_path / "lone.parquet")
    home = {"REFBENCH_HOME": str(tmp_path / "empty")}
    # An import of torch would fail here, as it does where torch is not installed.
    (tmp_path / "torch.py").write_text("raise ImportError('the gate needs no torch')")
    done = refbench("gate", lone, "--baseline", baseline, "--json", **home, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert set(REFBENCH.metrics) >= {c["name"] for c in json.loads(done.stdout)["checks"][2:]}


@pytest.mark.slow
def test_margins_are_numbers(baseline: Path, refbench: Call) -> None:
    for margin in ("nan", "inf", "-1", "x"):
        assert refbench("gate", baseline, "--baseline", baseline, "--margin", margin).returncode == 2
        assert refbench("compare", baseline, baseline, "--margin", margin).returncode == 2
    twice = ("--metric", "mean_iou", "--metric", "mean_iou")
    assert refbench("gate", baseline, "--baseline", baseline, *twice).returncode == 2


@pytest.mark.slow
def test_images_must_agree(baseline: Path, tmp_path: Path, refbench: Call) -> None:
    moved = rewritten(baseline, tmp_path / "moved", lambda s: dataclasses.replace(s, image_id=list(s.image_id)[::-1]))
    done = refbench("gate", moved, "--baseline", baseline)
    assert (done.returncode, "belongs to the image" in done.stderr) == (3, True)


@pytest.mark.slow
def test_of_a_few_images_the_margin_decides(baseline: Path, tmp_path: Path, refbench: Call) -> None:
    def first_image(s: ScoreTable) -> ScoreTable:
        return s.take(np.flatnonzero(np.array(s.image_id) == s.image_id[0]))

    small = rewritten(baseline, tmp_path / "small", first_image)
    lost = rewritten(small, tmp_path / "lost", one_sample_lost)
    done = refbench("gate", lost, "--baseline", small, "--json")
    assert done.returncode == 1
    assert "on 1 images, too few for a test" in done.stdout
    assert json.loads(done.stdout)["checks"][-1]["figures"]["detectable"] is None


@pytest.mark.slow
def test_a_report_of_rows_in_another_order_shows_the_same(embedded: Path, tmp_path: Path) -> None:
    folder = scored(tmp_path / "run", shift="9")
    page = write_report(folder).read_text()
    table = read_scores(folder / "scores.parquet")
    write_scores(folder / "scores.parquet", table.take(np.arange(len(table))[::-1]))
    again = write_report(folder).read_text()

    def shown(text: str) -> dict[str, str]:
        return {
            m[2]: m[1] for m in re.finditer(r"IoU ([0-9.]+), boundary .*?<code class=\"quiet\">([^<]+)<", text, re.S)
        }

    # Of equally bad samples others may be chosen, but each has its own figure.
    figures, others = shown(page), shown(again)
    both = figures.keys() & others.keys()
    assert len(both) > 10
    assert {s: figures[s] for s in both} == {s: others[s] for s in both}
