"""A dataset repository on loopback that answers as the Hugging Face hub does, and misbehaves on demand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "2f2f892835bbf44b4db81f1c4ad6d46a3e9e4359"


@dataclass
class Hub:
    """What the server holds and how it behaves. `requests` keeps (method, path, Range or "", has a token)."""

    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    requests: list[tuple[str, str, str, bool]] = field(default_factory=list)
    # Statuses for the next GETs, one each, before it serves.
    fail_next: list[int] = field(default_factory=list)
    # Statuses for all requests of a path.
    always: int = 0
    # The next GET ends after this share of the file.
    cut_next: list[float] = field(default_factory=list)
    # After a cut everything is refused, as if the network were gone.
    refuse_after_cut: bool = False
    html: bool = False
    redirect_to: str = ""
    # Other bytes of the same length than the etag promises.
    corrupt: bool = False
    states_etag: bool = True
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            # As a proxy it is asked with the whole address.
            path = unquote(urlsplit(self.path).path)
            method = "GET" if with_body else "HEAD"
            hub.requests.append(
                (method, path, self.headers.get("Range", ""), "authorization" in {k.lower() for k in self.headers})
            )
            if hub.html:
                return self._send(200, b"<html>Welcome to the wireless network of the hotel</html>", with_body)
            if hub.always:
                return self._send(hub.always, b"no", with_body)
            if with_body and hub.fail_next:
                return self._send(hub.fail_next.pop(0), b"later", True, {"Retry-After": "0"})
            name = path.partition(f"/resolve/{hub.commit}/")[2] or path.partition("/resolve/main/")[2] or path[1:]
            if name not in hub.files:
                known = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit}
                return self._send(404, b"", with_body, known)
            content = hub.files[name]
            etag = hashlib.sha256(content).hexdigest() if hub.states_etag else "0" * 40
            headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
            if hub.redirect_to:
                headers |= {"Location": f"{hub.redirect_to}/{name}", "X-Linked-Size": str(len(content))}
                return self._send(302, b"", with_body, {**headers, "X-Linked-Etag": f'"{etag}"'})
            if hub.corrupt:
                content = bytes(255 - b for b in content)
            status, start = 200, 0
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes="):
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(status, content[start:], with_body, headers)

        def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not with_body:
                return
            if status in (200, 206) and hub.cut_next:
                self.wfile.write(body[: int(len(body) * hub.cut_next.pop(0))])
                self.close_connection = True
                hub.always = 403 if hub.refuse_after_cut else 0
                return
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
