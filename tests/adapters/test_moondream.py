"""Moondream against a real server on loopback: answers, failures, patience, and a key that goes nowhere."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from moondream_server import BOX, Service, serving

from refbench import load_samples, run, score
from refbench.adapters.moondream import Moondream, to_answer
from refbench.errors import AdapterError, RunStopped, TooManyFailures
from refbench.plugins.loading import load_adapter
from refbench.runs.folder import RunFolder
from refbench.storage.files import read_table
from refbench.storage.predictions import predictions_from_table

Cli = Callable[..., subprocess.CompletedProcess[str]]
SPLIT = "snapshots/test"
TOTAL = 12


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with serving(Service()) as made:
        monkeypatch.setenv("MOONDREAM_API_KEY", made.key)
        yield made


def start(service: Service, tmp_path: Path, **more: str):  # type: ignore[no-untyped-def]
    options = {"endpoint": service.url, "cache": str(tmp_path / "cache"), "retries": "2", **more}
    return run("moondream", SPLIT, options=options, limit=TOTAL, out=tmp_path / "run")


def rows(folder: Path) -> list:  # type: ignore[type-arg]
    return [p for path in RunFolder(folder).written for p in predictions_from_table(read_table(path))]


def test_a_run(embedded: Path, service: Service, tmp_path: Path) -> None:
    service.delay_seconds = 0.02
    result = start(service, tmp_path)
    samples = load_samples(SPLIT)[:TOTAL]
    assert sorted(service.expressions) == sorted(s.expression for s in samples)
    assert set(service.sizes) == {(s.height, s.width) for s in samples}
    assert 1 < service.most_at_once <= 4
    for sample, row in zip(samples, rows(result.folder), strict=True):
        height, width = sample.height, sample.width
        y, x = np.mgrid[:height, :width] + 0.5
        # The path is an ellipse that fills its box.
        inside = ((x / width - 0.5) / 0.375) ** 2 + ((y / height - 0.5) / 0.25) ** 2 <= 1
        found = row.mask.to_array()
        assert (found & inside).sum() / (found | inside).sum() > 0.99
        assert json.loads(row.raw)["bbox"] == BOX
    assert result.usage["requests answered"] == TOTAL
    assert result.usage["estimated cost (USD)"] == pytest.approx(TOTAL * 0.0004)
    info = json.loads((result.folder / "run.json").read_text())
    assert info["usage"]["requests answered"] == TOTAL
    score(result.folder)


def test_what_was_paid_for_is_not_asked_again(embedded: Path, service: Service, tmp_path: Path) -> None:
    service.next = ["", "", "", "", "402"]
    with pytest.raises(RunStopped, match="402: the account has no credit left"):
        start(service, tmp_path, concurrency="1")
    assert not RunFolder(tmp_path / "run").written
    asked = len(service.expressions)
    service.expressions.clear()
    result = start(service, tmp_path, concurrency="1")
    assert result.failures == 0
    assert len(service.expressions) < TOTAL
    assert len(service.expressions) + asked <= TOTAL + 12
    assert result.usage["answers kept from before"] >= 4
    assert service.kinds[0] in ("data:image/jpeg", "data:image/png")


@pytest.mark.parametrize(
    ("how", "note"),
    [
        ("empty", "no path in the answer"),
        ("broken", "a path that cannot be read"),
        ("no-box", "no box in the answer"),
        ("flat-box", "a box without area"),
        ("parse-error", "the model's outline could not be parsed"),
        ("cut", "the path was cut off at the limit of tokens"),
    ],
)
def test_answers_without_an_outline(embedded: Path, service: Service, tmp_path: Path, how: str, note: str) -> None:
    service.next = [how]
    result = start(service, tmp_path, concurrency="1")
    assert result.failures == 0
    assert result.notes == {note: 1}
    noted = [r for r in rows(result.folder) if r.note]
    assert [r.note for r in noted] == [note]
    assert (noted[0].mask.area == 0) == (how != "cut")
    assert json.loads((result.folder / "run.json").read_text())["answer_notes"] == {note: 1}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["500", "503", "429", "wait", "truncated", "html", "slow"])
def test_what_passes_is_waited_for(embedded: Path, service: Service, tmp_path: Path, how: str) -> None:
    service.next = [how]
    result = start(service, tmp_path, concurrency="1", timeout="6")
    assert result.failures == 0
    assert len(service.times) == TOTAL + 1
    if how == "wait":
        assert service.times[1] - service.times[0] >= 1.0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("402", "402: the account has no credit left"),
        ("403", "403: the key may not do this"),
        ("404", "404: there is no such service"),
        ("redirect", "307: it redirects to an address to which the key is not sent"),
        ("500", "500 .*3 samples in a row: the service is down"),
        ("html", "the body is not a JSON object"),
        ("truncated", "no response from .*:"),
    ],
)
def test_what_does_not_pass_ends_the_run(
    embedded: Path, service: Service, tmp_path: Path, how: str, message: str
) -> None:
    service.always = how
    with pytest.raises(RunStopped, match=message) as caught:
        start(service, tmp_path, retries="0", concurrency="2")
    assert service.key not in str(caught.value)
    assert not RunFolder(tmp_path / "run").written
    service.always = ""
    assert start(service, tmp_path, retries="0", concurrency="2").failures == 0


def test_a_question_that_is_refused_is_a_failed_sample(embedded: Path, service: Service, tmp_path: Path) -> None:
    # In the batch, after which the others are known, and then alone.
    service.next = ["400", *[""] * (TOTAL - 1), "400"]
    with pytest.raises(TooManyFailures, match=r"1 of 12 samples failed.*answers 400 ") as caught:
        start(service, tmp_path, concurrency="1")
    # The server repeats the key just where its text is cut.
    assert "a-key" not in str(caught.value)


def test_questions_that_the_service_cannot_take_do_not_end_the_run(
    embedded: Path, service: Service, tmp_path: Path
) -> None:
    """Several bad samples side by side, each asked twice: a question that is known to work shows that they are bad."""
    words = [s.expression for s in load_samples(SPLIT)[:TOTAL]]
    bad = set(words[2:7])
    service.refuse = bad
    expected = sum(w in bad for w in words)
    for _ in range(2):
        with pytest.raises(TooManyFailures, match=f"{expected} of 12 samples failed"):
            start(service, tmp_path, retries="0", concurrency="1")
        for path in RunFolder(tmp_path / "run").written:
            path.unlink()


def test_an_error_in_a_200_is_neither_kept_nor_an_answer(embedded: Path, service: Service, tmp_path: Path) -> None:
    service.next = ["error-in-200", *[""] * (TOTAL - 1), "error-in-200"]
    with pytest.raises(TooManyFailures, match="status 200 without an answer"):
        start(service, tmp_path, concurrency="1")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["usage"]["requests answered"] == TOTAL - 1
    for path in RunFolder(tmp_path / "run").written:
        path.unlink()
    assert start(service, tmp_path, concurrency="1").failures == 0


@pytest.mark.parametrize(("how", "end"), [("402", RunStopped), ("ctrl-c", KeyboardInterrupt)])
def test_what_an_interrupted_run_has_cost_is_told(
    how: str, end: type[BaseException], embedded: Path, service: Service, tmp_path: Path
) -> None:
    service.next = [*[""] * 7, how]
    # Workers of pytest-xdist ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(end):
            start(service, tmp_path, concurrency="1")
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["usage"]["requests answered"] == 7
    start(service, tmp_path, concurrency="1")
    used = json.loads((tmp_path / "run" / "run.json").read_text())["usage"]
    # The answer that was under way at the interruption comes, and is kept, after the run has ended.
    assert used["requests answered"] + (how == "ctrl-c") >= TOTAL
    assert used["answers kept from before"] >= 7


def test_a_path_that_was_cut_off_is_drawn_up_to_there() -> None:
    box = {"x_min": 0, "y_min": 0, "x_max": 1, "y_max": 1}
    response = {"path": "M0 0L1 0L1 1L0", "bbox": box, "finish_reason": "length"}
    answer = to_answer(response, 40, 40)
    assert answer.mask.area == pytest.approx(800, rel=0.05)
    assert answer.note == "the path was cut off at the limit of tokens"
    assert to_answer({**response, "finish_reason": "stop"}, 40, 40).note == "a path that cannot be read"


@pytest.mark.parametrize("key", ["two words", "two\nlines", "schl\u00fcssel"])
def test_a_key_that_is_none_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONDREAM_API_KEY", key)
    with pytest.raises(AdapterError, match="does not contain a valid key") as caught:
        Moondream("http://localhost:2020/v1")
    assert key not in str(caught.value)


def test_nobody_there(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONDREAM_API_KEY", "k")
    with serving(Service()) as gone:
        pass
    with pytest.raises(RunStopped, match=r"no response from .*:"):
        start(gone, tmp_path, retries="0")


@pytest.mark.slow
def test_the_key_is_in_no_file_and_no_log(
    refbench: Cli, embedded: Path, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["-o", f"endpoint={service.url}", "-o", f"cache={tmp_path / 'cache'}", "-o", "retries=0"]
    service.next = ["400"]
    calls = [refbench("run", "moondream", SPLIT, "--limit", "6", "--out", str(tmp_path / "a"), *options)]
    calls.append(refbench("score", str(tmp_path / "a")))
    service.always = "402"
    calls.append(refbench("run", "moondream", SPLIT, "--limit", "9", "--out", str(tmp_path / "b"), *options))
    assert calls[2].returncode == 3
    service.always = ""
    calls.append(refbench("run", "moondream", SPLIT, "--limit", "9", "--out", str(tmp_path / "b"), "--json", *options))
    assert all(service.key not in c.stdout + c.stderr for c in calls)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert [p for p in files if service.key.encode() in p.read_bytes()] == []
    # The wrong one, too, which the server repeats in its answer.
    monkeypatch.setenv("MOONDREAM_API_KEY", "another-secret")
    wrong = refbench("run", "moondream", SPLIT, "--limit", "12", "--out", str(tmp_path / "c"), *options)
    assert wrong.returncode == 3
    assert "401: the key is refused" in wrong.stderr
    assert "another-secret" not in wrong.stderr


def test_options_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOONDREAM_API_KEY", raising=False)
    for options, message in (
        ({}, r"moondream needs a key; set the environment variable MOONDREAM_API_KEY \(options cannot hold keys,"),
        ({"api_key": "x"}, "has no option 'api_key'"),
        ({"endpoint": "http://example.org/v1"}, "would send the key and the images unencrypted; use https"),
        ({"endpoint": "https://me:secret@example.org/v1"}, "a password or a query"),
        ({"endpoint": "ftp://example.org"}, "is not a valid endpoint"),
        ({"endpoint": "http://localhost:1/v1", "concurrency": "0"}, "must be positive"),
    ):
        with pytest.raises(AdapterError, match=message):
            load_adapter("moondream", options)
    # A server of one's own on this machine needs none.
    Moondream("http://localhost:2020/v1").close()


def test_a_kept_answer_that_is_damaged_is_asked_for_again(embedded: Path, service: Service, tmp_path: Path) -> None:
    start(service, tmp_path)
    kept = sorted((tmp_path / "cache").rglob("*.json"))
    assert len(kept) == TOTAL
    kept[0].write_text('{"path": "M')
    for path in RunFolder(tmp_path / "run").written:
        path.unlink()
    service.expressions.clear()
    start(service, tmp_path)
    assert len(service.expressions) == 1


def test_an_answer_of_the_wrong_types() -> None:
    for response in (
        {"path": 3},
        {"path": "M0 0z", "bbox": [0, 0, 1, 1]},
        {"path": "M0 0z", "bbox": {"x_min": "a"}},
        {},
    ):
        answer = to_answer(response, 5, 5)
        assert answer.mask.area == 0
        assert answer.note
