"""Uploads to a server on loopback that takes commits as the Hugging Face hub does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

Cli = Callable[..., Any]
TOKEN = "hf_" + "a" * 34


class Hub:
    """What was created and committed; `refuse` is a status for all requests."""

    def __init__(self) -> None:
        self.url = ""
        self.repos: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuse = 0


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(404, {"error": "not found"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            made.tokens.add(self.headers.get("Authorization", ""))
            path = self.path.split("?")[0]
            if made.refuse:
                return self.answer(made.refuse, {"error": "no"})
            if path == "/api/repos/create":
                made.repos.append(json.loads(body))
                return self.answer(200, {"url": f"{made.url}/datasets/me/cleaned", "name": "me/cleaned"})
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if "/preupload/" in path:
                asked = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
                return self.answer(200, {"files": modes})
            if "/commit/" in path:
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "header":
                        made.commits.append(value)
                    elif line["key"] == "file":
                        made.files[value["path"]] = base64.b64decode(value["content"])
                oid = "1" * 40
                return self.answer(200, {"commitUrl": f"{made.url}/datasets/me/cleaned/commit/{oid}", "commitOid": oid})
            return self.answer(404, {"error": path})

        def answer(self, status: int, content: object) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_split_is_published_in_one_commit(embedded: Path, tmp_path: Path, hub: Hub, refbench: Cli) -> None:
    ledger = tmp_path / "l.parquet"
    ledger.write_bytes(b"a ledger")
    out = tmp_path / "out"
    words = ("export", "snapshots/test", "--format", "hf", "--out", out, "--ledger", ledger, "--push", "me/cleaned")
    done = refbench(*words, "--json", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["commit"] == f"{hub.url}/datasets/me/cleaned/commit/{'1' * 40}"
    assert TOKEN not in done.stdout + done.stderr
    assert [r["name"] for r in hub.repos] == ["cleaned"]
    assert [c["summary"] for c in hub.commits] == ["Add snapshots/test"]
    written = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert hub.files == written
    assert {"README.md", "eval.yaml", "ledger.parquet", "refbench.json"} <= set(hub.files)
    assert hub.files["ledger.parquet"] == b"a ledger"
    assert yaml.safe_load(hub.files["eval.yaml"])["evaluation_framework"] == "refbench"
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_uploads_that_fail(embedded: Path, tmp_path: Path, hub: Hub, refbench: Cli) -> None:
    def push(name: str, repo: str = "me/cleaned", **environment: str) -> Any:
        words = ("export", "snapshots/test", "--format", "hf", "--out", tmp_path / name, "--push", repo)
        return refbench(*words, **{"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, **environment})

    hub.refuse = 401
    done = push("a")
    assert (done.returncode, hub.files) == (3, {})
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    hub.refuse = 0
    assert "is not a name of the hub" in push("b", "no name").stderr
    assert "HF_HUB_OFFLINE is set" in push("c", HF_HUB_OFFLINE="1").stderr
    gone = push("d", HF_ENDPOINT="http://127.0.0.1:9")
    assert gone.returncode == 3
    assert "check the network" in gone.stderr
    assert (
        refbench("export", "snapshots/test", "--format", "coco", "--out", tmp_path / "e", "--push", "a/b").returncode
        == 2
    )
