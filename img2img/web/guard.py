"""Who may ask, and how much they may send: ASGI middleware before the page and the API alike."""

import ipaddress
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.web.limits import RefusedError

MULTIPART = 65_536
"""What a form adds to the picture in it."""

DRAIN = 4
"""A body that is too large is read on, and thrown away, up to this many times the bound: who is still sending cannot read why."""

HEADERS = {
    # The page needs inline scripts, styles and pictures of its own; everything comes from this service, and goes to it.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Refuses requests by foreign names, from foreign pages and of too many bytes; sets the headers that keep the page at home.

    Args:
        app: what is guarded.
        hosts: the names under which the service may be reached. With one of them in `Host` a web page elsewhere, whose name
            was pointed at this machine (DNS rebinding), is refused.
        any_address: reaching it by an IP address is fine too; names alone can be rebound.
        body_bytes: of a request's body.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str], any_address: bool, body_bytes: int) -> None:
        self.app, self._hosts, self._any_address = app, frozenset(h.lower() for h in hosts), any_address
        self._bytes = body_bytes + MULTIPART

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        body = _Body(receive, self._bytes)
        send = _with_headers(send)
        try:
            self._check_sender(scope["method"], headers)
            body.check_length(headers.get("content-length"))
        except RefusedError as refused:
            await body.drain()
            await send_error(send, refused)
            return
        began = False

        async def forward(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, body.receive, forward)
        except RefusedError as refused:
            if began:
                raise
            await body.drain()
            await send_error(send, refused)

    def _check_sender(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        name = _host_name(host)
        if not (name in self._hosts or (self._any_address and _is_address(name))):
            raise RefusedError(403, f"this service is not called {name!r}: use the address it was started with")
        if method in ("GET", "HEAD"):
            return
        origin = headers.get("origin")
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign or (origin is not None and urlsplit(origin).netloc.lower() != host.lower()):
            raise RefusedError(403, "a page of another site may not use this service: use its own page, or a program")


class _Body:
    """A request's body as it comes, no longer than its bound."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._seen, self._ended = receive, most, 0, False

    def check_length(self, declared: str | None) -> None:
        if declared is not None and (not declared.isdecimal() or int(declared) > self._most):
            raise self._refusal()

    async def receive(self) -> Message:
        message = await self._next()
        if self._seen > self._most:
            raise self._refusal()
        return message

    async def drain(self) -> None:
        while not self._ended and self._seen <= DRAIN * self._most:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _refusal(self) -> RefusedError:
        return RefusedError(413, f"too many bytes: expected {self._most - MULTIPART:,} at most; send a smaller file")


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            headers.update(HEADERS)
        await send(message)

    return with_headers


async def send_error(send: Send, refused: RefusedError) -> None:
    """Answer with a refusal as JSON, `{"error": ...}`."""
    content = error_body(refused.message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refused.status == 503:
        headers.append((b"retry-after", b"2"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def error_body(message: Any) -> bytes:
    """The JSON of an error."""
    return json.dumps({"error": str(message)}, ensure_ascii=False).encode()


def _host_name(host: str) -> str:
    """The name or address in a `Host` header, without the port and the brackets of IPv6."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
