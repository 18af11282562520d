"""Clients of the review page that send a part of a request, or nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from events import wait_until

uvicorn = pytest.importorskip("uvicorn")
starlette = pytest.importorskip("starlette")

from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from refbench.curation.review import connections  # noqa: E402


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse((await request.body()).decode())

    app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])])
    config = uvicorn.Config(app, "127.0.0.1", 0, http=connections.BoundedProtocol, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def answer(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    out = b""
    while block := client.recv(4096):
        out += block
    return out


PARTS = {
    "nothing": b"",
    "a part of the head": b"POST / HTTP/1.1\r\nHost: x\r\n",
    "a part of the body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
    "a request and a part of the next one": b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP",
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_of_a_request_is_not_waited_for(kind: str, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(PARTS[kind])
        # Ends, since the server closes the connection.
        assert (b"200 OK" in answer(client)) == (kind == "a request and a part of the next one")


def test_whole_requests_are_answered(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        client.sendall(b"cde")
        found = client.recv(4096)
        while b"abcde" not in found:
            found += client.recv(4096)
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        assert answer(client).endswith(b"ok")
