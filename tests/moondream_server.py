"""A server on loopback that answers as Moondream's segmentation does, and misbehaves on demand."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

BOX = {"x_min": 0.125, "y_min": 0.25, "x_max": 0.875, "y_max": 0.75}
PATH = "M.5 0C.776 0 1 .224 1 .5S.776 1 .5 1 0 .776 0 .5.224 0 .5 0z"


@dataclass
class Service:
    """How it behaves. `next` are behaviours for the next requests, one each; `always` for all of them."""

    key: str = "a-key-that-must-not-leak"
    next: list[str] = field(default_factory=list)
    always: str = ""
    # Expressions that are answered with 500, always.
    refuse: set[str] = field(default_factory=set)
    delay_seconds: float = 0.0
    expressions: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    times: list[float] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            with service.lock:
                service.at_once += 1
                service.most_at_once = max(service.most_at_once, service.at_once)
                service.times.append(time.monotonic())
                how = service.next.pop(0) if service.next else service.always
            try:
                self._answer(how)
            finally:
                with service.lock:
                    service.at_once -= 1

        def _answer(self, how: str) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(service.delay_seconds)
            if self.headers.get("X-Moondream-Auth") != service.key:
                self._send(401, {"error": f"unknown key {self.headers.get('X-Moondream-Auth')}"})
                return
            kind, _, data = body["image_url"].partition(";base64,")
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            with service.lock:
                service.expressions.append(body["object"])
                service.sizes.append((image.height, image.width))
                service.kinds.append(kind)
            if body["object"] in service.refuse:
                self._send(500, {"error": "not this one"})
            elif how == "error-in-200":
                self._send(200, {"error": "overloaded"})
            elif how.isdigit():
                self._send(int(how), {"error": f"{'x' * 175} {how} for {service.key}"})
            elif how == "ctrl-c":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)
                self._send(200, {"path": PATH, "bbox": BOX})
            elif how == "wait":
                self._send(429, {"error": "slow down"}, {"Retry-After": "1"})
            elif how == "redirect":
                self._send(307, {}, {"Location": "/elsewhere"})
            elif how == "slow":
                # Until the client has lost patience and asks again.
                before = len(service.times)
                while len(service.times) == before:
                    time.sleep(0.01)
                self._send(200, {"path": PATH, "bbox": BOX})
            elif how == "truncated":
                content = json.dumps({"path": PATH, "bbox": BOX}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif how == "html":
                self._send(200, "<html>maintenance</html>")
            else:
                answer = {"path": PATH, "bbox": BOX, "finish_reason": "stop", "request_id": "r1"}
                answer.update(
                    {
                        "empty": {"path": ""},
                        "broken": {"path": "M 0 0 C 1 2"},
                        "no-box": {"bbox": None},
                        "flat-box": {"bbox": {**BOX, "x_max": BOX["x_min"]}},
                        "parse-error": {"parse_error": "unexpected token"},
                        "cut": {"finish_reason": "length"},
                    }.get(how, {})
                )
                self._send(200, answer)

        def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
