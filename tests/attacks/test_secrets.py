"""Keys, passwords and home folders: not in what a run writes, not in what it prints, not in what a worker gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from events import GIVE_UP_SECONDS

from refbench.adapters.worker import inherited
from refbench.errors import AdapterError
from refbench.storage.secrets import (
    means_secret,
    published,
    published_arguments,
    published_options,
    redacted,
)

FILE = Path(__file__).with_name("bad_adapters.py")
SPLIT = "snapshots/test"
KEY, PASSWORD, TOKEN = "sk-4242424242", "pass%77word", "tok-9898989898"
SECRETS = (KEY, PASSWORD, TOKEN, "/home/somebody", "in-the-query")
OPTIONS = (
    "-o", f"api_key={KEY}", "-o", f"endpoint=https://user:{PASSWORD}@example.org/v1?access_token=in-the-query",
    "-o", "weights=/home/somebody/private/w.pt",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["key", "api_key", "api-key", "apiKey", "API_KEY", "HF_TOKEN", "token", "client_secret", "password",
             "db.password", "AWS_SECRET_ACCESS_KEY", "authorization", "x_auth", "credentials", "openaiApiKey"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert means_secret(name)


@pytest.mark.parametrize(
    "name", ["max_tokens", "keypoints", "monkey", "keyword", "tokenizer", "passes", "author", "model", "keys", "hockey"]
)
def test_names_of_other_things(name: str) -> None:
    assert not means_secret(name)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("https://user:pw123@host/x", "https://***@host/x"),
        ("https://only-user@host/x", "https://***@host/x"),
        ("http://host/x?a=1&api_key=abc&b=2", "http://host/x?a=1&api_key=***&b=2"),
        ("http://host/x?X-Amz-Signature=abc", "http://host/x?X-Amz-Signature=***"),
        ("Authorization: Bearer abcdefghij", "Authorization: Bearer ***"),
        ("no secret: a@b.c, x=1, http://host/a?b=c", "no secret: a@b.c, x=1, http://host/a?b=c"),
        ("/home/anna/w.pt and /Users/anna and /root/x", "~/w.pt and ~ and ~/x"),
        ("/data/home/anna/w.pt", "/data/home/anna/w.pt"),
    ],
)
def test_text_that_may_be_published(text: str, safe: str) -> None:
    assert published(text) == safe
    assert published(safe) == safe


def test_options_and_command_lines() -> None:
    options = {"api_key": KEY, "prompt": f"say {KEY}", "n": 3, "token": "", "path": "/home/x/y"}
    assert published_options(options) == {"api_key": "***", "prompt": "say ***", "n": 3, "token": "", "path": "~/y"}
    line = ["run", "m.py:M", "-o", f"api_key={KEY}", f"-oapi_key={KEY}", f"--token={TOKEN}", f"again-{KEY}"]
    assert published_arguments(line) == [
        "run", "m.py:M", "-o", "api_key=***", "-oapi_key=***", "--token=***", "again-***"
    ]  # fmt: skip


def test_values_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    monkeypatch.setenv("SHORT_KEY", "abc")
    assert redacted(f"{KEY} abc") == "*** abc"


@pytest.mark.slow
def test_a_run_with_secrets_leaves_none(embedded: Path, tmp_path: Path) -> None:
    """Everything that run, score, report and the leaderboard print and write is searched."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "datasets").symlink_to(embedded / "datasets")
    environment = {**os.environ, "REFBENCH_HOME": str(home), "MY_SERVICE_TOKEN": TOKEN}
    printed = []

    def command(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "refbench", *map(str, words)], capture_output=True, env=environment,
            timeout=GIVE_UP_SECONDS,
        )  # fmt: skip
        printed.append(done.stdout + done.stderr)
        return done.stdout.decode()

    command("run", f"{FILE}:Leaky", SPLIT, *OPTIONS)
    command("run", f"{FILE}:Leaky", SPLIT, *OPTIONS, "--workers", 2, "--out", tmp_path / "two")
    command("run", f"{FILE}:Nobody", SPLIT, *OPTIONS)
    command("run", f"{FILE}:Leaky", SPLIT, *OPTIONS, "-o", f"unknown_token={TOKEN}")
    (folder,) = (home / "runs").rglob("run.json")
    for verb in ("score", "report", "diagnose"):
        command(verb, folder.parent)
    command("leaderboard", "build", "--runs", home / "runs")
    command("leaderboard", "verify", home / "runs")
    files = [p for place in (home / "runs", home / "leaderboard", tmp_path / "two") for p in place.rglob("*")]
    assert {p.name for p in files} >= {"run.json", "report.html", "measured.csv", "part-00000.parquet"}
    for secret in SECRETS:
        assert not [p for p in files if secret in str(p)], secret
        assert not [p for p in files if p.is_file() and secret.encode() in p.read_bytes()], secret
        # Parquet is compressed, so its texts are searched, too.
        tables = [pq.read_table(p).to_pylist() for p in files if p.suffix == ".parquet"]
        assert secret not in repr(tables), secret
        assert not [text for text in printed if secret.encode() in text], secret


def test_a_worker_gets_a_named_list_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MY_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PYTHONPATH", "LD_PRELOAD", "ANYTHING", "NCCL_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{PASSWORD}@proxy:3128")
    found = inherited()
    assert (found["PATH"], found["OMP_NUM_THREADS"]) == (os.environ["PATH"], "3")
    assert found["HTTPS_PROXY"] == "http://proxy:3128"
    assert not {"MY_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PYTHONPATH", "LD_PRELOAD", "ANYTHING"} & set(found)
    assert "NCCL_KEY" not in found
    assert inherited("HF_TOKEN, ANYTHING") == {**found, "HF_TOKEN": "x", "ANYTHING": "x"}
    with pytest.raises(AdapterError, match="NOT_THERE is not set"):
        inherited("NOT_THERE")
