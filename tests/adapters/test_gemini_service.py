"""Gemini against a server on loopback: a run from image to mask, and a key that goes nowhere."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refbench import run, score
from refbench.adapters.contract import FAILED, check_adapter
from refbench.errors import RunStopped
from refbench.plugins.loading import load_adapter
from refbench.runs.folder import RunFolder
from refbench.storage.files import read_table
from refbench.storage.predictions import predictions_from_table

KEY = "another-key-that-must-not-leak"


def png(level: int) -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, object]]]]:
    asked: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "body": body})
            entry = {"box_2d": [250, 250, 750, 750], "mask": f"data:image/png;base64,{png(255)}", "label": "it"}
            text = json.dumps([entry])
            status = 200 if self.headers.get("x-goog-api-key") == KEY else 400
            refused = {"error": {"status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}
            answer = {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}]}
            content = json.dumps(answer if status == 200 else refused).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    yield f"http://127.0.0.1:{server.server_port}/v1beta", asked
    server.shutdown()
    server.server_close()


def test_a_run(
    photos: Path, service: tuple[str, list[dict[str, object]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, asked = service
    options = {"endpoint": endpoint, "cache": str(tmp_path / "cache"), "model": "gemini-test"}
    result = run("gemini", "refcoco/testB", options=options, limit=6, out=tmp_path / "run")
    assert result.failures == 0
    assert result.notes == {"mask as PNG": 6}
    score(result.folder)
    rows = [p for path in RunFolder(result.folder).written for p in predictions_from_table(read_table(path))]
    assert all(abs(p.mask.area / (p.mask.height * p.mask.width) - 0.25) < 0.02 for p in rows)
    assert {a["path"] for a in asked} == {"/v1beta/models/gemini-test:generateContent"}
    body = asked[0]["body"]
    assert body["generationConfig"]["thinkingConfig"] == {"thinkingBudget": 0}  # type: ignore[index]
    assert [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()] == []
    adapter = load_adapter("gemini", options)
    assert {c.name: c.detail for c in check_adapter(adapter) if c.verdict == FAILED} == {}
    adapter.close()
    monkeypatch.setenv("GEMINI_API_KEY", "wrong")
    with pytest.raises(RunStopped, match="400: the key is refused"):
        run("gemini", "refcoco/val", options=options, limit=3, out=tmp_path / "wrong")
