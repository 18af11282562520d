"""LaTeX tables: best and second best per protocol, intervals, special characters; compiled where there is a TeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from refbench import leaderboard_frame, protocols_frame, run, runs_frame, score, to_latex
from refbench.errors import PredictionError
from refbench.reports.comparison import compare
from refbench.reports.latex import escaped

ROWS = [
    # protocol, system, metric, value, low, high, origin
    ("cris", "A_1", "IoU", 70.04, None, None, "published"),
    ("cris", "B&C", "IoU", 71.26, None, None, "published"),
    ("cris", "mine", "IoU", 71.31, 70.0, 72.5, "measured"),
    ("lisa", "D", "IoU", 90.0, None, None, "published"),
    ("lisa", "D", "other", float("nan"), None, None, "published"),
]


def table() -> pd.DataFrame:
    frame = pd.DataFrame(ROWS, columns=["protocol", "system", "metric", "value", "low", "high", "origin"])
    return frame.assign(variant="-")


def rows_of(text: str) -> dict[str, list[str]]:
    cells = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    return {row[0]: row[1:] for row in cells}


def test_the_best_of_each_protocol_is_bold_and_the_second_underlined() -> None:
    rows = rows_of(to_latex(table(), metrics=["IoU"]))
    assert rows["mine (ours)"] == [r"\textbf{71.3} {\scriptsize [70.0, 72.5]}"]
    assert rows[r"B\&C"] == [r"\textbf{71.3}"]  # the same as printed
    assert rows[r"A\_1"] == [r"\underline{70.0}"]
    assert rows["D"] == ["90.0"]  # alone under its protocol, so it is not the best of anything


def test_two_digits_tell_them_apart() -> None:
    rows = rows_of(to_latex(table(), metrics=["IoU"], digits=2, interval="plus-minus"))
    assert rows["mine (ours)"] == [r"\textbf{71.31} {\scriptsize $\pm$ 1.25}"]
    assert rows[r"B\&C"] == [r"\underline{71.26}"]
    assert list(rows).index("mine (ours)") < list(rows).index(r"B\&C") < list(rows).index(r"A\_1")


def test_a_missing_figure_is_a_dash_and_rules_are_footnotes() -> None:
    text = to_latex(table(), interval="none")
    assert rows_of(text)["D"] == ["90.0", "--"]
    assert "scriptsize" not in text
    assert text.count("$^{a}$") == text.count("$^{b}$") == 2
    assert "Protocol lisa: " in text


def test_a_comparison_states_difference_and_p(embedded: Path, tmp_path: Path) -> None:
    places = []
    for name, options in (("careful", {"shift": "1", "part": "0.2"}), ("careless", {"shift": "5", "swap": "0.2"})):
        places.append(run("noisy-oracle", "scenes/val", options=options, out=tmp_path / name).folder)
        score(places[-1])
    found = compare(*places)
    rows = rows_of(to_latex(found, metrics=["mean_iou"]))
    d = next(x for x in found.metrics if x.metric == "mean_iou")
    assert rows["mIoU"][0] == rf"\textbf{{{d.first:.1f}}}"
    assert rows["mIoU"][1] == f"{d.second:.1f}"
    assert rows["mIoU"][2].startswith(f"${d.difference:+.1f}$")
    assert r"95 \% intervals" in to_latex(found)
    runs = to_latex(runs_frame(tmp_path), metrics=["mean_iou", "cumulative_iou"])
    assert list(rows_of(runs)["System"]) == ["mIoU", "cIoU"]
    assert "refbench" in to_latex(protocols_frame(places[0]), metrics=["cumulative_iou"])


@pytest.mark.parametrize("text", [r"a_b & c % d $ e # f { g } h ~ i ^ j \ k < l > m | n"])
def test_special_characters_are_escaped(text: str) -> None:
    assert not re.search(r"(?<!\\)[_&%$#]", escaped(text))


def test_what_cannot_be_printed_is_named() -> None:
    with pytest.raises(PredictionError, match="there is no metric 'x'; choose from IoU, other"):
        to_latex(table(), metrics=["x"])
    with pytest.raises(PredictionError, match="the interval must be one of"):
        to_latex(table(), interval="wide")
    with pytest.raises(PredictionError, match="has no column 'metric'"):
        to_latex(table().drop(columns="metric"))
    with pytest.raises(PredictionError, match="a table is made of a DataFrame, a Comparison or a Scored, got str"):
        to_latex("text")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_tables_compile(tmp_path: Path) -> None:
    frame = leaderboard_frame("refcoco/val")
    parts = [
        to_latex(frame, metrics=["overall IoU", "ciou", "IoU"], caption="RefCOCO & co: 100 %", label="tab:a"),
        to_latex(table(), interval="plus-minus", caption="Mine_2"),
    ]
    document = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}", *parts, r"\end{document}"]
    (tmp_path / "t.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
    assert "Missing character" not in result.stdout
