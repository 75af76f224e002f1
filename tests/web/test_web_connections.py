"""Clients that stall, at every stage of a request, and clients that are many."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from img2img.web import security
from img2img.web.connections import Connection

HEAD = "Host: localhost\r\nContent-Length: 1000\r\n"
STALLED = {
    "nothing": "",
    "half a line": "GET /api",
    "half the headers": "GET / HTTP/1.1\r\nHost: local",
    "no body for the API": f"POST /api/v1/run/colour HTTP/1.1\r\n{HEAD}\r\n",
    "half a body for the API": f"POST /api/v1/run/colour HTTP/1.1\r\n{HEAD}\r\nabc",
    "half a form": f"POST /api/v1/run/colour HTTP/1.1\r\n{HEAD}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n",
    "a refused body": f"POST /api/v1/run/colour HTTP/1.1\r\n{HEAD.replace('localhost', 'evil')}\r\n",
    "a body that nobody reads": f"GET /api/v1/health HTTP/1.1\r\n{HEAD}\r\n",
    "half of a second request": "GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /",
    "half a chunk": "POST /api/v1/run/colour HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
}


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Times of a second in place of ten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "head_seconds", 1.0)
        patch.setattr(security, "DRAIN_SECONDS", 1.0)
        yield


def address(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rsplit(":")[-1])


def until_closed(connection: socket.socket, *, trickle: bytes, seconds: float) -> bytes:
    """What came until the other side closed, while a byte is sent now and then."""
    until, got = time.monotonic() + seconds, b""
    connection.settimeout(0.2)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                more = connection.recv(65_536)
                if not more:
                    return got
                got += more
            connection.sendall(trickle)
        raise AssertionError(f"still open after {seconds} s, with {got[:60]!r}")
    return got


@pytest.mark.parametrize("trickle", [b"", b"a"], ids=["silent", "trickling"])
def test_a_client_that_stalls_is_let_go(quick: None, local: Callable[..., str], reference: Any, trickle: bytes) -> None:
    url = local(reference, upload_seconds=2)
    with contextlib.ExitStack() as stack:
        stalled = {}
        for name, first in STALLED.items():
            stalled[name] = stack.enter_context(socket.create_connection(address(url), timeout=20))
            stalled[name].sendall(first.encode())
        for name, connection in stalled.items():
            got = until_closed(connection, trickle=trickle if name != "nothing" else b"", seconds=30)
            expected = {"nothing": b"", "a refused body": b"403", "a body that nobody reads": b"200"}.get(name, b"408")
            assert expected in got, name
    assert httpx.get(f"{url}/api/v1/health").json()["waiting"] == 0


def test_an_answer_that_is_not_taken_is_given_up(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, upload_seconds=1)
    ask = b"GET /api/v1/samples/coffee HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(address(url))
        slow.sendall(30 * ask)  # for more answers than the system holds for a client
        for _ in range(300):
            try:
                slow.sendall(ask)
            except (ConnectionResetError, BrokenPipeError):
                return
            time.sleep(0.1)
    raise AssertionError("still open after 30 s")


def test_idle_connections_make_room(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, connections=10)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address(url), timeout=20)) for _ in range(40)]
        assert httpx.get(f"{url}/api/v1/health").status_code == 200
        idle[0].settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(10) == b""  # the first of them had to go


def test_busy_connections_are_no_more_than_may_be(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, connections=4)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            busy = stack.enter_context(socket.create_connection(address(url), timeout=20))
            busy.sendall(STALLED["no body for the API"].encode())
        time.sleep(0.5)
        answer = httpx.get(f"{url}/api/v1/health")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "too many connections" in answer.json()["error"]
    time.sleep(0.5)
    assert httpx.get(f"{url}/api/v1/health").status_code == 200


def test_one_address_does_not_take_them_all(local: Callable[..., str], reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "_address", "192.0.2.1")
    url = local(reference, connections=100, address_connections=2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(socket.create_connection(address(url), timeout=20))
            busy.sendall(STALLED["no body for the API"].encode())
        time.sleep(0.5)
        assert httpx.get(f"{url}/api/v1/health").status_code == 503
